//! Training: [`Trainer`] fits a dual encoder to images with captions; its parts (optimisers, the learning rate's course, the check
//! that every parameter is really trained) serve a loop of your own as well.
//!
//! | what you want | where |
//! |---|---|
//! | another loss | [`TrainConfig::loss`], chosen by the table in [`loss`](crate::loss) |
//! | batches larger than memory | [`TrainConfig::micro_batch`], the gradient cache ([`cached_backward`]) |
//! | activations larger than memory | [`TrainConfig::activations`], which [`recomputes`](crate::weights::Activations) them |
//! | bf16 towers under f32 parameters | [`TrainConfig::precision`] |
//! | gradients of several batches a step | [`TrainConfig::accumulate`], [`GradientSum`] |
//! | to train some parameters only | [`Selection`]: projections, a locked tower, the last N blocks, patterns |
//! | to train few numbers | [`ClipModel::with_lora`](crate::ClipModel::with_lora) |
//! | slower lower layers, other rates and decays | [`TrainConfig::layer_decay`], [`TrainConfig::groups`] |
//! | an average of the weights | [`TrainConfig::ema`] |
//! | to learn from a larger model | [`Trainer::with_teacher`] and a [`DistillLoss`](crate::loss::DistillLoss) |
//! | not to lose what the model knew | [`Trainer::with_canary`], [`TrainConfig::early_stop`], [`WiseFt`] |
//! | to know what goes wrong without an error | [`Progress::Warning`] |
//! | to train on data with broken files | [`TrainConfig::broken_images`], [`TrainReport::skipped`] |
//! | to go on after a crash | [`TrainConfig::checkpoints`] |

mod any_optimizer;
mod batches;
mod broken;
mod canary;
mod checkpoint;
mod config;
mod ema;
mod forward;
mod grad_cache;
mod gradient_check;
mod groups;
mod halves;
mod norm;
mod optimizer;
mod pitfalls;
mod pooled;
mod progress;
mod resume;
mod schedule;
mod sgd;
mod step;
mod teacher;
mod teacher_patches;
mod teacher_rows;
mod trainer;
mod update;
mod watch;
mod wise_ft;

pub use any_optimizer::{Optimizer, OptimizerConfig};
pub use canary::Canary;
pub use checkpoint::CheckpointConfig;
pub use config::{Duplicates, Evaluation, TrainConfig};
pub use ema::Ema;
pub use forward::Precision;
pub use grad_cache::{CachedSide, GradientSum, cached_backward};
pub use gradient_check::check_gradients;
pub use groups::{GroupRule, SelectRule, Selection};
pub use norm::gradient_norm;
pub use optimizer::{AdamW, AdamWConfig, Moments, ParamGroup, decays};
pub use pitfalls::{Geometry, Pitfall, Warning};
pub use pooled::evaluate_retrieval;
pub use progress::{CanaryReport, Half, Progress, Step, StopReason, TrainReport};
pub use schedule::Schedule;
pub use sgd::{Sgd, SgdConfig};
pub use teacher::{TeacherConfig, TeacherView};
pub use trainer::{TrainData, Trainer};
pub use watch::{EarlyStop, Leave};
pub use wise_ft::{WiseCurve, WiseFt, WisePoint};
