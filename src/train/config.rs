//! [`TrainConfig`]: the recipe of a run.

use super::any_optimizer::OptimizerConfig;
use super::checkpoint::CheckpointConfig;
use super::forward::Precision;
use super::groups::GroupRule;
use super::schedule::Schedule;
use super::watch::EarlyStop;
use crate::data::Tolerance;
use crate::image::Augment;
use crate::loss::Loss;
use crate::towers::PatchDropout;
use crate::weights::Activations;
use crate::{Error, Result};

/// The recipe of a run. The default is the origin's for trained heads on frozen towers.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    /// How often every image is seen.
    pub epochs: usize,
    /// Pairs in a step; an epoch's last batch is left out if it is not full.
    pub batch_size: usize,
    /// Peak learning rate of the projections and the logit scale.
    pub lr: f64,
    /// Peak learning rate of the towers.
    pub tower_lr: f64,
    /// Decoupled weight decay of matrices; biases, norms and the scale do not decay.
    pub weight_decay: f64,
    /// The learning rates' course.
    pub schedule: Schedule,
    /// The optimiser, its constants and the norm that gradients are clipped to.
    pub optimizer: OptimizerConfig,
    /// What is made small; the [table](crate::loss) says which loss for which data.
    pub loss: Loss,
    /// What two pairs of a batch with the same caption are to each other.
    pub duplicates: Duplicates,
    /// Rows of one side whose activations are in memory at a time ([`cached_backward`](super::cached_backward)); `None` for the
    /// whole batch.
    pub micro_batch: Option<usize>,
    /// What towers keep of a forward pass for the backward pass.
    pub activations: Activations,
    /// In which numbers the towers compute; parameters and optimiser keep their own type.
    pub precision: Precision,
    /// Batches a step, whose gradients are averaged; each has a loss of its own.
    pub accumulate: usize,
    /// By what each block's rate is multiplied to give that of the block before it; 1 for the same rate.
    pub layer_decay: f64,
    /// Rates and decays of some parameters; the first rule that matches counts.
    pub groups: Vec<GroupRule>,
    /// The decay of a moving average of the weights, which then is what is evaluated and what the run leaves.
    pub ema: Option<f64>,
    /// Where the run is kept, so that it can go on after a crash.
    pub checkpoints: Option<CheckpointConfig>,
    /// The seed of order, captions and augmentation.
    pub seed: u64,
    /// Threads that decode and resize images.
    pub workers: usize,
    /// Random views of the training images.
    pub augment: Augment,
    /// How many different random views an image has, after which they come again; `None` for a new one in each epoch. With a
    /// [teacher](super::TeacherView) that sees the same views it looks at each of them once.
    pub views: Option<usize>,
    /// The share of the patches that a trained image tower looks at in a step ([`PatchDropout`](crate::towers::PatchDropout)); 1 for
    /// all. Evaluation looks at all.
    pub patch_keep: f64,
    /// How many training images may be missing or unreadable: each is left out of its batches and listed in the report.
    pub broken_images: Tolerance,
    /// How many bytes of decoded (and, unless crops are resized, resized) images are kept in memory between epochs; the others are read
    /// anew. More than the default pays off where a step is fast and the data set fits.
    pub image_cache_bytes: usize,
    /// When the evaluation split is evaluated.
    pub evaluation: Evaluation,
    /// When the run ends before its last epoch, and which weights it then leaves; `None` for all epochs and the last weights.
    pub early_stop: Option<EarlyStop>,
}

/// What two pairs of a batch with the same caption are to each other. To the plain cross-entropy that is all the same
/// ([`Loss::sees_duplicates`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Duplicates {
    /// Strangers, as in CLIP's loss.
    #[default]
    Negatives,
    /// Each one's image belongs to the other's caption too.
    Positives,
}

