//! The encoder half of M2M100 and NLLB (Fan et al. 2020, arXiv 2010.11125; NLLB team 2022, arXiv 2207.04672): pre-norm blocks
//! over scaled embeddings and sinusoidal positions.
//!
//! ids (B,L) → √E · words + sinusoids (B,L,E) → blocks → norm (B,L,E) → pooled (B,E).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::bert::positions_after_padding;
use super::pooling::{check_pooling, pool_text, pooled_positions};
use super::{BuildTextTower, Collect, TextPooling, TextTower, TowerOutput, check_sizes};
use crate::nn::{BlockConfig, Encoder, LayerNorm, MlpKind, NormPosition, QkvBias};
use crate::ops::{self, Activation, AttentionMask};
use crate::text::TokenBatch;
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// Sizes and choices of an M2M100 encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct M2m100Config {
    /// Entries of the vocabulary V.
    pub vocab_size: usize,
    /// Width E of the tokens (`d_model`).
    pub hidden_size: usize,
    /// Number of blocks (`encoder_layers`).
    pub num_hidden_layers: usize,
    /// Heads; they divide `hidden_size`.
    pub num_attention_heads: usize,
    /// Width inside the MLP (`encoder_ffn_dim`).
    pub intermediate_size: usize,
    /// The MLP's activation (`activation_function`).
    pub hidden_act: Activation,
    /// Added to the variance in each LayerNorm.
    pub layer_norm_eps: f64,
    /// The longest text in tokens.
    pub max_position_embeddings: usize,
    /// The id of padding; positions start after it.
    pub pad_token_id: u32,
    /// By what words are multiplied: √E where the configuration says `scale_embedding`, else 1.
    pub embedding_scale: f64,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
}

/// The built tower.
pub(super) struct M2m100 {
    config: M2m100Config,
    pooling: TextPooling,
    word_embeddings: Tensor,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
}

impl M2m100 {
    pub(super) fn new(params: &Params, config: &M2m100Config, pooling: TextPooling) -> Result<Self> {
        let sizes = [
            ("vocab_size", config.vocab_size),
            ("num_hidden_layers", config.num_hidden_layers),
            ("intermediate_size", config.intermediate_size),
            ("max_position_embeddings", config.max_position_embeddings),
        ];
        check_sizes(config.hidden_size, config.num_attention_heads, config.layer_norm_eps, &sizes)?;
        if config.hidden_size < 4 || config.pad_token_id > 1 << 24 || !config.embedding_scale.is_finite() {
            let message = format!("{}, pad_token_id {}: no sinusoids", config.hidden_size, config.pad_token_id);
            return Err(Error::argument("hidden_size", message));
        }
        check_pooling(pooling)?;
        let blocks = BlockConfig {
            hidden_size: config.hidden_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            intermediate_size: config.intermediate_size,
            hidden_act: config.hidden_act,
            layer_norm_eps: config.layer_norm_eps,
            norm: NormPosition::Pre,
            mlp: MlpKind::Plain,
            qkv_bias: QkvBias::All,
            extras: Vec::new(),
            layer_scale: None,
            initializer_range: config.initializer_range as f32,
        };
        let init = Init::Normal { std: config.initializer_range as f32 };
        let words = [config.vocab_size, config.hidden_size];
        let norm = LayerNorm::new(&params.pp("final_layer_norm"), config.hidden_size, config.layer_norm_eps)?;
        Ok(Self {
            word_embeddings: params.get("embeddings.word_embeddings.weight", &words, init)?,
            encoder: Encoder::new(&params.pp("encoder"), &blocks)?,
            final_layer_norm: norm,
            pooling,
            config: config.clone(),
        })
    }

    fn embed(&self, tokens: &TokenBatch) -> Result<Tensor> {
        let shape = (tokens.batch(), tokens.length());
        if shape.1 > self.config.max_position_embeddings {
            let message = format!("{} tokens, but the tower takes {}", shape.1, self.config.max_position_embeddings);
            return Err(Error::argument("input_ids", message));
        }
        let words = (ops::embedding(&self.word_embeddings, tokens.ids(), shape)? * self.config.embedding_scale)?;
        let (padding, size) = (self.config.pad_token_id, self.config.hidden_size);
        let rows = positions_after_padding(tokens, padding).into_iter().flat_map(|position| {
            // Padding's own row is zero.
            let keep = if position == padding { 0.0 } else { 1.0 };
            sinusoids(position, size).map(move |value| keep * value)
        });
        let positions = Tensor::from_vec(rows.collect::<Vec<f32>>(), (shape.0, shape.1, size), words.device())?;
        Ok((&words + positions.to_dtype(words.dtype())?)?)
    }

    fn mask(tokens: &TokenBatch) -> Result<AttentionMask> {
        AttentionMask::none().with_key_padding(tokens.keep(), tokens.batch(), tokens.length())
    }
}

/// The row of a position: sines of E/2 falling frequencies, then their cosines, then a zero where E is odd.
///
/// Reference: `M2M100SinusoidalPositionalEmbedding.get_embedding` of transformers' `modeling_m2m_100.py`; in f32 as there.
fn sinusoids(position: u32, size: usize) -> impl Iterator<Item = f32> {
    let half = size / 2;
    let step = (10_000f64.ln() / (half - 1) as f64) as f32;
    (0..size).map(move |column| {
        let angle = position as f32 * ((column % half) as f32 * -step).exp();
        match column / half {
            0 => angle.sin(),
            1 => angle.cos(),
            _ => 0.0,
        }
    })
}

impl BuildTextTower for M2m100Config {
    fn build(&self, params: &Params, pooling: TextPooling) -> Result<Box<dyn TextTower>> {
        Ok(Box::new(M2m100::new(params, self, pooling)?))
    }

    fn pooled_size(&self) -> usize {
        self.hidden_size
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_length(&self) -> usize {
        self.max_position_embeddings
    }
}

impl TextTower for M2m100 {
    fn pooled(&self, tokens: &TokenBatch) -> Result<Tensor> {
        let (embedded, mask) = (self.embed(tokens)?, Self::mask(tokens)?);
        let Some(positions) = pooled_positions(tokens, self.pooling)? else {
            let states = self.encoder.forward_kept(&embedded, |_| (&mask).into())?;
            return pool_text(&self.final_layer_norm.forward(&states)?, tokens, self.pooling);
        };
        let row = self.encoder.forward_selected(&embedded, &mask, &mask, &positions)?;
        self.final_layer_norm.forward(&row)
    }

    fn forward(&self, tokens: &TokenBatch, collect: Collect) -> Result<TowerOutput> {
        let (last, mut hidden_states) = self.encoder.forward(&self.embed(tokens)?, &Self::mask(tokens)?, collect)?;
        let last_hidden_state = self.final_layer_norm.forward(&last)?;
        if collect == Collect::HiddenStates {
            hidden_states.push(last_hidden_state.clone());
        }
        let pooled = pool_text(&last_hidden_state, tokens, self.pooling)?;
        Ok(TowerOutput { last_hidden_state, pooled, hidden_states })
    }
}
