//! SigLIP and SigLIP 2 as transformers writes them (`modeling_siglip.py`, `modeling_siglip2.py`): whole models, and each half
//! alone. Checkpoints of SigLIP 2 for one input size say `model_type: siglip`; `siglip2` is NaFlex, whose images keep their
//! proportions.
//!
//! Texts are padded to the context length and read without a mask: the published tokenizers give `input_ids` alone.

use serde_json::{Value, json};

use super::save::essence;
use super::{ClipPlan, Config, Families, Family, FamilySource, ImagePlan, Plan, ProcessorPlan, TextPlan};
use crate::encoder::{ImageEncoderConfig, TextEncoderConfig};
use crate::image::ProcessorClass;
use crate::logit_scale::LogitConfig;
use crate::model::ClipConfig;
use crate::nn::PositionResize;
use crate::ops::Activation;
use crate::project::{ProjectionConfig, ProjectionKind};
use crate::text::TokenRules;
use crate::towers::{
    ImagePooling, ImageTowerConfig, MapHeadConfig, NaflexVitConfig, PooledToken, PositionTable, PrefixTokens,
    TextAttention, TextPooling, TextTowerConfig, TextTransformerConfig, VitConfig,
};
use crate::weights::Renames;
use crate::{Error, Result};

/// The family of `model_type` siglip, siglip2 and their halves.
pub(super) struct Siglip;

/// Buffers of transformers 4, and the other half's scale beside a tower alone.
const EXTRAS: [&str; 1] = ["*position_ids"];

