//! Losses. They see embeddings, a scale and a bias, never a model.
//!
//! Each is a small value with a method `of(&pairs)`, where [`Pairs`] holds what a batch's loss may depend on. [`Loss`] is any of
//! them, to be put into a configuration. With unit rows xᵢ (B images) and yⱼ (M texts), the scale s and the bias b,
//! `logits_per_image` are zᵢⱼ = s · xᵢ·yⱼ + b.
//!
//! | the data you have | the loss |
//! |---|---|
//! | one caption an image, batches of 64 and more | [`ClipLoss`], cross-entropy in both directions |
//! | small batches, or very large ones on one machine | [`SigLipLoss`], a yes or no for each pair; memory O(chunk · B) |
//! | the same caption on several images, or several captions of one image in a batch | either of them, with [`Positives`] |
//! | captions with mistakes, pairs that fit loosely | [`ClipLoss::with_label_smoothing`] of 0.05 to 0.1 |
//! | wrong captions for some images (swapped words, another object) | the texts behind the B first ones in [`Pairs`]: they are negatives of every image |
//! | many near misses in a batch (one domain: products, birds) | [`HardNegativeLoss`] |
//! | a larger model that does well | [`DistillLoss`] around any of them, with patches for a vision transformer from random weights |
//! | embeddings that shall be cut short later, for a small index | [`MatryoshkaLoss`] around any of them |
//!
//! [`ClipLoss`] wants the scale clamped to 100 and no bias; [`SigLipLoss`] wants a bias
//! ([`LogitConfig::ScaleAndBias`](crate::LogitConfig::ScaleAndBias)).

mod clip;
mod distill;
mod hard_negatives;
mod matryoshka;
mod pairs;
mod sigmoid;
mod surrogate;
mod targets;

pub use clip::ClipLoss;
pub use distill::DistillLoss;
pub use hard_negatives::HardNegativeLoss;
pub use matryoshka::MatryoshkaLoss;
pub use pairs::{Pairs, Positives, Teacher};
pub use sigmoid::SigLipLoss;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::Result;

/// Any of the losses, as a recipe holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Loss {
    /// Symmetric cross-entropy.
    Clip(ClipLoss),
    /// SigLIP's sigmoid loss.
    SigLip(SigLipLoss),
    /// Cross-entropy that weighs near misses more.
    HardNegative(HardNegativeLoss),
    /// A loss and the likeness to a teacher.
    Distill(DistillLoss),
    /// A loss at several widths.
    Matryoshka(MatryoshkaLoss),
}

impl Default for Loss {
    fn default() -> Self {
        Self::Clip(ClipLoss::default())
    }
}

impl Loss {
    /// The loss of a batch, with its graph.
    ///
    /// # Shapes
    /// See [`Pairs`] → ().
    ///
    /// # Errors
    /// When shapes do not fit, a constant is out of its range, or the loss wants a teacher and there is none.
    pub fn of(&self, pairs: &Pairs<'_>) -> Result<Tensor> {
        match self {
            Self::Clip(loss) => loss.of(pairs),
            Self::SigLip(loss) => loss.of(pairs),
            Self::HardNegative(loss) => loss.of(pairs),
            Self::Distill(loss) => loss.of(pairs),
            Self::Matryoshka(loss) => loss.of(pairs),
        }
    }

    /// Whether the loss looks at [`Pairs::teacher`].
    #[must_use]
    pub fn wants_teacher(&self) -> bool {
        match self {
            Self::Clip(_) | Self::SigLip(_) | Self::HardNegative(_) => false,
            Self::Distill(_) => true,
            Self::Matryoshka(loss) => loss.base.wants_teacher(),
        }
    }

    /// Whether the loss looks at [`Pairs::patches`].
    #[must_use]
    pub fn wants_patches(&self) -> bool {
        match self {
            Self::Clip(_) | Self::SigLip(_) | Self::HardNegative(_) => false,
            Self::Distill(loss) => loss.patches > 0.0,
            Self::Matryoshka(loss) => loss.base.wants_patches(),
        }
    }

    /// Whether the loss is another where pairs of a batch have the same caption and are told that they belong together
    /// ([`Duplicates`](crate::train::Duplicates)). The cross-entropy's gradients are the same: equal captions have equal logits, so their
    /// columns' targets, and the targets that a row has for them, count by their sums alone.
    #[must_use]
    pub fn sees_duplicates(&self) -> bool {
        match self {
            Self::Clip(_) => false,
            Self::SigLip(_) | Self::HardNegative(_) => true,
            Self::Distill(loss) => loss.base.as_ref().is_some_and(|base| base.sees_duplicates()),
            Self::Matryoshka(loss) => loss.base.sees_duplicates(),
        }
    }

    /// Whether training keeps the scale in [1, 100], as CLIP does; with a bias of its own the sigmoid loss needs no bound.
    #[must_use]
    pub fn bounds_scale(&self) -> bool {
        match self {
            Self::SigLip(_) => false,
            Self::Clip(_) | Self::HardNegative(_) => true,
            Self::Distill(loss) => loss.base.as_ref().is_none_or(|base| base.bounds_scale()),
            Self::Matryoshka(loss) => loss.base.bounds_scale(),
        }
    }
}
