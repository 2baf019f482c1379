//! Our own layout, for what no other can express: the origin's projections, any pooling, input normalisation. `config.json` is
//! [`ClipConfig`] with `model_type: diptych`, and names in the file are names in memory.
//!
//! Where `config.json` says `"quantization": "int8"`, the weight of a linear layer is `NAME` (N,…) of I8, integers in −127…127, and
//! `NAME_scale` (N) of F32: row n stands for the numbers `NAME_scale[n] · NAME[n]`. Every other tensor is F16 where that holds its
//! numbers exactly, and F32 elsewhere.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ClipPlan, Families, Family, FamilySource, Plan, ProcessorPlan, token_rules};
use crate::encoder::{ImageEncoderConfig, TextEncoderConfig};
use crate::image::ProcessorClass;
use crate::logit_scale::LogitConfig;
use crate::matching::MatchingConfig;
use crate::model::ClipConfig;
use crate::project::ProjectionConfig;
use crate::text::{TextTokenizer, TokenRules};
use crate::towers::ImageTowerConfig;
use crate::weights::Renames;
use crate::{Error, Quantization, Result};

/// The family of `model_type` diptych.
pub(super) struct Diptych;

/// Our `config.json`. Unknown fields are errors: a newer layout is not read as if it were this one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model_type: String,
    pad_token_id: u32,
    /// How texts become rows of ids; files of version 0.1 do not say and mean the plain way.
    #[serde(default)]
    tokens: Option<TokenRules>,
    text: TextEncoderConfig,
    image: ImageEncoderConfig,
    projection: ProjectionConfig,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text_projection: Option<ProjectionConfig>,
    #[serde(default)]
    logits: LogitConfig,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    matching: Option<MatchingConfig>,
    /// What the file holds the weights of linear layers as, where that is not floats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quantization: Option<Quantization>,
}

impl Family for Diptych {
    fn model_types(&self) -> &[&str] {
        &["diptych"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let wrong = |error: serde_json::Error| Error::file(source.config.path(), error);
        let File { pad_token_id, tokens, text, image, projection, text_projection, logits, matching, .. } =
            serde_json::from_value(source.config.to_value()).map_err(wrong)?;
        let tokens = tokens.unwrap_or_else(|| token_rules(text.tower.context_length(), pad_token_id));
        let processor = match image.tower {
            ImageTowerConfig::Naflex(_) => ProcessorPlan::Naflex,
            _ => ProcessorPlan::Folder(ProcessorClass::Clip),
        };
        Ok(Plan::Clip(Box::new(ClipPlan {
            config: ClipConfig { text, image, projection, text_projection, logits, matching },
            text: Renames::default().within(ClipConfig::TEXT),
            image: Renames::default().within(ClipConfig::IMAGE),
            heads: Renames::new(&[], &["text_model.*", "vision_model.*"])?,
            tokens,
            processor,
        })))
    }
}

/// The `config.json` of this layout.
pub(super) fn to_config(
    config: &ClipConfig,
    tokenizer: &TextTokenizer,
    quantization: Option<Quantization>,
) -> Result<Value> {
    let ClipConfig { text, image, projection, text_projection, logits, matching } = config.clone();
    let file = File {
        model_type: "diptych".to_string(),
        pad_token_id: tokenizer.pad_id(),
        tokens: Some(tokenizer.rules().clone()),
        text,
        image,
        projection,
        text_projection,
        logits,
        matching,
        quantization,
    };
    serde_json::to_value(file).map_err(|error| Error::argument("config", error.to_string()))
}
