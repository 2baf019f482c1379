//! What a run tells its caller while it goes on, and at its end.

use crate::data::Skipped;
use crate::retrieval::RetrievalReport;

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
    /// An optimiser step was taken.
    Step(Step),
    /// The evaluation split was evaluated.
    Evaluated {
        /// The epoch it follows, counted from 1; 0 is before training.
        epoch: usize,
        /// What it found.
        report: RetrievalReport,
    },
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
    /// The last evaluation, if there was something to evaluate.
    pub evaluation: Option<RetrievalReport>,
    /// Seconds in which frozen towers ran once.
    pub prepare_seconds: f64,
    /// Seconds from the first step to the end of the last evaluation.
    pub seconds: f64,
}
