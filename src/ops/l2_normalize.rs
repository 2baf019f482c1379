//! Unit rows: `y = x / max(‖x‖, 1e-12)`, as `torch.nn.functional.normalize`.
//!
//! `dx = (dy − y · ⟨dy, y⟩) / ‖x‖`; where the norm is below the bound it is a constant, and `dx = dy / 1e-12`.

use super::kernel::{Floats, build_rows, floats, is_native, tensor};
use super::simd::{sum, sum2, vectorised};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp1, D, Layout, Result as CandleResult, Shape, Tensor};

/// The least norm that is divided by.
const LEAST_NORM: f32 = 1e-12;

/// Scales every row to Euclidean norm 1; a zero row stays zero.
///
/// # Shapes
/// x (…,E) → (…,E).
///
/// # Errors
/// When x is a scalar.
pub fn l2_normalize(x: &Tensor) -> Result<Tensor> {
    if x.rank() == 0 {
        return Err(Error::argument("x", "is a scalar, expected rows (…, E)"));
    }
    if is_native(&[x]) {
        return Ok(x.contiguous()?.apply_op1(L2Normalize)?);
    }
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    // Half precision cannot hold 1e-12, nor √ differentiate at 0: the bound is put under the root, in f32 or f64.
    let wide = if x.dtype() == candle_core::DType::F64 { x.clone() } else { x.to_dtype(candle_core::DType::F32)? };
    let least = f64::from(LEAST_NORM).powi(2);
    let norm = wide.sqr()?.sum_keepdim(D::Minus1)?.maximum(least)?.sqrt()?;
    Ok(wide.broadcast_div(&norm)?.to_dtype(x.dtype())?)
}

#[inline(always)]
fn norm(row: &[f32]) -> f32 {
    sum(row, |v| v * v).sqrt()
}

vectorised! {
    fn forward_rows<const FMA: bool>(size: usize, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks_exact(size).zip(y.chunks_exact_mut(size)) {
            let norm = norm(x);
            let divisor = if norm < LEAST_NORM { LEAST_NORM } else { norm };
            for (y, &x) in y.iter_mut().zip(x) {
                *y = x / divisor;
            }
        }
    }
}

vectorised! {
    fn backward_rows<const FMA: bool>(size: usize, x: &[f32], grad: &[f32], dx: &mut [f32]) {
        for ((x, grad), dx) in x.chunks_exact(size).zip(grad.chunks_exact(size)).zip(dx.chunks_exact_mut(size)) {
            let norm = norm(x);
            let (divisor, inner) = if norm < LEAST_NORM {
                (LEAST_NORM, 0.0)
            } else {
                (norm, sum2(x, grad, |x, g| x / norm * g))
            };
            for (dx, (&x, &grad)) in dx.iter_mut().zip(x.iter().zip(grad)) {
                *dx = (grad - x / divisor * inner) / divisor;
            }
        }
    }
}

struct L2Normalize;

impl CustomOp1 for L2Normalize {
    fn name(&self) -> &'static str {
        "l2_normalize"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let size = layout.dims().last().copied().unwrap_or(1);
        let x = floats(x, layout)?;
        let y = build_rows(x.len() / size.max(1), size, |first, y| {
            forward_rows(size, &x[first * size..first * size + y.len()], y);
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        let size = x.dim(D::Minus1)?;
        let grad = grad.contiguous()?;
        let (xs, grads) = (Floats::of(x)?, Floats::of(&grad)?);
        let dx = build_rows(xs.len() / size.max(1), size, |first, dx| {
            let range = first * size..first * size + dx.len();
            backward_rows(size, &xs[range.clone()], &grads[range], dx);
        });
        tensor(dx, x.shape()).map(Some)
    }
}
