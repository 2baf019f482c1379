//! CLIP-style dual encoders in pure Rust.
#![deny(missing_docs, unreachable_pub)]
#![deny(unsafe_code)]

mod error;
mod random;

pub mod data;
pub mod image;
pub mod loss;
pub mod ops;
pub mod retrieval;
pub mod text;
pub mod train;
pub mod weights;
pub mod zero_shot;

mod embeddings;

pub use embeddings::Embeddings;
pub use error::{Error, ErrorKind, Result};

/// The tensors underneath, re-exported so that an application never mixes versions.
pub use candle_core as candle;
/// `VarBuilder`, `VarMap` and the optimisers of candle.
pub use candle_nn;
