//! [`ClipLoss`]: the symmetric cross-entropy over a batch of pairs (CLIP, arXiv 2103.00020, figure 3; symmetric InfoNCE).
//!
//! With unit embeddings xᵢ (images) and yⱼ (texts), the scale s and `logits_per_image` zᵢⱼ = s · xᵢ·yⱼ, pair i belongs to
//! text i and to no other:
//!
//! ```text
//! loss = ½ · [ −1/B Σᵢ log softmaxⱼ(zᵢⱼ)ᵢ  −  1/B Σⱼ log softmaxᵢ(zᵢⱼ)ⱼ ]
//! ```
//!
//! With several positives and smoothing the target of row i is tᵢⱼ = (1 − ε) Pᵢⱼ / Σₖ Pᵢₖ + ε/M instead of one text, and the row's
//! loss −Σⱼ tᵢⱼ log softmaxⱼ(zᵢⱼ); columns likewise.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::pairs::Pairs;
use super::sigmoid::check_smoothing;
use super::targets::{Targets, both_ways};
use crate::{Error, Result, ops};

/// The mean of the two cross-entropies, of each image over all texts and of each text over all images.
///
/// # Examples
/// ```
/// # fn main() -> diptych::Result<()> {
/// use diptych::candle::{Device, Tensor};
/// use diptych::loss::ClipLoss;
/// let embeds = Tensor::new(&[[1f32, 0.], [0., 1.]], &Device::Cpu)?;
/// let scale = Tensor::new(100f32, &Device::Cpu)?;
/// let loss = ClipLoss::new().forward(&embeds, &embeds, &scale)?.to_scalar::<f32>()?;
/// assert!(loss < 1e-6);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ClipLoss {
    /// ε: every text of the batch is a right answer by ε/M, the true one by 1 − ε more (Szegedy et al. 2016, arXiv 1512.00567,
    /// section 7).
    pub label_smoothing: f64,
}

impl ClipLoss {
    /// The loss without smoothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with targets smoothed by ε.
    #[must_use]
    pub fn with_label_smoothing(self, label_smoothing: f64) -> Self {
        Self { label_smoothing }
    }

    /// The loss of a batch, with the graph kept. With several texts that belong to an image, each is a right answer with the
    /// same share (UniCL, Yang et al. 2022, arXiv 2204.03610, equations 2 and 3); rows and columns to which nothing belongs
    /// are no part of the mean.
    ///
    /// # Shapes
    /// See [`Pairs`] → ().
    ///
    /// # Errors
    /// When shapes do not fit, or ε is not in [0, 1).
    pub fn of(&self, pairs: &Pairs<'_>) -> Result<Tensor> {
        let logits = pairs.logits_per_image()?;
        let one_by_one = pairs.positives.is_none_or(|positives| positives.is_one_by_one());
        let (images, texts) = logits.dims2()?;
        if one_by_one && images == texts {
            return self.from_logits(&logits);
        }
        self.smoothed(&logits, &pairs.positives_mask(0..images)?)
    }

    /// The loss of a batch of pairs, with the graph kept. `logit_scale` is the factor itself, already exponentiated.
    ///
    /// # Shapes
    /// `image_embeds` (B,D) and `text_embeds` (B,D), rows of unit length; `logit_scale` () or (1) → ().
    ///
    /// # Errors
    /// When the shapes differ from these.
    pub fn forward(&self, image_embeds: &Tensor, text_embeds: &Tensor, logit_scale: &Tensor) -> Result<Tensor> {
        if image_embeds.rank() != 2 || image_embeds.dims() != text_embeds.dims() {
            let (images, texts) = (image_embeds.dims(), text_embeds.dims());
            let message = format!("expected (B, D) of both, found images {images:?} and texts {texts:?}");
            return Err(Error::argument("image_embeds, text_embeds", message));
        }
        self.of(&Pairs::new(image_embeds, text_embeds, logit_scale))
    }

