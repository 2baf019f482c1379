//! The normalisations a block can have, behind one type.

use candle_core::{D, DType, Tensor};

use super::{BlockExtra, LayerNorm};
use crate::Result;
use crate::weights::{Init, Params};

/// A block's normalisation, with its parameters.
#[derive(Debug, Clone)]
pub enum Norm {
    /// LayerNorm, whose shift may be a constant zero.
    Layer(LayerNorm),
    /// `x / √(mean(x²) + eps) · w` (Zhang, Sennrich 2019, arXiv 1910.07467).
    Rms {
        /// The scale (E).
        weight: Tensor,
        /// Added to the mean of the squares.
        eps: f64,
    },
}

impl Norm {
    /// Reads `weight` and, where it has one, `bias`, both (size). Which norm it is stands in `extras`; LayerNorm if they say
    /// nothing.
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(params: &Params, size: usize, extras: &[BlockExtra], eps: f64) -> Result<Self> {
        if extras.contains(&BlockExtra::RmsNorm) {
            return Ok(Self::Rms { weight: params.get("weight", &[size], Init::ONES)?, eps });
        }
        Ok(Self::Layer(match extras.contains(&BlockExtra::NormWithoutBias) {
            true => LayerNorm::without_bias(params, size, eps)?,
            false => LayerNorm::new(params, size, eps)?,
        }))
    }

    /// # Shapes
    /// (…,E) → (…,E).
    ///
    /// # Errors
    /// When the last dimension of `x` is not E.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms { weight, eps } => {
                // Half precision takes the mean of the squares in f32, as the reference does.
                let wide = if x.dtype() == DType::F64 { x.clone() } else { x.to_dtype(DType::F32)? };
                let scale = (wide.sqr()?.mean_keepdim(D::Minus1)? + *eps)?.sqrt()?.recip()?;
                Ok(wide.broadcast_mul(&scale)?.to_dtype(x.dtype())?.broadcast_mul(weight)?)
            }
        }
    }
}
