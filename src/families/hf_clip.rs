//! CLIP as transformers writes it (`modeling_clip.py`): whole models, and each half alone, with or without its projection. Our
//! names in memory are this family's.

use serde_json::{Value, json};

use super::save::essence;
use super::{ClipPlan, Config, Families, Family, FamilySource, ImagePlan, Plan, ProcessorPlan, TextPlan, token_rules};
use crate::encoder::{ImageEncoderConfig, TextEncoderConfig};
use crate::image::ProcessorClass;
use crate::logit_scale::LogitConfig;
use crate::model::ClipConfig;
use crate::ops::Activation;
use crate::project::{InputNorm, ProjectionConfig, ProjectionKind};
use crate::towers::{
    ImagePooling, ImageTowerConfig, OutputNorm, PatchStem, PooledToken, TextAttention, TextPooling, TextTowerConfig,
    TextTransformerConfig, VitConfig,
};
use crate::weights::Renames;
use crate::{Error, Result};

/// The family of `model_type` clip and its halves.
pub(super) struct HfClip;

/// Where transformers takes the first largest id instead of the first `eos_token_id`.
const OLD_EOS: u32 = 2;

/// Buffers of transformers 4, and the projection beside a tower alone.
const EXTRAS: [&str; 3] = ["*position_ids", "visual_projection.weight", "text_projection.weight"];

impl Family for HfClip {
    fn model_types(&self) -> &[&str] {
        &["clip", "clip_text_model", "clip_vision_model"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        refuse_classifier(config)?;
        match config.model_type()?.as_str() {
            "clip_text_model" => Ok(Plan::Text(Box::new(text(config, EndOfText::AsClip)?))),
            "clip_vision_model" => Ok(Plan::Image(Box::new(image(config, ProcessorClass::Clip)?))),
            // Half a model saved under the whole model's configuration.
            _ if config.architecture_ends_with("TextModel") => {
                Ok(Plan::Text(Box::new(text(&config.part("text_config")?, EndOfText::AsClip)?)))
            }
            _ if config.architecture_ends_with("VisionModel") => {
                Ok(Plan::Image(Box::new(image(&config.part("vision_config")?, ProcessorClass::Clip)?)))
            }
            _ => clip(config),
        }
    }
}

fn clip(config: &Config) -> Result<Plan> {
    let text = text(&config.part("text_config")?, EndOfText::AsClip)?;
    let image = image(&config.part("vision_config")?, ProcessorClass::Clip)?;
    dual(text, image, config.size("projection_dim", 512)?)
}

/// An image classifier under one of CLIP's configurations embeds nothing into a shared space.
pub(super) fn refuse_classifier(config: &Config) -> Result<()> {
    if !config.architecture_ends_with("ForImageClassification") {
        return Ok(());
    }
    let found = config.architecture().unwrap_or_default();
    let base = found.trim_end_matches("ForImageClassification");
    let supported = format!("{base}Model and its halves");
    Err(Error::unsupported(config.path().display().to_string(), "architecture", found, supported))
}

/// Two towers below `text_model` and `vision_model`, two bias-free projections, and a scale.
pub(super) fn dual(text: TextPlan, image: ImagePlan, embed_dim: usize) -> Result<Plan> {
    let plan = ClipPlan::of_halves(text, image, ProjectionConfig::linear(embed_dim), LogitConfig::Scale)?;
    Ok(Plan::Clip(Box::new(plan)))
}

/// Which token `eos_token_id` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndOfText {
    /// The first with that id, except that 2 means the first largest id (`modeling_clip.py`).
    AsClip,
    /// The first with that id.
    FirstId,
}

