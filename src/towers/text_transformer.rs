//! CLIP's text transformer (Radford et al. 2021, arXiv 2103.00020): pre-norm blocks under a causal mask, a final norm, and the
//! end-of-text token as the pooled output.
//!
//! ids (B,L) → tokens + positions (B,L,E) → blocks → norm → pooled (B,E).

use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{BuildTextTower, Collect, TextPooling, TextTower, TowerOutput, check_sizes};
use crate::nn::{BlockConfig, BlockExtra, Encoder, LayerNorm, Linear, MlpKind, NormPosition, QkvBias};
use crate::ops::{self, Activation, AttentionMask};
use crate::text::TokenBatch;
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// Sizes and choices of CLIP's text transformer. Names are Hugging Face's where it has one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextTransformerConfig {
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
    /// Number of positions: the longest text in tokens.
    pub context_length: usize,
    /// Which token is pooled.
    pub pooled_token: PooledToken,
    /// Which tokens see which.
    #[serde(default)]
    pub attention: TextAttention,
    /// LayerScale's start, where the tower has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_scale: Option<f32>,
    /// What is added to attention and MLP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extras: Vec<BlockExtra>,
    /// Width of a linear layer with bias on the pooled token, where the tower has one (SigLIP).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_size: Option<usize>,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
}

/// Which tokens see which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextAttention {
    /// Each token those before it that are no padding (transformers' CLIP).
    #[default]
    CausalWithoutPadding,
    /// Each token those before it, padding or not (open_clip; the pooled token sees the same).
    Causal,
    /// Every token every token, padding too (SigLIP, CLIPA, MobileCLIP).
    Full,
    /// Every token every token that is no padding.
    FullWithoutPadding,
    /// Each token those before it, with a learned class token behind the text, which [`TextPooling::Last`] pools (CoCa). A
    /// token whose predecessor has the id `pad_id` is hidden from all: open_clip's mask for the class token stood one place
    /// too far left when the published weights were trained, and stays there for them (`correct_cls_mask` of its
    /// `transformer.py`).
    CausalWithClassToken {
        /// The id that pads texts.
        pad_id: u32,
    },
    /// The same without the causal mask.
    FullWithClassToken {
        /// The id that pads texts.
        pad_id: u32,
    },
}

impl TextAttention {
    fn is_causal(self) -> bool {
        matches!(self, Self::CausalWithoutPadding | Self::Causal | Self::CausalWithClassToken { .. })
    }

    /// The id that pads texts, where a class token stands behind them.
    fn class_token(self) -> Option<u32> {
        match self {
            Self::CausalWithClassToken { pad_id } | Self::FullWithClassToken { pad_id } => Some(pad_id),
            Self::CausalWithoutPadding | Self::Causal | Self::Full | Self::FullWithoutPadding => None,
        }
    }
}

impl TextTransformerConfig {
    /// Whether a learned class token stands behind the text.
    #[must_use]
    pub fn has_class_token(&self) -> bool {
        self.attention.class_token().is_some()
    }
}

/// Which token [`TextPooling::Eos`] picks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PooledToken {
    /// The first token with this id.
    FirstId(u32),
    /// The first token whose id is the row's largest: OpenAI's rule, which transformers keeps where `eos_token_id` is 2.
    FirstLargest,
}

/// The built tower.
pub(super) struct TextTransformer {
    config: TextTransformerConfig,
    pooling: TextPooling,
    token_embedding: Tensor,
    position_embedding: Tensor,
    class_embedding: Option<Tensor>,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
    head: Option<Linear>,
}

