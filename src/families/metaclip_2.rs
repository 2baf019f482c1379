//! MetaCLIP 2 as transformers writes it (`modeling_metaclip_2.py`): CLIP's two towers under other `model_type`s; the pooled token
//! is the first `eos_token_id` even where that is 2, which CLIP reads as another rule.

use super::hf_clip::{self, EndOfText};
use super::{Families, Family, FamilySource, Plan};
use crate::Result;
use crate::image::ProcessorClass;

/// The family of `model_type` metaclip_2 and its halves.
pub(super) struct MetaClip2;

impl Family for MetaClip2 {
    fn model_types(&self) -> &[&str] {
        &["metaclip_2", "metaclip_2_text_model", "metaclip_2_vision_model"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        hf_clip::refuse_classifier(config)?;
        match config.model_type()?.as_str() {
            "metaclip_2_text_model" => Ok(Plan::Text(Box::new(hf_clip::text(config, EndOfText::FirstId)?))),
            "metaclip_2_vision_model" => Ok(Plan::Image(Box::new(hf_clip::image(config, ProcessorClass::Clip)?))),
            _ => {
                let text = hf_clip::text(&config.part("text_config")?, EndOfText::FirstId)?;
                let image = hf_clip::image(&config.part("vision_config")?, ProcessorClass::Clip)?;
                hf_clip::dual(text, image, config.size("projection_dim", 512)?)
            }
        }
    }
}
