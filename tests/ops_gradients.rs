//! Every operation against a composition of plain candle operations in f64 (values and gradients of every operand),
//! against central finite differences, and with every choice of operands that nothing trains.

use candle_core::{D, DType, Device, Result as CandleResult, Tensor, Var};
use diptych::Result;
use diptych::ops::{self, Activation, AttentionMask, RotaryPairs, Window};

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

const ACTIVATIONS: [Activation; 6] = [
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Relu,
    Activation::Silu,
    Activation::Tanh,
];

fn plain_activation(x: &Tensor, activation: Activation) -> CandleResult<Tensor> {
    let sigmoid = |x: Tensor| (x.neg()?.exp()? + 1.0)?.recip();
    match activation {
        Activation::Gelu => (x * (((x / 2f64.sqrt())?.erf()? + 1.0)? / 2.0)?)?.contiguous(),
        Activation::GeluTanh => {
            let inner = ((x + (x.powf(3.0)? * 0.044715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
            (x * (inner.tanh()? + 1.0)?)? / 2.0
        }
        Activation::QuickGelu => x * sigmoid((x * 1.702)?)?,
        Activation::Relu => x.relu(),
        Activation::Silu => x * sigmoid(x.clone())?,
        Activation::Tanh => x.tanh(),
    }
}

#[test]
fn activations_agree_with_their_definitions() {
    for activation in ACTIVATIONS {
        for shape in [vec![1], vec![3, 7], vec![17, 65], vec![2, 100, 129]] {
            let x = (operand(7, &shape) * 4.0).unwrap();
            check(
                &format!("{activation:?} {shape:?}"),
                &[x],
                |x| ops::activate(&x[0], activation),
                |x| plain_activation(&x[0], activation),
            );
        }
    }
}

#[test]
fn a_linear_layer_with_its_activation_agrees_with_the_two_apart() {
    for activation in ACTIVATIONS {
        for (rows, inputs, outputs) in [(1, 1, 1), (3, 7, 17), (130, 65, 33)] {
            let operands = [operand(1, &[rows, inputs]), operand(2, &[outputs, inputs]), operand(3, &[outputs])];
            check(
                &format!("linear_activate {activation:?} {rows}x{inputs}x{outputs}"),
                &operands,
                |x| ops::linear_activate(&x[0], &x[1], Some(&x[2]), activation),
                |x| plain_activation(&x[0].matmul(&x[1].t()?)?.broadcast_add(&x[2])?, activation),
            );
        }
    }
    check(
        "linear_activate without bias",
        &[operand(1, &[3, 7]), operand(2, &[5, 7])],
        |x| ops::linear_activate(&x[0], &x[1], None, Activation::Gelu),
        |x| plain_activation(&x[0].matmul(&x[1].t()?)?, Activation::Gelu),
    );
}

#[test]
fn gelu_is_within_1e_6_of_the_exact_value_and_its_derivative_too() {
    let xs: Vec<f64> = (-100_000..=100_000).map(|i| f64::from((f64::from(i) / 10_000.0) as f32)).collect();
    let count = xs.len();
    let x = Tensor::from_vec(xs, count, &Device::Cpu).unwrap();
    let (exact, single) = (Var::from_tensor(&x).unwrap(), Var::from_tensor(&x.to_dtype(DType::F32).unwrap()).unwrap());
    let expected = plain_activation(&exact, Activation::Gelu).unwrap();
    let got = ops::activate(&single, Activation::Gelu).unwrap();
    let largest_error =
        |a: &Tensor, b: &Tensor| flat(a).iter().zip(flat(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let error = largest_error(&got, &expected);
    assert!(error < 1e-6, "the largest error is {error:e}");
    let got = got.sum_all().unwrap().backward().unwrap();
    let expected = expected.sum_all().unwrap().backward().unwrap();
    let error = largest_error(got.get(&single).unwrap(), expected.get(&exact).unwrap());
    assert!(error < 1e-6, "the largest error of the derivative is {error:e}");
}

#[test]
fn activations_keep_nan_and_survive_huge_values() {
    for activation in ACTIVATIONS {
        let x = Tensor::new(&[f32::NAN, 1e30, -1e30, 0.0], &Device::Cpu).unwrap();
        let y = flat(&ops::activate(&x, activation).unwrap());
        assert!(y[0].is_nan(), "{activation:?} turns NaN into {}", y[0]);
        assert!(y[1] > 0.9 && y[2].abs() <= 1.0 && y[3] == 0.0, "{activation:?}: {y:?}");
    }
}

#[test]
fn activations_are_read_and_written_under_their_configuration_names() {
    for (name, activation) in [
        ("gelu", Activation::Gelu),
        ("gelu_new", Activation::GeluTanh),
        ("gelu_pytorch_tanh", Activation::GeluTanh),
        ("gelu_fast", Activation::GeluTanh),
        ("gelu_python", Activation::Gelu),
        ("gelu_accurate", Activation::GeluTanh),
        ("gelu_python_tanh", Activation::GeluTanh),
        ("quick_gelu", Activation::QuickGelu),
        ("relu", Activation::Relu),
        ("silu", Activation::Silu),
        ("swish", Activation::Silu),
        ("tanh", Activation::Tanh),
    ] {
        assert_eq!(Activation::from_name(name, "config.json").unwrap(), activation);
        assert_eq!(serde_json::from_str::<Activation>(&format!("\"{name}\"")).unwrap(), activation);
        let written = serde_json::to_string(&activation).unwrap();
        assert_eq!(serde_json::from_str::<Activation>(&written).unwrap(), activation);
    }
    let error = Activation::from_name("mish", "tower/config.json").unwrap_err().to_string();
    assert!(error.contains("mish") && error.contains("tower/config.json") && error.contains("quick_gelu"), "{error}");
}

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

/// A convolution as a sum of products, one for each place under the window. `weight` (O,C,k,k), or (m·C,1,k,k) depthwise.
fn plain_convolution(x: &Tensor, weight: &Tensor, window: Window, depthwise: bool) -> CandleResult<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let filters = weight.dim(0)?;
    let (rows, columns) = (window.count(height), window.count(width));
    let padded =
        x.pad_with_zeros(1, window.padding, window.padding)?.pad_with_zeros(2, window.padding, window.padding)?;
    let places = |count: usize, offset: usize| {
        let places = (0..count).map(|i| (i * window.stride + offset) as u32).collect::<Vec<_>>();
        Tensor::from_vec(places, count, x.device())
    };
    let mut sum = Tensor::zeros((batch, rows, columns, filters), x.dtype(), x.device())?;
    for i in 0..window.size {
        for j in 0..window.size {
            let under = padded.index_select(&places(rows, i)?, 1)?.index_select(&places(columns, j)?, 2)?;
            let weight = weight.narrow(2, i, 1)?.narrow(3, j, 1)?.contiguous()?.reshape((filters, ()))?;
            let part = if depthwise {
                let times = filters / channels;
                let shape = (batch, rows, columns, channels, times);
                let repeated = under.unsqueeze(4)?.broadcast_as(shape)?.contiguous()?;
                repeated.reshape((batch, rows, columns, filters))?.broadcast_mul(&weight.flatten_all()?)?
            } else {
                let product = under.reshape(((), channels))?.matmul(&weight.t()?)?;
                product.reshape((batch, rows, columns, filters))?
            };
            sum = (sum + part)?;
        }
    }
    Ok(sum)
}

#[test]
fn convolutions_agree_with_their_definition() {
    let windows =
        [Window::centred(3, 1), Window::centred(3, 2), Window::tiling(2), Window::centred(1, 2), Window::centred(7, 2)];
    for window in windows {
        for (batch, height, width, channels, filters) in [(2, 5, 4, 3, 5), (1, 7, 7, 1, 1), (3, 2, 9, 6, 2)] {
            let name = format!("conv2d {window:?} on {batch}x{height}x{width}x{channels}");
            let size = window.size;
            let x = operand(1, &[batch, height, width, channels]);
            check(
                &name,
                &[x.clone(), operand(2, &[filters, channels, size, size])],
                |x| ops::conv2d(&x[0], &x[1], window),
                |x| plain_convolution(&x[0], &x[1], window, false),
            );
            for times in [1, 2] {
                check(
                    &format!("depthwise {name} times {times}"),
                    &[x.clone(), operand(2, &[channels * times, 1, size, size])],
                    |x| ops::depthwise_conv2d(&x[0], &x[1], window),
                    |x| plain_convolution(&x[0], &x[1], window, true),
                );
            }
        }
    }
}

#[test]
fn convolutions_of_several_parts_agree_with_their_definition() {
    // More positions than one product takes; channels beyond a block; a weight wide enough to be summed by columns.
    let window = Window::centred(3, 1);
    let operands = [operand(1, &[2, 14, 15, 40]), operand(2, &[33, 40, 3, 3])];
    let reference = |x: &[Tensor], depthwise| plain_convolution(&x[0], &x[1], window, depthwise);
    check("conv2d", &operands, |x| ops::conv2d(&x[0], &x[1], window), |x| reference(x, false));
    let operands = [operand(1, &[2, 4, 5, 230]), operand(2, &[230, 1, 3, 3])];
    check("depthwise", &operands, |x| ops::depthwise_conv2d(&x[0], &x[1], window), |x| reference(x, true));
}

#[test]
fn no_maps_give_no_maps() {
    for dtype in [DType::F32, DType::F64] {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
        let (x, window) = (zeros(&[0, 5, 4, 3]), Window::centred(3, 2));
        assert_eq!(ops::conv2d(&x, &zeros(&[7, 3, 3, 3]), window).unwrap().dims(), [0, 3, 2, 7]);
        assert_eq!(ops::depthwise_conv2d(&x, &zeros(&[6, 1, 3, 3]), window).unwrap().dims(), [0, 3, 2, 6]);
        assert!(ops::conv2d(&x, &zeros(&[7, 2, 3, 3]), window).is_err());
        assert!(ops::depthwise_conv2d(&x, &zeros(&[7, 1, 3, 3]), window).is_err());
        assert!(ops::conv2d(&x.narrow(1, 0, 1).unwrap(), &zeros(&[7, 3, 2, 2]), Window::tiling(2)).is_err());
    }
}

#[test]
fn an_average_leaves_out_what_fills_no_square() {
    let x = operand(1, &[2, 5, 4, 3]);
    let mean = |x: &[Tensor]| {
        let squares = x[0].narrow(1, 0, 4)?.contiguous()?.reshape(&[2, 2, 2, 2, 2, 3])?;
        squares.sum(4)?.sum(2)? * 0.25
    };
    check("average_pool2d", &[x], |x| ops::average_pool2d(&x[0], 2), mean);
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