impl TextTransformer {
    pub(super) fn new(params: &Params, config: &TextTransformerConfig, pooling: TextPooling) -> Result<Self> {
        let sizes = [
            ("vocab_size", config.vocab_size),
            ("num_hidden_layers", config.num_hidden_layers),
            ("intermediate_size", config.intermediate_size),
            ("max_position_embeddings", config.context_length),
        ];
        check_sizes(config.hidden_size, config.num_attention_heads, config.layer_norm_eps, &sizes)?;
        if !matches!(pooling, TextPooling::Eos | TextPooling::Mean | TextPooling::Cls | TextPooling::Last) {
            let message = format!("CLIP's text tower has no {pooling} pooling; use eos, mean, cls or last");
            return Err(Error::argument("text pooling", message));
        }
        let size = config.hidden_size;
        if config.head_size.is_some_and(|head| head == 0 || head > 1 << 24) {
            return Err(Error::argument("projection_size", "it is not between 1 and 16777216"));
        }
        let init = Init::Normal { std: config.initializer_range as f32 };
        let embeddings = params.pp("embeddings");
        let has_class_token = config.has_class_token();
        let positions = config.context_length + usize::from(has_class_token);
        let blocks = BlockConfig {
            hidden_size: size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            intermediate_size: config.intermediate_size,
            hidden_act: config.hidden_act,
            layer_norm_eps: config.layer_norm_eps,
            norm: NormPosition::Pre,
            mlp: MlpKind::Plain,
            qkv_bias: QkvBias::All,
            extras: config.extras.clone(),
            layer_scale: config.layer_scale,
            initializer_range: config.initializer_range as f32,
        };
        Ok(Self {
            token_embedding: embeddings.get("token_embedding.weight", &[config.vocab_size, size], init)?,
            position_embedding: embeddings.get("position_embedding.weight", &[positions, size], init)?,
            class_embedding: has_class_token
                .then(|| embeddings.get("class_embedding", &[1, 1, size], init))
                .transpose()?,
            encoder: Encoder::new(&params.pp("encoder"), &blocks)?,
            final_layer_norm: LayerNorm::new(&params.pp("final_layer_norm"), size, config.layer_norm_eps)?,
            head: config.head_size.map(|head| Linear::new(&params.pp("head"), size, head, init)).transpose()?,
            config: config.clone(),
            pooling,
        })
    }

    fn embed(&self, tokens: &TokenBatch) -> Result<Tensor> {
        let (batch, length) = (tokens.batch(), tokens.length());
        if length > self.config.context_length {
            let message = format!("{length} tokens, but the tower has {} positions", self.config.context_length);
            return Err(Error::argument("input_ids", message));
        }
        let mut embedded = ops::embedding(&self.token_embedding, tokens.ids(), (batch, length))?;
        if let Some(class) = &self.class_embedding {
            let class = class.broadcast_as((batch, 1, self.config.hidden_size))?.contiguous()?;
            embedded = Tensor::cat(&[embedded, class], 1)?;
        }
        ops::add_row(&embedded, &self.position_embedding.narrow(0, 0, embedded.dim(1)?)?)
    }

    /// How many tokens a row has, the class token included.
    fn length(&self, tokens: &TokenBatch) -> usize {
        tokens.length() + usize::from(self.class_embedding.is_some())
    }

    /// The tokens that are not hidden by padding, or none where padding hides nothing.
    fn shown(&self, tokens: &TokenBatch) -> Option<Arc<[bool]>> {
        match self.config.attention {
            TextAttention::Causal | TextAttention::Full => None,
            TextAttention::CausalWithoutPadding | TextAttention::FullWithoutPadding => Some(tokens.keep()),
            TextAttention::CausalWithClassToken { pad_id } | TextAttention::FullWithClassToken { pad_id } => {
                let row = |ids: &[u32]| -> Vec<bool> {
                    std::iter::once(true).chain(ids.iter().map(|&id| id != pad_id)).collect()
                };
                Some(tokens.ids().chunks(tokens.length()).flat_map(row).collect())
            }
        }
    }

    fn mask(&self, tokens: &TokenBatch) -> Result<AttentionMask> {
        let mask = if self.config.attention.is_causal() { AttentionMask::causal() } else { AttentionMask::none() };
        match self.shown(tokens) {
            Some(shown) => mask.with_key_padding(shown, tokens.batch(), self.length(tokens)),
            None => Ok(mask),
        }
    }

