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
        let value = source.config.to_value();
        let File { pad_token_id, tokens, text, image, projection, text_projection, logits, matching, .. } =
            File::deserialize(&value).map_err(|error| {
                let key = misfit(&value).map(|key| format!("{key}: ")).unwrap_or_default();
                Error::file(source.config.path(), format!("{key}{error}"))
            })?;
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

/// The key of the number or yes or no that does not fit, of a file that cannot be read: another value there changes what the error says.
/// An error about a word or a field has it in its text.
fn misfit(value: &Value) -> Option<String> {
    let problem = |value: &Value| File::deserialize(value).err().map(|error| error.to_string());
    let said = problem(value);
    let mut places = Vec::new();
    leaves(value, String::new(), &mut places);
    let found = places.into_iter().find(|place| {
        let mut changed = value.clone();
        match changed.pointer_mut(place) {
            Some(Value::Bool(found)) => *found = !*found,
            Some(number @ Value::Number(_)) => {
                *number = number.as_u64().map_or(Value::from(0.5), |n| Value::from(n ^ 1))
            }
            _ => return false,
        }
        problem(&changed) != said
    });
    Some(found?.trim_start_matches('/').replace('/', "."))
}

/// The places of all values that are no objects, as JSON pointers.
fn leaves(value: &Value, place: String, places: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| leaves(value, format!("{place}/{key}"), places)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| leaves(value, format!("{place}/{i}"), places));
        }
        _ => places.push(place),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_of_another_type_is_named_by_its_key() {
        let file = |projection| json!({ "model_type": "diptych", "pad_token_id": 0, "projection": projection });
        assert_eq!(misfit(&file(json!({ "embed_dim": 4, "kind": true }))).unwrap(), "projection.kind");
        assert_eq!(misfit(&file(json!({ "embed_dim": false, "kind": "linear" }))).unwrap(), "projection.embed_dim");
        // What is missing is in the error itself.
        assert_eq!(misfit(&file(json!({ "embed_dim": 4, "kind": "linear" }))), None);
    }
}
