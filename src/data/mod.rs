//! Data sets: which images belong to which captions or classes, in which order they are visited, and how they are loaded
//! on worker threads.
//!
//! - [`PairDataset`] reads `image,caption,split`, [`LabelledImages`] reads `image,folder,split`; both know names only and open no image.
//! - [`Sampler`] decides order and caption by seed and epoch alone.
//! - [`BatchLoader`] runs a job (decode, resize, …) over that order on worker threads: memory bounded, batches in order.

mod labels;
mod loader;
mod pairs;
mod sampler;
mod table;

pub use labels::{LabelledImages, LabelledSplit};
pub use loader::{BatchLoader, LastBatch, LoaderConfig};
pub use pairs::{PairDataset, Split};
pub use sampler::Sampler;
