//! Training: the optimiser, the learning rate's course, and the check that every parameter is really trained.

mod gradient_check;
mod norm;
mod optimizer;
mod pattern;
mod schedule;
mod update;

pub use gradient_check::check_gradients;
pub use norm::gradient_norm;
pub use optimizer::{AdamW, AdamWConfig, Moments, ParamGroup, decays};
pub use pattern::matches_pattern;
pub use schedule::Schedule;
