//! Attention, and the rotary positions of its queries and keys.

use candle_core::{D, DType, Device, Result as CandleResult, Tensor};
use diptych::ops::{self, AttentionMask, RotaryPairs};

use super::{check, flat, operand};

/// Attention by definition, with the mask as a function. A fourth operand is added to the scores.
fn plain_attention(x: &[Tensor], heads: usize, seen: impl Fn(usize, usize, usize) -> bool) -> CandleResult<Tensor> {
    let (batch, queries, size) = x[0].dims3()?;
    let keys = x[1].dim(1)?;
    let width = size / heads;
    let split = |x: &Tensor, l: usize| x.reshape((batch, l, heads, width))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(&x[0], queries)?, split(&x[1], keys)?, split(&x[2], keys)?);
    let mut scores = (q.matmul(&k.t()?.contiguous()?)? / (width as f64).sqrt())?;
    if let Some(bias) = x.get(3) {
        scores = scores.broadcast_add(bias)?;
    }
    let mut mask = Vec::new();
    for b in 0..batch {
        for i in 0..queries {
            mask.extend((0..keys).map(|j| f64::from(u8::from(seen(b, i, j)))));
        }
    }
    let mask = Tensor::from_vec(mask, (batch, 1, queries, keys), x[0].device())?;
    let weights = scores.exp()?.broadcast_mul(&mask)?;
    // Where no key is seen, 0 is divided by 1.
    let blind = mask.max_keepdim(D::Minus1)?.affine(-1.0, 1.0)?;
    let total = weights.sum_keepdim(D::Minus1)?.broadcast_add(&blind)?;
    let out = weights.broadcast_div(&total)?.matmul(&v)?;
    out.transpose(1, 2)?.contiguous()?.reshape((batch, queries, size))
}

#[test]
fn attention_agrees_with_its_definition() {
    for (batch, length, heads, width) in [(1, 1, 1, 1), (2, 3, 2, 4), (1, 7, 3, 5), (3, 17, 1, 8), (2, 65, 2, 16)] {
        let shape = [batch, length, heads * width];
        let operands = [operand(1, &shape), operand(2, &shape), operand(3, &shape)];
        let name = format!("attention {batch}x{length}x{heads}x{width}");
        let run = |mask: AttentionMask| move |x: &[Tensor]| ops::attention(&x[0], &x[1], &x[2], heads, &mask);
        check(&name, &operands, run(AttentionMask::none()), |x| plain_attention(x, heads, |_, _, _| true));
        check(&format!("{name} causal"), &operands, run(AttentionMask::causal()), |x| {
            plain_attention(x, heads, |_, i, j| j <= i)
        });
        // Trailing padding, a hole, and a row without any key.
        let keep: Vec<bool> = (0..batch * length)
            .map(|i| (i / length, i % length))
            .map(|(b, j)| b != 1 && j != 1 && (j < length - b || j == 0))
            .collect();
        let padded = |mask: AttentionMask| mask.with_key_padding(keep.clone(), batch, length).unwrap();
        check(&format!("{name} padded"), &operands, run(padded(AttentionMask::none())), |x| {
            plain_attention(x, heads, |b, _, j| keep[b * length + j])
        });
        check(&format!("{name} causal padded"), &operands, run(padded(AttentionMask::causal())), |x| {
            plain_attention(x, heads, |b, i, j| j <= i && keep[b * length + j])
        });
        // Padding before the text: the first queries of a causal mask see nothing.
        let keep: Vec<bool> = (0..batch * length).map(|i| i % length >= 2).collect();
        let left = AttentionMask::causal().with_key_padding(keep.clone(), batch, length).unwrap();
        check(&format!("{name} causal, padded on the left"), &operands, run(left), |x| {
            plain_attention(x, heads, |b, i, j| j <= i && keep[b * length + j])
        });
        // A window, in which some queries see padding only.
        for reach in [0, 2, length] {
            let local = AttentionMask::local(reach).with_key_padding(keep.clone(), batch, length).unwrap();
            check(&format!("{name} local {reach}"), &operands, run(local), |x| {
                plain_attention(x, heads, |b, i, j| i.abs_diff(j) <= reach && keep[b * length + j])
            });
        }
        let [q, k, v] = operands;
        let bias = (operand(8, &[heads, length, length]) * 3.0).unwrap();
        let mask = AttentionMask::local(3).with_key_padding(keep.clone(), batch, length).unwrap();
        let seen = |b: usize, i: usize, j: usize| i.abs_diff(j) <= 3 && keep[b * length + j];
        let biased = |x: &[Tensor], bias: &Tensor| {
            let mask = mask.clone().with_bias(bias.to_dtype(x[0].dtype())?)?;
            ops::attention(&x[0], &x[1], &x[2], heads, &mask)
        };
        let operands = [q, k, v, bias];
        check(
            &format!("{name} with a trained bias"),
            &operands,
            |x| biased(x, &x[3]),
            |x| plain_attention(x, heads, seen),
        );
        check(
            &format!("{name} with a constant bias"),
            &operands[..3],
            |x| biased(x, &operands[3]),
            |x| plain_attention(&[x[0].clone(), x[1].clone(), x[2].clone(), operands[3].clone()], heads, seen),
        );
    }
}

