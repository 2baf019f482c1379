//! Activations, alone and behind a linear layer.

use candle_core::{DType, Device, Result as CandleResult, Tensor, Var};
use diptych::ops::{self, Activation};

use super::{check, flat, operand};

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
fn a_second_backward_pass_gives_the_same_gradients() {
    let wave = |rows: usize, columns: usize| {
        let values: Vec<f32> = (0..rows * columns).map(|i| (i as f32 * 0.7).sin()).collect();
        Var::from_tensor(&Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()).unwrap()
    };
    let (x, weight) = (wave(5, 3), wave(4, 3));
    let bias = Var::new(&[0.1f32, -0.2, 0.3, 0.0], &Device::Cpu).unwrap();
    let y = ops::linear_activate(&x, &weight, Some(&bias), Activation::Gelu).unwrap().sqr().unwrap().sum_all().unwrap();
    let [first, second] = [(); 2].map(|()| y.backward().unwrap());
    for variable in [&x, &weight, &bias] {
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(first.get(variable).unwrap()), flat(second.get(variable).unwrap()));
    }
}
