//! Cross-entropy against several right answers a row, which [`ClipLoss`](super::ClipLoss) and its relatives are made of.

use candle_core::{D, DType, Tensor};

use crate::{Error, Result};

/// The right answers of each row: Pᵢⱼ / Σⱼ Pᵢⱼ, and which rows have any.
pub(super) struct Targets {
    /// (R,K); rows of zeros where nothing is right.
    shares: Tensor,
    /// 1/n for each of the n rows that have an answer, 0 for the others; (R,1).
    row_weights: Tensor,
}

impl Targets {
    /// From the mask `positives` (R,K) of zeros and ones, smoothed by `smoothing` ε: `(1 − ε) · P/ΣP + ε/K`.
    pub(super) fn new(positives: &Tensor, smoothing: f64) -> Result<Self> {
        let count = positives.sum_keepdim(D::Minus1)?;
        let answered = count.clamp(0f32, 1f32)?;
        let rows = f64::from(answered.sum_all()?.to_scalar::<f32>()?);
        if rows == 0.0 {
            return Err(Error::argument("positives", "no image belongs to any text; at least one must"));
        }
        let shares = positives.broadcast_div(&count.clamp(1f32, f32::MAX)?)?;
        let shares = match smoothing {
            0.0 => shares,
            _ => shares.affine(1.0 - smoothing, smoothing / positives.dim(D::Minus1)? as f64)?,
        };
        Ok(Self { shares, row_weights: (answered / rows)? })
    }

    /// The mean over rows with an answer of `−Σⱼ tᵢⱼ (zᵢⱼ − log Σₖ exp z′ᵢₖ)`; z′ is z but for what the denominator alone has.
    pub(super) fn cross_entropy(&self, z: &Tensor, denominator: &Tensor) -> Result<Tensor> {
        // The maximum cancels in the result; it is taken off before the logarithm is added, or a large one would swallow the
        // small loss of a good row.
        let max = denominator.max_keepdim(D::Minus1)?.detach();
        let log_sum = denominator.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()?;
        let hit = (z.broadcast_sub(&max)? * &self.shares)?.sum_keepdim(D::Minus1)?;
        Ok(((log_sum - hit)? * &self.row_weights)?.sum_all()?)
    }
}

/// f32 logits, or f64 ones as they are.
pub(super) fn wide(logits: &Tensor) -> Result<Tensor> {
    match logits.dtype() {
        DType::F16 | DType::BF16 => Ok(logits.to_dtype(DType::F32)?),
        _ => Ok(logits.clone()),
    }
}

/// The mean of what `loss` makes of rows (images over texts) and of columns (texts over images).
pub(super) fn both_ways(
    logits: &Tensor,
    positives: &Tensor,
    loss: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let logits = wide(logits)?;
    let positives = positives.to_dtype(logits.dtype())?;
    let rows = loss(&logits, &positives)?;
    let columns = loss(&logits.t()?.contiguous()?, &positives.t()?.contiguous()?)?;
    Ok(((rows + columns)? * 0.5)?)
}
