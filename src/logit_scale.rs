//! [`LogitScale`]: from cosines to logits, `exp(logit_scale)·cos + logit_bias`. The scale is kept as a logarithm and
//! exponentiated in one place, here.

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::weights::{Init, Params};
use crate::{Error, Result};

/// What lies between cosines and logits.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogitConfig {
    /// A learned factor that starts at 1/0.07 (CLIP).
    #[default]
    Scale,
    /// A learned factor and a learned bias, which start at 10 and −10 (SigLIP, Zhai et al. 2023, arXiv 2303.15343).
    ScaleAndBias,
    /// Nothing: logits are cosines (BLIP's retrieval).
    Cosine,
}

/// The factor `exp(logit_scale)` between cosines and logits, and the bias where there is one.
#[derive(Debug, Clone)]
pub struct LogitScale {
    log: Option<Tensor>,
    bias: Option<Tensor>,
}

impl LogitScale {
    /// ln(1/0.07), where CLIP starts (Radford et al. 2021, section 2.5).
    pub const START: f32 = 2.659_26;
    /// ln 100, above which CLIP's training never lets it rise.
    pub const LARGEST: f64 = 4.605_170_185_988_092;
    /// ln 10, where SigLIP starts.
    const SIGLIP_START: f32 = std::f32::consts::LN_10;
    /// Where SigLIP's bias starts.
    const SIGLIP_BIAS: f32 = -10.0;

    /// Reads `logit_scale` and `logit_bias`, scalars, as far as `config` has them.
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(params: &Params, config: LogitConfig) -> Result<Self> {
        let start = if config == LogitConfig::ScaleAndBias { Self::SIGLIP_START } else { Self::START };
        let log = (config != LogitConfig::Cosine).then(|| params.get("logit_scale", &[], Init::Const(start)));
        let bias = (config == LogitConfig::ScaleAndBias)
            .then(|| params.get("logit_bias", &[], Init::Const(Self::SIGLIP_BIAS)));
        Ok(Self { log: log.transpose()?, bias: bias.transpose()? })
    }

    /// The factor, a scalar tensor with its graph; one where nothing is learned, of the type and on the device of `like`.
    ///
    /// # Errors
    /// When candle fails.
    pub fn factor(&self, like: &Tensor) -> Result<Tensor> {
        Ok(match &self.log {
            Some(log) => log.exp()?,
            None => Tensor::ones((), like.dtype(), like.device())?,
        })
    }

    /// The factor as a number.
    ///
    /// # Errors
    /// When candle fails.
    pub fn value(&self) -> Result<f64> {
        match &self.log {
            Some(log) => Ok(log.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?.exp()),
            None => Ok(1.0),
        }
    }

    /// The bias, a scalar tensor with its graph, where there is one.
    #[must_use]
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Brings the logarithm back into `[lowest, largest]`; a frozen one stays as it is.
    ///
    /// # Errors
    /// When candle fails, or the scale is not a number.
    pub fn clamp(&self, lowest: f64, largest: f64) -> Result<()> {
        let Some(log) = self.log.as_ref().filter(|log| log.is_variable()) else { return Ok(()) };
        let value = log.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?;
        if value.is_nan() {
            return Err(Error::argument("logit_scale", "it is not a number"));
        }
        if !(lowest..=largest).contains(&value) {
            let clamped = Tensor::new(value.clamp(lowest, largest), log.device())?.to_dtype(log.dtype())?;
            Var::from_tensor(log)?.set(&clamped)?;
        }
        Ok(())
    }
}