    /// What the queries at `positions`, one a row, see: in the last block no other is asked.
    fn mask_at(&self, tokens: &TokenBatch, positions: &[usize]) -> Result<AttentionMask> {
        let (shown, length) = (self.shown(tokens), self.length(tokens));
        let causal = self.config.attention.is_causal();
        if shown.is_none() && !causal {
            return Ok(AttentionMask::none());
        }
        let sees =
            |i: usize| shown.as_ref().is_none_or(|shown| shown[i]) && (!causal || i % length <= positions[i / length]);
        let visible: Vec<bool> = (0..tokens.batch() * length).map(sees).collect();
        AttentionMask::none().with_key_padding(visible, tokens.batch(), length)
    }

    /// The mean of the text's tokens that are no padding.
    fn mean(&self, states: &Tensor, tokens: &TokenBatch) -> Result<Tensor> {
        ops::mean_pool(&states.narrow(1, 0, tokens.length())?.contiguous()?, &tokens.keep())
    }

    /// The row of the pooled token, normed already, through the head where there is one.
    fn head(&self, pooled: Tensor) -> Result<Tensor> {
        self.head.as_ref().map_or(Ok(pooled.clone()), |head| head.forward(&pooled))
    }

    /// The pooled position of each row, or none for the mean.
    fn positions(&self, tokens: &TokenBatch) -> Result<Option<Vec<usize>>> {
        match (self.pooling, self.config.pooled_token) {
            (TextPooling::Cls, _) => Ok(Some(vec![0; tokens.batch()])),
            (TextPooling::Last, _) => Ok(Some(vec![self.length(tokens) - 1; tokens.batch()])),
            (TextPooling::Eos, PooledToken::FirstLargest) => Ok(Some(tokens.first_largest())),
            (TextPooling::Eos, PooledToken::FirstId(id)) => {
                let missing = |row| {
                    let message = format!("row {row} has no end-of-text token (eos_token_id {id})");
                    Error::argument("input_ids", message)
                };
                let found = tokens.first_position_of(id).into_iter().enumerate();
                Ok(Some(found.map(|(row, p)| p.ok_or_else(|| missing(row))).collect::<Result<_>>()?))
            }
            _ => Ok(None),
        }
    }
}

impl BuildTextTower for TextTransformerConfig {
    fn build(&self, params: &Params, pooling: TextPooling) -> Result<Box<dyn TextTower>> {
        Ok(Box::new(TextTransformer::new(params, self, pooling)?))
    }

    fn pooled_size(&self) -> usize {
        self.head_size.unwrap_or(self.hidden_size)
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_length(&self) -> usize {
        self.context_length
    }

    fn reads_padding(&self, pooling: TextPooling) -> bool {
        self.attention == TextAttention::Full || self.has_class_token() || pooling == TextPooling::Last
    }
}

impl TextTower for TextTransformer {
    fn pooled(&self, tokens: &TokenBatch) -> Result<Tensor> {
        let (embedded, mask) = (self.embed(tokens)?, self.mask(tokens)?);
        let Some(positions) = self.positions(tokens)? else {
            let states = self.encoder.forward_kept(&embedded, |_| (&mask).into())?;
            return self.head(self.mean(&self.final_layer_norm.forward(&states)?, tokens)?);
        };
        let last_mask = self.mask_at(tokens, &positions)?;
        let pooled = self.encoder.forward_selected(&embedded, &mask, &last_mask, &positions)?;
        self.head(self.final_layer_norm.forward(&pooled)?)
    }

    fn forward(&self, tokens: &TokenBatch, collect: Collect) -> Result<TowerOutput> {
        let (output, mut hidden_states) = self.encoder.forward(&self.embed(tokens)?, &self.mask(tokens)?, collect)?;
        if collect == Collect::HiddenStates {
            hidden_states.push(output.clone());
        }
        let last_hidden_state = self.final_layer_norm.forward(&output)?;
        let pooled = match self.positions(tokens)? {
            Some(positions) => ops::select_tokens(&last_hidden_state, &positions)?,
            None => self.mean(&last_hidden_state, tokens)?,
        };
        Ok(TowerOutput { last_hidden_state, pooled: self.head(pooled)?, hidden_states })
    }
}
