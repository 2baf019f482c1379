//! The transformer block and the stack of them, for every tower: what differs between BERT, CLIP, ViT and DINOv2 is in
//! [`BlockConfig`].
//!
//! Pre-norm (CLIP, ViT): `x + s₁·attn(ln₁(x))`, then `x + s₂·mlp(ln₂(x))`, with LayerScale `s` where the tower has one
//! (Touvron et al. 2021, arXiv 2103.17239). Post-norm (BERT): `ln₁(x + attn(x))`, then `ln₂(x + mlp(x))`.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{LayerNorm, Linear, Mlp, MlpKind};
use crate::Result;
use crate::ops::{self, Activation, AttentionMask};
use crate::towers::Collect;
use crate::weights::{Init, Params};

/// Where the two LayerNorms of a block stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPosition {
    /// Before attention and MLP.
    Pre,
    /// After the residual sums.
    Post,
}

/// What a stack of blocks looks like.
#[derive(Debug, Clone, Copy)]
pub struct BlockConfig {
    /// Width E of the stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads; they divide `hidden_size`.
    pub num_attention_heads: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// The MLP's activation.
    pub hidden_act: Activation,
    /// Added to the variance in each LayerNorm.
    pub layer_norm_eps: f64,
    /// Where the norms stand.
    pub norm: NormPosition,
    /// The MLP's form.
    pub mlp: MlpKind,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// LayerScale's start, for towers that have it.
    pub layer_scale: Option<f32>,
    /// Standard deviation of fresh weights.
    pub initializer_range: f32,
}

/// The stack of blocks, under the names `layers.0`, `layers.1`, ….
#[derive(Debug, Clone)]
pub struct Encoder {
    blocks: Vec<Block>,
}

impl Encoder {
    /// Reads all blocks.
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(params: &Params, config: &BlockConfig) -> Result<Self> {
        let layers = params.pp("layers");
        let blocks = (0..config.num_hidden_layers).map(|i| Block::new(&layers.pp(i), config));
        Ok(Self { blocks: blocks.collect::<Result<_>>()? })
    }

    /// The last block's output, and the input of every block before it where `collect` asks for them.
    ///
    /// # Shapes
    /// `x` (B,L,E) → (B,L,E), and as many (B,L,E) as there are blocks.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor, mask: &AttentionMask, collect: Collect) -> Result<(Tensor, Vec<Tensor>)> {
        let mut x = x.clone();
        let mut inputs = Vec::new();
        for block in &self.blocks {
            if collect == Collect::HiddenStates {
                inputs.push(x.clone());
            }
            x = block.forward(&x, mask)?;
        }
        Ok((x, inputs))
    }

    /// As [`Encoder::forward`], where `between(i, x)` stands between the attention half and the MLP half of block i: a
    /// cross-attention with its own residual sum and norm.
    ///
    /// # Shapes
    /// `x` (B,L,E) → (B,L,E).
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward_between(
        &self,
        x: &Tensor,
        mask: &AttentionMask,
        between: impl Fn(usize, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.feed_forward(&between(i, block.attend(&x, mask)?)?)?;
        }
        Ok(x)
    }

    /// The output at one position a row. The last block computes keys and values for all tokens, but queries, output
    /// projection and MLP for that token only: the same numbers as [`Encoder::forward`] there, for less work.
    ///
    /// `mask` must not be causal in the last block's sense: `last_mask` is what one query a row may look at.
    ///
    /// # Shapes
    /// `x` (B,L,E), `positions` one a row → (B,E).
    ///
    /// # Errors
    /// When shapes do not fit or a position is not below L.
    pub fn forward_selected(
        &self,
        x: &Tensor,
        mask: &AttentionMask,
        last_mask: &AttentionMask,
        positions: &[usize],
    ) -> Result<Tensor> {
        let Some((last, before)) = self.blocks.split_last() else {
            return ops::select_tokens(x, positions);
        };
        let mut x = x.clone();
        for block in before {
            x = block.forward(&x, mask)?;
        }
        last.forward_selected(&x, last_mask, positions)
    }
}

#[derive(Debug, Clone)]
struct Block {
    norm: NormPosition,
    layer_norm1: LayerNorm,
    attention: Attention,
    layer_scale1: Option<Tensor>,
    layer_norm2: LayerNorm,
    mlp: Mlp,
    layer_scale2: Option<Tensor>,
}

