//! ModernBERT (Warner et al. 2024, arXiv 2412.13663): pre-norm blocks with gated MLPs and rotary positions, most of which look
//! at near tokens only.
//!
//! ids (B,L) → words, normed (B,L,E) → blocks → norm (B,L,E) → pooled (B,E).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::pooling::{check_pooling, pool_text};
use super::{BuildTextTower, Collect, TextPooling, TextTower, TowerOutput, check_sizes};
use crate::nn::{Attend, BlockConfig, BlockExtra, Encoder, MlpKind, Norm, NormPosition, QkvBias, Rope};
use crate::ops::{self, Activation, AttentionMask, RotaryPairs};
use crate::text::TokenBatch;
use crate::weights::{Init, Params};
use crate::{Error, Result};

/// Sizes and choices of a ModernBERT tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModernBertConfig {
    /// Entries of the vocabulary V.
    pub vocab_size: usize,
    /// Width E of the tokens.
    pub hidden_size: usize,
    /// Heads; they divide `hidden_size`.
    pub num_attention_heads: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// The gate's activation.
    pub hidden_act: Activation,
    /// Added to the variance in each LayerNorm.
    pub layer_norm_eps: f64,
    /// What each block's tokens look at, from the first block on.
    pub layers: Vec<Sight>,
    /// How far local blocks look, on each side.
    pub local_reach: usize,
    /// Base of the rotary angles in global blocks.
    pub global_rope_theta: f64,
    /// Base of the rotary angles in local blocks.
    pub local_rope_theta: f64,
    /// Which layers have biases.
    pub biases: Vec<BiasedLayers>,
    /// The longest text in tokens.
    pub max_position_embeddings: usize,
    /// Standard deviation of fresh weights.
    pub initializer_range: f64,
}

/// What the tokens of a block look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sight {
    /// All tokens.
    Global,
    /// Near tokens.
    Local,
}

/// Layers that may have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BiasedLayers {
    /// All norms.
    Norms,
    /// Attention's projections.
    Attention,
    /// The MLP's two layers.
    Mlp,
}

/// The built tower.
pub(super) struct ModernBert {
    config: ModernBertConfig,
    pooling: TextPooling,
    word_embeddings: Tensor,
    embedding_norm: Norm,
    encoder: Encoder,
    final_layer_norm: Norm,
}

impl ModernBert {
    pub(super) fn new(params: &Params, config: &ModernBertConfig, pooling: TextPooling) -> Result<Self> {
        let size = config.hidden_size;
        let sizes = [
            ("vocab_size", config.vocab_size),
            ("num_hidden_layers", config.layers.len()),
            ("intermediate_size", config.intermediate_size),
            ("max_position_embeddings", config.max_position_embeddings),
        ];
        check_sizes(size, config.num_attention_heads, config.layer_norm_eps, &sizes)?;
        // Refuses bases and heads that cannot be turned.
        let head = size / config.num_attention_heads;
        for base in [config.global_rope_theta, config.local_rope_theta] {
            Rope::line(1, head, base, RotaryPairs::Halves, &candle_core::Device::Cpu)?;
        }
        check_pooling(pooling)?;
        let blocks = blocks(config);
        let init = Init::Normal { std: config.initializer_range as f32 };
        let embeddings = params.pp("embeddings");
        let norm = |params: &Params| Norm::new(params, size, &blocks.extras, config.layer_norm_eps);
        Ok(Self {
            word_embeddings: embeddings.get("word_embeddings.weight", &[config.vocab_size, size], init)?,
            embedding_norm: norm(&embeddings.pp("layer_norm"))?,
            encoder: Encoder::new(&params.pp("encoder"), &blocks)?,
            final_layer_norm: norm(&params.pp("final_layer_norm"))?,
            pooling,
            config: config.clone(),
        })
    }

