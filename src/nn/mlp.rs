//! The feed-forward half of a transformer block.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use super::Linear;
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
    /// `fc2(silu(a) ∘ b)` with `[a, b] = fc1(x)`: SwiGLU (Shazeer 2020, arXiv 2002.05202), as in DINOv2's giant.
    SwiGlu,
}

/// `fc1` (E → intermediate), an activation, `fc2` (intermediate → E).
#[derive(Debug, Clone)]
pub struct Mlp {
    fc1: Linear,
    fc2: Linear,
    kind: MlpKind,
    activation: Activation,
}

impl Mlp {
    /// Reads `fc1` and `fc2`; for [`MlpKind::SwiGlu`] `fc1` is twice as wide.
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(
        params: &Params,
        hidden_size: usize,
        intermediate_size: usize,
        kind: MlpKind,
        activation: Activation,
        init: Init,
    ) -> Result<Self> {
        let width = match kind {
            MlpKind::Plain => intermediate_size,
            MlpKind::SwiGlu => 2 * intermediate_size,
        };
        Ok(Self {
            fc1: Linear::new(&params.pp("fc1"), hidden_size, width, init)?,
            fc2: Linear::new(&params.pp("fc2"), intermediate_size, hidden_size, init)?,
            kind,
            activation,
        })
    }

    /// # Shapes
    /// (…,E) → (…,E).
    ///
    /// # Errors
    /// When the last dimension of `x` is not E.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = match self.kind {
            MlpKind::Plain => self.fc1.forward_activated(x, self.activation)?,
            MlpKind::SwiGlu => {
                let halves = self.fc1.forward(x)?.chunk(2, D::Minus1)?;
                (ops::activate(&halves[0].contiguous()?, Activation::Silu)? * halves[1].contiguous()?)?
            }
        };
        self.fc2.forward(&hidden)
    }
}
