//! [`SigLipLoss`]: a yes or no for every pair of the batch (SigLIP, Zhai et al. 2023, arXiv 2303.15343, equation 1).
//!
//! With `logits_per_image` zᵢⱼ = s · xᵢ·yⱼ + b and tᵢⱼ = 1 where image i belongs to text j, else 0:
//!
//! ```text
//! loss = −1/B Σᵢ Σⱼ log σ((2tᵢⱼ − 1) zᵢⱼ) = 1/B Σᵢ Σⱼ [ softplus(zᵢⱼ) − tᵢⱼ zᵢⱼ ]
//! dzᵢⱼ = (σ(zᵢⱼ) − tᵢⱼ) / B
//! ```
//!
//! Nothing is normalised over the batch, so the matrix of logits is never whole: a few rows at a time give their part of the
//! loss and of all gradients, then they are gone. softplus is max(z, 0) + log(1 + e^−|z|), which neither overflows nor loses the
//! small losses of easy negatives.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::pairs::Pairs;
use super::surrogate::with_gradients;
use crate::{Error, Result, ops};

/// The sigmoid loss. Start the scale at 10 and the bias at −10
/// ([`LogitConfig::ScaleAndBias`](crate::LogitConfig::ScaleAndBias)): most pairs do not belong together.
///
/// # Examples
/// ```
/// # fn main() -> diptych::Result<()> {
/// use diptych::candle::{Device, Tensor};
/// use diptych::loss::{Pairs, SigLipLoss};
/// let embeds = Tensor::new(&[[1f32, 0.], [0., 1.]], &Device::Cpu)?;
/// let (scale, bias) = (Tensor::new(40f32, &Device::Cpu)?, Tensor::new(-20f32, &Device::Cpu)?);
/// let pairs = Pairs { logit_bias: Some(&bias), ..Pairs::new(&embeds, &embeds, &scale) };
/// assert!(SigLipLoss::new().of(&pairs)?.to_scalar::<f32>()? < 1e-6);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SigLipLoss {
    /// How many images' rows of logits are in memory at a time (256).
    pub chunk: usize,
    /// ε: the answers are 1 − ε/2 and ε/2 instead of 1 and 0.
    pub label_smoothing: f64,
}

impl Default for SigLipLoss {
    fn default() -> Self {
        Self { chunk: 256, label_smoothing: 0.0 }
    }
}

/// What a pass over the rows adds up.
struct Sums {
    loss: f64,
    images: Vec<Tensor>,
    texts: Tensor,
    scale: Tensor,
    bias: Tensor,
}

impl SigLipLoss {
    /// 256 rows at a time, no smoothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with so many rows of logits in memory at a time; at least one.
    #[must_use]
    pub fn with_chunk(self, chunk: usize) -> Self {
        Self { chunk: chunk.max(1), ..self }
    }

    /// The same with answers of 1 − ε/2 and ε/2.
    #[must_use]
    pub fn with_label_smoothing(self, label_smoothing: f64) -> Self {
        Self { label_smoothing, ..self }
    }