impl Block {
    fn new(params: &Params, config: &BlockConfig) -> Result<Self> {
        let size = config.hidden_size;
        let init = Init::Normal { std: config.initializer_range };
        let scale = |name: &str| {
            config.layer_scale.map(|start| params.pp(name).get("lambda1", &[size], Init::Const(start))).transpose()
        };
        Ok(Self {
            norm: config.norm,
            layer_norm1: LayerNorm::new(&params.pp("layer_norm1"), size, config.layer_norm_eps)?,
            attention: Attention::new(&params.pp("self_attn"), config, init)?,
            layer_scale1: scale("layer_scale1")?,
            layer_norm2: LayerNorm::new(&params.pp("layer_norm2"), size, config.layer_norm_eps)?,
            mlp: Mlp::new(&params.pp("mlp"), size, config.intermediate_size, config.mlp, config.hidden_act, init)?,
            layer_scale2: scale("layer_scale2")?,
        })
    }

    fn forward(&self, x: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
        self.feed_forward(&self.attend(x, mask)?)
    }

    /// The first half: attention and the residual sum.
    fn attend(&self, x: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
        match self.norm {
            NormPosition::Pre => {
                let normed = self.layer_norm1.forward(x)?;
                self.add_attended(x, &self.attention.forward(&normed, &normed, mask)?)
            }
            NormPosition::Post => self.add_attended(x, &self.attention.forward(x, x, mask)?),
        }
    }

    fn forward_selected(&self, x: &Tensor, mask: &AttentionMask, positions: &[usize]) -> Result<Tensor> {
        let selected = ops::select_tokens(x, positions)?.unsqueeze(1)?;
        let attended = match self.norm {
            NormPosition::Pre => {
                let normed = self.layer_norm1.forward(x)?;
                let query = ops::select_tokens(&normed, positions)?.unsqueeze(1)?;
                self.attention.forward(&query, &normed, mask)?
            }
            NormPosition::Post => self.attention.forward(&selected, x, mask)?,
        };
        Ok(self.feed_forward(&self.add_attended(&selected, &attended)?)?.squeeze(1)?)
    }

    /// `x` is the residual stream, `attended` the attention's output at the same positions.
    fn add_attended(&self, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        match self.norm {
            NormPosition::Pre => Ok((x + scaled(attended, self.layer_scale1.as_ref())?)?),
            NormPosition::Post => self.layer_norm1.forward(&(x + attended)?),
        }
    }

    /// The second half: the MLP and the residual sum.
    fn feed_forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.norm {
            NormPosition::Pre => {
                let inner = self.mlp.forward(&self.layer_norm2.forward(x)?)?;
                Ok((x + scaled(&inner, self.layer_scale2.as_ref())?)?)
            }
            NormPosition::Post => self.layer_norm2.forward(&(x + self.mlp.forward(x)?)?),
        }
    }
}

fn scaled(x: &Tensor, scale: Option<&Tensor>) -> Result<Tensor> {
    scale.map_or_else(|| Ok(x.clone()), |scale| ops::scale_row(x, scale))
}

/// Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762): `softmax(q·kᵀ/√d)·v` a head, then the output projection.
#[derive(Debug, Clone)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    num_heads: usize,
}

impl Attention {
    fn new(params: &Params, config: &BlockConfig, init: Init) -> Result<Self> {
        let size = config.hidden_size;
        let project = |name: &str| match config.qkv_bias {
            true => Linear::new(&params.pp(name), size, size, init),
            false => Linear::without_bias(&params.pp(name), size, size, init),
        };
        Ok(Self {
            query: project("q_proj")?,
            key: project("k_proj")?,
            value: project("v_proj")?,
            output: Linear::new(&params.pp("out_proj"), size, size, init)?,
            num_heads: config.num_attention_heads,
        })
    }

    /// `from` (B,Lq,E) asks, `to` (B,L,E) answers.
    fn forward(&self, from: &Tensor, to: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
        let (query, key, value) = (self.query.forward(from)?, self.key.forward(to)?, self.value.forward(to)?);
        self.output.forward(&ops::attention(&query, &key, &value, self.num_heads, mask)?)
    }
}
