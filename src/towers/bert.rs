//! BERT (Devlin et al. 2018, arXiv 1810.04805), RoBERTa (Liu et al. 2019, arXiv 1907.11692), XLM-RoBERTa, DistilBERT (Sanh et
//! al. 2019, arXiv 1910.01108) and MPNet (Song et al. 2020, arXiv 2004.09297): post-norm blocks under a key-padding mask.
//!
//! ids (B,L) → words + token type 0 + positions, normed (B,L,E) → blocks → head (B,L,D) → pooled (B,D); D = E without a head.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::pooling::{check_pooling, pool_text, pooled_positions};
use super::{BuildTextTower, Collect, RelativePositions, TextPooling, TextTower, TowerOutput, check_sizes};
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
    /// Rows of the token-type table; 0 where the tower has none (DistilBERT, MPNet, BLIP).
    pub type_vocab_size: usize,
    /// How positions are counted.
    pub positions: Positions,
    /// The bias on the scores of all layers by the distance of two tokens (MPNet).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative_positions: Option<RelativePositions>,
    /// What comes after the last block.
    #[serde(default)]
    pub head: BertHead,
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

impl Default for BertConfig {
    /// BERT-base: what a family's configuration departs from.
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-12,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            positions: Positions::FromZero,
            relative_positions: None,
            head: BertHead::None,
            pooler: false,
            initializer_range: 0.02,
        }
    }
}

/// What comes after the last block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BertHead {
    /// Nothing.
    #[default]
    None,
    /// LayerNorm and a linear layer with bias to this width, on every token (AltCLIP).
    NormedLinear(usize),
}

impl BertConfig {
    /// Width D of the pooled output.
    #[must_use]
    pub fn output_size(&self) -> usize {
        match self.head {
            BertHead::None => self.hidden_size,
            BertHead::NormedLinear(size) => size,
        }
    }

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
    token_type_embeddings: Option<Tensor>,
    embedding_norm: LayerNorm,
    relative_attention_bias: Option<Tensor>,
    pub(super) encoder: Encoder,
    head: Option<(LayerNorm, Linear)>,
    pooler: Option<Linear>,
}

impl Bert {
    pub(super) fn new(params: &Params, config: &BertConfig, pooling: TextPooling) -> Result<Self> {
        check(config)?;
        let (size, output) = (config.hidden_size, config.output_size());
        let init = Init::Normal { std: config.initializer_range as f32 };
        let pooler = match pooling {
            TextPooling::Pooler if config.pooler && config.head == BertHead::None => {
                Some(Linear::new(&params.pp("pooler.dense"), size, size, init)?)
            }
            other => check_pooling(other).map(|()| None)?,
        };
        let embeddings = params.pp("embeddings");
        let table = |name: &str, rows: usize| embeddings.get(name, &[rows, size], init);
        let types = (config.type_vocab_size > 0).then_some(config.type_vocab_size);
        let head = match config.head {
            BertHead::None => None,
            BertHead::NormedLinear(_) => Some((
                LayerNorm::new(&params.pp("final_layer_norm"), size, config.layer_norm_eps)?,
                Linear::new(&params.pp("transformation"), size, output, init)?,
            )),
        };
        let encoder = params.pp("encoder");
        let relative = config.relative_positions.map(|relative| {
            let shape = [relative.num_buckets, config.num_attention_heads];
            encoder.get("relative_attention_bias.weight", &shape, init)
        });
        Ok(Self {
            word_embeddings: table("word_embeddings.weight", config.vocab_size)?,
            position_embeddings: table("position_embeddings.weight", config.max_position_embeddings)?,
            token_type_embeddings: types.map(|rows| table("token_type_embeddings.weight", rows)).transpose()?,
            embedding_norm: LayerNorm::new(&embeddings.pp("layer_norm"), size, config.layer_norm_eps)?,
            relative_attention_bias: relative.transpose()?,
            encoder: Encoder::new(&encoder, &blocks(config))?,
            head,
            pooler,
            pooling,
            config: config.clone(),
        })
    }

