//! Training: [`Trainer`] fits a dual encoder to images with captions; its parts (the optimiser, the learning rate's course, the
//! check that every parameter is really trained) serve a loop of your own as well.

mod config;
mod gradient_check;
mod halves;
mod norm;
mod optimizer;
mod pooled;
mod progress;
mod schedule;
mod trainer;
mod update;

pub use config::{Evaluation, TrainConfig};
pub use gradient_check::check_gradients;
pub use norm::gradient_norm;
pub use optimizer::{AdamW, AdamWConfig, Moments, ParamGroup, decays};
pub use pooled::evaluate_retrieval;
pub use progress::{Half, Progress, Step, TrainReport};
pub use schedule::Schedule;
pub use trainer::{TrainData, Trainer};
