//! How the weights of linear layers are kept: [`Quantization`], and when they are packed.

use candle_core::DType;

use super::Loader;
use crate::ops::Packing;
use crate::{Error, Result};

/// What [`Loader::quantize`] makes of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantization {
    /// 8-bit integers, with a scale for each output of a layer and for each row that enters it; sums are exact.
    Int8,
}

impl Loader {
    /// Keeps the weights of linear layers as integers (floats): a quarter of the memory and less time, for embeddings that differ
    /// a little. What is quantised cannot be trained, and the rest is loaded frozen.
    #[must_use]
    pub fn quantize(self, quantization: Quantization) -> Self {
        Self { quantization: Some(quantization), trainable: false, ..self }
    }

    /// How weights are kept: packed, where nothing trains them and the CPU multiplies.
    pub(super) fn packing(&self) -> Result<Packing> {
        let native = self.dtype == DType::F32 && self.device.is_cpu();
        match self.quantization {
            Some(_) if !native => {
                let message =
                    format!("is for f32 on the CPU, not for {:?} on {:?}", self.dtype, self.device.location());
                Err(Error::argument("quantize", message))
            }
            Some(_) if self.trainable => {
                Err(Error::argument("quantize", "what is quantised cannot be trained; leave `trainable` out"))
            }
            Some(Quantization::Int8) => Ok(Packing::Int8),
            None if native && !self.trainable => Ok(Packing::Float),
            None => Ok(Packing::None),
        }
    }
}
