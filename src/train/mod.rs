//! Training: [`Trainer`] fits a dual encoder to images with captions; its parts (the optimiser, the learning rate's course, the
//! check that every parameter is really trained) serve a loop of your own as well.

mod any_optimizer;
mod checkpoint;
mod config;
mod ema;
mod grad_cache;
mod gradient_check;
mod groups;
mod halves;
mod norm;
mod optimizer;
mod pooled;
mod progress;
mod schedule;
mod sgd;
mod step;
mod trainer;
mod update;

pub use any_optimizer::{Optimizer, OptimizerConfig};
pub use checkpoint::CheckpointConfig;
pub use config::{Duplicates, Evaluation, TrainConfig};
pub use ema::Ema;
pub use grad_cache::{CachedSide, GradientSum, cached_backward};
pub use gradient_check::check_gradients;
pub use groups::{GroupRule, SelectRule, Selection};
pub use norm::gradient_norm;
pub use optimizer::{AdamW, AdamWConfig, Moments, ParamGroup, decays};
pub use pooled::evaluate_retrieval;
pub use progress::{Half, Progress, Step, TrainReport};
pub use schedule::Schedule;
pub use sgd::{Sgd, SgdConfig};
pub use trainer::{TrainData, Trainer};
