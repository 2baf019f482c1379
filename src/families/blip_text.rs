//! BLIP's text encoder as transformers writes it (`BlipTextModel` in `modeling_blip_text.py`): BERT without token types, whose
//! blocks have a cross-attention to the image that the contrastive pass leaves out.

use super::bert::{self, Defaults};
use super::{Config, Families, Family, FamilySource, Plan, TextPlan};
use crate::Result;
use crate::towers::TextPooling;
use crate::weights::Renames;

/// The family of `model_type` blip_text_model.
pub(super) struct BlipText;

/// The names of the cross-attention, which become `encoder.layers.N.cross_attn.*`: what
/// [`CrossBert`](crate::towers::CrossBert) reads. To be put before [`bert::BLOCKS`].
pub(super) const CROSS: [(&str, &str); 5] = [
    ("crossattention.self.query", "cross_attn.q_proj"),
    ("crossattention.self.key", "cross_attn.k_proj"),
    ("crossattention.self.value", "cross_attn.v_proj"),
    ("crossattention.output.dense", "cross_attn.out_proj"),
    ("crossattention.output.LayerNorm", "cross_attn.layer_norm"),
];

/// The tower of the contrastive pass, alone or half of a `blip` model, whose tensors lie below `text_encoder`. The
/// cross-attention's tensors are extras to it.
pub(super) fn text(config: &Config) -> Result<TextPlan> {
    // The class's default is 8; published files say 12.
    let defaults = Defaults { vocab_size: 30524, num_attention_heads: 8, ..Defaults::BASE };
    let rules: Vec<_> = CROSS.into_iter().chain(bert::BLOCKS).collect();
    let renames = Renames::new(&rules, &bert::EXTRAS)?.ignore("*crossattention.*")?;
    Ok(bert::plan(bert::base(config, &defaults)?, TextPooling::Cls, renames, config.id("pad_token_id", 0)?))
}

/// Width of the image tokens that the cross-attention looks at.
pub(super) fn image_token_size(config: &Config) -> Result<usize> {
    config.size("encoder_hidden_size", 768)
}

impl Family for BlipText {
    fn model_types(&self) -> &[&str] {
        &["blip_text_model"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        Ok(Plan::Text(Box::new(text(&source.config)?)))
    }
}
