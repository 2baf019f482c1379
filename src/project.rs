//! [`LinearProject`]: a tower's pooled output into the space that images and texts share.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::nn::{LayerNorm, Linear};
use crate::ops::{self, Activation};
use crate::weights::Params;
use crate::{Error, Result};

/// How pooled outputs reach the shared space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectionConfig {
    /// The layers.
    pub kind: ProjectionKind,
    /// Width D of the shared space.
    pub embed_dim: usize,
    /// What happens to the pooled output first.
    pub input: InputNorm,
}

/// The layers of a projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectionKind {
    /// One linear layer without bias, as CLIP's.
    Linear,
    /// Linear → GELU → LayerNorm, the design of the origin.
    Mlp,
}

/// What happens to a pooled output before its projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputNorm {
    /// Nothing (CLIP).
    None,
    /// Each row is scaled to unit length (the origin).
    L2,
}

impl ProjectionConfig {
    /// The origin's: unit rows in, Linear → GELU → LayerNorm, `embed_dim` wide.
    #[must_use]
    pub fn mlp(embed_dim: usize) -> Self {
        Self { kind: ProjectionKind::Mlp, embed_dim, input: InputNorm::L2 }
    }

    /// CLIP's: one matrix.
    #[must_use]
    pub fn linear(embed_dim: usize) -> Self {
        Self { kind: ProjectionKind::Linear, embed_dim, input: InputNorm::None }
    }
}

/// One projection: a bias-free Linear, or Linear → GELU → LayerNorm.
#[derive(Debug, Clone)]
pub struct LinearProject {
    linear: Linear,
    norm: Option<LayerNorm>,
    input: InputNorm,
}

impl LinearProject {
    /// LayerNorm's ε, PyTorch's default.
    const EPS: f64 = 1e-5;
    /// Wider than any space in use, and small enough to be allocated.
    const WIDEST: usize = 1 << 20;

    /// Reads the projection of `input_size`-wide rows: `weight` for [`ProjectionKind::Linear`]; `linear.weight`,
    /// `linear.bias`, `layer_norm.weight`, `layer_norm.bias` for [`ProjectionKind::Mlp`]. Fresh ones start as PyTorch's do.
    ///
    /// # Errors
    /// When a width is zero or the source cannot make a tensor.
    pub fn new(params: &Params, input_size: usize, config: &ProjectionConfig) -> Result<Self> {
        for (name, size) in [("embed_dim", config.embed_dim), ("pooled size", input_size)] {
            if size == 0 || size > Self::WIDEST {
                return Err(Error::argument(name, format!("{size} is not between 1 and {}", Self::WIDEST)));
            }
        }
        let init = Linear::torch_init(input_size);
        let (linear, norm) = match config.kind {
            ProjectionKind::Linear => (Linear::without_bias(params, input_size, config.embed_dim, init)?, None),
            ProjectionKind::Mlp => (
                Linear::new(&params.pp("linear"), input_size, config.embed_dim, init)?,
                Some(LayerNorm::new(&params.pp("layer_norm"), config.embed_dim, Self::EPS)?),
            ),
        };
        Ok(Self { linear, norm, input: config.input })
    }

    /// # Shapes
    /// pooled (B,E) → features (B,D).
    ///
    /// # Errors
    /// When the last dimension of `pooled` is not E.
    pub fn forward(&self, pooled: &Tensor) -> Result<Tensor> {
        let pooled = match self.input {
            InputNorm::None => pooled.clone(),
            InputNorm::L2 => ops::l2_normalize(pooled)?,
        };
        match &self.norm {
            Some(norm) => norm.forward(&self.linear.forward_activated(&pooled, Activation::Gelu)?),
            None => self.linear.forward(&pooled),
        }
    }
}
