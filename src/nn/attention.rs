//! Multi-head attention with its projections (Vaswani et al. 2017, arXiv 1706.03762), for blocks and for pooling heads.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::ragged::Selection;
use super::{LayerNorm, Linear, Rope};
use crate::Result;
use crate::ops::{self, AttentionMask};
use crate::weights::{Init, Params};

/// Which of queries, keys and values have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkvBias {
    /// All three.
    #[default]
    All,
    /// Queries and values (BEiT, EVA): a key's bias would change nothing.
    QueryAndValue,
    /// None.
    None,
}

/// What some towers do differently: first in attention, then in the block's norms, then in the MLP. open_clip's are the options
/// of its `CustomResidualAttentionBlock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockExtra {
    /// A LayerNorm over each head's queries and keys, `self_attn.q_norm` and `k_norm` (arXiv 2106.04560): open_clip's `qk_norm`.
    QueryKeyNorm,
    /// A learned factor a head on what attention gives, `self_attn.head_scale` (NormFormer, arXiv 2110.09456): open_clip's
    /// `scale_heads`.
    HeadScale,
    /// A LayerNorm before attention's output projection, `self_attn.norm` (arXiv 2210.06423): EVA-02, and open_clip's
    /// `scale_attn_inner`.
    AttentionNorm,
    /// A LayerNorm after attention's output projection, `attention_norm`: open_clip's `scale_attn`.
    AttentionOutputNorm,
    /// Attention's output projection has no bias: T5, ModernBERT.
    OutputWithoutBias,
    /// A head has so many columns, whatever the width of the stream: T5.
    HeadSize(usize),
    /// Scores are not divided by √D: T5, which has that in its weights.
    UnscaledScores,
    /// The block's two norms have a scale and no shift: ModernBERT.
    NormWithoutBias,
    /// The block's two norms are RMSNorms: T5.
    RmsNorm,
    /// The first block has no norm before attention, for the embeddings are normed: ModernBERT.
    NoFirstNorm,
    /// A LayerNorm of the MLP's own before its first layer, `mlp.input_norm`: ViTamin, behind the block's norm.
    MlpInputNorm,
    /// A LayerNorm before the MLP's second layer, `mlp.norm`: EVA-02, and open_clip's `scale_fc`.
    MlpNorm,
    /// The MLP's layers have no bias: T5, ModernBERT.
    MlpWithoutBias,
}

/// The form of an attention.
#[derive(Debug, Clone, Copy)]
pub struct AttentionConfig<'a> {
    /// Width E of queries and of the output.
    pub hidden_size: usize,
    /// Width of what is looked at, where it is not `hidden_size` (cross-attention, pooling).
    pub key_size: usize,
    /// Heads; they divide `hidden_size`.
    pub num_attention_heads: usize,
    /// Which projections have a bias.
    pub qkv_bias: QkvBias,
    /// What is added to it.
    pub extras: &'a [BlockExtra],
    /// ε of its norms.
    pub layer_norm_eps: f64,
    /// How fresh weights start.
    pub init: Init,
}

/// What one attention looks at, and how positions turn queries and keys.
#[derive(Debug, Clone, Copy)]
pub struct Attend<'a> {
    /// Which keys each query sees.
    pub mask: &'a AttentionMask,
    /// Rotary positions.
    pub rope: Option<&'a Rope>,
}

impl<'a> From<&'a AttentionMask> for Attend<'a> {
    fn from(mask: &'a AttentionMask) -> Self {
        Self { mask, rope: None }
    }
}

/// `softmax(q·kᵀ/√d)·v` a head, then the output projection; parameters `q_proj`, `k_proj`, `v_proj`, `out_proj`.
#[derive(Debug, Clone)]
pub struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    query_key_norm: Option<(LayerNorm, LayerNorm)>,
    head_scale: Option<Tensor>,
    norm: Option<LayerNorm>,
    num_heads: usize,
    /// By what queries are multiplied.
    scale: Option<f64>,
}

