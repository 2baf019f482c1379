//! The public encoders: preprocessing and tower together.

mod built;
mod image;
mod stream;
mod text;

pub(crate) use built::Built;
pub use image::{ImageEncoder, ImageEncoderConfig};
pub use text::{TextEncoder, TextEncoderConfig};