pub(super) fn text(config: &Config, end: EndOfText) -> Result<TextPlan> {
    let eos = config.id("eos_token_id", 49407)?;
    let tower = TextTransformerConfig {
        vocab_size: config.size("vocab_size", 49408)?,
        hidden_size: config.size("hidden_size", 512)?,
        num_hidden_layers: config.size("num_hidden_layers", 12)?,
        num_attention_heads: config.size("num_attention_heads", 8)?,
        intermediate_size: config.size("intermediate_size", 2048)?,
        hidden_act: config.activation("hidden_act", Activation::QuickGelu)?,
        layer_norm_eps: config.number("layer_norm_eps", 1e-5)?,
        context_length: config.size("max_position_embeddings", 77)?,
        pooled_token: match end {
            EndOfText::AsClip if eos == OLD_EOS => PooledToken::FirstLargest,
            EndOfText::AsClip | EndOfText::FirstId => PooledToken::FirstId(eos),
        },
        attention: TextAttention::CausalWithoutPadding,
        layer_scale: None,
        extras: Vec::new(),
        head_size: None,
        initializer_range: config.number("initializer_range", 0.02)?,
    };
    let config_ = TextEncoderConfig { tower: TextTowerConfig::TextTransformer(tower), pooling: TextPooling::Eos };
    let renames = Renames::new(&[("^text_model", "")], &EXTRAS)?;
    let tokens = token_rules(config_.tower.context_length(), config.id("pad_token_id", 1)?);
    Ok(TextPlan { config: config_, renames, tokens })
}

pub(super) fn image(config: &Config, processor: ProcessorClass) -> Result<ImagePlan> {
    let tower = VitConfig {
        hidden_size: config.size("hidden_size", 768)?,
        num_hidden_layers: config.size("num_hidden_layers", 12)?,
        num_attention_heads: config.size("num_attention_heads", 12)?,
        intermediate_size: config.size("intermediate_size", 3072)?,
        hidden_act: config.activation("hidden_act", Activation::QuickGelu)?,
        layer_norm_eps: config.number("layer_norm_eps", 1e-5)?,
        image_size: config.side("image_size", 224)?,
        patch_size: config.side("patch_size", 32)?,
        num_channels: config.size("num_channels", 3)?,
        patch_bias: false,
        stem: PatchStem::Patches,
        norm_embeddings: true,
        output_norm: OutputNorm::Pooled,
        initializer_range: config.number("initializer_range", 0.02)?,
        ..VitConfig::default()
    };
    let config = ImageEncoderConfig { tower: ImageTowerConfig::Vit(tower), pooling: ImagePooling::Cls };
    let processor = ProcessorPlan::Folder(processor);
    Ok(ImagePlan { config, renames: Renames::new(&[("^vision_model", "")], &EXTRAS)?, processor })
}

/// The `config.json` of this family for a model, if the family can express it.
pub(super) fn to_hugging_face(config: &ClipConfig, pad_id: u32) -> Option<Value> {
    let TextTowerConfig::TextTransformer(text) = &config.text.tower else { return None };
    let ImageTowerConfig::Vit(image) = &config.image.tower else { return None };
    let linear = config.projection.kind == ProjectionKind::Linear && config.projection.input == InputNorm::None;
    let eos = match text.pooled_token {
        PooledToken::FirstId(id) => id,
        PooledToken::FirstLargest => OLD_EOS,
    };
    let value = json!({
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.projection.embed_dim,
        "logit_scale_init_value": 2.6592,
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "intermediate_size": text.intermediate_size,
            "hidden_act": text.hidden_act,
            "layer_norm_eps": text.layer_norm_eps,
            "max_position_embeddings": text.context_length,
            "eos_token_id": eos,
            "pad_token_id": pad_id,
            "initializer_range": text.initializer_range,
            "projection_dim": config.projection.embed_dim,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": image.hidden_size,
            "num_hidden_layers": image.num_hidden_layers,
            "num_attention_heads": image.num_attention_heads,
            "intermediate_size": image.intermediate_size,
            "hidden_act": image.hidden_act,
            "layer_norm_eps": image.layer_norm_eps,
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "num_channels": image.num_channels,
            "initializer_range": image.initializer_range,
            "projection_dim": config.projection.embed_dim,
        },
    });
    // What the family cannot say is lost on reading back: then it does not fit.
    let back = Config::new(std::path::Path::new("config.json"), value.clone()).and_then(|config| clip(&config));
    match back {
        Ok(Plan::Clip(plan)) if linear && essence(&plan.config) == essence(config) => Some(value),
        _ => None,
    }
}
