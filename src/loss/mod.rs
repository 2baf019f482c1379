//! Losses. They see embeddings and a scale, never a model.

mod clip;

pub use clip::ClipLoss;
