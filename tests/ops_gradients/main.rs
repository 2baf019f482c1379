//! Every operation against a composition of plain candle operations in f64 (values and gradients of every operand),
//! against central finite differences, and with every choice of operands that nothing trains.

mod activation;
mod attention;
mod convolution;
mod tokens;

use candle_core::{D, DType, Device, Result as CandleResult, Tensor, Var};
use diptych::Result;
use diptych::ops::{self, Activation, AttentionMask, PackedWeight, Packing, RotaryPairs, Weight};

/// Largest error allowed, in parts of the largest value.
const TOLERANCE: f64 = 1e-5;

/// Values in (-1, 1) from a linear congruential generator.
fn values(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f64::from((state >> 40) as u32) / f64::from(1u32 << 23) - 1.0
        })
        // What f32 cannot hold would count as an error of the operation.
        .map(|v| f64::from(v as f32))
        .collect()
}

fn operand(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_vec(values(seed, shape.iter().product()), shape, &Device::Cpu).unwrap()
}

fn flat(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let (got, expected) = (flat(got), flat(expected));
    let largest = expected.iter().fold(1e-3f64, |a, b| a.max(b.abs()));
    for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
        assert!((g - e).abs() <= tolerance * largest, "{what}: element {i} is {g}, expected {e} (largest {largest})");
    }
}

/// A loss that weighs every output differently, so that errors cannot cancel.
fn loss(y: &Tensor) -> Tensor {
    let weights = operand(99, y.dims()).to_dtype(y.dtype()).unwrap();
    (y * weights).unwrap().sum_all().unwrap()
}

fn scalar(x: &Tensor) -> f64 {
    x.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

/// Runs all comparisons for one operation and one set of operands (f64 tensors whose values fit f32).
fn check(
    name: &str,
    operands: &[Tensor],
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Tensor]) -> CandleResult<Tensor>,
) {
    let vars = |dtype: DType| -> Vec<Var> {
        operands.iter().map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap()).collect()
    };
    let tensors = |vars: &[Var]| -> Vec<Tensor> { vars.iter().map(|v| v.as_tensor().clone()).collect() };

    let exact = vars(DType::F64);
    let expected = reference(&tensors(&exact)).unwrap();
    let expected_grads = loss(&expected).backward().unwrap();
    for dtype in [DType::F32, DType::F64] {
        let inputs = vars(dtype);
        let got = op(&tensors(&inputs)).unwrap();
        assert_eq!(got.dtype(), dtype, "{name}");
        assert_close(&format!("{name} {dtype:?} forward"), &got, &expected, TOLERANCE);
        let grads = loss(&got).backward().unwrap();
        for (i, (input, exact)) in inputs.iter().zip(&exact).enumerate() {
            let got = grads.get(input).unwrap_or_else(|| panic!("{name} {dtype:?}: operand {i} has no gradient"));
            let what = format!("{name} {dtype:?} gradient of operand {i}");
            assert_close(&what, got, expected_grads.get(exact).unwrap(), TOLERANCE);
        }
    }
    check_finite_differences(name, operands, &op);
    check_untracked(name, operands, &op);
}

/// The gradient of the f32 kernels against differences of the f64 composition, on a few elements of every operand.
fn check_finite_differences(name: &str, operands: &[Tensor], op: &impl Fn(&[Tensor]) -> Result<Tensor>) {
    const STEP: f64 = 1e-5;
    let inputs: Vec<Var> =
        operands.iter().map(|x| Var::from_tensor(&x.to_dtype(DType::F32).unwrap()).unwrap()).collect();
    let tensors: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
    let grads = loss(&op(&tensors).unwrap()).backward().unwrap();
    for (i, input) in inputs.iter().enumerate() {
        let grad = flat(grads.get(input).unwrap());
        let largest = grad.iter().fold(1e-2f64, |a, b| a.max(b.abs()));
        let values = flat(&operands[i]);
        for element in (0..values.len()).step_by(values.len() / 5 + 1) {
            let moved = |by: f64| {
                let mut values = values.clone();
                values[element] += by;
                let mut operands = operands.to_vec();
                operands[i] = Tensor::from_vec(values, operands[i].shape(), &Device::Cpu).unwrap();
                scalar(&loss(&op(&operands).unwrap()))
            };
            let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            assert!(
                (difference - grad[element]).abs() <= 2.0 * TOLERANCE * largest,
                "{name}: operand {i} element {element}: gradient {} but difference {difference}",
                grad[element]
            );
        }
    }
}

