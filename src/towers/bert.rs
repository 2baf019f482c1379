//! BERT (Devlin et al. 2018, arXiv 1810.04805), RoBERTa (Liu et al. 2019, arXiv 1907.11692) and XLM-RoBERTa: post-norm blocks
//! under a key-padding mask.
//!
//! ids (B,L) → words + token type 0 + positions, normed (B,L,E) → blocks → pooled (B,E).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Collect, TextPooling, TextTower, TowerOutput, check_sizes};
use crate::nn::{BlockConfig, Encoder, LayerNorm, Linear, MlpKind, NormPosition, QkvBias};
use crate::ops::{self, Activation, AttentionMask};
use crate::text::TokenBatch;
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// Sizes and choices of a BERT-like tower. Names are Hugging Face's where it has one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BertConfig {
    /// Entries of the vocabulary V.
    pub vocab_size: usize,
    /// Width E of the tokens.
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
    /// Rows of the position table.
    pub max_position_embeddings: usize,
    /// Rows of the token-type table.
    pub type_vocab_size: usize,
    /// How positions are counted.
    pub positions: Positions,
    /// Whether the checkpoint has a pooler (`tanh(dense(CLS))`).
    pub pooler: bool,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
}

/// How positions are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// 0, 1, 2, … (BERT).
    FromZero,
    /// padding_idx + 1, … over the tokens that are no padding; padding has padding_idx itself (RoBERTa, XLM-RoBERTa).
    AfterPadding(u32),
}

impl BertConfig {
    /// The longest text in tokens.
    #[must_use]
    pub fn context_length(&self) -> usize {
        match self.positions {
            Positions::FromZero => self.max_position_embeddings,
            Positions::AfterPadding(padding) => self.max_position_embeddings.saturating_sub(padding as usize + 1),
        }
    }
}

/// The built tower.
pub(super) struct Bert {
    config: BertConfig,
    pooling: TextPooling,
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type_embeddings: Tensor,
    embedding_norm: LayerNorm,
    encoder: Encoder,
    pooler: Option<Linear>,
}

impl Bert {
    pub(super) fn new(params: &Params, config: &BertConfig, pooling: TextPooling) -> Result<Self> {
        let sizes = [
            ("vocab_size", config.vocab_size),
            ("num_hidden_layers", config.num_hidden_layers),
            ("intermediate_size", config.intermediate_size),
            ("max_position_embeddings", config.context_length()),
            ("type_vocab_size", config.type_vocab_size),
        ];
        check_sizes(config.hidden_size, config.num_attention_heads, config.layer_norm_eps, &sizes)?;
        let size = config.hidden_size;
        let init = Init::Normal { std: config.initializer_range as f32 };
        let pooler = match pooling {
            TextPooling::Mean | TextPooling::Cls => None,
            TextPooling::Pooler if config.pooler => Some(Linear::new(&params.pp("pooler.dense"), size, size, init)?),
            TextPooling::Pooler => {
                return Err(Error::argument("text pooling", "the checkpoint has no pooler; use mean or cls"));
            }
            TextPooling::Eos | TextPooling::Last => {
                return Err(Error::argument(
                    "text pooling",
                    "a BERT-like tower pools no end-of-text token; use mean or cls",
                ));
            }
        };
        let embeddings = params.pp("embeddings");
        let table = |name: &str, rows: usize| embeddings.get(name, &[rows, size], init);
        let blocks = BlockConfig {
            hidden_size: size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            intermediate_size: config.intermediate_size,
            hidden_act: config.hidden_act,
            layer_norm_eps: config.layer_norm_eps,
            norm: NormPosition::Post,
            mlp: MlpKind::Plain,
            qkv_bias: QkvBias::All,
            extras: Vec::new(),
            layer_scale: None,
            initializer_range: config.initializer_range as f32,
        };
        Ok(Self {
            word_embeddings: table("word_embeddings.weight", config.vocab_size)?,
            position_embeddings: table("position_embeddings.weight", config.max_position_embeddings)?,
            token_type_embeddings: table("token_type_embeddings.weight", config.type_vocab_size)?,
            embedding_norm: LayerNorm::new(&embeddings.pp("layer_norm"), size, config.layer_norm_eps)?,
            encoder: Encoder::new(&params.pp("encoder"), &blocks)?,
            pooler,
            pooling,
            config: config.clone(),
        })
    }

    fn embed(&self, tokens: &TokenBatch) -> Result<Tensor> {
        let shape = (tokens.batch(), tokens.length());
        if shape.1 > self.config.context_length() {
            let message = format!("{} tokens, but the tower has {} positions", shape.1, self.config.context_length());
            return Err(Error::argument("input_ids", message));
        }
        let words = ops::embedding(&self.word_embeddings, tokens.ids(), shape)?;
        let words = ops::add_row(&words, &self.token_type_embeddings.get(0)?)?;
        let embedded = match self.config.positions {
            Positions::FromZero => ops::add_row(&words, &self.position_embeddings.narrow(0, 0, shape.1)?)?,
            Positions::AfterPadding(padding) => {
                let positions = positions_after_padding(tokens, padding);
                (words + ops::embedding(&self.position_embeddings, &positions, shape)?)?
            }
        };
        self.embedding_norm.forward(&embedded)
    }

    fn mask(tokens: &TokenBatch) -> Result<AttentionMask> {
        AttentionMask::none().with_key_padding(tokens.keep(), tokens.batch(), tokens.length())
    }

    /// The pooled row from one token a row (B,E).
    fn pool_token(&self, token: Tensor) -> Result<Tensor> {
        match &self.pooler {
            Some(dense) => ops::activate(&dense.forward(&token)?, Activation::Tanh),
            None => Ok(token),
        }
    }
}

/// Reference: `create_position_ids_from_input_ids` of transformers' `modeling_roberta.py`.
fn positions_after_padding(tokens: &TokenBatch, padding: u32) -> Vec<u32> {
    let mut positions = Vec::with_capacity(tokens.ids().len());
    for row in tokens.ids().chunks(tokens.length().max(1)) {
        let mut next = padding;
        for &id in row {
            next += u32::from(id != padding);
            positions.push(if id == padding { padding } else { next });
        }
    }
    positions
}

impl TextTower for Bert {
    fn pooled(&self, tokens: &TokenBatch) -> Result<Tensor> {
        if self.pooling == TextPooling::Mean {
            return Ok(self.forward(tokens, Collect::Last)?.pooled);
        }
        let mask = Self::mask(tokens)?;
        let first = vec![0; tokens.batch()];
        self.pool_token(self.encoder.forward_selected(&self.embed(tokens)?, &mask, &mask, &first)?)
    }

    fn forward(&self, tokens: &TokenBatch, collect: Collect) -> Result<TowerOutput> {
        let (last_hidden_state, mut hidden_states) =
            self.encoder.forward(&self.embed(tokens)?, &Self::mask(tokens)?, collect)?;
        if collect == Collect::HiddenStates {
            hidden_states.push(last_hidden_state.clone());
        }
        let pooled = match self.pooling {
            TextPooling::Mean => ops::mean_pool(&last_hidden_state, &tokens.keep())?,
            _ => self.pool_token(ops::select_tokens(&last_hidden_state, &vec![0; tokens.batch()])?)?,
        };
        Ok(TowerOutput { last_hidden_state, pooled, hidden_states })
    }
}
