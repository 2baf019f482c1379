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
    /// One linear layer with a bias (BLIP).
    LinearBias,
    /// Linear → GELU → Linear, both without bias: open_clip's `mlp` in front of a Hugging Face text tower.
    MlpPlain {
        /// Width between the two.
        hidden_size: usize,
        /// Which of the two have a bias.
        bias: MlpBias,
    },
    /// Nothing: the pooled output is the feature already (SigLIP).
    Identity,
    /// Linear → GELU → LayerNorm, the design of the origin.
    Mlp,
}

/// Which layers of [`ProjectionKind::MlpPlain`] have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MlpBias {
    /// Neither (open_clip's Hugging Face text towers).
    None,
    /// The first only (open_clip's timm towers).
    First,
    /// Both.
    Both,
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
        Self::plain(ProjectionKind::Linear, embed_dim)
    }

    /// These layers on the pooled output as it is.
    #[must_use]
    pub fn plain(kind: ProjectionKind, embed_dim: usize) -> Self {
        Self { kind, embed_dim, input: InputNorm::None }
    }
}

/// One projection into the shared space; see [`ProjectionKind`].
#[derive(Debug, Clone)]
pub struct LinearProject {
    layers: Layers,
    input: InputNorm,
}

#[derive(Debug, Clone)]
enum Layers {
    Identity,
    Linear(Linear),
    Normed(Linear, LayerNorm),
    Two(Linear, Linear),
}

impl LinearProject {
    /// LayerNorm's ε, PyTorch's default.
    const EPS: f64 = 1e-5;
    /// Wider than any space in use, and small enough to be allocated.
    const WIDEST: usize = 1 << 20;

    /// Reads the projection of `input_size`-wide rows: `weight` (and `bias`) for one linear layer; `linear.weight`,
    /// `linear.bias`, `layer_norm.weight`, `layer_norm.bias` for [`ProjectionKind::Mlp`]; `fc1` and `fc2` for
    /// [`ProjectionKind::MlpPlain`]. Fresh ones start as PyTorch's do.
    ///
    /// # Errors
    /// When a width is zero, [`ProjectionKind::Identity`] is to change the width, or the source cannot make a tensor.
    pub fn new(params: &Params, input_size: usize, config: &ProjectionConfig) -> Result<Self> {
        for (name, size) in [("embed_dim", config.embed_dim), ("pooled size", input_size)] {
            if size == 0 || size > Self::WIDEST {
                return Err(Error::argument(name, format!("{size} is not between 1 and {}", Self::WIDEST)));
            }
        }
        let embed_dim = config.embed_dim;
        let linear = |name: &str, input: usize, output: usize, bias: bool| {
            let params = if name.is_empty() { params.clone() } else { params.pp(name) };
            let init = Linear::torch_init(input);
            if bias {
                Linear::new(&params, input, output, init)
            } else {
                Linear::without_bias(&params, input, output, init)
            }
        };
        let layers = match config.kind {
            ProjectionKind::Identity if input_size != embed_dim => {
                let message =
                    format!("{embed_dim}, but the tower gives {input_size} numbers and nothing projects them");
                return Err(Error::argument("embed_dim", message));
            }
            ProjectionKind::Identity => Layers::Identity,
            ProjectionKind::Linear => Layers::Linear(linear("", input_size, embed_dim, false)?),
            ProjectionKind::LinearBias => Layers::Linear(linear("", input_size, embed_dim, true)?),
            ProjectionKind::Mlp => Layers::Normed(
                linear("linear", input_size, embed_dim, true)?,
                LayerNorm::new(&params.pp("layer_norm"), embed_dim, Self::EPS)?,
            ),
            ProjectionKind::MlpPlain { hidden_size, bias } => Layers::Two(
                linear("fc1", input_size, hidden_size, bias != MlpBias::None)?,
                linear("fc2", hidden_size, embed_dim, bias == MlpBias::Both)?,
            ),
        };
        Ok(Self { layers, input: config.input })
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
        match &self.layers {
            Layers::Identity => Ok(pooled),
            Layers::Linear(linear) => linear.forward(&pooled),
            Layers::Normed(linear, norm) => norm.forward(&linear.forward_activated(&pooled, Activation::Gelu)?),
            Layers::Two(fc1, fc2) => fc2.forward(&fc1.forward_activated(&pooled, Activation::Gelu)?),
        }
    }
}