    /// The stream that enters the first block (B,L,E).
    pub(super) fn embed(&self, tokens: &TokenBatch) -> Result<Tensor> {
        let shape = (tokens.batch(), tokens.length());
        if shape.1 > self.config.context_length() {
            let message = format!("{} tokens, but the tower has {} positions", shape.1, self.config.context_length());
            return Err(Error::argument("input_ids", message));
        }
        let mut words = ops::embedding(&self.word_embeddings, tokens.ids(), shape)?;
        if let Some(types) = &self.token_type_embeddings {
            words = ops::add_row(&words, &types.get(0)?)?;
        }
        let embedded = match self.config.positions {
            Positions::FromZero => ops::add_row(&words, &self.position_embeddings.narrow(0, 0, shape.1)?)?,
            Positions::AfterPadding(padding) => {
                let positions = positions_after_padding(tokens, padding);
                (words + ops::embedding(&self.position_embeddings, &positions, shape)?)?
            }
        };
        self.embedding_norm.forward(&embedded)
    }

    /// What every token may look at, and the bias of relative positions.
    pub(super) fn mask(&self, tokens: &TokenBatch) -> Result<AttentionMask> {
        let mask = AttentionMask::none().with_key_padding(tokens.keep(), tokens.batch(), tokens.length())?;
        match (&self.config.relative_positions, &self.relative_attention_bias) {
            (Some(relative), Some(table)) => mask.with_bias(relative.bias(table, tokens.length())?),
            _ => Ok(mask),
        }
    }

    /// AltCLIP's head, on tokens (…,E) → (…,D).
    fn transform(&self, tokens: Tensor) -> Result<Tensor> {
        match &self.head {
            Some((norm, linear)) => linear.forward(&norm.forward(&tokens)?),
            None => Ok(tokens),
        }
    }

    /// The pooled row from what pooling picked (B,D).
    fn finish(&self, row: Tensor) -> Result<Tensor> {
        match &self.pooler {
            Some(dense) => ops::activate(&dense.forward(&row)?, Activation::Tanh),
            None => Ok(row),
        }
    }
}

fn check(config: &BertConfig) -> Result<()> {
    let sizes = [
        ("vocab_size", config.vocab_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("intermediate_size", config.intermediate_size),
        ("max_position_embeddings", config.context_length()),
        ("type_vocab_size", config.type_vocab_size.max(1)),
        ("output size", config.output_size()),
    ];
    check_sizes(config.hidden_size, config.num_attention_heads, config.layer_norm_eps, &sizes)?;
    config.relative_positions.as_ref().map_or(Ok(()), RelativePositions::check)
}

fn blocks(config: &BertConfig) -> BlockConfig {
    BlockConfig {
        hidden_size: config.hidden_size,
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
    }
}

/// Reference: `create_position_ids_from_input_ids` of transformers' `modeling_roberta.py`.
pub(super) fn positions_after_padding(tokens: &TokenBatch, padding: u32) -> Vec<u32> {
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

impl BuildTextTower for BertConfig {
    fn build(&self, params: &Params, pooling: TextPooling) -> Result<Box<dyn TextTower>> {
        Ok(Box::new(Bert::new(params, self, pooling)?))
    }

    fn pooled_size(&self) -> usize {
        self.output_size()
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_length(&self) -> usize {
        BertConfig::context_length(self)
    }
}

impl TextTower for Bert {
    fn pooled(&self, tokens: &TokenBatch) -> Result<Tensor> {
        let (embedded, mask) = (self.embed(tokens)?, self.mask(tokens)?);
        match pooled_positions(tokens, self.pooling)? {
            // A query's row of the bias is chosen by its position, which differs from row to row of the batch.
            Some(positions) if mask.bias().is_none() => {
                let row = self.encoder.forward_selected(&embedded, &mask, &mask, &positions)?;
                self.finish(self.transform(row)?)
            }
            _ => {
                let states = self.transform(self.encoder.forward_kept(&embedded, |_| (&mask).into())?)?;
                self.finish(pool_text(&states, tokens, self.pooling)?)
            }
        }
    }

    fn forward(&self, tokens: &TokenBatch, collect: Collect) -> Result<TowerOutput> {
        let (last, mut hidden_states) = self.encoder.forward(&self.embed(tokens)?, &self.mask(tokens)?, collect)?;
        if collect == Collect::HiddenStates {
            hidden_states.push(last.clone());
        }
        let last_hidden_state = self.transform(last)?;
        let pooled = self.finish(pool_text(&last_hidden_state, tokens, self.pooling)?)?;
        Ok(TowerOutput { last_hidden_state, pooled, hidden_states })
    }
}
