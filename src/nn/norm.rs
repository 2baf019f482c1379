//! The normalisations a block can have, behind one type.

use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};

use super::LayerNorm;
use crate::Result;
use crate::weights::{Init, Params};

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// LayerNorm with scale and shift (Ba et al. 2016, arXiv 1607.06450).
    LayerNorm,
    /// LayerNorm with a scale only (ModernBERT).
    LayerNormWithoutBias,
    /// `x / √(mean(x²) + eps) · w` (Zhang, Sennrich 2019, arXiv 1910.07467): T5.
    Rms,
}

/// One of them, with its parameters.
#[derive(Debug, Clone)]
pub enum Norm {
    /// LayerNorm, whose shift may be a constant zero.
    Layer(LayerNorm),
    /// RMSNorm.
    Rms {
        /// The scale (E).
        weight: Tensor,
        /// Added to the mean of the squares.
        eps: f64,
    },
}

impl Norm {
    /// Reads `weight` and, where the kind has it, `bias`, both (size).
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(params: &Params, size: usize, kind: NormKind, eps: f64) -> Result<Self> {
        Ok(match kind {
            NormKind::LayerNorm => Self::Layer(LayerNorm::new(params, size, eps)?),
            NormKind::LayerNormWithoutBias => Self::Layer(LayerNorm::without_bias(params, size, eps)?),
            NormKind::Rms => Self::Rms { weight: params.get("weight", &[size], Init::ONES)?, eps },
        })
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
