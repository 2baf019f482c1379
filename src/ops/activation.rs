//! Activation functions, element by element, under the names that Hugging Face configurations use.
//!
//! With Φ the normal distribution function and σ(x) = 1/(1 + e^-x):
//! GELU is x·Φ(x) (Hendrycks, Gimpel 2016, <https://arxiv.org/abs/1606.08415>); its tanh form is x·σ(2√(2/π)(x + 0.044715x³));
//! QuickGELU is x·σ(1.702x); SiLU is x·σ(x). The backward pass multiplies by the derivative at x.

use super::kernel::{Floats, build_rows, floats, is_native, tensor};
use super::simd::{exp, mul_add, polynomial, sigmoid, vectorised};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp1, Layout, Result as CandleResult, Shape, Tensor};
use serde::{Deserialize, Serialize};

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Activation {
    /// x·Φ(x), exact to `f32`.
    #[serde(rename = "gelu", alias = "gelu_python")]
    Gelu,
    /// GELU with Φ approximated by a tanh.
    #[serde(
        rename = "gelu_pytorch_tanh",
        alias = "gelu_new",
        alias = "gelu_fast",
        alias = "gelu_accurate",
        alias = "gelu_python_tanh"
    )]
    GeluTanh,
    /// x·σ(1.702x), of OpenAI's CLIP.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// max(x, 0); the derivative at 0 is 0.
    #[serde(rename = "relu")]
    Relu,
    /// x·σ(x), also called swish.
    #[serde(rename = "silu", alias = "swish")]
    Silu,
    /// The hyperbolic tangent.
    #[serde(rename = "tanh")]
    Tanh,
}

impl Activation {
    /// The function of a configuration's `hidden_act`. `context` names the file (or call) for the error.
    ///
    /// # Errors
    /// When there is no such function here; the error lists those there are.
    pub fn from_name(name: &str, context: &str) -> Result<Self> {
        match name {
            "gelu" | "gelu_python" => Ok(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" | "gelu_python_tanh" => Ok(Self::GeluTanh),
            "quick_gelu" => Ok(Self::QuickGelu),
            "relu" => Ok(Self::Relu),
            "silu" | "swish" => Ok(Self::Silu),
            "tanh" => Ok(Self::Tanh),
            _ => Err(Error::unsupported(
                context,
                "activation",
                name,
                "gelu, gelu_python, gelu_new, gelu_pytorch_tanh, gelu_fast, gelu_accurate, gelu_python_tanh, quick_gelu, \
                 relu, silu, swish, tanh",
            )),
        }
    }
}

/// Applies an activation function to every element.
///
/// # Shapes
/// Any → the same.
///
/// # Errors
/// When the dtype is not a floating-point one.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    if !x.dtype().is_float() {
        return Err(Error::argument("x", format!("has dtype {:?}, expected a floating-point one", x.dtype())));
    }
    if !is_native(&[x]) {
        return plain(x, activation);
    }
    Ok(x.contiguous()?.apply_op1(Activate(activation))?)
}

