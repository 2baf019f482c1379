//! [`LogitScale`]: the learned temperature. It is kept as a logarithm and exponentiated in one place, here.

use candle_core::{Tensor, Var};

use crate::weights::{Init, Params};
use crate::{Error, Result};

/// The factor `exp(logit_scale)` between cosines and logits.
#[derive(Debug, Clone)]
pub struct LogitScale {
    log: Tensor,
}

impl LogitScale {
    /// ln(1/0.07), where CLIP starts (Radford et al. 2021, section 2.5).
    pub const START: f32 = 2.659_26;
    /// ln 100, above which CLIP's training never lets it rise.
    pub const LARGEST: f64 = 4.605_170_185_988_092;

    /// Reads `logit_scale`, a scalar that starts at `start`.
    ///
    /// # Errors
    /// When the source cannot make the tensor.
    pub fn new(params: &Params, start: f32) -> Result<Self> {
        Ok(Self { log: params.get("logit_scale", &[], Init::Const(start))? })
    }

    /// The factor, a scalar tensor with its graph.
    ///
    /// # Errors
    /// When candle fails.
    pub fn factor(&self) -> Result<Tensor> {
        Ok(self.log.exp()?)
    }

    /// Brings the logarithm back into `[lowest, largest]`; a frozen one stays as it is.
    ///
    /// # Errors
    /// When candle fails, or the scale is not a number.
    pub fn clamp(&self, lowest: f64, largest: f64) -> Result<()> {
        if !self.log.is_variable() {
            return Ok(());
        }
        let value = self.log.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?;
        if value.is_nan() {
            return Err(Error::argument("logit_scale", "it is not a number"));
        }
        if !(lowest..=largest).contains(&value) {
            let clamped = Tensor::new(value.clamp(lowest, largest), self.log.device())?.to_dtype(self.log.dtype())?;
            Var::from_tensor(&self.log)?.set(&clamped)?;
        }
        Ok(())
    }
}
