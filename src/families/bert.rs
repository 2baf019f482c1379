//! BERT, RoBERTa and XLM-RoBERTa as transformers writes them (`modeling_bert.py`, `modeling_roberta.py`).

use super::{Families, Family, FamilySource, Plan, Role, TextPlan, token_rules};
use crate::encoder::TextEncoderConfig;
use crate::ops::Activation;
use crate::towers::{BertConfig, Positions, TextPooling, TextTowerConfig};
use crate::weights::Renames;
use crate::{Error, Result};

/// The family of `model_type` bert, roberta, xlm-roberta.
pub(super) struct Bert;

const RULES: [(&str, &str); 12] = [
    ("^bert", ""),
    ("^roberta", ""),
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
const EXTRAS: [&str; 7] = [
    "cls.*",
    "lm_head.*",
    "classifier.*",
    "qa_outputs.*",
    "*embeddings.position_ids",
    "*embeddings.token_type_ids",
    "*pooler.*",
];

impl Family for Bert {
    fn model_types(&self) -> &[&str] {
        &["bert", "roberta", "xlm-roberta"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        let model_type = config.model_type()?;
        let (is_bert, is_roberta) = (model_type == "bert", model_type == "roberta");
        config.require("position_embedding_type", "absolute")?;
        let pad_id = config.id("pad_token_id", if is_bert { 0 } else { 1 })?;
        let pooler = source.has_pooler();
        if config.flag("is_decoder", false)? {
            return Err(Error::unsupported(
                config.path().display().to_string(),
                "is_decoder",
                "true",
                "false (an encoder)",
            ));
        }
        let tower = BertConfig {
            vocab_size: config.size("vocab_size", if is_roberta { 50265 } else { 30522 })?,
            hidden_size: config.size("hidden_size", 768)?,
            num_hidden_layers: config.size("num_hidden_layers", 12)?,
            num_attention_heads: config.size("num_attention_heads", 12)?,
            intermediate_size: config.size("intermediate_size", 3072)?,
            hidden_act: config.activation("hidden_act", Activation::Gelu)?,
            layer_norm_eps: config.number("layer_norm_eps", 1e-12)?,
            max_position_embeddings: config.size("max_position_embeddings", 512)?,
            type_vocab_size: config.size("type_vocab_size", 2)?,
            positions: if is_bert { Positions::FromZero } else { Positions::AfterPadding(pad_id) },
            pooler,
            initializer_range: config.number("initializer_range", 0.02)?,
        };
        let pooling = match source.role {
            Role::Alone => TextPooling::Mean,
            Role::Half if pooler => TextPooling::Pooler,
            Role::Half => TextPooling::Cls,
        };
        let config = TextEncoderConfig { tower: TextTowerConfig::Bert(tower), pooling };
        let tokens = token_rules(config.tower.context_length(), pad_id);
        Ok(Plan::Text(Box::new(TextPlan { config, renames: Renames::new(&RULES, &EXTRAS)?, tokens })))
    }
}