    /// The loss of a batch. Its gradients are worked out along with it; they are constants to a second derivative.
    ///
    /// # Shapes
    /// See [`Pairs`] → (), f32.
    ///
    /// # Errors
    /// When shapes do not fit, or ε is not in [0, 1).
    pub fn of(&self, pairs: &Pairs<'_>) -> Result<Tensor> {
        check_smoothing(self.label_smoothing)?;
        let (images, texts) = pairs.sizes()?;
        let wide = |t: &Tensor| t.detach().to_dtype(DType::F32);
        let (x, y) = (wide(pairs.image_embeds)?, wide(pairs.text_embeds)?);
        let zero = Tensor::zeros((), DType::F32, x.device())?;
        let bias = pairs.logit_bias.unwrap_or(&zero);
        let (s, b) = (wide(&pairs.logit_scale.reshape(())?)?, wide(&bias.reshape(())?)?);
        let learned = [pairs.image_embeds, pairs.text_embeds, pairs.logit_scale, bias];
        let tracked = learned.iter().any(|t| ops::is_tracked(t));
        let sums =
            Sums { loss: 0.0, images: Vec::new(), texts: y.zeros_like()?, scale: zero.clone(), bias: zero.clone() };
        let sums = (0..images).step_by(self.chunk.max(1)).try_fold(sums, |mut sums, start| -> Result<Sums> {
            let rows = start..images.min(start + self.chunk.max(1));
            let targets = pairs.positives_mask(rows.clone())?;
            let targets = targets.affine(1.0 - self.label_smoothing, self.label_smoothing / 2.0)?;
            let x = x.narrow(0, rows.start, rows.len())?;
            let cosines = x.matmul(&y.t()?)?;
            let z = cosines.broadcast_mul(&s)?.broadcast_add(&b)?;
            let losses = (softplus(&z)? - (&z * &targets)?)?;
            // A row is summed in f32, the rows in f64: millions of easy negatives must not vanish in a large sum.
            sums.loss += losses.sum(1)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
            if tracked {
                let dz = ((candle_nn::ops::sigmoid(&z)? - targets)? / images as f64)?;
                sums.images.push(dz.matmul(&y)?.broadcast_mul(&s)?);
                sums.texts = (sums.texts + dz.t()?.matmul(&x)?)?;
                sums.scale = (sums.scale + (&dz * cosines)?.sum(1)?.sum_all()?)?;
                sums.bias = (sums.bias + dz.sum(1)?.sum_all()?)?;
            }
            Ok(sums)
        })?;
        debug_assert!(texts > 0);
        let value = Tensor::new((sums.loss / images as f64) as f32, x.device())?;
        if !tracked {
            return Ok(value);
        }
        let parts = [
            (pairs.image_embeds, Tensor::cat(&sums.images, 0)?),
            (pairs.text_embeds, sums.texts.broadcast_mul(&s)?),
            (pairs.logit_scale, sums.scale.reshape(pairs.logit_scale.shape())?),
            (bias, sums.bias.reshape(bias.shape())?),
        ];
        with_gradients(&value, &parts)
    }
}

pub(super) fn check_smoothing(smoothing: f64) -> Result<()> {
    if (0.0..1.0).contains(&smoothing) {
        return Ok(());
    }
    Err(Error::argument("label_smoothing", format!("is {smoothing}; it must be at least 0 and below 1")))
}

/// log(1 + e^z) = max(z, 0) + log(1 + u), u = e^−|z|. With w = 1 + u rounded, log(1 + u) = log(w) · u / (w − 1) to the last bits
/// (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 1.14.1), and u where w is 1.
fn softplus(z: &Tensor) -> Result<Tensor> {
    let u = z.abs()?.neg()?.exp()?;
    let w = (&u + 1.0)?;
    let rest = (&w - 1.0)?;
    let tiny = rest.eq(0f32)?;
    let safe = (rest + tiny.to_dtype(DType::F32)?)?;
    let log = tiny.where_cond(&u, &((w.log()? * &u)? / safe)?)?;
    Ok((z.relu()? + log)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn softplus_is_exact_from_easy_negatives_to_overflow() {
        let z = [-120f32, -30.0, -16.7, -10.0, -1.0, 0.0, 1e-3, 3.0, 20.0, 300.0];
        let found: Vec<f32> = softplus(&Tensor::new(&z, &Device::Cpu).unwrap()).unwrap().to_vec1().unwrap();
        for (z, found) in z.iter().zip(found) {
            let z = f64::from(*z);
            let expected = z.max(0.0) + (-z.abs()).exp().ln_1p();
            assert!((f64::from(found) - expected).abs() <= 3e-7 * expected + 1e-45, "{z}: {found} against {expected}");
        }
    }

    #[test]
    fn chunks_change_nothing() {
        let wave = |seed: f32, rows: usize| {
            let values: Vec<f32> = (0..rows * 5).map(|i| (i as f32 * 0.7 + seed).sin()).collect();
            let rows = Tensor::from_vec(values, (rows, 5), &Device::Cpu).unwrap();
            Var::from_tensor(&ops::l2_normalize(&rows).unwrap()).unwrap()
        };
        let (x, y) = (wave(0.1, 7), wave(1.9, 9));
        let number = |v: f32| Var::new(v, &Device::Cpu).unwrap();
        let (s, b) = (number(4.0), number(-2.0));
        let run = |chunk| {
            let pairs = Pairs { logit_bias: Some(&b), ..Pairs::new(&x, &y, &s) };
            let loss = SigLipLoss::new().with_chunk(chunk).of(&pairs).unwrap();
            let grads = loss.backward().unwrap();
            let mut all = vec![loss.to_scalar::<f32>().unwrap()];
            for v in [&x, &y, &s, &b] {
                all.extend(grads.get(v).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap());
            }
            all
        };
        let whole = run(100);
        for chunk in [1, 2, 3, 7] {
            for (a, b) in run(chunk).iter().zip(&whole) {
                assert!((a - b).abs() < 1e-6, "{chunk}");
            }
        }
    }
}