    /// The loss of `logits_per_image`, whose diagonal holds the true pairs, with the graph kept. Computed in f32 at least.
    ///
    /// # Shapes
    /// `logits_per_image` (B,B) → ().
    ///
    /// # Errors
    /// When the logits are not square, or there are none, or ε is not in [0, 1).
    pub fn from_logits(&self, logits_per_image: &Tensor) -> Result<Tensor> {
        check_smoothing(self.label_smoothing)?;
        if self.label_smoothing == 0.0 {
            return ops::symmetric_cross_entropy(logits_per_image);
        }
        let rows = logits_per_image.dims().first().copied().unwrap_or(0);
        self.smoothed(
            logits_per_image,
            &Tensor::eye(rows, candle_core::DType::F32, &Device::Cpu)?.to_device(logits_per_image.device())?,
        )
    }

    fn smoothed(&self, logits: &Tensor, positives: &Tensor) -> Result<Tensor> {
        check_smoothing(self.label_smoothing)?;
        if logits.dims() != positives.dims() || logits.elem_count() == 0 {
            let message = format!("expected (B, B) with a true pair on the diagonal, found {:?}", logits.dims());
            return Err(Error::argument("logits_per_image", message));
        }
        both_ways(logits, positives, |z, positives| Targets::new(positives, self.label_smoothing)?.cross_entropy(z, z))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::loss::Positives;

    const IMAGES: [[f32; 3]; 4] = [[0.6, 0.8, 0.0], [0.0, -0.6, 0.8], [1.0, 0.0, 0.0], [0.48, 0.6, 0.64]];
    const TEXTS: [[f32; 3]; 4] = [[0.8, 0.6, 0.0], [0.0, 0.0, 1.0], [0.6, 0.0, -0.8], [-0.48, 0.64, 0.6]];

    fn var<const N: usize>(values: &[[f32; N]]) -> Var {
        Var::from_slice(values.as_flattened(), (values.len(), N), &Device::Cpu).unwrap()
    }

    fn loss_of(images: &Tensor, texts: &Tensor, scale: f32) -> f32 {
        let scale = Tensor::new(scale, &Device::Cpu).unwrap();
        ClipLoss::new().forward(images, texts, &scale).unwrap().to_scalar::<f32>().unwrap()
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            assert!((f - e).abs() < 5e-6, "value {i}: {f} against {e}");
        }
    }

