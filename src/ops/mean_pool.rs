//! Mean over the tokens that are no padding: `y = Σ keepₗ · xₗ / Σ keepₗ`.

use super::kernel::{Floats, add_assign, build_rows, floats, is_native, tensor};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp1, Layout, Result as CandleResult, Shape, Tensor};
use std::sync::Arc;

/// The mean of the kept tokens of every row; zeros where none is kept.
///
/// # Shapes
/// x (B,L,E), keep (B,L) row after row → (B,E).
///
/// # Errors
/// When x has another rank or `keep` does not hold B·L values.
pub fn mean_pool(x: &Tensor, keep: &[bool]) -> Result<Tensor> {
    let &[batch, length, size] = x.dims() else {
        return Err(Error::argument("x", format!("has shape {:?}, expected (B, L, E)", x.dims())));
    };
    if keep.len() != batch * length {
        return Err(Error::argument(
            "keep",
            format!("holds {} values, expected {batch} rows of {length} for x {:?}", keep.len(), x.dims()),
        ));
    }
    if is_native(&[x]) {
        return Ok(x.contiguous()?.apply_op1(MeanPool { keep: keep.into() })?);
    }
    if x.elem_count() == 0 {
        return Ok(Tensor::zeros((batch, size), x.dtype(), x.device())?);
    }
    let weights: Vec<f32> = keep
        .chunks(length)
        .flat_map(|keep| {
            let weight = weight(keep);
            keep.iter().map(move |&keep| if keep { weight } else { 0.0 })
        })
        .collect();
    let weights = Tensor::from_vec(weights, (batch, 1, length), x.device())?.to_dtype(x.dtype())?;
    Ok(weights.matmul(&x.contiguous()?)?.squeeze(1)?)
}

/// What each kept token counts; 0 where none is kept.
fn weight(keep: &[bool]) -> f32 {
    match keep.iter().filter(|&&keep| keep).count() {
        0 => 0.0,
        count => 1.0 / count as f32,
    }
}

struct MeanPool {
    keep: Arc<[bool]>,
}

impl CustomOp1 for MeanPool {
    fn name(&self) -> &'static str {
        "mean_pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (batch, length, size) = layout.shape().dims3()?;
        let x = floats(x, layout)?;
        let y = build_rows(batch, size, |first, rows| {
            for (row, y) in rows.chunks_exact_mut(size).enumerate() {
                let row = first + row;
                let keep = &self.keep[row * length..][..length];
                let tokens = x[row * length * size..][..length * size].chunks_exact(size);
                tokens.zip(keep).filter(|(_, keep)| **keep).for_each(|(token, _)| add_assign(y, token));
                let weight = weight(keep);
                y.iter_mut().for_each(|y| *y *= weight);
            }
        });
        Ok((CpuStorage::F32(y), (batch, size).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        let (batch, length, size) = x.dims3()?;
        let grad = grad.contiguous()?;
        let grads = Floats::of(&grad)?;
        let dx = build_rows(batch, length * size, |first, rows| {
            for (row, dx) in rows.chunks_exact_mut(length * size).enumerate() {
                let row = first + row;
                let keep = &self.keep[row * length..][..length];
                let weight = weight(keep);
                let grad = &grads[row * size..][..size];
                for (dx, _) in dx.chunks_exact_mut(size).zip(keep).filter(|(_, keep)| **keep) {
                    dx.iter_mut().zip(grad).for_each(|(dx, grad)| *dx = grad * weight);
                }
            }
        });
        tensor(dx, x.shape()).map(Some)
    }
}
