#![doc = include_str!("../README.md")]
#![deny(missing_docs, unreachable_pub)]
#![deny(unsafe_code)]

mod error;
mod random;

pub mod adapt;
pub mod data;
pub mod encoder;
pub mod families;
pub mod image;
pub mod inspect;
pub mod loss;
pub mod nn;
pub mod ops;
pub mod report;
pub mod retrieval;
pub mod text;
pub mod towers;
pub mod train;
pub mod weights;
pub mod zero_shot;

mod embeddings;
mod loader;
mod logit_scale;
mod matching;
mod model;
mod project;
mod threads;

pub use embeddings::Embeddings;
pub use encoder::{ImageEncoder, ImageEncoderConfig, TextEncoder, TextEncoderConfig};
pub use error::{Error, ErrorKind, Result};
pub use inspect::Inspection;
pub use loader::{Loaded, Loader, Quantization};
pub use logit_scale::{LogitConfig, LogitScale};
pub use matching::MatchingConfig;
pub use model::{ClipConfig, ClipModel, ClipOutput};
pub use project::{InputNorm, LinearProject, MlpBias, ProjectionConfig, ProjectionKind};

/// The tensors underneath, re-exported so that an application never mixes versions.
pub use candle_core as candle;
/// `VarBuilder`, `VarMap` and the optimisers of candle.
pub use candle_nn;
