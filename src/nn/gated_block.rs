//! The pre-norm block with a gated MLP of T5 and ModernBERT: `x + out(attention(norm₁(x)))`, then
//! `x + down(act(gate(h)) ∘ up(h))` with `h = norm₂(x)` (Shazeer 2020, arXiv 2002.05202).

use candle_core::Tensor;

use super::{Linear, Norm, NormKind, Rope};
use crate::Result;
use crate::ops::{self, Activation, AttentionMask};
use crate::weights::{Init, Params};

/// What one block looks like.
#[derive(Debug, Clone, Copy)]
pub struct GatedBlockConfig {
    /// Width E of the stream.
    pub hidden_size: usize,
    /// Width of the queries of all heads together; T5's may differ from E.
    pub attention_size: usize,
    /// Heads; they divide `attention_size`.
    pub num_attention_heads: usize,
    /// By what the scores are multiplied.
    pub scale: AttentionScale,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// The activation of the gate.
    pub hidden_act: Activation,
    /// Both norms.
    pub norm: NormKind,
    /// Added to the variance in each norm.
    pub norm_eps: f64,
    /// Whether attention's linear layers have biases.
    pub attention_bias: bool,
    /// Whether the MLP's linear layers have biases.
    pub mlp_bias: bool,
    /// Standard deviation of fresh weights.
    pub initializer_range: f32,
}

/// By what the scores q·k of a head with D columns are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionScale {
    /// 1/√D.
    InverseSqrt,
    /// 1: T5 folds the scale into its weights.
    One,
}

/// One block, under the names `layer_norm1`, `self_attn.{q,k,v,out}_proj`, `layer_norm2`, `mlp.{gate,up,down}_proj`.
#[derive(Debug, Clone)]
pub struct GatedBlock {
    config: GatedBlockConfig,
    layer_norm1: Option<Norm>,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    layer_norm2: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl GatedBlock {
    /// Reads all parameters; `first_norm` is whether there is a norm before attention (ModernBERT's first block has none, for
    /// its embeddings are normed).
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(params: &Params, config: &GatedBlockConfig, first_norm: bool) -> Result<Self> {
        let (size, inner, wide) = (config.hidden_size, config.attention_size, config.intermediate_size);
        let init = Init::Normal { std: config.initializer_range };
        let linear = |name: String, bias: bool, input: usize, output: usize| match bias {
            true => Linear::new(&params.pp(name), input, output, init),
            false => Linear::without_bias(&params.pp(name), input, output, init),
        };
        let attention =
            |name: &str, i: usize, o: usize| linear(format!("self_attn.{name}"), config.attention_bias, i, o);
        let mlp = |name: &str, i: usize, o: usize| linear(format!("mlp.{name}"), config.mlp_bias, i, o);
        let norm = |name: &str| Norm::new(&params.pp(name), size, config.norm, config.norm_eps);
        Ok(Self {
            config: *config,
            layer_norm1: first_norm.then(|| norm("layer_norm1")).transpose()?,
            query: attention("q_proj", size, inner)?,
            key: attention("k_proj", size, inner)?,
            value: attention("v_proj", size, inner)?,
            output: attention("out_proj", inner, size)?,
            layer_norm2: norm("layer_norm2")?,
            gate: mlp("gate_proj", size, wide)?,
            up: mlp("up_proj", size, wide)?,
            down: mlp("down_proj", wide, size)?,
        })
    }

    /// # Shapes
    /// `x` (B,L,E) → (B,L,E); `rope` holds L positions.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor, mask: &AttentionMask, rope: Option<&Rope>) -> Result<Tensor> {
        let normed = self.layer_norm1.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))?;
        let x = (x + self.attend(&normed, mask, rope)?)?;
        let normed = self.layer_norm2.forward(&x)?;
        let gated = (self.gate.forward_activated(&normed, self.config.hidden_act)? * self.up.forward(&normed)?)?;
        Ok((x + self.down.forward(&gated)?)?)
    }

    fn attend(&self, x: &Tensor, mask: &AttentionMask, rope: Option<&Rope>) -> Result<Tensor> {
        let (mut query, mut key) = (self.query.forward(x)?, self.key.forward(x)?);
        if let Some(rope) = rope {
            (query, key) = (rope.apply(&query)?, rope.apply(&key)?);
        }
        let heads = self.config.num_attention_heads;
        if self.config.scale == AttentionScale::One {
            // What the attention divides by.
            query = (query * ((self.config.attention_size / heads) as f64).sqrt())?;
        }
        self.output.forward(&ops::attention(&query, &key, &self.value.forward(x)?, heads, mask)?)
    }
}
