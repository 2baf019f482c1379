//! The transformer block and the stack of them, for every tower: what differs between BERT, CLIP, ViT and DINOv2 is in
//! [`BlockConfig`].
//!
//! Pre-norm (CLIP, ViT): `x + s₁·attn(ln₁(x))`, then `x + s₂·mlp(ln₂(x))`, with LayerScale `s` where the tower has one
//! (Touvron et al. 2021, arXiv 2103.17239). Post-norm (BERT): `ln₁(x + attn(x))`, then `ln₂(x + mlp(x))`. Residual norm
//! (EVA-02's largest): `x + ln₁(attn(x))`, then `x + ln₂(mlp(x))`.

use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::ragged::{Ragged, Selection};
use super::recompute::recompute;
use super::{Attend, Attention, AttentionConfig, BlockExtra, LayerNorm, Mlp, MlpKind, Norm, QkvBias, Rope};
use crate::Result;
use crate::ops::{self, Activation, AttentionMask};
use crate::towers::Collect;
use crate::weights::{Activations, Init, Params};

/// Where the two LayerNorms of a block stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPosition {
    /// Before attention and MLP.
    Pre,
    /// After the residual sums.
    Post,
    /// On what attention and MLP give, before it is added.
    Residual,
}

/// What a stack of blocks looks like.
#[derive(Debug, Clone)]
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
    /// Which of queries, keys and values have a bias.
    pub qkv_bias: QkvBias,
    /// What is done differently.
    pub extras: Vec<BlockExtra>,
    /// LayerScale's start, for towers that have it.
    pub layer_scale: Option<f32>,
    /// Standard deviation of fresh weights.
    pub initializer_range: f32,
}

/// The stack of blocks, under the names `layers.0`, `layers.1`, ….
#[derive(Debug, Clone)]
pub struct Encoder {
    blocks: Vec<Arc<Block>>,
    activations: Activations,
}

impl Encoder {
    /// Reads all blocks.
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(params: &Params, config: &BlockConfig) -> Result<Self> {
        let layers = params.pp("layers");
        let blocks = (0..config.num_hidden_layers).map(|i| Block::new(&layers.pp(i), config, i).map(Arc::new));
        Ok(Self { blocks: blocks.collect::<Result<_>>()?, activations: params.activations() })
    }

