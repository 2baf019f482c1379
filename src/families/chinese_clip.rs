//! Chinese-CLIP as transformers writes it (`modeling_chinese_clip.py`): BERT whose first token is pooled, without a pooler, CLIP's
//! vision transformer, and two bias-free projections.

use super::{Families, Family, FamilySource, Plan, bert, hf_clip};
use crate::image::ProcessorClass;
use crate::towers::{BertConfig, TextPooling};
use crate::weights::Renames;
use crate::{Result, families::TextPlan};

/// The family of `model_type` chinese_clip and its halves.
pub(super) struct ChineseClip;

impl Family for ChineseClip {
    fn model_types(&self) -> &[&str] {
        &["chinese_clip", "chinese_clip_text_model", "chinese_clip_vision_model"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        match source.config.model_type()?.as_str() {
            "chinese_clip_text_model" => Ok(Plan::Text(Box::new(text(source)?))),
            "chinese_clip_vision_model" => {
                Ok(Plan::Image(Box::new(hf_clip::image(&source.config, ProcessorClass::ChineseClip)?)))
            }
            _ => {
                let text = text(&source.part("text_config", "text_model")?)?;
                let image = hf_clip::image(&source.config.part("vision_config")?, ProcessorClass::ChineseClip)?;
                hf_clip::dual(text, image, source.config.size("projection_dim", 512)?)
            }
        }
    }
}

fn text(source: &FamilySource<'_>) -> Result<TextPlan> {
    let config = &source.config;
    config.require("position_embedding_type", "absolute")?;
    let tower = BertConfig {
        type_vocab_size: config.size("type_vocab_size", 2)?,
        ..bert::base(config, &bert::Defaults::BASE)?
    };
    let renames = Renames::new(&bert::BLOCKS, &bert::EXTRAS)?;
    Ok(bert::plan(tower, TextPooling::Cls, renames, config.id("pad_token_id", 0)?))
}
