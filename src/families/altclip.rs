//! AltCLIP as transformers writes it (`modeling_altclip.py`): XLM-RoBERTa with a head of its own, CLIP's vision transformer, and
//! two bias-free projections.

use super::{Families, Family, FamilySource, Plan, altclip_text, hf_clip};
use crate::Result;
use crate::image::ProcessorClass;

/// The family of `model_type` altclip and its vision half.
pub(super) struct AltClip;

impl Family for AltClip {
    fn model_types(&self) -> &[&str] {
        &["altclip", "altclip_vision_model"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        if config.model_type()? == "altclip_vision_model" {
            let mut plan = hf_clip::image(config, ProcessorClass::Clip)?;
            plan.renames = plan.renames.rule("encoder.layer", "encoder.layers")?;
            return Ok(Plan::Image(Box::new(plan)));
        }
        let text = altclip_text::text(&config.part("text_config")?)?;
        let mut image = hf_clip::image(&config.part("vision_config")?, ProcessorClass::Clip)?;
        // transformers 5 spells the blocks of both halves alike on saving; version 4 wrote CLIP's own names.
        image.renames = image.renames.rule("encoder.layer", "encoder.layers")?;
        hf_clip::dual(text, image, config.size("projection_dim", 768)?)
    }
}
