//! The CLIP half of CLIPSeg as transformers writes it (`modeling_clipseg.py`): alone, or below `clip` beside a decoder of
//! segments, which embeddings do not read.

use super::hf_clip::{self, EndOfText};
use super::{Families, Family, FamilySource, Plan};
use crate::Result;
use crate::image::ProcessorClass;

/// The family of `model_type` clipseg.
pub(super) struct ClipSeg;

impl Family for ClipSeg {
    fn model_types(&self) -> &[&str] {
        &["clipseg"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        let text = hf_clip::text(&config.part("text_config")?, EndOfText::AsClip)?;
        let image = hf_clip::image(&config.part("vision_config")?, ProcessorClass::Vit)?;
        let mut plan = hf_clip::dual(text, image, config.size("projection_dim", 512)?)?;
        if let (Plan::Clip(plan), true) = (&mut plan, source.has("clip.logit_scale")) {
            for renames in [&mut plan.text, &mut plan.image, &mut plan.heads] {
                *renames = std::mem::take(renames).within("clip");
            }
        }
        Ok(plan)
    }
}