/// With one operand trained at a time, that one gets the gradient it always had and the others get none.
fn check_untracked(name: &str, operands: &[Tensor], op: &impl Fn(&[Tensor]) -> Result<Tensor>) {
    let all: Vec<Var> = operands.iter().map(|x| Var::from_tensor(&x.to_dtype(DType::F32).unwrap()).unwrap()).collect();
    let tensors: Vec<Tensor> = all.iter().map(|v| v.as_tensor().clone()).collect();
    let all_grads = loss(&op(&tensors).unwrap()).backward().unwrap();
    for trained in 0..operands.len() {
        let inputs: Vec<Tensor> = all
            .iter()
            .enumerate()
            .map(|(i, v)| if i == trained { v.as_tensor().clone() } else { v.detach() })
            .collect();
        let grads = loss(&op(&inputs).unwrap()).backward().unwrap();
        for (i, input) in inputs.iter().enumerate() {
            assert_eq!(grads.get(input).is_some(), i == trained, "{name}: operand {i} with {trained} trained");
            assert_eq!(ops::is_tracked(input), i == trained);
        }
        let (got, expected) = (grads.get(&inputs[trained]).unwrap(), all_grads.get(&all[trained]).unwrap());
        assert_close(&format!("{name}: only operand {trained} trained"), got, expected, 1e-6);
    }
    let frozen: Vec<Tensor> = all.iter().map(|v| v.detach()).collect();
    assert!(!ops::is_tracked(&op(&frozen).unwrap()), "{name}: the result of frozen operands is tracked");
}

#[test]
fn linear_agrees_with_a_product_of_matrices() {
    for (rows, inputs, outputs) in [(1, 1, 1), (3, 7, 17), (65, 17, 3), (130, 65, 33), (300, 96, 80), (20, 160, 300)] {
        let operands = [operand(1, &[rows, inputs]), operand(2, &[outputs, inputs]), operand(3, &[outputs])];
        let name = format!("linear {rows}x{inputs}x{outputs}");
        check(
            &name,
            &operands,
            |x| ops::linear(&x[0], &x[1], Some(&x[2])),
            |x| x[0].matmul(&x[1].t()?)?.broadcast_add(&x[2]),
        );
        check(&name, &operands[..2], |x| ops::linear(&x[0], &x[1], None), |x| x[0].matmul(&x[1].t()?));
    }
}

#[test]
fn a_frozen_layer_with_a_low_rank_addition_agrees_with_two_products() {
    for (rows, inputs, outputs, rank) in [(5, 7, 9, 2), (40, 64, 96, 8), (3, 16, 16, 1)] {
        let (weight, bias) = (operand(4, &[outputs, inputs]), operand(5, &[outputs]));
        let operands = [operand(1, &[rows, inputs]), operand(2, &[rows, rank]), operand(3, &[outputs, rank])];
        for packing in [Packing::None, Packing::Float] {
            let (weight32, bias32) = (weight.to_dtype(DType::F32).unwrap(), bias.to_dtype(DType::F32).unwrap());
            let layer = PackedWeight::pack(&weight32, packing).unwrap().map_or(Weight::Plain(weight32), Weight::Packed);
            check(
                &format!("low rank {packing:?} {rows}x{inputs}x{outputs}"),
                &operands,
                |x| match x[0].dtype() {
                    DType::F32 => layer.forward_with(&x[0], Some(&bias32), &x[1], &x[2]),
                    _ => Weight::Plain(weight.clone()).forward_with(&x[0], Some(&bias), &x[1], &x[2]),
                },
                |x| x[0].matmul(&weight.t()?)?.broadcast_add(&bias)? + x[1].matmul(&x[2].t()?)?,
            );
        }
    }
}