    /// The last block's output, and the input of every block before it where `collect` asks for them. Every block looks at the
    /// same: `attend` is a mask, or a mask and rotary positions.
    ///
    /// # Shapes
    /// `x` (B,L,E) → (B,L,E), and as many (B,L,E) as there are blocks.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward<'a>(
        &self,
        x: &Tensor,
        attend: impl Into<Attend<'a>>,
        collect: Collect,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let attend = attend.into();
        self.forward_each(x, |_| attend, collect)
    }

    /// [`Encoder::forward`] where block i looks at `attend(i)`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward_each<'a>(
        &self,
        x: &Tensor,
        attend: impl Fn(usize) -> Attend<'a>,
        collect: Collect,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let mut x = x.clone();
        let mut inputs = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            if collect == Collect::HiddenStates {
                inputs.push(x.clone());
            }
            x = self.run(block, &x, attend(i))?;
        }
        Ok((x, inputs))
    }

    /// One block, whose intermediate results are kept or not.
    fn run(&self, block: &Arc<Block>, x: &Tensor, attend: Attend<'_>) -> Result<Tensor> {
        match self.activations {
            Activations::Stored => block.forward(x, attend),
            Activations::Recomputed => {
                let (block, mask, rope) = (block.clone(), attend.mask.clone(), attend.rope.cloned());
                recompute(x, move |x| block.forward(x, Attend { mask: &mask, rope: rope.as_ref() }))
            }
        }
    }

    /// [`Encoder::forward_each`] of what is no padding, for who reads nothing else: zeros where a row ends in padding.
    ///
    /// # Shapes
    /// `x` (B,L,E) → (B,L,E).
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward_kept<'a>(&self, x: &Tensor, attend: impl Fn(usize) -> Attend<'a>) -> Result<Tensor> {
        let Some(ragged) = Ragged::of(x, attend(0).mask, None) else {
            return Ok(self.forward_each(x, attend, Collect::Last)?.0);
        };
        let mut x = ragged.pack(x)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = self.run(block, &x, RaggedAttend::new(&ragged, attend(i))?.attend())?;
        }
        ragged.unpack(&x)
    }

    /// The last block's output, where `between(i, x)` stands between the attention half and the MLP half of block i: a
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
            x = block.feed_forward(&between(i, block.attend(&x, mask.into())?)?)?;
        }
        Ok(x)
    }

    /// The output at one position a row. The last block computes keys and values for all tokens, but queries, output
    /// projection and MLP for that token only: the same numbers as [`Encoder::forward`] there, for less work.
    ///
    /// `last_mask` is what one query a row may look at in the last block; it is never causal.
    ///
    /// # Shapes
    /// `x` (B,L,E), `positions` one a row → (B,E).
    ///
    /// # Errors
    /// When shapes do not fit or a position is not below L.
    pub fn forward_selected<'a>(
        &self,
        x: &Tensor,
        attend: impl Into<Attend<'a>>,
        last_mask: &AttentionMask,
        positions: &[usize],
    ) -> Result<Tensor> {
        let attend = attend.into();
        let Some((last, before)) = self.blocks.split_last() else {
            return ops::select_tokens(x, positions);
        };
        let Some(ragged) = Ragged::of(x, attend.mask, Some(positions)) else {
            let mut x = x.clone();
            for block in before {
                x = self.run(block, &x, attend)?;
            }
            let at = Selection { positions, ragged: None };
            return last.forward_selected(&x, Attend { mask: last_mask, rope: attend.rope }, at);
        };
        let (mut x, packed) = (ragged.pack(x)?, RaggedAttend::new(&ragged, attend)?);
        for block in before {
            x = self.run(block, &x, packed.attend())?;
        }
        let at = Selection { positions, ragged: Some(&ragged) };
        last.forward_selected(&x, Attend { mask: &ragged.mask_of_one()?, ..packed.attend() }, at)
    }
}

/// What a block looks at where texts lie end to end.
struct RaggedAttend {
    mask: AttentionMask,
    rope: Option<Rope>,
}

impl RaggedAttend {
    fn new(ragged: &Ragged, attend: Attend<'_>) -> Result<Self> {
        Ok(Self { mask: ragged.mask(attend.mask)?, rope: attend.rope.map(|rope| ragged.rope(rope)).transpose()? })
    }

    fn attend(&self) -> Attend<'_> {
        Attend { mask: &self.mask, rope: self.rope.as_ref() }
    }
}

#[derive(Debug, Clone)]
struct Block {
    norm: NormPosition,
    layer_norm1: Option<Norm>,
    attention: Attention,
    attention_norm: Option<LayerNorm>,
    layer_scale1: Option<Tensor>,
    layer_norm2: Norm,
    mlp: Mlp,
    layer_scale2: Option<Tensor>,
}

