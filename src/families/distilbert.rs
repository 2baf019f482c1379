//! DistilBERT as transformers writes it (`modeling_distilbert.py`): BERT's blocks under other names, without token types and
//! pooler.

use super::bert::{self, Defaults};
use super::{Families, Family, FamilySource, Plan};
use crate::Result;
use crate::ops::Activation;
use crate::towers::BertConfig;
use crate::weights::Renames;

/// The family of `model_type` distilbert.
pub(super) struct DistilBert;

const RULES: [(&str, &str); 11] = [
    ("^distilbert", ""),
    ("embeddings.LayerNorm", "embeddings.layer_norm"),
    ("transformer.layer", "encoder.layers"),
    ("attention.q_lin", "self_attn.q_proj"),
    ("attention.k_lin", "self_attn.k_proj"),
    ("attention.v_lin", "self_attn.v_proj"),
    ("attention.out_lin", "self_attn.out_proj"),
    ("sa_layer_norm", "layer_norm1"),
    ("ffn.lin1", "mlp.fc1"),
    ("ffn.lin2", "mlp.fc2"),
    ("output_layer_norm", "layer_norm2"),
];

/// Heads of other tasks and a buffer.
const EXTRAS: [&str; 7] = [
    "vocab_transform.*",
    "vocab_layer_norm.*",
    "vocab_projector.*",
    "pre_classifier.*",
    "classifier.*",
    "qa_outputs.*",
    "*embeddings.position_ids",
];

impl Family for DistilBert {
    fn model_types(&self) -> &[&str] {
        &["distilbert"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        // The configuration has names of its own; the LayerNorms' eps is in the code.
        let tower = BertConfig {
            hidden_size: config.size("dim", 768)?,
            num_hidden_layers: config.size("n_layers", 6)?,
            num_attention_heads: config.size("n_heads", 12)?,
            intermediate_size: config.size("hidden_dim", 3072)?,
            hidden_act: config.activation("activation", Activation::Gelu)?,
            layer_norm_eps: 1e-12,
            ..bert::base(config, &Defaults::BASE)?
        };
        let pad_id = config.id("pad_token_id", 0)?;
        let pooling = bert::pooling(source.role, false);
        Ok(Plan::Text(Box::new(bert::plan(tower, pooling, Renames::new(&RULES, &EXTRAS)?, pad_id))))
    }
}
