//! Attention pooling with one learned query, SigLIP's "MAP head" (Zhai et al. 2022, arXiv 2106.04560, section 2.2).

use candle_core::Tensor;

use super::{Attend, Attention, AttentionConfig, BlockConfig, LayerNorm, Mlp};
use crate::Result;
use crate::ops::AttentionMask;
use crate::weights::{Init, Params};

/// `y = attn(probe, tokens)`, then `y + mlp(norm(y))`: one row an image.
#[derive(Debug, Clone)]
pub struct MapHead {
    probe: Tensor,
    attention: Attention,
    layer_norm: LayerNorm,
    mlp: Mlp,
}

impl MapHead {
    /// Reads `probe` (E), `attention`, `layernorm` and `mlp`; sizes, activation and ε are those of `config`.
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(params: &Params, config: &BlockConfig) -> Result<Self> {
        let size = config.hidden_size;
        let init = Init::Normal { std: config.initializer_range };
        let attention = AttentionConfig {
            hidden_size: size,
            key_size: size,
            num_attention_heads: config.num_attention_heads,
            qkv_bias: config.qkv_bias,
            extras: &config.extras,
            layer_norm_eps: config.layer_norm_eps,
            init,
        };
        Ok(Self {
            probe: params.get("probe", &[size], init)?,
            attention: Attention::new(&params.pp("attention"), &attention)?,
            layer_norm: LayerNorm::new(&params.pp("layernorm"), size, config.layer_norm_eps)?,
            mlp: Mlp::new(&params.pp("mlp"), config)?,
        })
    }

    /// Only the tokens that `mask` shows are looked at.
    ///
    /// # Shapes
    /// `tokens` (B,L,E) → (B,E).
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, tokens: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
        let (batch, _, size) = tokens.dims3()?;
        let probe = self.probe.reshape((1, 1, size))?.broadcast_as((batch, 1, size))?.contiguous()?;
        let attended = self.attention.forward(&probe, tokens, Attend::from(mask))?.squeeze(1)?;
        Ok((&attended + self.mlp.forward(&self.layer_norm.forward(&attended)?)?)?)
    }
}