    /// The mask and the angles of the blocks that see like this.
    fn sight(&self, sight: Sight, tokens: &TokenBatch) -> Result<(AttentionMask, Rope)> {
        let (mask, base) = match sight {
            Sight::Global => (AttentionMask::none(), self.config.global_rope_theta),
            Sight::Local => (AttentionMask::local(self.config.local_reach), self.config.local_rope_theta),
        };
        let head = self.config.hidden_size / self.config.num_attention_heads;
        let device = self.word_embeddings.device();
        let rope = Rope::line(tokens.length(), head, base, RotaryPairs::Halves, device)?;
        let mask = mask.with_key_padding(tokens.keep(), tokens.batch(), tokens.length())?;
        Ok((mask, rope.to_dtype(self.word_embeddings.dtype())?))
    }
}

fn blocks(config: &ModernBertConfig) -> BlockConfig {
    let has = |layers: BiasedLayers| config.biases.contains(&layers);
    let mut extras = vec![BlockExtra::NoFirstNorm];
    let unbiased = [
        (BiasedLayers::Norms, BlockExtra::NormWithoutBias),
        (BiasedLayers::Attention, BlockExtra::OutputWithoutBias),
        (BiasedLayers::Mlp, BlockExtra::MlpWithoutBias),
    ];
    extras.extend(unbiased.into_iter().filter(|(layers, _)| !has(*layers)).map(|(_, extra)| extra));
    BlockConfig {
        hidden_size: config.hidden_size,
        num_hidden_layers: config.layers.len(),
        num_attention_heads: config.num_attention_heads,
        intermediate_size: config.intermediate_size,
        hidden_act: config.hidden_act,
        layer_norm_eps: config.layer_norm_eps,
        norm: NormPosition::Pre,
        mlp: MlpKind::Gated,
        qkv_bias: if has(BiasedLayers::Attention) { QkvBias::All } else { QkvBias::None },
        extras,
        layer_scale: None,
        initializer_range: config.initializer_range as f32,
    }
}

impl BuildTextTower for ModernBertConfig {
    fn build(&self, params: &Params, pooling: TextPooling) -> Result<Box<dyn TextTower>> {
        Ok(Box::new(ModernBert::new(params, self, pooling)?))
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

impl ModernBert {
    /// The stream that enters the first block (B,L,E).
    fn embed(&self, tokens: &TokenBatch) -> Result<Tensor> {
        let shape = (tokens.batch(), tokens.length());
        if shape.1 > self.config.max_position_embeddings {
            let message = format!("{} tokens, but the tower takes {}", shape.1, self.config.max_position_embeddings);
            return Err(Error::argument("input_ids", message));
        }
        self.embedding_norm.forward(&ops::embedding(&self.word_embeddings, tokens.ids(), shape)?)
    }

    /// What the blocks look at, as a function of their number.
    fn sights(&self, tokens: &TokenBatch) -> Result<Sights<'_>> {
        let (global, local) = (self.sight(Sight::Global, tokens)?, self.sight(Sight::Local, tokens)?);
        Ok(Sights { layers: &self.config.layers, global, local })
    }
}

struct Sights<'a> {
    layers: &'a [Sight],
    global: (AttentionMask, Rope),
    local: (AttentionMask, Rope),
}

impl Sights<'_> {
    fn of(&self, block: usize) -> Attend<'_> {
        let (mask, rope) = if self.layers.get(block) == Some(&Sight::Local) { &self.local } else { &self.global };
        Attend { mask, rope: Some(rope) }
    }
}

impl TextTower for ModernBert {
    fn pooled(&self, tokens: &TokenBatch) -> Result<Tensor> {
        let (words, sights) = (self.embed(tokens)?, self.sights(tokens)?);
        let states = self.encoder.forward_kept(&words, |i| sights.of(i))?;
        pool_text(&self.final_layer_norm.forward(&states)?, tokens, self.pooling)
    }

    fn forward(&self, tokens: &TokenBatch, collect: Collect) -> Result<TowerOutput> {
        let (words, sights) = (self.embed(tokens)?, self.sights(tokens)?);
        let (last, mut hidden_states) = self.encoder.forward_each(&words, |i| sights.of(i), collect)?;
        let last_hidden_state = self.final_layer_norm.forward(&last)?;
        if collect == Collect::HiddenStates {
            hidden_states.push(last_hidden_state.clone());
        }
        let pooled = pool_text(&last_hidden_state, tokens, self.pooling)?;
        Ok(TowerOutput { last_hidden_state, pooled, hidden_states })
    }
}