#[test]
fn linear_takes_any_rank_and_strides() {
    let operands = [operand(1, &[3, 5, 7]), operand(2, &[7, 4])];
    check(
        "linear on a transposed x and weight",
        &operands,
        |x| ops::linear(&x[0].transpose(0, 1)?, &x[1].t()?, None),
        |x| x[0].transpose(0, 1)?.contiguous()?.reshape((15, 7))?.matmul(&x[1])?.reshape((5, 3, 4)),
    );
    let narrow = [operand(1, &[4, 9]), operand(2, &[6, 20])];
    check(
        "linear on parts of x and weight",
        &narrow,
        |x| ops::linear(&x[0].narrow(1, 2, 5)?, &x[1].narrow(1, 3, 5)?, None),
        |x| x[0].narrow(1, 2, 5)?.contiguous()?.matmul(&x[1].narrow(1, 3, 5)?.t()?.contiguous()?),
    );
    let vector = [operand(1, &[7]), operand(2, &[3, 7])];
    check(
        "linear on a vector",
        &vector,
        |x| ops::linear(&x[0], &x[1], None),
        |x| x[0].unsqueeze(0)?.matmul(&x[1].t()?)?.squeeze(0),
    );
}

#[test]
fn layer_norm_agrees_with_its_definition() {
    for shape in [vec![1, 1, 7], vec![2, 3, 65], vec![17, 3], vec![3, 100, 33], vec![1, 384]] {
        let size = *shape.last().unwrap();
        let operands = [operand(1, &shape), operand(2, &[size]), operand(3, &[size])];
        check(
            &format!("layer_norm {shape:?}"),
            &operands,
            |x| ops::layer_norm(&x[0], &x[1], &x[2], 1e-5),
            |x| {
                let centred = x[0].broadcast_sub(&x[0].mean_keepdim(D::Minus1)?)?;
                let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
                let normal = centred.broadcast_div(&(variance + 1e-5)?.sqrt()?)?;
                normal.broadcast_mul(&x[1])?.broadcast_add(&x[2])
            },
        );
    }
}

#[test]
fn layer_norm_keeps_its_digits_beside_a_large_mean() {
    let row: Vec<f64> = values(5, 384).iter().map(|v| f64::from((1000.0 + v) as f32)).collect();
    let x = Tensor::from_vec(row, (1, 384), &Device::Cpu).unwrap();
    let (weight, bias) = (Tensor::ones(384, DType::F64, &Device::Cpu).unwrap(), operand(6, &[384]));
    let run = |dtype: DType| {
        let cast = |t: &Tensor| t.to_dtype(dtype).unwrap();
        ops::layer_norm(&cast(&x), &cast(&weight), &cast(&bias), 1e-5).unwrap()
    };
    // Half a unit in the last place of 1000 is 3e-5, and the mean may be off by as much.
    assert_close("layer_norm around 1000", &run(DType::F32), &run(DType::F64), 1e-4);
}

