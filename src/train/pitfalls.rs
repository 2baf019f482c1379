//! What goes wrong in contrastive training without an error: [`Pitfall`]s are named while the run goes on, each at most once an
//! epoch. A parameter without a gradient is an error of the first step ([`check_gradients`](super::check_gradients)).
//!
//! Collapse is seen in the two figures of Wang & Isola 2020 (arXiv 2005.10242, equations 1 and 2, t = 2, α = 2), of unit rows:
//!
//! ```text
//! uniformity(x)    = ln mean over i ≠ j of exp(−2 ‖xᵢ − xⱼ‖²)     0 where all rows are the same, about −4 where they are spread
//! alignment(x, y)  = mean over i of ‖xᵢ − yᵢ‖²                    0 where pairs agree, 2 where they are strangers
//! ```

use std::collections::HashSet;
use std::fmt;
use std::mem::Discriminant;

use candle_core::{DType, Device, Tensor};

use super::progress::Half;
use crate::logit_scale::LogitScale;
use crate::{Error, Result};

/// Rows that [`Geometry`] looks at: the mean over pairs of so many is close enough.
const ROWS: usize = 512;
/// The uniformity of rows with a mean cosine of 0.975: from there on they count as one point.
const COLLAPSED: f64 = -0.1;

/// How a batch's embeddings lie on the sphere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Geometry {
    /// Uniformity of the images.
    pub image_uniformity: f64,
    /// Uniformity of the texts.
    pub text_uniformity: f64,
    /// Alignment of the pairs.
    pub alignment: f64,
}

impl Geometry {
    /// The figures of pairs of unit rows; of more than 512 pairs the first 512 count.
    ///
    /// # Shapes
    /// `image_embeds` (B,D), `text_embeds` (B,D).
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if the shapes differ or there is only one pair.
    pub fn of(image_embeds: &Tensor, text_embeds: &Tensor) -> Result<Self> {
        let (images, texts) = (image_embeds.dims(), text_embeds.dims());
        if images.len() != 2 || images != texts || images[0] < 2 {
            let message = format!("expected (B, D) twice, B at least 2; found {images:?} and {texts:?}");
            return Err(Error::argument("image_embeds, text_embeds", message));
        }
        let rows = |t: &Tensor| -> Result<Tensor> {
            let some = t.detach().narrow(0, 0, images[0].min(ROWS))?;
            Ok(some.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?)
        };
        let (images, texts) = (rows(image_embeds)?, rows(text_embeds)?);
        let distances = (&images - &texts)?.sqr()?.sum(1)?.to_dtype(DType::F64)?;
        Ok(Self {
            image_uniformity: uniformity(&images)?,
            text_uniformity: uniformity(&texts)?,
            alignment: distances.mean_all()?.to_scalar()?,
        })
    }
}

fn uniformity(rows: &Tensor) -> Result<f64> {
    let cosines = rows.matmul(&rows.t()?)?.to_vec2::<f32>()?;
    let (mut sum, count) = (0.0, cosines.len());
    for (i, row) in cosines.iter().enumerate() {
        // Of unit rows ‖x − y‖² = 2 − 2·x·y.
        sum += row[..i].iter().map(|&cosine| (4.0 * (f64::from(cosine) - 1.0)).exp()).sum::<f64>();
    }
    Ok((2.0 * sum / (count * (count - 1)) as f64).ln())
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Pitfall {
    /// Pairs of a batch have the same caption, and the loss tells each that the other's image does not belong to it; the plain
    /// cross-entropy does no harm by that ([`Loss::sees_duplicates`](crate::loss::Loss::sees_duplicates)). Remedy:
    /// [`Duplicates::Positives`](super::Duplicates::Positives).
    DuplicateCaptions {
        /// Pairs whose caption an earlier one of the batch has.
        repeated: usize,
        /// Pairs in the batch.
        pairs: usize,
    },
    /// The scale has come to the end of its range, [1, 100]: from here on the loss cannot sharpen (or soften). Remedies: a smaller
    /// learning rate, larger batches, label smoothing.
    SaturatedScale {
        /// The factor exp(logit_scale).
        logit_scale: f64,
    },
    /// The rows of one half are almost the same. Remedies: a smaller learning rate, a longer warm-up, larger batches.
    Collapse {
        /// Which half.
        half: Half,
        /// How its rows lie, and the other half's.
        geometry: Geometry,
    },
}

/// A pitfall, and when it was seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Warning {
    /// The epoch, counted from 1.
    pub epoch: usize,
    /// The step over all epochs, counted from 1.
    pub step: usize,
    /// What goes wrong.
    pub pitfall: Pitfall,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}, step {}: ", self.epoch, self.step)?;
        match &self.pitfall {
            Pitfall::DuplicateCaptions { repeated, pairs } => write!(
                f,
                "{repeated} of {pairs} pairs have a caption that another pair of their batch has too, and count as its negatives; \
                 set `duplicates` to `Positives`"
            ),
            Pitfall::SaturatedScale { logit_scale } => write!(
                f,
                "the logit scale is {logit_scale:.4}, the end of its range; try a smaller learning rate or larger batches"
            ),
            Pitfall::Collapse { half, geometry: Geometry { image_uniformity, text_uniformity, alignment } } => write!(
                f,
                "the embeddings of {} are almost the same (uniformity {image_uniformity:.2} of images, {text_uniformity:.2} of \
                 texts, alignment {alignment:.2}); try a smaller learning rate or a longer warm-up",
                if *half == Half::Image { "images" } else { "texts" }
            ),
        }
    }
}

