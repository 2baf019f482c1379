//! What is done to the rows of tokens: looking them up, adding, scaling, normalising, pooling.

use candle_core::{D, DType, Device, Result as CandleResult, Tensor, Var};
use diptych::ops;

use super::{check, flat, loss, operand};

#[test]
fn embedding_adds_up_the_gradients_of_repeated_ids() {
    for (entries, size, shape) in [(1, 1, (1, 1)), (7, 3, (2, 5)), (65, 17, (3, 65)), (1000, 33, (17, 7))] {
        let ids: Vec<u32> = (0..shape.0 * shape.1).map(|i| ((i * i * 31) % entries) as u32).collect();
        let index = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap();
        check(
            &format!("embedding {entries}x{size} {shape:?}"),
            &[operand(1, &[entries, size])],
            |x| ops::embedding(&x[0], &ids, shape),
            |x| x[0].index_select(&index, 0)?.reshape((shape.0, shape.1, size)),
        );
    }
}

#[test]
fn rows_are_added_and_scaled_at_every_place() {
    for (x, row) in [
        (vec![1, 1], vec![1]),
        (vec![3, 7, 17], vec![17]),
        (vec![3, 7, 17], vec![7, 17]),
        (vec![65, 17, 129], vec![17, 129]),
        (vec![129, 65], vec![65]),
        (vec![5, 3], vec![5, 3]),
    ] {
        let operands = [operand(1, &x), operand(2, &row)];
        check(&format!("add_row {x:?}"), &operands, |x| ops::add_row(&x[0], &x[1]), |x| x[0].broadcast_add(&x[1]));
        check(&format!("scale_row {x:?}"), &operands, |x| ops::scale_row(&x[0], &x[1]), |x| x[0].broadcast_mul(&x[1]));
    }
}

#[test]
fn normalised_rows_agree_with_the_definition() {
    for shape in [vec![1, 1], vec![3, 7], vec![65, 17], vec![2, 3, 65], vec![100, 384]] {
        let operands =
            [(operand(1, &shape) + 0.1).unwrap().to_dtype(DType::F32).unwrap().to_dtype(DType::F64).unwrap()];
        check(
            &format!("l2_normalize {shape:?}"),
            &operands,
            |x| ops::l2_normalize(&x[0]),
            |x| x[0].broadcast_div(&x[0].sqr()?.sum_keepdim(D::Minus1)?.sqrt()?),
        );
    }
}

#[test]
fn a_zero_row_normalises_to_zeros_with_a_finite_gradient() {
    for dtype in [DType::F32, DType::F64] {
        let x = Var::from_tensor(&Tensor::zeros((2, 5), dtype, &Device::Cpu).unwrap()).unwrap();
        let y = ops::l2_normalize(&x).unwrap();
        assert!(flat(&y).iter().all(|&v| v == 0.0));
        let grads = loss(&y).backward().unwrap();
        assert!(flat(grads.get(&x).unwrap()).iter().all(|v| v.is_finite()), "{dtype:?}");
    }
}

#[test]
fn pooling_agrees_with_plain_operations() {
    for (batch, length, size) in [(1, 1, 1), (3, 7, 17), (2, 65, 33), (17, 3, 129)] {
        let shape = [batch, length, size];
        let keep: Vec<bool> = (0..batch * length).map(|i| i / length != 1 && (i * 7) % 3 != 1).collect();
        let weights: Vec<f64> = keep
            .chunks(length)
            .flat_map(|row| {
                let count = row.iter().filter(|&&k| k).count().max(1) as f64;
                row.iter().map(move |&k| if k { 1.0 / count } else { 0.0 }).collect::<Vec<_>>()
            })
            .collect();
        let weights = Tensor::from_vec(weights, (batch, length, 1), &Device::Cpu).unwrap();
        check(
            &format!("mean_pool {shape:?}"),
            &[operand(1, &shape)],
            |x| ops::mean_pool(&x[0], &keep),
            |x| x[0].broadcast_mul(&weights)?.sum(1),
        );
        let positions: Vec<usize> = (0..batch).map(|b| (b * 5) % length).collect();
        check(
            &format!("select_tokens {shape:?}"),
            &[operand(1, &shape)],
            |x| ops::select_tokens(&x[0], &positions),
            |x| {
                let rows: Vec<_> =
                    positions.iter().enumerate().map(|(b, &l)| x[0].get(b)?.get(l)).collect::<CandleResult<_>>()?;
                Tensor::stack(&rows, 0)
            },
        );
    }
}