impl Block {
    fn new(params: &Params, config: &BlockConfig, index: usize) -> Result<Self> {
        let size = config.hidden_size;
        let init = Init::Normal { std: config.initializer_range };
        let scale = |name: &str| {
            config.layer_scale.map(|start| params.pp(name).get("lambda1", &[size], Init::Const(start))).transpose()
        };
        let attention = AttentionConfig {
            hidden_size: size,
            key_size: size,
            num_attention_heads: config.num_attention_heads,
            qkv_bias: config.qkv_bias,
            extras: &config.extras,
            layer_norm_eps: config.layer_norm_eps,
            init,
        };
        let has = |extra: BlockExtra| config.extras.contains(&extra);
        let norm = |name: &str| Norm::new(&params.pp(name), size, &config.extras, config.layer_norm_eps);
        let attention_norm = || LayerNorm::new(&params.pp("attention_norm"), size, config.layer_norm_eps);
        let first_norm = !(has(BlockExtra::NoFirstNorm) && index == 0);
        Ok(Self {
            norm: config.norm,
            layer_norm1: first_norm.then(|| norm("layer_norm1")).transpose()?,
            attention: Attention::new(&params.pp("self_attn"), &attention)?,
            attention_norm: has(BlockExtra::AttentionOutputNorm).then(attention_norm).transpose()?,
            layer_scale1: scale("layer_scale1")?,
            layer_norm2: norm("layer_norm2")?,
            mlp: Mlp::new(&params.pp("mlp"), config)?,
            layer_scale2: scale("layer_scale2")?,
        })
    }

    fn forward(&self, x: &Tensor, attend: Attend<'_>) -> Result<Tensor> {
        self.feed_forward(&self.attend(x, attend)?)
    }

    /// The first half: attention and the residual sum.
    fn attend(&self, x: &Tensor, attend: Attend<'_>) -> Result<Tensor> {
        let normed = if self.norm == NormPosition::Pre { self.first_norm(x)? } else { x.clone() };
        // What stands between the attention and the sum cannot be in one pass with it.
        let direct = self.attention_norm.is_none() && self.layer_scale1.is_none();
        if direct && self.norm != NormPosition::Residual {
            let sum = self.attention.forward_onto(&normed, &normed, attend, x)?;
            return if self.norm == NormPosition::Post { self.first_norm(&sum) } else { Ok(sum) };
        }
        self.add_attended(x, &self.attention.forward(&normed, &normed, attend)?)
    }

    fn first_norm(&self, x: &Tensor) -> Result<Tensor> {
        self.layer_norm1.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
    }

    fn forward_selected(&self, x: &Tensor, attend: Attend<'_>, at: Selection<'_>) -> Result<Tensor> {
        let selected = at.of(x)?;
        let attended = match self.norm {
            NormPosition::Pre => {
                let normed = self.first_norm(x)?;
                self.attention.forward_at(&at.of(&normed)?, &normed, attend, at)?
            }
            NormPosition::Post | NormPosition::Residual => self.attention.forward_at(&selected, x, attend, at)?,
        };
        at.rows(&self.feed_forward(&self.add_attended(&selected, &attended)?)?)
    }

    /// `x` is the residual stream, `attended` the attention's output at the same positions.
    fn add_attended(&self, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        let normed = self.attention_norm.as_ref().map(|norm| norm.forward(attended)).transpose()?;
        let attended = normed.as_ref().unwrap_or(attended);
        match self.norm {
            NormPosition::Pre => ops::add(x, &scaled(attended, self.layer_scale1.as_ref())?),
            NormPosition::Post => self.first_norm(&ops::add(x, attended)?),
            NormPosition::Residual => ops::add(x, &scaled(&self.first_norm(attended)?, self.layer_scale1.as_ref())?),
        }
    }

    /// The second half: the MLP and the residual sum.
    fn feed_forward(&self, x: &Tensor) -> Result<Tensor> {
        let scale = self.layer_scale2.as_ref();
        let inner = match self.norm {
            NormPosition::Pre if scale.is_none() => return self.mlp.forward_onto(&self.layer_norm2.forward(x)?, x),
            NormPosition::Pre => self.mlp.forward(&self.layer_norm2.forward(x)?)?,
            NormPosition::Post => return self.layer_norm2.forward(&self.mlp.forward_onto(x, x)?),
            NormPosition::Residual => self.layer_norm2.forward(&self.mlp.forward(x)?)?,
        };
        ops::add(x, &scaled(&inner, scale)?)
    }
}

fn scaled(x: &Tensor, scale: Option<&Tensor>) -> Result<Tensor> {
    scale.map_or_else(|| Ok(x.clone()), |scale| ops::scale_row(x, scale))
}
