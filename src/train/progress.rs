//! What a run tells its caller while it goes on, and at its end.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::pitfalls::{Geometry, Warning};
use crate::data::Skipped;
use crate::retrieval::RetrievalReport;
use crate::zero_shot::ZeroShotReport;

/// One of a model's two halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Images.
    Image,
    /// Texts.
    Text,
}

/// What just happened.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Progress {
    /// A tower worked out pooled outputs without a graph: to keep them for all epochs, or to evaluate.
    Pooling {
        /// Which tower.
        half: Half,
        /// How many are done.
        done: usize,
        /// How many there are.
        total: usize,
    },
    /// A training image could not be read and was left out, for the first time in this run.
    Skipped(Skipped),
    /// A run that goes on passed over a checkpoint that is damaged or incomplete; it goes on from an older one, or starts anew.
    PassedOver {
        /// The checkpoint's folder.
        checkpoint: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An optimiser step was taken.
    Step(Step),
    /// The evaluation split was evaluated.
    Evaluated {
        /// The epoch it follows, counted from 1; 0 is before training, where there is an early stop.
        epoch: usize,
        /// What it found.
        report: RetrievalReport,
    },
    /// The canary was measured.
    Canary {
        /// The epoch it follows, counted from 1; 0 is before training.
        epoch: usize,
        /// What it found.
        report: ZeroShotReport,
    },
    /// The run ends before its last epoch.
    Stopped {
        /// The epoch it follows, counted from 1.
        epoch: usize,
        /// Why.
        reason: StopReason,
    },
    /// Something goes wrong without an error.
    Warning(Warning),
}

/// Why a run ended before its last epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// Too many epochs brought no better target.
    Patience,
    /// The canary lost too much.
    Canary,
}

/// A zero-shot task before and after training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CanaryReport {
    /// Before the first step.
    pub before: ZeroShotReport,
    /// With the weights that the run leaves.
    pub after: ZeroShotReport,
}

/// One optimiser step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The epoch, counted from 1.
    pub epoch: usize,
    /// The step over all epochs, counted from 1.
    pub step: usize,
    /// How many steps the run has.
    pub steps: usize,
    /// The batch's loss before the step.
    pub loss: f64,
    /// The heads' learning rate.
    pub lr: f64,
    /// The global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// The factor exp(logit_scale) that the loss was worked out with.
    pub logit_scale: f64,
    /// Pairs a second since the epoch began.
    pub pairs_per_second: f64,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainReport {
    /// Optimiser steps taken.
    pub steps: usize,
    /// The mean loss of the last epoch.
    pub loss: f64,
    /// The samples that were left out: rows when the data was read, then images in the order of the split.
    pub skipped: Vec<Skipped>,
    /// What the weights that the run leaves come to, if there was something to evaluate.
    pub evaluation: Option<RetrievalReport>,
    /// The canary, if there was one.
    pub canary: Option<CanaryReport>,
    /// With an early stop, the epoch of the best target, counted from 1; 0 is before training.
    pub best_epoch: Option<usize>,
    /// Why the run ended before its last epoch, if it did.
    pub stopped: Option<StopReason>,
    /// How the embeddings of the last epoch's last batch lay.
    pub geometry: Option<Geometry>,
    /// The pitfalls that were met, each at most once an epoch.
    pub warnings: Vec<Warning>,
    /// Seconds in which frozen towers ran once.
    pub prepare_seconds: f64,
    /// Seconds from the first step to the end of the last evaluation.
    pub seconds: f64,
}