impl Family for Siglip {
    fn model_types(&self) -> &[&str] {
        &["siglip", "siglip_text_model", "siglip_vision_model", "siglip2", "siglip2_text_model", "siglip2_vision_model"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        let model_type = config.model_type()?;
        let naflex = model_type.starts_with("siglip2");
        match model_type.as_str() {
            "siglip_text_model" | "siglip2_text_model" => Ok(Plan::Text(Box::new(text(config, naflex)?))),
            "siglip_vision_model" | "siglip2_vision_model" => Ok(Plan::Image(Box::new(image(config, naflex)?))),
            // Half a model saved under the whole model's configuration.
            _ if config.architecture_ends_with("TextModel") => {
                Ok(Plan::Text(Box::new(text(&config.part("text_config")?, naflex)?)))
            }
            _ if config.architecture_ends_with("VisionModel") => {
                Ok(Plan::Image(Box::new(image(&config.part("vision_config")?, naflex)?)))
            }
            _ if config.architecture_ends_with("ForImageClassification") => Err(Error::unsupported(
                config.path().display().to_string(),
                "architecture",
                "SiglipForImageClassification",
                "SiglipModel, Siglip2Model and their halves",
            )),
            _ => clip(config, naflex),
        }
    }
}

fn clip(config: &Config, naflex: bool) -> Result<Plan> {
    let text = text(&config.part("text_config")?, naflex)?;
    let image = image(&config.part("vision_config")?, naflex)?;
    let projection = ProjectionConfig::plain(ProjectionKind::Identity, image.config.pooled_size());
    let plan = ClipPlan::of_halves(text, image, projection, LogitConfig::ScaleAndBias)?;
    Ok(Plan::Clip(Box::new(plan)))
}

fn text(config: &Config, naflex: bool) -> Result<TextPlan> {
    let hidden_size = config.size("hidden_size", 768)?;
    let tower = TextTransformerConfig {
        vocab_size: config.size("vocab_size", 32000)?,
        hidden_size,
        num_hidden_layers: config.size("num_hidden_layers", 12)?,
        num_attention_heads: config.size("num_attention_heads", 12)?,
        intermediate_size: config.size("intermediate_size", 3072)?,
        hidden_act: config.activation("hidden_act", Activation::GeluTanh)?,
        layer_norm_eps: config.number("layer_norm_eps", 1e-6)?,
        context_length: config.size("max_position_embeddings", 64)?,
        pooled_token: PooledToken::FirstLargest,
        attention: TextAttention::Full,
        layer_scale: None,
        extras: Vec::new(),
        head_size: Some(config.size("projection_size", hidden_size)?),
        initializer_range: config.number("initializer_range", 0.02)?,
    };
    let tokens = token_rules(config, naflex, tower.context_length);
    let config = TextEncoderConfig { tower: TextTowerConfig::TextTransformer(tower), pooling: TextPooling::Last };
    Ok(TextPlan { config, renames: Renames::new(&[("^text_model", "")], &EXTRAS)?, tokens })
}

/// SigLIP 2 has Gemma's tokenizer and lower-cases alone; SigLIP's own also takes punctuation away. The model's type does not
/// tell the two apart, the tokenizer's files do.
fn token_rules(config: &Config, naflex: bool, context_length: usize) -> TokenRules {
    let class = || {
        let text = std::fs::read(config.path().with_file_name("tokenizer_config.json")).ok()?;
        let value: Value = serde_json::from_slice(&text).ok()?;
        Some(value.get("tokenizer_class")?.as_str()?.trim_end_matches("Fast").to_string())
    };
    match class().as_deref() {
        Some("GemmaTokenizer" | "Siglip2Tokenizer") => TokenRules::siglip2(context_length),
        None if naflex => TokenRules::siglip2(context_length),
        _ => TokenRules::siglip(context_length),
    }
}

fn image(config: &Config, naflex: bool) -> Result<ImagePlan> {
    let patch_size = config.side("patch_size", 16)?;
    let image_size = match naflex {
        true => config.size("num_patches", 256)?.isqrt().saturating_mul(patch_size),
        false => config.side("image_size", 224)?,
    };
    let (num_attention_heads, intermediate_size) =
        (config.size("num_attention_heads", 12)?, config.size("intermediate_size", 3072)?);
    let head = config.flag("vision_use_head", true)?;
    let tower = VitConfig {
        hidden_size: config.size("hidden_size", 768)?,
        num_hidden_layers: config.size("num_hidden_layers", 12)?,
        num_attention_heads,
        intermediate_size,
        hidden_act: config.activation("hidden_act", Activation::GeluTanh)?,
        layer_norm_eps: config.number("layer_norm_eps", 1e-6)?,
        image_size,
        patch_size,
        num_channels: config.size("num_channels", 3)?,
        prefix_tokens: PrefixTokens::None,
        positions: PositionTable::Patches,
        position_resize: if naflex { PositionResize::BilinearAntialias } else { PositionResize::Bicubic },
        map_head: head.then_some(MapHeadConfig { num_attention_heads, intermediate_size }),
        initializer_range: config.number("initializer_range", 0.02)?,
        ..VitConfig::default()
    };
    let renames = Renames::new(&[("^vision_model", "")], &EXTRAS)?;
    let renames = ["weight", "bias"].iter().try_fold(renames, |renames, kind| {
        let parts = ["q", "k", "v"].map(|part| format!("head.attention.{part}_proj.{kind}"));
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        renames.split(&format!("head.attention.in_proj_{kind}"), &parts)
    })?;
    let pooling = if head { ImagePooling::Map } else { ImagePooling::Mean };
    let (tower, processor) = match naflex {
        true => (ImageTowerConfig::Naflex(NaflexVitConfig(tower)), ProcessorPlan::Naflex),
        false => (ImageTowerConfig::Vit(tower), ProcessorPlan::Folder(ProcessorClass::Siglip)),
    };
    Ok(ImagePlan { config: ImageEncoderConfig { tower, pooling }, renames, processor })
}

/// The `config.json` of this family for a model, if the family can express it.
pub(super) fn to_hugging_face(config: &ClipConfig, pad_id: u32) -> Option<Value> {
    let TextTowerConfig::TextTransformer(text) = &config.text.tower else { return None };
    let (image, naflex) = match &config.image.tower {
        ImageTowerConfig::Vit(image) => (image, false),
        ImageTowerConfig::Naflex(NaflexVitConfig(image)) => (image, true),
        _ => return None,
    };
    let family = if naflex { "siglip2" } else { "siglip" };
    let mut value = json!({
        "architectures": [if naflex { "Siglip2Model" } else { "SiglipModel" }],
        "model_type": family,
        "initializer_factor": 1.0,
        "text_config": {
            "model_type": format!("{family}_text_model"),
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "intermediate_size": text.intermediate_size,
            "hidden_act": text.hidden_act,
            "layer_norm_eps": text.layer_norm_eps,
            "max_position_embeddings": text.context_length,
            "projection_size": text.head_size,
            "pad_token_id": pad_id,
            "bos_token_id": null,
            "eos_token_id": 1,
            "initializer_range": text.initializer_range,
        },
        "vision_config": {
            "model_type": format!("{family}_vision_model"),
            "hidden_size": image.hidden_size,
            "num_hidden_layers": image.num_hidden_layers,
            "num_attention_heads": image.num_attention_heads,
            "intermediate_size": image.intermediate_size,
            "hidden_act": image.hidden_act,
            "layer_norm_eps": image.layer_norm_eps,
            "patch_size": image.patch_size,
            "num_channels": image.num_channels,
            "vision_use_head": image.map_head.is_some(),
            "initializer_range": image.initializer_range,
        },
    });
    match naflex {
        true => value["vision_config"]["num_patches"] = (image.image_size / image.patch_size.max(1)).pow(2).into(),
        false => value["vision_config"]["image_size"] = image.image_size.into(),
    }
    // What the family cannot say is lost on reading back: then it does not fit.
    let back = Config::new(std::path::Path::new("config.json"), value.clone()).and_then(|config| clip(&config, naflex));
    match back {
        Ok(Plan::Clip(plan)) if essence(&plan.config) == essence(config) => Some(value),
        _ => None,
    }
}