/// When the evaluation split is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Evaluation {
    /// After each epoch.
    #[default]
    EachEpoch,
    /// After the last epoch.
    AtEnd,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 30,
            batch_size: 512,
            lr: 1e-3,
            tower_lr: 5e-5,
            weight_decay: 0.05,
            schedule: Schedule::WarmupCosine { warmup_steps: 50 },
            optimizer: OptimizerConfig::default(),
            loss: Loss::default(),
            duplicates: Duplicates::default(),
            micro_batch: None,
            activations: Activations::default(),
            precision: Precision::default(),
            accumulate: 1,
            layer_decay: 1.0,
            groups: Vec::new(),
            ema: None,
            checkpoints: None,
            seed: 0,
            workers: std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
            augment: Augment::default(),
            views: None,
            patch_keep: 1.0,
            broken_images: Tolerance::default(),
            image_cache_bytes: 256 << 20,
            evaluation: Evaluation::EachEpoch,
            early_stop: None,
        }
    }
}

impl TrainConfig {
    /// How many steps a run over `images` images has.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if there is none, or a batch has no pair to compare with.
    pub fn steps(&self, images: usize) -> Result<usize> {
        if self.batch_size < 2 {
            let message =
                format!("is {}; at least 2 are needed, because pairs are told apart within a batch", self.batch_size);
            return Err(Error::argument("batch_size", message));
        }
        if self.batch_size > images {
            let message =
                format!("is {}, more than the {images} training images; choose a smaller one", self.batch_size);
            return Err(Error::argument("batch_size", message));
        }
        if self.epochs == 0 {
            return Err(Error::argument("epochs", "is 0; at least 1 is needed"));
        }
        if self.workers == 0 {
            return Err(Error::argument("workers", "is 0; at least 1 is needed"));
        }
        PatchDropout::new(self.patch_keep, Vec::new())?;
        self.early_stop.as_ref().map_or(Ok(()), EarlyStop::check)?;
        if self.views == Some(0) {
            return Err(Error::argument("views", "is 0; at least 1 is needed, or none for a new one in each epoch"));
        }
        if self.micro_batch == Some(0) {
            return Err(Error::argument("micro_batch", "is 0; at least 1 is needed, or none for the whole batch"));
        }
        if self.accumulate == 0 || self.accumulate > images / self.batch_size {
            let (batches, found) = (images / self.batch_size, self.accumulate);
            return Err(Error::argument(
                "accumulate",
                format!("is {found} batches, an epoch has {batches}; it must be 1 to that"),
            ));
        }
        if self.checkpoints.as_ref().is_some_and(|checkpoints| checkpoints.every == 0) {
            return Err(Error::argument("checkpoints", "every 0 steps; at least 1 is needed"));
        }
        Ok(self.epochs * self.steps_per_epoch(images))
    }

    /// Steps in one epoch.
    pub(super) fn steps_per_epoch(&self, images: usize) -> usize {
        images / self.batch_size / self.accumulate
    }

    /// Which of an image's views an epoch shows.
    pub(super) fn view_of(&self, epoch: usize) -> usize {
        self.views.map_or(epoch, |views| epoch % views)
    }

    /// What two runs must have in common for one to go on where the other stopped.
    pub(super) fn recipe(&self) -> String {
        let shared = Self {
            workers: 1,
            image_cache_bytes: 0,
            broken_images: Tolerance::NONE,
            evaluation: Evaluation::EachEpoch,
            checkpoints: None,
            ..self.clone()
        };
        format!("{shared:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_run_has_330_steps() {
        assert_eq!(TrainConfig::default().steps(6000).unwrap(), 330);
    }

    #[test]
    fn impossible_runs_are_refused() {
        let config = TrainConfig { batch_size: 4, ..TrainConfig::default() };
        assert!(config.steps(3).unwrap_err().to_string().contains("3 training images"));
        assert!(TrainConfig { epochs: 0, ..config.clone() }.steps(8).is_err());
        assert!(TrainConfig { workers: 0, ..config.clone() }.steps(8).is_err());
        assert!(TrainConfig { views: Some(0), ..config.clone() }.steps(8).is_err());
        assert!(TrainConfig { batch_size: 1, ..config }.steps(8).is_err());
    }
}
