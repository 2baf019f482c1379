//! open_clip's layout (`open_clip_config.json`, `open_clip_model.safetensors`): `model_cfg` with an image half, a text half and
//! what lies between them (reference: `model.py`, `coca_model.py` and `factory.py` of open_clip 3.3.0).
//!
//! Image halves: a native vision transformer, CLIP's ResNet, or one of timm's towers. Text halves: the native transformer or
//! one of Hugging Face's towers. Of a CoCa model (`multimodal_cfg`) the contrastive half is read; its `text_decoder` is left
//! out, and is not in what is saved either.

mod hf_text;
mod native;
mod part;
mod resnet;
mod save;
mod text;
mod timm;
mod tokens;
mod vit;

pub(in crate::families) use part::{ImagePart, PartSource, TextPart, unsupported};
pub(in crate::families) use save::{as_loaded, is_its, to_open_clip};
pub(in crate::families) use timm::{TimmSource, TimmTower};
pub(crate) use tokens::tokenizer_repositories;

use super::{ClipPlan, Families, Family, FamilySource, Plan, ProcessorPlan, Role};
use crate::image::{ImageProcessorConfig, ImageSize};
use crate::logit_scale::LogitConfig;
use crate::model::ClipConfig;
use crate::weights::Renames;
use crate::{Error, Result};

/// The family of folders with an `open_clip_config.json`.
pub(super) struct OpenClip;

/// What `model_cfg` may say besides the two halves.
const KNOWN: [&str; 10] = [
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "multimodal_cfg",
    "quick_gelu",
    "custom_text",
    "init_logit_scale",
    "init_logit_bias",
    "nonscalar_logit_scale",
    "pad_id",
];

/// The native text tower's names where the model is no `custom_text` one: they stand at the root.
const ROOT_TEXT: [&str; 7] = [
    "token_embedding.*",
    "positional_embedding",
    "cls_emb",
    "transformer.*",
    "ln_final.*",
    "text_projection*",
    "attn_mask",
];

/// The names at the root that are the whole model's.
const SCALES: [&str; 2] = ["logit_scale", "logit_bias"];

impl Family for OpenClip {
    fn model_types(&self) -> &[&str] {
        &["open_clip"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let whole = &source.config;
        let model = if whole.has("model_cfg") { whole.part("model_cfg")? } else { whole.clone() };
        if !model.has("vision_cfg") || !model.has("text_cfg") {
            return Err(Error::file(whole.path(), "model_cfg has no vision_cfg or no text_cfg"));
        }
        if whole.has("model_cfg") {
            model.only(&KNOWN)?;
        }
        let embed_dim = model.size("embed_dim", 512)?;
        let quick_gelu = model.flag("quick_gelu", false)?;
        let prefix = text_prefix(source, &model)?;
        let part = |name: &str, prefix: &str| -> Result<PartSource<'_>> {
            let source = FamilySource { config: model.part(name)?, tensors: source.below(prefix), role: Role::Half };
            Ok(PartSource { source, embed_dim, quick_gelu })
        };
        let (image_source, text_source) = (part("vision_cfg", "visual")?, part("text_cfg", prefix)?);
        let (image, text) = (image_part(&image_source)?, text_part(&text_source)?);

        let heads = Renames::new(&[], &["visual.*"])?;
        let heads = match prefix {
            "" => ROOT_TEXT.iter().try_fold(heads, |heads, name| heads.ignore(name))?,
            prefix => heads.ignore(&format!("{prefix}.*"))?,
        };
        let heads = if model.has("multimodal_cfg") { heads.ignore("text_decoder.*")? } else { heads };
        let heads = text.projection.put_under(heads, prefix, "text_projection")?;
        let heads = image.projection.put_under(heads, "visual", "visual_projection")?;

        let tokens = tokens::token_rules(text_source.config(), &text)?;
        let mut text_renames = text.projection.leave_to_heads(text.renames)?;
        if prefix.is_empty() {
            let others = SCALES.iter().chain(&["visual.*", "text_decoder.*"]);
            text_renames = others.copied().try_fold(text_renames, |renames, name| renames.ignore(name))?;
        }
        let text_projection = (text.projection.config != image.projection.config).then_some(text.projection.config);
        Ok(Plan::Clip(Box::new(ClipPlan {
            config: ClipConfig {
                text: text.config,
                image: image.config,
                projection: image.projection.config,
                text_projection,
                logits: logits(source, &model),
                matching: None,
            },
            text: text_renames.within(prefix),
            image: image.projection.leave_to_heads(image.renames)?.within("visual"),
            heads,
            tokens,
            processor: ProcessorPlan::Given(Box::new(processor(whole, image_source.config())?)),
        })))
    }
}

/// Where the text tower's tensors stand: the files decide, and without any, `custom_text` (reference: `create_model`; files
/// of before `custom_text` have a custom tower at the root, as `convert_to_custom_text_state_dict` knows).
fn text_prefix(source: &FamilySource<'_>, model: &super::Config) -> Result<&'static str> {
    let custom = match &source.tensors {
        Some(tensors) => tensors.keys().any(|name| name.starts_with("text.")),
        None => model.flag("custom_text", false)? || model.part("text_cfg")?.has("hf_model_name"),
    };
    Ok(if custom { "text" } else { "" })
}

fn logits(source: &FamilySource<'_>, model: &super::Config) -> LogitConfig {
    let bias = match &source.tensors {
        // A model with a bias whose file has none starts it at zero (reference: `load_checkpoint`), which is none.
        Some(tensors) => tensors.contains_key("logit_bias"),
        None => model.has_value("init_logit_bias"),
    };
    if bias { LogitConfig::ScaleAndBias } else { LogitConfig::Scale }
}

fn image_part(part: &PartSource<'_>) -> Result<ImagePart> {
    let config = part.config();
    config.only(&vit::KNOWN)?;
    match config.text("timm_model_name")? {
        Some(name) => timm::image_part(part, &name),
        None if config.is_list("layers") => resnet::image_part(part),
        None => vit::image_part(part),
    }
}

fn text_part(part: &PartSource<'_>) -> Result<TextPart> {
    let config = part.config();
    config.only(&text::KNOWN)?;
    match config.text("hf_model_name")? {
        Some(name) => hf_text::text_part(part, &name),
        None => text::text_part(part),
    }
}

/// How images become pixel values: `preprocess_cfg` beside `model_cfg`, at the size that the image half says.
fn processor(whole: &super::Config, image: &super::Config) -> Result<ImageProcessorConfig> {
    let size = match image.has_value("image_size") {
        true => Some(ImageSize::square(u32::try_from(image.side("image_size", 224)?).unwrap_or(u32::MAX))),
        false => None,
    };
    let preprocess = whole.value("preprocess_cfg").unwrap_or(&serde_json::Value::Null);
    ImageProcessorConfig::from_open_clip(preprocess, size, whole.path())
}