#[test]
fn empty_batches_give_empty_results() {
    for dtype in [DType::F32, DType::F64] {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
        let x = Var::from_tensor(&zeros(&[0, 3, 4])).unwrap();
        let (weight, row) = (Var::from_tensor(&zeros(&[6, 4])).unwrap(), Var::from_tensor(&zeros(&[4])).unwrap());
        let bias = zeros(&[6]);
        let mask = AttentionMask::none().with_key_padding(Vec::new(), 0, 3).unwrap();
        let results = [
            (ops::linear(&x, &weight, Some(&bias)).unwrap(), vec![0, 3, 6]),
            (ops::linear(&x, &weight, None).unwrap(), vec![0, 3, 6]),
            (ops::linear_activate(&x, &weight, Some(&bias), Activation::Gelu).unwrap(), vec![0, 3, 6]),
            (ops::layer_norm(&x, &row, &row, 1e-5).unwrap(), vec![0, 3, 4]),
            (ops::attention(&x, &x, &x, 2, &mask).unwrap(), vec![0, 3, 4]),
            (ops::activate(&x, Activation::Gelu).unwrap(), vec![0, 3, 4]),
            (ops::embedding(&weight, &[], (0, 3)).unwrap(), vec![0, 3, 4]),
            (ops::add_row(&x, &row).unwrap(), vec![0, 3, 4]),
            (ops::scale_row(&x, &row).unwrap(), vec![0, 3, 4]),
            (ops::l2_normalize(&x).unwrap(), vec![0, 3, 4]),
            (ops::mean_pool(&x, &[]).unwrap(), vec![0, 4]),
            (ops::select_tokens(&x, &[]).unwrap(), vec![0, 4]),
        ];
        for (i, (result, shape)) in results.iter().enumerate() {
            assert_eq!(result.dims(), shape, "result {i}");
            loss(result).backward().unwrap();
        }
    }
}

#[test]
fn wrong_shapes_are_refused_by_name() {
    let x = operand(1, &[2, 3, 4]);
    let says = |error: diptych::Error, words: &[&str]| {
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text:?} should contain {words:?}");
    };
    let none = AttentionMask::none();
    says(ops::linear(&x, &operand(2, &[6, 5]), None).unwrap_err(), &["x", "[2, 3, 4]", "[6, 5]"]);
    says(ops::linear(&x, &operand(2, &[4]), None).unwrap_err(), &["weight", "[4]"]);
    says(ops::linear(&x, &operand(2, &[6, 4]), Some(&operand(3, &[4]))).unwrap_err(), &["bias", "[4]", "[6, 4]"]);
    says(ops::layer_norm(&x, &operand(2, &[3]), &operand(2, &[4]), 1e-5).unwrap_err(), &["weight", "[3]", "[2, 3, 4]"]);
    says(ops::attention(&x, &x, &operand(1, &[2, 5, 4]), 2, &none).unwrap_err(), &["v", "[2, 5, 4]", "[2, 3, 4]"]);
    says(ops::attention(&x, &x, &x, 3, &none).unwrap_err(), &["num_heads", "3", "4"]);
    says(ops::attention(&x, &x, &x, 0, &none).unwrap_err(), &["num_heads", "0"]);
    let biased = |shape: &[usize]| AttentionMask::none().with_bias(operand(1, shape));
    says(biased(&[3, 3]).unwrap_err(), &["bias", "[3, 3]"]);
    let mask = biased(&[2, 3, 4]).unwrap();
    says(ops::attention(&x, &x, &x, 2, &mask).unwrap_err(), &["bias", "[2, 3, 4]", "(2, 3, 3)"]);
    says(ops::embedding(&operand(1, &[5, 2]), &[1, 5], (1, 2)).unwrap_err(), &["ids", "5"]);
    says(ops::embedding(&operand(1, &[5, 2]), &[1, 4], (1, 3)).unwrap_err(), &["ids", "2 values"]);
    says(ops::add_row(&x, &operand(1, &[2, 3])).unwrap_err(), &["row", "[2, 3]", "[2, 3, 4]"]);
    says(ops::scale_row(&x, &operand(1, &[1, 1, 3, 4])).unwrap_err(), &["row", "[1, 1, 3, 4]"]);
    let table = operand(1, &[3, 4]);
    says(ops::rotary(&x, &operand(1, &[2, 4]), &table, RotaryPairs::Halves).unwrap_err(), &["cos", "[2, 4]", "(3, D)"]);
    says(ops::rotary(&x, &table, &operand(1, &[3, 2]), RotaryPairs::Halves).unwrap_err(), &["sin", "[3, 2]", "[3, 4]"]);
    says(ops::mean_pool(&x, &[true; 5]).unwrap_err(), &["keep", "5 values"]);
    says(ops::select_tokens(&x, &[0, 3]).unwrap_err(), &["positions", "3", "row 1"]);
}