/// What a run has been warned of.
#[derive(Default)]
pub(super) struct Pitfalls {
    epoch: usize,
    named: HashSet<Discriminant<Pitfall>>,
    /// All warnings so far.
    pub(super) all: Vec<Warning>,
    /// The last figures.
    pub(super) geometry: Option<Geometry>,
}

impl Pitfalls {
    /// Takes note of a pitfall; gives the warning that is due, if it is the epoch's first of its kind.
    pub(super) fn meet(&mut self, epoch: usize, step: usize, pitfall: Pitfall) -> Option<Warning> {
        if self.epoch != epoch {
            (self.epoch, self.named) = (epoch, HashSet::new());
        }
        if !self.named.insert(std::mem::discriminant(&pitfall)) {
            return None;
        }
        let warning = Warning { epoch, step, pitfall };
        self.all.push(warning.clone());
        Some(warning)
    }
}

/// Whether a factor kept in [1, 100] is at an end of it.
pub(super) fn saturated(logit_scale: f64) -> Option<Pitfall> {
    let largest = LogitScale::LARGEST.exp();
    // The logarithm is an f32: the bound is met to its rounding.
    let inside = logit_scale > 1.0 + 1e-5 && logit_scale < largest * (1.0 - 1e-5);
    (!inside).then_some(Pitfall::SaturatedScale { logit_scale })
}

/// The halves that have collapsed.
pub(super) fn collapsed(geometry: Geometry) -> Option<Pitfall> {
    let halves = [(Half::Image, geometry.image_uniformity), (Half::Text, geometry.text_uniformity)];
    let worst = halves.into_iter().filter(|(_, uniformity)| *uniformity > COLLAPSED).max_by(|a, b| a.1.total_cmp(&b.1));
    worst.map(|(half, _)| Pitfall::Collapse { half, geometry })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniformity_and_alignment_of_known_points() {
        let rows = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap();
        let same = Tensor::new(&[[1f32, 0.0], [1.0, 0.0]], &Device::Cpu).unwrap();
        let found = Geometry::of(&rows, &same).unwrap();
        // ‖x − y‖² = 2 for the one pair of images: ln exp(−4); the texts are one point; alignment (0 + 2) / 2.
        assert!((found.image_uniformity + 4.0).abs() < 1e-6, "{found:?}");
        assert!(found.text_uniformity.abs() < 1e-6 && (found.alignment - 1.0).abs() < 1e-6, "{found:?}");
        assert!(matches!(collapsed(found), Some(Pitfall::Collapse { half: Half::Text, .. })));
        assert_eq!(collapsed(Geometry::of(&rows, &rows).unwrap()), None);
        assert!(Geometry::of(&rows, &rows.narrow(0, 0, 1).unwrap()).is_err());
    }

    #[test]
    fn a_pitfall_is_named_once_an_epoch() {
        let mut pitfalls = Pitfalls::default();
        let duplicates = || Pitfall::DuplicateCaptions { repeated: 1, pairs: 4 };
        assert!(pitfalls.meet(1, 1, duplicates()).is_some());
        assert!(pitfalls.meet(1, 2, duplicates()).is_none());
        assert!(pitfalls.meet(1, 2, Pitfall::SaturatedScale { logit_scale: 100.0 }).is_some());
        let warning = pitfalls.meet(2, 3, duplicates()).unwrap();
        assert_eq!(pitfalls.all.len(), 3);
        assert!(warning.to_string().starts_with("epoch 2, step 3: 1 of 4 pairs"), "{warning}");
    }

    #[test]
    fn a_scale_is_saturated_at_both_ends() {
        assert!(saturated(100.0).is_some() && saturated(1.0).is_some() && saturated(f64::from(99.9999f32)).is_some());
        assert!(saturated(14.3).is_none() && saturated(99.0).is_none());
    }
}
