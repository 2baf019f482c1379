//! `VisionTextDualEncoderModel` of transformers (`modeling_vision_text_dual_encoder.py`): any text tower, any image tower, two
//! bias-free projections on what each tower's class gives as `pooler_output`.

use super::{Config, Families, Family, FamilySource, Plan};
use crate::model::ClipConfig;
use crate::{Error, Result};

/// The family of `model_type` vision-text-dual-encoder.
pub(super) struct VisionText;

/// Text towers whose class in transformers pools nothing.
const WITHOUT_POOLER: [&str; 6] = ["distilbert", "modernbert", "t5", "mt5", "m2m_100", "nllb"];

impl Family for VisionText {
    fn model_types(&self) -> &[&str] {
        &["vision-text-dual-encoder"]
    }

    fn plan(&self, families: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let half = |part: &str, prefix: &str| -> Result<Plan> {
            let half = source.part(part, prefix)?;
            families.plan(&FamilySource { config: half_config(half.config, part)?, ..half })
        };
        refuse_without_pooler(&source.config.part("text_config")?)?;
        let wrong = |part: &str| Error::file(source.config.path(), format!("{part} describes no such tower"));
        let Plan::Text(text) = half("text_config", ClipConfig::TEXT)? else { return Err(wrong("text_config")) };
        let Plan::Image(image) = half("vision_config", ClipConfig::IMAGE)? else { return Err(wrong("vision_config")) };
        super::hf_clip::dual(*text, *image, source.config.size("projection_dim", 512)?)
    }
}

/// transformers projects `pooler_output`, and fails where the text tower's class has none.
fn refuse_without_pooler(text: &Config) -> Result<()> {
    let model_type = text.model_type()?;
    if !WITHOUT_POOLER.contains(&model_type.as_str()) {
        return Ok(());
    }
    let supported = "text towers with a pooler, such as bert, roberta, xlm-roberta, mpnet, clip (ClipModel::from_encoders \
                     takes any tower)";
    Err(Error::unsupported(text.path().display().to_string(), "text_config.model_type", model_type, supported))
}

/// A half that is a whole CLIP configuration stands for its own half.
fn half_config(config: Config, part: &str) -> Result<Config> {
    if config.model_type()? == "clip" { config.part(part) } else { Ok(config) }
}
