//! AltCLIP's text tower as transformers writes it (`AltCLIPTextModel` in `modeling_altclip.py`): XLM-RoBERTa, then LayerNorm and
//! a linear layer on every token; the first token is pooled.

use super::bert::{self, Defaults};
use super::{Config, Families, Family, FamilySource, Plan, TextPlan};
use crate::Result;
use crate::towers::{BertConfig, BertHead, Positions, TextPooling};
use crate::weights::Renames;

/// The family of `model_type` altclip_text_model.
pub(super) struct AltClipText;

const HEAD: [(&str, &str); 2] = [("^roberta", ""), ("^pre_LN", "final_layer_norm")];

/// The tower that a text configuration describes; alone or half of an `altclip` model, whose tensors lie below `text_model`.
pub(super) fn text(config: &Config) -> Result<TextPlan> {
    config.require("position_embedding_type", "absolute")?;
    let defaults = Defaults {
        vocab_size: 250_002,
        hidden_size: 1024,
        num_hidden_layers: 24,
        num_attention_heads: 16,
        intermediate_size: 4096,
        max_position_embeddings: 514,
        layer_norm_eps: 1e-5,
    };
    let pad_id = config.id("pad_token_id", 1)?;
    let tower = BertConfig {
        type_vocab_size: config.size("type_vocab_size", 1)?,
        positions: Positions::AfterPadding(pad_id),
        head: BertHead::NormedLinear(config.size("project_dim", 768)?),
        ..bert::base(config, &defaults)?
    };
    let rules: Vec<_> = HEAD.into_iter().chain(bert::BLOCKS).collect();
    Ok(bert::plan(tower, TextPooling::Cls, Renames::new(&rules, &bert::EXTRAS)?, pad_id))
}

impl Family for AltClipText {
    fn model_types(&self) -> &[&str] {
        &["altclip_text_model"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        Ok(Plan::Text(Box::new(text(&source.config)?)))
    }
}