impl Attention {
    /// Reads the projections and what `config.extras` adds.
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(params: &Params, config: &AttentionConfig<'_>) -> Result<Self> {
        let &AttentionConfig { hidden_size, key_size, num_attention_heads: heads, layer_norm_eps: eps, init, .. } =
            config;
        let has = |extra: BlockExtra| config.extras.contains(&extra);
        let head_size = config.extras.iter().find_map(|extra| match *extra {
            BlockExtra::HeadSize(size) => Some(size),
            _ => None,
        });
        let head_size = head_size.unwrap_or(hidden_size / heads);
        let inner = heads * head_size;
        let project = |name: &str, input: usize, output: usize, bias: bool| match bias {
            true => Linear::new(&params.pp(name), input, output, init),
            false => Linear::without_bias(&params.pp(name), input, output, init),
        };
        let norm = |name: &str, size: usize| LayerNorm::new(&params.pp(name), size, eps);
        let query_key_norm = has(BlockExtra::QueryKeyNorm)
            .then(|| Ok::<_, crate::Error>((norm("q_norm", head_size)?, norm("k_norm", head_size)?)));
        let head_scale = has(BlockExtra::HeadScale).then(|| params.get("head_scale", &[heads], Init::ONES));
        Ok(Self {
            query: project("q_proj", hidden_size, inner, config.qkv_bias != QkvBias::None)?,
            key: project("k_proj", key_size, inner, config.qkv_bias == QkvBias::All)?,
            value: project("v_proj", key_size, inner, config.qkv_bias != QkvBias::None)?,
            output: project("out_proj", inner, hidden_size, !has(BlockExtra::OutputWithoutBias))?,
            query_key_norm: query_key_norm.transpose()?,
            head_scale: head_scale.transpose()?,
            norm: has(BlockExtra::AttentionNorm).then(|| norm("norm", inner)).transpose()?,
            num_heads: heads,
            // The attention divides by as much.
            scale: has(BlockExtra::UnscaledScores).then(|| (head_size as f64).sqrt()),
        })
    }

    /// `from` asks, `to` answers.
    ///
    /// # Shapes
    /// `from` (B,Lq,E), `to` (B,L,K) → (B,Lq,E).
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, from: &Tensor, to: &Tensor, attend: Attend<'_>) -> Result<Tensor> {
        self.output.forward(&self.answer(from, to, attend)?)
    }

    /// [`Attention::forward`] added to `residual`.
    ///
    /// # Shapes
    /// `from` and `residual` (B,Lq,E), `to` (B,L,K) → (B,Lq,E).
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward_onto(&self, from: &Tensor, to: &Tensor, attend: Attend<'_>, residual: &Tensor) -> Result<Tensor> {
        self.output.forward_onto(&self.answer(from, to, attend)?, residual)
    }

    /// [`Attention::forward`] where each row of the batch asks with one token alone.
    ///
    /// # Shapes
    /// `from` (B,1,E), `to` (B,L,E) → (B,1,E); of texts end to end `from` (1,B,E), `to` (1,T,E) → (1,B,E).
    ///
    /// # Errors
    /// When shapes do not fit.
    pub(super) fn forward_at(
        &self,
        from: &Tensor,
        to: &Tensor,
        attend: Attend<'_>,
        at: Selection<'_>,
    ) -> Result<Tensor> {
        let (mut query, mut key) = self.queries_and_keys(from, to)?;
        if let Some(rope) = attend.rope {
            (query, key) = (at.turn(rope, &query)?, rope.apply(&key)?);
        }
        self.output.forward(&self.weighted(&query, &key, to, attend.mask)?)
    }

    /// What enters the output projection.
    fn answer(&self, from: &Tensor, to: &Tensor, attend: Attend<'_>) -> Result<Tensor> {
        let (mut query, mut key) = self.queries_and_keys(from, to)?;
        if let Some(rope) = attend.rope {
            (query, key) = (rope.apply(&query)?, rope.apply(&key)?);
        }
        self.weighted(&query, &key, to, attend.mask)
    }

    fn queries_and_keys(&self, from: &Tensor, to: &Tensor) -> Result<(Tensor, Tensor)> {
        let (mut query, key) = (self.query.forward(from)?, self.key.forward(to)?);
        if let Some(scale) = self.scale {
            query = (query * scale)?;
        }
        match &self.query_key_norm {
            None => Ok((query, key)),
            Some((q_norm, k_norm)) => Ok((self.head_norm(&query, q_norm)?, self.head_norm(&key, k_norm)?)),
        }
    }

    fn head_norm(&self, x: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
        let (batch, length, size) = x.dims3()?;
        let heads = x.reshape((batch, length, self.num_heads, size / self.num_heads))?;
        Ok(norm.forward(&heads)?.reshape((batch, length, size))?)
    }

    /// The values of `to`, weighted for each query.
    fn weighted(&self, query: &Tensor, key: &Tensor, to: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
        let value = self.value.forward(to)?;
        let mut x = ops::attention(query, key, &value, self.num_heads, mask)?;
        if let Some(scale) = &self.head_scale {
            let (batch, length, size) = x.dims3()?;
            let heads = x.reshape((batch, length, self.num_heads, size / self.num_heads))?;
            x = heads.broadcast_mul(&scale.reshape((self.num_heads, 1))?)?.reshape((batch, length, size))?;
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        Ok(x)
    }
}
