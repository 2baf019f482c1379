//! The encoder half of T5 and mT5 (Raffel et al. 2020, arXiv 1910.10683; Xue et al. 2021, arXiv 2010.11934): RMS-normed blocks
//! with gated MLPs and no biases, scores that are not scaled, relative positions from one table for all blocks.
//!
//! ids (B,L) → words (B,L,E) → blocks → norm (B,L,E) → pooled (B,E).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::pooling::{check_pooling, pool_text};
use super::{BuildTextTower, Collect, RelativePositions, TextPooling, TextTower, TowerOutput, check_sizes};
use crate::nn::{BlockConfig, BlockExtra, Encoder, MlpKind, Norm, NormPosition, QkvBias};
use crate::ops::{self, Activation, AttentionMask};
use crate::text::TokenBatch;
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// Sizes and choices of a T5 encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct T5Config {
    /// Entries of the vocabulary V.
    pub vocab_size: usize,
    /// Width E of the tokens (`d_model`).
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Columns of one head (`d_kv`).
    pub head_size: usize,
    /// Width inside the MLP (`d_ff`).
    pub intermediate_size: usize,
    /// The gate's activation.
    pub hidden_act: Activation,
    /// Added to the mean of the squares in each norm.
    pub layer_norm_eps: f64,
    /// The bias on the scores by the distance of two tokens.
    pub relative_positions: RelativePositions,
    /// The longest text in tokens; positions set no limit.
    pub context_length: usize,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
}

/// The built tower.
pub(super) struct T5 {
    config: T5Config,
    pooling: TextPooling,
    word_embeddings: Tensor,
    relative_attention_bias: Tensor,
    blocks: Encoder,
    final_layer_norm: Norm,
}

impl T5 {
    pub(super) fn new(params: &Params, config: &T5Config, pooling: TextPooling) -> Result<Self> {
        let (size, heads) = (config.hidden_size, config.num_attention_heads);
        let sizes = [
            ("vocab_size", config.vocab_size),
            ("num_hidden_layers", config.num_hidden_layers),
            ("head_size", config.head_size),
            ("num_attention_heads", heads),
            ("intermediate_size", config.intermediate_size),
            ("context_length", config.context_length),
        ];
        // Heads need not divide the width of the stream.
        check_sizes(size, 1, config.layer_norm_eps, &sizes)?;
        config.relative_positions.check()?;
        check_pooling(pooling)?;
        let blocks = BlockConfig {
            hidden_size: size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: heads,
            intermediate_size: config.intermediate_size,
            hidden_act: config.hidden_act,
            layer_norm_eps: config.layer_norm_eps,
            norm: NormPosition::Pre,
            mlp: MlpKind::Gated,
            qkv_bias: QkvBias::None,
            extras: vec![
                BlockExtra::RmsNorm,
                BlockExtra::HeadSize(config.head_size),
                BlockExtra::UnscaledScores,
                BlockExtra::OutputWithoutBias,
                BlockExtra::MlpWithoutBias,
            ],
            layer_scale: None,
            initializer_range: config.initializer_range as f32,
        };
        let init = Init::Normal { std: config.initializer_range as f32 };
        let encoder = params.pp("encoder");
        let buckets = config.relative_positions.num_buckets;
        let norm = Norm::new(&params.pp("final_layer_norm"), size, &blocks.extras, config.layer_norm_eps)?;
        Ok(Self {
            word_embeddings: params.get("embeddings.word_embeddings.weight", &[config.vocab_size, size], init)?,
            relative_attention_bias: encoder.get("relative_attention_bias.weight", &[buckets, heads], init)?,
            blocks: Encoder::new(&encoder, &blocks)?,
            final_layer_norm: norm,
            pooling,
            config: config.clone(),
        })
    }
}

impl BuildTextTower for T5Config {
    fn build(&self, params: &Params, pooling: TextPooling) -> Result<Box<dyn TextTower>> {
        Ok(Box::new(T5::new(params, self, pooling)?))
    }

    fn pooled_size(&self) -> usize {
        self.hidden_size
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_length(&self) -> usize {
        self.context_length
    }
}

impl T5 {
    /// The stream that enters the first block (B,L,E), and what tokens look at.
    fn embed(&self, tokens: &TokenBatch) -> Result<(Tensor, AttentionMask)> {
        let shape = (tokens.batch(), tokens.length());
        if shape.1 > self.config.context_length {
            let message = format!("{} tokens, but the tower takes {}", shape.1, self.config.context_length);
            return Err(Error::argument("input_ids", message));
        }
        let bias = self.config.relative_positions.bias(&self.relative_attention_bias, shape.1)?;
        let mask = AttentionMask::none().with_key_padding(tokens.keep(), shape.0, shape.1)?.with_bias(bias)?;
        Ok((ops::embedding(&self.word_embeddings, tokens.ids(), shape)?, mask))
    }
}

impl TextTower for T5 {
    fn pooled(&self, tokens: &TokenBatch) -> Result<Tensor> {
        let (words, mask) = self.embed(tokens)?;
        let states = self.blocks.forward_kept(&words, |_| (&mask).into())?;
        pool_text(&self.final_layer_norm.forward(&states)?, tokens, self.pooling)
    }

    fn forward(&self, tokens: &TokenBatch, collect: Collect) -> Result<TowerOutput> {
        let (words, mask) = self.embed(tokens)?;
        let (last, mut hidden_states) = self.blocks.forward(&words, &mask, collect)?;
        let last_hidden_state = self.final_layer_norm.forward(&last)?;
        if collect == Collect::HiddenStates {
            hidden_states.push(last_hidden_state.clone());
        }
        let pooled = pool_text(&last_hidden_state, tokens, self.pooling)?;
        Ok(TowerOutput { last_hidden_state, pooled, hidden_states })
    }
}