/// The same by candle's operations. Its own GELUs are not used: their derivatives have six digits.
fn plain(x: &Tensor, activation: Activation) -> Result<Tensor> {
    let gated = |argument: Tensor| candle_nn::ops::sigmoid(&argument)?.mul(x);
    Ok(match activation {
        Activation::Gelu => (((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?.mul(x)?,
        Activation::GeluTanh => gated((x.mul(&x.sqr()?.affine(0.044_715, 1.0)?)? * (2.0 * GELU_TANH))?)?,
        Activation::QuickGelu => gated((x * 1.702)?)?,
        Activation::Relu => x.relu()?,
        Activation::Silu => gated(x.clone())?,
        Activation::Tanh => x.tanh()?,
    })
}

/// √(2/π)
const GELU_TANH: f64 = 0.797_884_560_802_865_4;

/// Φ(−a) and e^(−a²/2), for a ≥ 0.
///
/// Φ(−a)·e^(a²/2) is smooth; it is a polynomial in t = 1/(1 + 0.33a), fitted to within 3e-9 of Φ(−a).
#[inline(always)]
fn normal_tail<const FMA: bool>(a: f32) -> (f32, f32) {
    let t = 1.0 / mul_add::<FMA>(a, 0.33, 1.0);
    let bell = exp::<FMA>(-0.5 * a * a);
    let fit = [0.044_547_14, -0.215_885_6, 0.322_119_1, -0.079_971_21, 0.175_732_1, 0.121_034_966, 0.132_423_52];
    (bell * t * polynomial::<FMA, 7>(t, fit), bell)
}

#[inline(always)]
fn gelu<const FMA: bool>(x: f32) -> f32 {
    let (tail, _) = normal_tail::<FMA>(x.abs());
    // x·Φ(x) = max(x, 0) − |x|·Φ(−|x|), which loses nothing on either side.
    relu(x) - x.abs() * tail
}

#[inline(always)]
fn gelu_derivative<const FMA: bool>(x: f32) -> f32 {
    let (tail, bell) = normal_tail::<FMA>(x.abs());
    let distribution = if x > 0.0 { 1.0 - tail } else { tail };
    mul_add::<FMA>(x * bell, 0.398_942_3, distribution)
}

/// x·σ(u(x)) with its derivative σ + x·σ·(1 − σ)·u′.
#[inline(always)]
fn gated_derivative<const FMA: bool>(x: f32, argument: f32, slope: f32) -> f32 {
    let gate = sigmoid::<FMA>(argument);
    mul_add::<FMA>(x * gate * (1.0 - gate), slope, gate)
}

#[inline(always)]
fn gelu_tanh_argument<const FMA: bool>(x: f32) -> f32 {
    2.0 * GELU_TANH as f32 * x * mul_add::<FMA>(x * x, 0.044_715, 1.0)
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    // NaN must stay NaN, so the comparison asks for what becomes 0.
    if x <= 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn tanh<const FMA: bool>(x: f32) -> f32 {
    let square = x * x;
    // Taylor's series where the other form would cancel.
    let small = x * polynomial::<FMA, 5>(square, [62.0 / 2835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0, 1.0]);
    let large = 1.0 - 2.0 / (exp::<FMA>(2.0 * x) + 1.0);
    if square < 0.0625 { small } else { large }
}

vectorised! {
    /// `y = f(x)`.
    pub(super) fn forward<const FMA: bool>(activation: Activation, x: &[f32], y: &mut [f32]) {
        #[inline(always)]
        fn map(x: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32) {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = f(x);
            }
        }
        match activation {
            Activation::Gelu => map(x, y, gelu::<FMA>),
            Activation::GeluTanh => map(x, y, |x| x * sigmoid::<FMA>(gelu_tanh_argument::<FMA>(x))),
            Activation::QuickGelu => map(x, y, |x| x * sigmoid::<FMA>(1.702 * x)),
            Activation::Relu => map(x, y, relu),
            Activation::Silu => map(x, y, |x| x * sigmoid::<FMA>(x)),
            Activation::Tanh => map(x, y, tanh::<FMA>),
        }
    }
}

vectorised! {
    /// `dx = grad · f′(x)`.
    pub(super) fn backward<const FMA: bool>(activation: Activation, x: &[f32], grad: &[f32], dx: &mut [f32]) {
        #[inline(always)]
        fn map(x: &[f32], grad: &[f32], dx: &mut [f32], derivative: impl Fn(f32) -> f32) {
            for (dx, (&x, &grad)) in dx.iter_mut().zip(x.iter().zip(grad)) {
                *dx = grad * derivative(x);
            }
        }
        match activation {
            Activation::Gelu => map(x, grad, dx, gelu_derivative::<FMA>),
            Activation::GeluTanh => map(x, grad, dx, |x| {
                let slope = 2.0 * GELU_TANH as f32 * mul_add::<FMA>(x * x, 3.0 * 0.044_715, 1.0);
                gated_derivative::<FMA>(x, gelu_tanh_argument::<FMA>(x), slope)
            }),
            Activation::QuickGelu => map(x, grad, dx, |x| gated_derivative::<FMA>(x, 1.702 * x, 1.702)),
            Activation::Relu => map(x, grad, dx, |x| if x > 0.0 { 1.0 } else { 0.0 }),
            Activation::Silu => map(x, grad, dx, |x| gated_derivative::<FMA>(x, x, 1.0)),
            Activation::Tanh => map(x, grad, dx, |x| {
                // 1 − tanh² would cancel for large x.
                let e = exp::<FMA>(-2.0 * x.abs());
                4.0 * e / ((1.0 + e) * (1.0 + e))
            }),
        }
    }
}

struct Activate(Activation);

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let x = floats(x, layout)?;
        let y = build_rows(x.len(), 1, |first, y| forward(self.0, &x[first..first + y.len()], y));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (xs, grads) = (Floats::of(x)?, Floats::of(&grad)?);
        let dx = build_rows(xs.len(), 1, |first, dx| {
            let range = first..first + dx.len();
            backward(self.0, &xs[range.clone()], &grads[range], dx);
        });
        tensor(dx, x.shape()).map(Some)
    }
}
