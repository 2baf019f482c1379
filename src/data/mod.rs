//! Data sets: which images belong to which captions or classes, in which order they are visited, and how they are loaded
//! on worker threads.
//!
//! - [`PairDataset::open`] reads images with captions from CSV, TSV, JSONL, a folder per class, WebDataset shards or Parquet
//!   ([`PairOptions`] has the table); [`LabelledImages`] reads `image,folder,split`. Both open no image.
//! - [`Tolerance`] says how many samples may be unusable; they are left out and listed as [`Skipped`].
//! - [`Split::balanced`] repeats the images of rare classes.
//! - [`Sampler`] decides order and caption by seed and epoch alone.
//! - [`BatchLoader`] runs a job (decode, resize, …) over that order on worker threads: memory bounded, batches in order.

mod balance;
mod braces;
mod builder;
mod class_folders;
mod jsonl;
mod labels;
mod loader;
mod open;
mod pairs;
#[cfg(feature = "parquet")]
mod parquet;
mod sampler;
mod skipped;
mod table;
mod webdataset;

pub use labels::{LabelledImages, LabelledSplit};
pub use loader::{BatchLoader, LastBatch, LoaderConfig};
pub use open::{PairFormat, PairOptions};
pub use pairs::{PairDataset, Split};
pub use sampler::Sampler;
pub use skipped::{Skipped, Tolerance};
