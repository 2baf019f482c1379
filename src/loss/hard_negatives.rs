//! [`HardNegativeLoss`]: cross-entropy that weighs near misses more (HN-NCE of DiHT, Radenovic et al. 2023, arXiv 2301.02280,
//! equations 3 and 4; after Robinson et al. 2021, arXiv 2010.04592).
//!
//! With logits zᵢⱼ, Nᵢ the texts that do not belong to image i and nᵢ their number:
//!
//! ```text
//! wᵢⱼ = nᵢ · e^(β zᵢⱼ) / Σ_{k∈Nᵢ} e^(β zᵢₖ)                  (mean 1 over Nᵢ)
//! lossᵢ = −log [ e^zᵢᵢ / (α e^zᵢᵢ + Σ_{j∈Nᵢ} wᵢⱼ e^zᵢⱼ) ]
//! ```
//!
//! and the same over the columns; the loss is the mean of both means. β = 0 and α = 1 give [`ClipLoss`](super::ClipLoss).
//! With several texts that belong to an image, the numerator is their geometric mean and each counts α in the denominator.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use super::pairs::Pairs;
use super::targets::{Targets, both_ways};
use crate::{Error, Result};

/// What takes positives out of a maximum and a sum of exponentials: far more than logits of unit rows differ by.
const OUT: f64 = 1e4;

/// Cross-entropy with weights on the negatives.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HardNegativeLoss {
    /// β: how much more a near miss counts; 0 for not at all. It multiplies logits, so with a scale of 100 values of 0.1 to 0.5 are large.
    pub beta: f64,
    /// α in (0, 1]: how much the positive counts in the denominator.
    pub alpha: f64,
}

impl Default for HardNegativeLoss {
    fn default() -> Self {
        Self { beta: 0.25, alpha: 1.0 }
    }
}

impl HardNegativeLoss {
    /// Weights with the exponent `beta`, and α = 1.
    #[must_use]
    pub fn new(beta: f64) -> Self {
        Self { beta, ..Self::default() }
    }

    /// The same where the positive counts `alpha` in the denominator.
    #[must_use]
    pub fn with_alpha(self, alpha: f64) -> Self {
        Self { alpha, ..self }
    }

    /// The loss of a batch. The weights have gradients too.
    ///
    /// # Shapes
    /// See [`Pairs`] → ().
    ///
    /// # Errors
    /// When shapes do not fit, β is negative or α not in (0, 1].
    pub fn of(&self, pairs: &Pairs<'_>) -> Result<Tensor> {
        if !(self.beta.is_finite() && self.beta >= 0.0) {
            return Err(Error::argument("beta", format!("is {}; a finite number of at least 0 is needed", self.beta)));
        }
        if !(self.alpha > 0.0 && self.alpha <= 1.0) {
            return Err(Error::argument("alpha", format!("is {}; it must be above 0 and at most 1", self.alpha)));
        }
        let logits = pairs.logits_per_image()?;
        let positives = pairs.positives_mask(0..logits.dim(0)?)?;
        both_ways(&logits, &positives, |z, positives| {
            Targets::new(positives, 0.0)?.cross_entropy(z, &self.denominator(z, positives)?)
        })
    }

    /// z + log w for negatives, z + log α for positives.
    fn denominator(&self, z: &Tensor, positives: &Tensor) -> Result<Tensor> {
        let negatives = positives.affine(-1.0, 1.0)?;
        let exponent = (z * self.beta)?;
        let among_negatives = (&exponent - (positives * OUT)?)?;
        let max = among_negatives.max_keepdim(D::Minus1)?.detach();
        let log_sum = (among_negatives.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()? + max)?;
        // A row without negatives has no weights; 1 keeps the logarithm finite.
        let log_count = negatives.sum_keepdim(D::Minus1)?.clamp(1f32, f32::MAX)?.log()?;
        let log_weights = exponent.broadcast_sub(&log_sum)?.broadcast_add(&log_count)?;
        Ok(((z + (log_weights * negatives)?)? + (positives * self.alpha.ln())?)?)
    }
}
