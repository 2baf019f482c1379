//! [`CrossBert`]: BERT whose tokens also look at an image, as in BLIP (Li et al. 2022, arXiv 2201.12086): in every block a
//! cross-attention, post-normed, stands between self-attention and MLP.
//!
//! The contrastive pass runs the same BERT without it, so these parameters are no part of the text tower: what a contrastive
//! loss never reads must not be trainable there. They are read from parameters of their own, and the rest of the blocks from
//! the text tower's, which both passes share: a step on one is seen by the other.

use candle_core::Tensor;

use super::bert::Bert;
use super::{BertConfig, TextPooling};
use crate::nn::{Attention, AttentionConfig, LayerNorm, QkvBias};
use crate::ops::AttentionMask;
use crate::text::TokenBatch;
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// A BERT tower with cross-attention to image tokens.
pub struct CrossBert {
    bert: Bert,
    layers: Vec<CrossAttention>,
    image_size: usize,
}

impl CrossBert {
    /// Reads the tower's own parameters from `text` (under the names of [`BertConfig`]'s tower) and, from `cross`, for block N
    /// `encoder.layers.N.cross_attn.{q_proj,k_proj,v_proj,out_proj,layer_norm}`. `image_size` is the width K of the image
    /// tokens.
    ///
    /// # Errors
    /// When sizes are impossible or the source cannot make a tensor.
    pub fn new(text: &Params, cross: &Params, config: &BertConfig, image_size: usize) -> Result<Self> {
        if image_size == 0 || image_size > 1 << 24 {
            return Err(Error::argument(
                "encoder_hidden_size",
                format!("{image_size} is not between 1 and {}", 1 << 24),
            ));
        }
        let bert = Bert::new(text, config, TextPooling::Cls)?;
        let layers = cross.pp("encoder.layers");
        let layer = |i: usize| CrossAttention::new(&layers.pp(i).pp("cross_attn"), config, image_size);
        Ok(Self { bert, layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?, image_size })
    }

    /// The tokens after the last block, having looked at the image of their row.
    ///
    /// # Shapes
    /// `tokens` (B,L), `image_tokens` (B,P,K) → (B,L,E).
    ///
    /// # Errors
    /// When there is not one image a text, the image tokens have another width, or the texts are too long.
    pub fn forward(&self, tokens: &TokenBatch, image_tokens: &Tensor) -> Result<Tensor> {
        match *image_tokens.dims() {
            [batch, _, size] if (batch, size) == (tokens.batch(), self.image_size) => {}
            _ => {
                let message = format!(
                    "has shape {:?}, expected ({}, P, {}): the tokens of one image for each text",
                    image_tokens.dims(),
                    tokens.batch(),
                    self.image_size
                );
                return Err(Error::argument("image_tokens", message));
            }
        }
        let mask = self.bert.mask(tokens)?;
        self.bert.encoder.forward_between(&self.bert.embed(tokens)?, &mask, |i, x| match self.layers.get(i) {
            Some(layer) => layer.forward(&x, image_tokens),
            None => Ok(x),
        })
    }
}

/// `norm(x + attention(x, image))`.
struct CrossAttention {
    attention: Attention,
    norm: LayerNorm,
}

impl CrossAttention {
    fn new(params: &Params, config: &BertConfig, image_size: usize) -> Result<Self> {
        let attention = AttentionConfig {
            hidden_size: config.hidden_size,
            key_size: image_size,
            num_attention_heads: config.num_attention_heads,
            qkv_bias: QkvBias::All,
            extras: &[],
            layer_norm_eps: config.layer_norm_eps,
            init: Init::Normal { std: config.initializer_range as f32 },
        };
        Ok(Self {
            attention: Attention::new(params, &attention)?,
            norm: LayerNorm::new(&params.pp("layer_norm"), config.hidden_size, config.layer_norm_eps)?,
        })
    }

    fn forward(&self, x: &Tensor, image: &Tensor) -> Result<Tensor> {
        let seen = self.attention.forward(x, image, (&AttentionMask::none()).into())?;
        self.norm.forward(&(x + seen)?)
    }
}
