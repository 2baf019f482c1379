//! Our own layout, for what no other can express: the origin's projections, any pooling, input normalisation. `config.json` is
//! [`ClipConfig`] with `model_type: diptych`, and names in the file are names in memory.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ClipPlan, Families, Family, FamilySource, Plan};
use crate::encoder::{ImageEncoderConfig, TextEncoderConfig};
use crate::image::ProcessorClass;
use crate::model::ClipConfig;
use crate::project::ProjectionConfig;
use crate::text::TextTokenizer;
use crate::weights::Renames;
use crate::{Error, Result};

/// The family of `model_type` diptych.
pub(super) struct Diptych;

/// Our `config.json`. Unknown fields are errors: a newer layout is not read as if it were this one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model_type: String,
    pad_token_id: u32,
    text: TextEncoderConfig,
    image: ImageEncoderConfig,
    projection: ProjectionConfig,
}

impl Family for Diptych {
    fn model_types(&self) -> &[&str] {
        &["diptych"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let wrong = |error: serde_json::Error| Error::file(source.config.path(), error);
        let File { pad_token_id, text, image, projection, .. } =
            serde_json::from_value(source.config.to_value()).map_err(wrong)?;
        Ok(Plan::Clip(Box::new(ClipPlan {
            config: ClipConfig { text, image, projection },
            text: Renames::default().within(ClipConfig::TEXT),
            image: Renames::default().within(ClipConfig::IMAGE),
            heads: Renames::new(&[], &["text_model.*", "vision_model.*"])?,
            pad_id: pad_token_id,
            processor: ProcessorClass::Clip,
        })))
    }
}

/// The `config.json` of this layout.
pub(super) fn to_config(config: &ClipConfig, tokenizer: &TextTokenizer) -> Result<Value> {
    let ClipConfig { text, image, projection } = config.clone();
    let file = File { model_type: "diptych".to_string(), pad_token_id: tokenizer.pad_id(), text, image, projection };
    serde_json::to_value(file).map_err(|error| Error::argument("config", error.to_string()))
}
