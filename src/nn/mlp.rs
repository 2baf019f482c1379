//! The feed-forward half of a transformer block.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{BlockConfig, BlockExtra, LayerNorm, Linear};
use crate::Result;
use crate::ops::{self, Activation};
use crate::weights::{Init, Params};

/// What stands between the two linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MlpKind {
    /// `fc2(act(fc1(x)))`.
    #[default]
    Plain,
    /// `fc2(act(gate(x)) ∘ fc1(x))`: a gated linear unit (Shazeer 2020, arXiv 2002.05202); SwiGLU where the activation is SiLU
    /// (DINOv2's giant, EVA-02), GeGLU where it is GELU (ModernBERT, ViTamin). Files that fuse `gate` and `fc1` are split on
    /// reading.
    Gated,
}

/// `fc1` (E → intermediate), an activation, `fc2` (intermediate → E); `gate` beside `fc1` for [`MlpKind::Gated`].
#[derive(Debug, Clone)]
pub struct Mlp {
    input_norm: Option<LayerNorm>,
    gate: Option<Linear>,
    fc1: Linear,
    norm: Option<LayerNorm>,
    fc2: Linear,
    activation: Activation,
}

impl Mlp {
    /// The MLP of a block: reads `fc1`, `fc2` and what the configuration adds.
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(params: &Params, config: &BlockConfig) -> Result<Self> {
        let (size, inner) = (config.hidden_size, config.intermediate_size);
        let init = Init::Normal { std: config.initializer_range };
        let norm = |extra: BlockExtra, name: &str, size: usize| {
            let norm = config.extras.contains(&extra);
            norm.then(|| LayerNorm::new(&params.pp(name), size, config.layer_norm_eps)).transpose()
        };
        let bias = !config.extras.contains(&BlockExtra::MlpWithoutBias);
        let linear = |name: &str, input: usize, output: usize| match bias {
            true => Linear::new(&params.pp(name), input, output, init),
            false => Linear::without_bias(&params.pp(name), input, output, init),
        };
        Ok(Self {
            input_norm: norm(BlockExtra::MlpInputNorm, "input_norm", size)?,
            gate: (config.mlp == MlpKind::Gated).then(|| linear("gate", size, inner)).transpose()?,
            fc1: linear("fc1", size, inner)?,
            norm: norm(BlockExtra::MlpNorm, "norm", inner)?,
            fc2: linear("fc2", inner, size)?,
            activation: config.hidden_act,
        })
    }

    /// # Shapes
    /// (…,E) → (…,E).
    ///
    /// # Errors
    /// When the last dimension of `x` is not E.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2.forward(&self.hidden(x)?)
    }

    /// [`Mlp::forward`] added to `residual`.
    ///
    /// # Shapes
    /// Both (…,E) → (…,E).
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward_onto(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.fc2.forward_onto(&self.hidden(x)?, residual)
    }

    /// What enters the second layer.
    fn hidden(&self, x: &Tensor) -> Result<Tensor> {
        let normed = self.input_norm.as_ref().map(|norm| norm.forward(x)).transpose()?;
        let x = normed.as_ref().unwrap_or(x);
        let mut hidden = match &self.gate {
            None => self.fc1.forward_activated(x, self.activation)?,
            Some(gate) => ops::multiply(&gate.forward_activated(x, self.activation)?, &self.fc1.forward(x)?)?,
        };
        if let Some(norm) = &self.norm {
            hidden = norm.forward(&hidden)?;
        }
        Ok(hidden)
    }
}
