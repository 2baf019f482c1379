//! BERT, RoBERTa, CamemBERT and XLM-RoBERTa as transformers writes them (`modeling_bert.py`, `modeling_roberta.py`); and what
//! the other families with BERT's blocks share with them.

use super::{Config, Families, Family, FamilySource, Plan, Role, TextPlan, token_rules};
use crate::encoder::TextEncoderConfig;
use crate::ops::Activation;
use crate::towers::{BertConfig, BertHead, Positions, TextPooling, TextTowerConfig};
use crate::weights::Renames;
use crate::{Error, Result};

/// The family of `model_type` bert, roberta, camembert, xlm-roberta.
pub(super) struct Bert;

/// The names of BERT's blocks and embeddings, after prefixes are gone.
pub(super) const BLOCKS: [(&str, &str); 10] = [
    ("embeddings.LayerNorm", "embeddings.layer_norm"),
    ("encoder.layer", "encoder.layers"),
    ("attention.self.query", "self_attn.q_proj"),
    ("attention.self.key", "self_attn.k_proj"),
    ("attention.self.value", "self_attn.v_proj"),
    ("attention.output.dense", "self_attn.out_proj"),
    ("attention.output.LayerNorm", "layer_norm1"),
    ("intermediate.dense", "mlp.fc1"),
    // After the attention's own output is renamed, the one left is the MLP's.
    ("output.dense", "mlp.fc2"),
    ("output.LayerNorm", "layer_norm2"),
];

/// Heads of other tasks, buffers, and a pooler that pooling does not read.
pub(super) const EXTRAS: [&str; 7] = [
    "cls.*",
    "lm_head.*",
    "classifier.*",
    "qa_outputs.*",
    "*embeddings.position_ids",
    "*embeddings.token_type_ids",
    "*pooler.*",
];

/// What a configuration means that leaves a field out: the defaults of its class in transformers.
pub(super) struct Defaults {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) intermediate_size: usize,
    pub(super) max_position_embeddings: usize,
    pub(super) layer_norm_eps: f64,
}

impl Defaults {
    /// Those of `BertConfig`, `MPNetConfig` and most others.
    pub(super) const BASE: Self = Self {
        vocab_size: 30522,
        hidden_size: 768,
        num_hidden_layers: 12,
        num_attention_heads: 12,
        intermediate_size: 3072,
        max_position_embeddings: 512,
        layer_norm_eps: 1e-12,
    };
}

/// The sizes that all configurations with BERT's blocks name alike: no token types, no pooler, positions from zero.
pub(super) fn base(config: &Config, defaults: &Defaults) -> Result<BertConfig> {
    Ok(BertConfig {
        vocab_size: config.size("vocab_size", defaults.vocab_size)?,
        hidden_size: config.size("hidden_size", defaults.hidden_size)?,
        num_hidden_layers: config.size("num_hidden_layers", defaults.num_hidden_layers)?,
        num_attention_heads: config.size("num_attention_heads", defaults.num_attention_heads)?,
        intermediate_size: config.size("intermediate_size", defaults.intermediate_size)?,
        hidden_act: config.activation("hidden_act", Activation::Gelu)?,
        layer_norm_eps: config.number("layer_norm_eps", defaults.layer_norm_eps)?,
        max_position_embeddings: config.size("max_position_embeddings", defaults.max_position_embeddings)?,
        type_vocab_size: 0,
        positions: Positions::FromZero,
        relative_positions: None,
        head: BertHead::None,
        pooler: false,
        initializer_range: config.number("initializer_range", 0.02)?,
    })
}

/// What "pooled" means for a tower of which the layout says no more: the mean of the tokens where it stands alone; in a dual
/// encoder the pooler, where the files have one, else the first token.
pub(super) fn pooling(role: Role, pooler: bool) -> TextPooling {
    match role {
        Role::Alone => TextPooling::Mean,
        Role::Half if pooler => TextPooling::Pooler,
        Role::Half => TextPooling::Cls,
    }
}

/// A plan from its parts.
pub(super) fn plan(tower: BertConfig, pooling: TextPooling, renames: Renames, pad_id: u32) -> TextPlan {
    let config = TextEncoderConfig { tower: TextTowerConfig::Bert(tower), pooling };
    let tokens = token_rules(config.tower.context_length(), pad_id);
    TextPlan { config, renames, tokens }
}

impl Family for Bert {
    fn model_types(&self) -> &[&str] {
        &["bert", "roberta", "camembert", "xlm-roberta"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        let model_type = config.model_type()?;
        let is_bert = model_type == "bert";
        config.require("position_embedding_type", "absolute")?;
        if config.flag("is_decoder", false)? {
            return Err(Error::unsupported(
                config.path().display().to_string(),
                "is_decoder",
                "true",
                "false (an encoder)",
            ));
        }
        let pad_id = config.id("pad_token_id", if is_bert { 0 } else { 1 })?;
        let pooler = source.has_pooler();
        let vocab_size = if model_type == "roberta" { 50265 } else { Defaults::BASE.vocab_size };
        let tower = BertConfig {
            type_vocab_size: config.size("type_vocab_size", 2)?,
            positions: if is_bert { Positions::FromZero } else { Positions::AfterPadding(pad_id) },
            pooler,
            ..base(config, &Defaults { vocab_size, ..Defaults::BASE })?
        };
        let rules: Vec<_> = [("^bert", ""), ("^roberta", "")].into_iter().chain(BLOCKS).collect();
        let renames = Renames::new(&rules, &EXTRAS)?;
        Ok(Plan::Text(Box::new(plan(tower, pooling(source.role, pooler), renames, pad_id))))
    }
}
