//! Layer normalisation over the last dimension: `y = (x − mean) / √(var + eps) · w + b`, x (…,E), w and b (E).
//!
//! Ba, Kiros, Hinton 2016, <https://arxiv.org/abs/1607.06450>. Mean and variance are taken in two passes: the one-pass
//! formula `E[x²] − mean²` loses its digits on activations with a large mean. With `x̂` the normalised row and `g = dy · w`:
//! `dx = (g − mean(g) − x̂ · mean(g · x̂)) / σ`, `dw = Σ dy · x̂`, `db = Σ dy`.

use super::kernel::{Floats, add_assign, build_rows, build_rows_and_sum, floats, is_native, tensor};
use super::simd::{mul_add, sum, sum2, vectorised};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp3, D, Layout, Result as CandleResult, Shape, Tensor};

/// Normalises every row to mean 0 and variance 1, then scales by `weight` and adds `bias`.
///
/// `eps` is added to the variance, which is the biased one, as everywhere in the field.
///
/// # Shapes
/// x (…,E), weight (E), bias (E) → (…,E).
///
/// # Errors
/// When the shapes do not fit together, or the dtypes or devices differ.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let size = x.dims().last().copied().unwrap_or(0);
    for (name, row) in [("weight", weight), ("bias", bias)] {
        if x.rank() == 0 || row.dims() != [size] {
            return Err(Error::argument(
                name,
                format!("has shape {:?}, expected the last size of x, whose shape is {:?}", row.dims(), x.dims()),
            ));
        }
    }
    if !is_native(&[x, weight, bias]) {
        return plain(x, weight, bias, eps);
    }
    let op = LayerNorm { eps: eps as f32 };
    Ok(x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?)
}

/// The same by candle's operations; half precision is normalised in `f32`.
fn plain(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let dtype = x.dtype();
    let x = if matches!(dtype, candle_core::DType::F64) { x.clone() } else { x.to_dtype(candle_core::DType::F32)? };
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.to_dtype(dtype)?;
    Ok(normal.broadcast_mul(weight)?.broadcast_add(bias)?)
}

struct LayerNorm {
    eps: f32,
}

/// Mean and 1/σ of a row.
#[inline(always)]
fn moments(row: &[f32], eps: f32) -> (f32, f32) {
    let size = row.len() as f32;
    let mean = sum(row, |v| v) / size;
    let variance = sum(row, |v| (v - mean) * (v - mean)) / size;
    (mean, 1.0 / (variance + eps).sqrt())
}

vectorised! {
    fn forward_rows<const FMA: bool>(eps: f32, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
        let size = weight.len();
        for (x, y) in x.chunks_exact(size).zip(y.chunks_exact_mut(size)) {
            let (mean, scale) = moments(x, eps);
            for (y, (&x, (&w, &b))) in y.iter_mut().zip(x.iter().zip(weight.iter().zip(bias))) {
                *y = mul_add::<FMA>((x - mean) * scale, w, b);
            }
        }
    }
}

vectorised! {
    fn backward_rows<const FMA: bool>(eps: f32, x: &[f32], weight: &[f32], grad: &[f32], dx: &mut [f32], dweight: &mut [f32]) {
        let size = weight.len();
        for ((x, grad), dx) in x.chunks_exact(size).zip(grad.chunks_exact(size)).zip(dx.chunks_exact_mut(size)) {
            let (mean, scale) = moments(x, eps);
            // The output serves as scratch memory for g.
            for (((g, &dy), &w), (dw, &x)) in dx.iter_mut().zip(grad).zip(weight).zip(dweight.iter_mut().zip(x)) {
                *g = dy * w;
                *dw = mul_add::<FMA>(dy, (x - mean) * scale, *dw);
            }
            let mean_g = sum(dx, |g| g) / size as f32;
            let mean_gx = sum2(dx, x, |g, x| g * ((x - mean) * scale)) / size as f32;
            for (g, &x) in dx.iter_mut().zip(x) {
                *g = scale * (*g - mean_g - (x - mean) * scale * mean_gx);
            }
        }
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        weight: &CpuStorage,
        lw: &Layout,
        bias: &CpuStorage,
        lb: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let (x, weight, bias) = (floats(x, lx)?, floats(weight, lw)?, floats(bias, lb)?);
        let size = weight.len();
        let y = build_rows(x.len() / size.max(1), size, |first, y| {
            forward_rows(self.eps, &x[first * size..first * size + y.len()], weight, bias, y);
        });
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (xs, weights, grads) = (Floats::of(x)?, Floats::of(weight)?, Floats::of(&grad)?);
        let size = weights.len();
        let (dx, mut sums) = build_rows_and_sum(xs.len() / size.max(1), size, 2 * size, |first, dx, sums| {
            let range = first * size..first * size + dx.len();
            let (dweight, dbias) = sums.split_at_mut(size);
            backward_rows(self.eps, &xs[range.clone()], &weights, &grads[range.clone()], dx, dweight);
            grads[range].chunks_exact(size).for_each(|row| add_assign(dbias, row));
        });
        let dbias = bias.track_op().then(|| tensor(sums.split_off(size), bias.shape())).transpose()?;
        sums.truncate(size);
        let dweight = weight.track_op().then(|| tensor(sums, weight.shape())).transpose()?;
        let dx = x.track_op().then(|| tensor(dx, x.shape())).transpose()?;
        Ok((dx, dweight, dbias))
    }
}
