//! How the weights of linear layers are kept: [`Quantization`], and when they are packed.

use candle_core::DType;
use serde::{Deserialize, Serialize};

use super::Loader;
use crate::ops::Packing;
use crate::{Error, Result};

/// What [`Loader::quantize`] makes of weights, and what the `quantization` of a saved model's `config.json` says of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Quantization {
    /// 8-bit integers, with a scale for each output of a layer and for each row that enters it; sums are exact. Tables (of tokens, of
    /// positions) are rounded to f16.
    Int8,
}

/// Whether weights are to be integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// As the folder holds them.
    AsStored,
    /// Quantised.
    Quantized(Quantization),
    /// Floats, whatever the folder holds.
    Floats,
}

impl Loader {
    /// Keeps the weights of linear layers as integers (as the folder holds them): a quarter of the memory and less time, for embeddings
    /// that differ a little. What is quantised cannot be trained, and the rest is loaded frozen. Saved, such a model takes less than
    /// a third of the room of its f32 folder, and loads again with equal bits without being asked to.
    #[must_use]
    pub fn quantize(self, quantization: Quantization) -> Self {
        Self { quantization: Wanted::Quantized(quantization), trainable: false, ..self }
    }

    /// Makes floats of the integers of a quantised folder (left as they are), to train them, or to save them in a layout that has
    /// no integers.
    #[must_use]
    pub fn dequantize(self) -> Self {
        Self { quantization: Wanted::Floats, ..self }
    }

    /// How weights are kept: packed, where nothing trains them and the CPU multiplies. A folder that holds integers (`stored`) is
    /// frozen; where integers cannot be multiplied they become floats.
    pub(super) fn packing(&self, stored: bool) -> Result<Packing> {
        let native = self.dtype == DType::F32 && self.device.is_cpu();
        match self.quantization {
            Wanted::Quantized(_) if !native => {
                let message =
                    format!("is for f32 on the CPU, not for {:?} on {:?}", self.dtype, self.device.location());
                Err(Error::argument("quantize", message))
            }
            Wanted::Quantized(_) if self.trainable => {
                Err(Error::argument("quantize", "what is quantised cannot be trained; leave `trainable` out"))
            }
            Wanted::Quantized(Quantization::Int8) => Ok(Packing::Int8),
            Wanted::AsStored if stored && native => Ok(Packing::Int8),
            _ if native && !self.trainable => Ok(Packing::Float),
            _ => Ok(Packing::None),
        }
    }
}