    // PyTorch 2.11 with IMAGES, TEXTS and s = 14.285714:
    //   z = s * images @ texts.T; t = torch.arange(4); F = torch.nn.functional
    //   loss = (F.cross_entropy(z, t) + F.cross_entropy(z.T, t)) / 2; loss.backward(); s.grad
    #[test]
    fn loss_and_gradients_equal_pytorch() {
        let (images, texts) = (var(&IMAGES), var(&TEXTS));
        let scale = Var::from_tensor(&Tensor::new(14.285_714f32, &Device::Cpu).unwrap()).unwrap();
        let loss = ClipLoss::new().forward(images.as_tensor(), texts.as_tensor(), scale.as_tensor()).unwrap();
        let gradients = loss.backward().unwrap();
        let gradient = |v: &Var| gradients.get(v.as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        close(&[loss.to_scalar().unwrap()], &[0.798_385_4]);
        close(&gradient(&scale), &[0.039_884_73]);
        #[rustfmt::skip]
        close(&gradient(&images), &[
            -0.159_580_4, -0.125_057_06, -0.033_113_927, -0.001_576_91, 0.002_102_783, -0.162_982_03,
            0.430_687_73, 1.108_193_5, 1.395_906_4, 2.007_200_2, -0.230_311_8, -0.560_521_36,
        ]);
        #[rustfmt::skip]
        close(&gradient(&texts), &[
            2.413_547_5, 0.696_709_75, 0.939_242_3, 0.230_886_32, 0.387_535_9, 0.175_822_1,
            -1.710_969_4, 0.045_156_714, 0.000_009_459_743, -0.821_123_36, -1.027_375_5, -1.108_223,
        ]);
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let (images, texts) = (var(&IMAGES), var(&TEXTS));
        let scale = Tensor::new(5f32, &Device::Cpu).unwrap();
        let loss = ClipLoss::new().forward(images.as_tensor(), texts.as_tensor(), &scale).unwrap();
        let gradient = loss.backward().unwrap().get(texts.as_tensor()).unwrap().to_vec2::<f32>().unwrap();
        let step = 1e-2;
        for (i, row) in gradient.iter().enumerate() {
            for (j, &found) in row.iter().enumerate() {
                let moved = |by: f32| {
                    let mut texts = TEXTS;
                    texts[i][j] += by;
                    loss_of(images.as_tensor(), &Tensor::new(&texts, &Device::Cpu).unwrap(), 5.0)
                };
                let expected = (moved(step) - moved(-step)) / (2.0 * step);
                assert!((found - expected).abs() < 2e-3, "({i}, {j}): {found} against {expected}");
            }
        }
    }

    #[test]
    fn equal_captions_teach_the_same_whether_they_match_or_not() {
        let (images, texts) = (var(&IMAGES), var(&[TEXTS[0], TEXTS[1], TEXTS[3]]));
        let scale = Tensor::new(5f32, &Device::Cpu).unwrap();
        // Pairs 1 and 2 have the same caption, and so one embedding of it.
        let rows = Tensor::new(&[0u32, 1, 1, 2], &Device::Cpu).unwrap();
        let positives = Positives::from_pairs(&[0, 1, 2, 3], &[0, 1, 1, 2]).unwrap();
        for smoothing in [0.0, 0.1] {
            let gradients = |positives: Option<&Positives>| {
                let captions = texts.as_tensor().index_select(&rows, 0).unwrap();
                let pairs = Pairs { positives, ..Pairs::new(images.as_tensor(), &captions, &scale) };
                let loss = ClipLoss::new().with_label_smoothing(smoothing).of(&pairs).unwrap();
                let found = loss.backward().unwrap();
                let of = |v: &Var| found.get(v.as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                [vec![loss.to_scalar::<f32>().unwrap()], of(&images), of(&texts)].concat()
            };
            let (apart, together) = (gradients(None), gradients(Some(&positives)));
            assert!(apart.iter().zip(&together).all(|(a, b)| (a - b).abs() < 1e-5), "{apart:?} and {together:?}");
        }
    }

    #[test]
    fn large_logits_stay_finite() {
        let opposite = Tensor::new(&[[-1f32, 0.], [0., -1.]], &Device::Cpu).unwrap();
        let images = opposite.neg().unwrap();
        assert_eq!(loss_of(&images, &opposite, 1e4), 1e4);
        assert_eq!(loss_of(&images, &images, 1e4), 0.0);
    }

    #[test]
    fn the_loss_of_equal_logits_is_the_logarithm_of_the_batch() {
        let same = Tensor::new(&[[1f32, 0.], [1., 0.], [1., 0.]], &Device::Cpu).unwrap();
        assert!((loss_of(&same, &same, 20.0) - 3f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn half_precision_is_summed_in_single() {
        let (images, texts) = (var(&IMAGES), var(&TEXTS));
        let half = |v: &Var| v.as_tensor().to_dtype(DType::F16).unwrap();
        let scale = Tensor::new(&[5f32], &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap();
        let loss = ClipLoss::new().forward(&half(&images), &half(&texts), &scale).unwrap();
        assert_eq!(loss.dtype(), DType::F32);
        assert!((loss.to_scalar::<f32>().unwrap() - loss_of(&images, &texts, 5.0)).abs() < 1e-2);
    }

    #[test]
    fn wrong_shapes_are_refused_by_name() {
        let tensor = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let message = |images: &[usize], texts: &[usize], scale: &[usize]| {
            ClipLoss::new().forward(&tensor(images), &tensor(texts), &tensor(scale)).unwrap_err().to_string()
        };
        assert!(message(&[2, 3], &[2, 4], &[]).contains("images [2, 3] and texts [2, 4]"));
        assert!(message(&[2], &[2], &[]).contains("expected (B, D)"));
        assert!(message(&[2, 3], &[2, 3], &[2]).starts_with("logit_scale"));
        assert!(message(&[0, 3], &[0, 3], &[]).starts_with("image_embeds"));
        assert!(ClipLoss::new().from_logits(&tensor(&[2, 3])).is_err());
    }
}
