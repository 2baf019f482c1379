//! The mean of the cross-entropies of a square matrix's rows and of its columns, with the diagonal as the target.
//!
//! With zᵢⱼ the logits, rᵢ = log Σⱼ e^zᵢⱼ and cⱼ = log Σᵢ e^zᵢⱼ: `y = 1/B Σᵢ (½ rᵢ + ½ cᵢ − zᵢᵢ)` and
//! `dzᵢⱼ = dy/B · (½ e^(zᵢⱼ−rᵢ) + ½ e^(zᵢⱼ−cⱼ) − δᵢⱼ)`. One pass each way instead of some thirty over (B,B).

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result as CandleResult, Shape, Tensor, bail};

use super::kernel::{Floats, build_rows, build_rows_and_sum, floats, is_native, tensor};
use super::simd::{exp, maximum, sum, vectorised};
use crate::{Error, Result};

/// The symmetric cross-entropy of `logits` whose diagonal holds the true pairs. Half precision is computed in f32.
///
/// # Shapes
/// `logits` (B,B) → ().
///
/// # Errors
/// When the logits are not square, or there are none.
pub fn symmetric_cross_entropy(logits: &Tensor) -> Result<Tensor> {
    let size = match logits.dims() {
        &[rows, columns] if rows == columns && rows > 0 => rows,
        found => {
            let message = format!("expected (B, B) with a true pair on the diagonal, found {found:?}");
            return Err(Error::argument("logits_per_image", message));
        }
    };
    if is_native(&[logits]) {
        return Ok(logits.contiguous()?.apply_op1(SymmetricCrossEntropy::default())?);
    }
    let logits = match logits.dtype() {
        DType::F16 | DType::BF16 => logits.to_dtype(DType::F32)?,
        _ => logits.clone(),
    };
    let pairs = Tensor::arange(0u32, size as u32, logits.device())?.unsqueeze(1)?;
    let diagonal = logits.contiguous()?.gather(&pairs, D::Minus1)?.squeeze(1)?;
    let both = (cross_entropy(&logits, &diagonal, 1)? + cross_entropy(&logits, &diagonal, 0)?)?;
    Ok((both * 0.5)?)
}

/// The mean of −log softmax over `dim`, read on the diagonal.
fn cross_entropy(logits: &Tensor, diagonal: &Tensor, dim: usize) -> Result<Tensor> {
    // The maximum guards against overflow and cancels in the result: without `detach` it would cost a backward pass. It is
    // taken off the diagonal before the logarithm is added, or a large one would swallow the small loss of a good pair.
    let max = logits.max_keepdim(dim)?.detach();
    let log_sum = logits.broadcast_sub(&max)?.exp()?.sum(dim)?.log()?;
    Ok((log_sum - (diagonal - max.squeeze(dim)?)?)?.mean_all()?)
}

vectorised! {
    /// `max = maximum(max, row)` for every row.
    fn column_maxima<const FMA: bool>(size: usize, z: &[f32], max: &mut [f32]) {
        for row in z.chunks_exact(size) {
            for (max, &z) in max.iter_mut().zip(row) {
                *max = if z > *max { z } else { *max };
            }
        }
    }
}

vectorised! {
    /// Writes each row's (maximum, Σ e^(z − maximum)) and adds e^(z − its column's maximum) to the columns' sums.
    fn row_sums<const FMA: bool>(size: usize, z: &[f32], max: &[f32], rows: &mut [f32], columns: &mut [f32]) {
        for (z, row) in z.chunks_exact(size).zip(rows.chunks_exact_mut(2)) {
            row[0] = maximum(z);
            row[1] = sum(z, |v| exp::<FMA>(v - row[0]));
            for (column, (&z, &max)) in columns.iter_mut().zip(z.iter().zip(max)) {
                *column += exp::<FMA>(z - max);
            }
        }
    }
}

vectorised! {
    fn backward_rows<const FMA: bool>(scale: f32, z: &[f32], rows: &[f32], columns: &[f32], dz: &mut [f32]) {
        let size = columns.len();
        for ((z, &row), dz) in z.chunks_exact(size).zip(rows).zip(dz.chunks_exact_mut(size)) {
            for (dz, (&z, &column)) in dz.iter_mut().zip(z.iter().zip(columns)) {
                *dz = scale * (exp::<FMA>(z - row) + exp::<FMA>(z - column));
            }
        }
    }
}

/// rᵢ and cⱼ, kept for the backward pass.
#[derive(Default)]
struct SymmetricCrossEntropy {
    log_sums: OnceLock<(Vec<f32>, Vec<f32>)>,
}

impl CustomOp1 for SymmetricCrossEntropy {
    fn name(&self) -> &'static str {
        "symmetric_cross_entropy"
    }

    fn cpu_fwd(&self, z: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (z, size) = (floats(z, layout)?, layout.dims()[0]);
        let mut max = vec![f32::NEG_INFINITY; size];
        column_maxima(size, z, &mut max);
        // Rows are handed out in whole lines of the matrix, though each leaves only two numbers.
        let (rows, columns) = build_rows_and_sum(size, 2, size, |first, rows, columns| {
            row_sums(size, &z[first * size..(first + rows.len() / 2) * size], &max, rows, columns);
        });
        // Each term is small and positive; the maximum is taken off the diagonal before the logarithm is added, or a large
        // one would swallow the small loss of a good pair.
        let term = |max: f32, sum: f32, i: usize| f64::from(sum.ln() - (z[i * size + i] - max));
        let terms = (0..size).map(|i| term(rows[2 * i], rows[2 * i + 1], i) + term(max[i], columns[i], i));
        let loss = terms.sum::<f64>() / (2 * size) as f64;
        let row_log_sums = rows.chunks_exact(2).map(|row| row[0] + row[1].ln()).collect();
        let column_log_sums = max.iter().zip(&columns).map(|(max, sum)| max + sum.ln()).collect();
        // Only this call writes: an operation is applied once.
        let _ = self.log_sums.set((row_log_sums, column_log_sums));
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(&self, z: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        let Some((rows, columns)) = self.log_sums.get() else {
            bail!("the backward pass of symmetric_cross_entropy has no forward pass")
        };
        let (grad, size) = (grad.to_scalar::<f32>()?, rows.len());
        let zs = Floats::of(z)?;
        let dz = build_rows(size, size, |first, dz| {
            let count = dz.len() / size;
            let (z, rows) = (&zs[first * size..first * size + dz.len()], &rows[first..first + count]);
            backward_rows(grad * 0.5 / size as f32, z, rows, columns, dz);
            for i in 0..count {
                dz[i * size + first + i] -= grad / size as f32;
            }
        });
        tensor(dz, z.shape()).map(Some)
    }
}