#[test]
fn attention_takes_fewer_queries_than_keys_and_strided_operands() {
    let operands = [operand(1, &[2, 3, 8]), operand(2, &[2, 7, 8]), operand(3, &[2, 7, 8])];
    check(
        "attention of 3 queries on 7 keys",
        &operands,
        |x| ops::attention(&x[0], &x[1], &x[2], 2, &AttentionMask::none()),
        |x| plain_attention(x, 2, |_, _, _| true),
    );
    let packed = [operand(4, &[2, 5, 24])];
    let part = |x: &Tensor, i: usize| x.narrow(2, 8 * i, 8);
    check(
        "attention on parts of one tensor",
        &packed,
        |x| ops::attention(&part(&x[0], 0)?, &part(&x[0], 1)?, &part(&x[0], 2)?, 2, &AttentionMask::none()),
        |x| plain_attention(&[part(&x[0], 0)?, part(&x[0], 1)?, part(&x[0], 2)?], 2, |_, _, _| true),
    );
}

#[test]
fn attention_survives_scores_that_would_overflow() {
    let large = (operand(1, &[1, 5, 4]) * 100.0).unwrap().to_dtype(DType::F32).unwrap();
    let v = operand(2, &[1, 5, 4]).to_dtype(DType::F32).unwrap();
    let y = ops::attention(&large, &large, &v, 1, &AttentionMask::causal()).unwrap();
    assert!(flat(&y).iter().all(|v| v.is_finite()));
}

/// The columns of pair i of a head.
fn pair_columns(pairs: RotaryPairs, i: usize, width: usize) -> (usize, usize) {
    if pairs == RotaryPairs::Halves { (i, i + width / 2) } else { (2 * i, 2 * i + 1) }
}

#[test]
fn rotary_turns_every_pair_by_the_angle_of_its_token() {
    for pairs in [RotaryPairs::Halves, RotaryPairs::Interleaved] {
        for (batch, length, heads, width) in [(1, 1, 1, 2), (2, 3, 2, 4), (3, 17, 1, 6), (2, 65, 3, 16)] {
            let tables = [operand(5, &[length, width]), operand(6, &[length, width])];
            // The quarter turn (x_a, x_b) → (−x_b, x_a) as a matrix.
            let mut turn = vec![0f64; width * width];
            for (a, b) in (0..width / 2).map(|i| pair_columns(pairs, i, width)) {
                (turn[b * width + a], turn[a * width + b]) = (-1.0, 1.0);
            }
            let turn = Tensor::from_vec(turn, (width, width), &Device::Cpu).unwrap();
            check(
                &format!("rotary {pairs:?} {batch}x{length}x{heads}x{width}"),
                &[operand(7, &[batch, length, heads * width])],
                |x| {
                    let [cos, sin] = tables.clone().map(|table| table.to_dtype(x[0].dtype()).unwrap());
                    ops::rotary(&x[0], &cos, &sin, pairs)
                },
                |x| {
                    let split = x[0].reshape((batch * length * heads, width))?;
                    let shape = (batch, length, heads, width);
                    let [cos, sin] = tables.clone().map(|table| table.unsqueeze(1).unwrap());
                    let turned = split.matmul(&turn)?.reshape(shape)?.broadcast_mul(&sin)?;
                    (split.reshape(shape)?.broadcast_mul(&cos)? + turned)?.reshape((batch, length, heads * width))
                },
            );
        }
    }
}
