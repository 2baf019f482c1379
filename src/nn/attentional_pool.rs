//! Attention pooling with several learned queries (CoCa, Yu et al. 2022, arXiv 2205.01917, section 3.2, as open_clip has it:
//! `AttentionalPooler` of its `transformer.py`).
//!
//! `attn(norm_q(query), norm_k(tokens))`: (B,L,E) → (B,Q,D), no residual and no MLP.

use candle_core::Tensor;

use super::{Attend, Attention, AttentionConfig, LayerNorm, QkvBias};
use crate::Result;
use crate::ops::AttentionMask;
use crate::weights::{Init, Params};

/// Sizes of an [`AttentionalPool`].
#[derive(Debug, Clone, Copy)]
pub struct AttentionalPoolConfig {
    /// Width D of the queries and of the output.
    pub size: usize,
    /// Width E of the tokens.
    pub key_size: usize,
    /// Heads; they divide `size`.
    pub num_attention_heads: usize,
    /// Number of queries Q.
    pub num_queries: usize,
    /// How fresh weights start.
    pub init: Init,
}

/// Learned queries that ask all tokens.
#[derive(Debug, Clone)]
pub struct AttentionalPool {
    query: Tensor,
    query_norm: LayerNorm,
    key_norm: LayerNorm,
    attention: Attention,
}

impl AttentionalPool {
    /// The norms' ε: open_clip leaves it at PyTorch's default, whatever the tower has.
    const EPS: f64 = 1e-5;

    /// Reads `query` (Q,D), `query_norm`, `key_norm` and `attention`.
    ///
    /// # Errors
    /// When the source cannot make a tensor.
    pub fn new(params: &Params, config: &AttentionalPoolConfig) -> Result<Self> {
        let attention = AttentionConfig {
            hidden_size: config.size,
            key_size: config.key_size,
            num_attention_heads: config.num_attention_heads,
            qkv_bias: QkvBias::All,
            extras: &[],
            layer_norm_eps: Self::EPS,
            init: config.init,
        };
        Ok(Self {
            query: params.get("query", &[config.num_queries, config.size], config.init)?,
            query_norm: LayerNorm::new(&params.pp("query_norm"), config.size, Self::EPS)?,
            key_norm: LayerNorm::new(&params.pp("key_norm"), config.key_size, Self::EPS)?,
            attention: Attention::new(&params.pp("attention"), &attention)?,
        })
    }

    /// Every query's answer.
    ///
    /// # Shapes
    /// `tokens` (B,L,E) → (B,Q,D).
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        self.ask(&self.query, tokens)
    }

    /// The first query's answer.
    ///
    /// # Shapes
    /// `tokens` (B,L,E) → (B,D).
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward_first(&self, tokens: &Tensor) -> Result<Tensor> {
        Ok(self.ask(&self.query.narrow(0, 0, 1)?, tokens)?.squeeze(1)?)
    }

    fn ask(&self, query: &Tensor, tokens: &Tensor) -> Result<Tensor> {
        let (batch, (count, size)) = (tokens.dim(0)?, query.dims2()?);
        let query = self.query_norm.forward(query)?.unsqueeze(0)?.broadcast_as((batch, count, size))?.contiguous()?;
        let mask = AttentionMask::none();
        self.attention.forward(&query, &self.key_norm.forward(tokens)?, Attend::from(&mask))
    }
}
