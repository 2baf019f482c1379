//! BLIP as transformers writes it (`modeling_blip.py`): `BlipForImageTextRetrieval`, whose embeddings are linear layers with bias
//! on the first tokens and whose matching head reads a text that looks at the image; and `BlipModel`.

use super::{ClipPlan, Config, Families, Family, FamilySource, ImagePlan, Plan, ProcessorPlan, blip_text};
use crate::encoder::ImageEncoderConfig;
use crate::image::ProcessorClass;
use crate::logit_scale::LogitConfig;
use crate::matching::MatchingConfig;
use crate::model::ClipConfig;
use crate::ops::Activation;
use crate::project::{ProjectionConfig, ProjectionKind};
use crate::towers::{ImagePooling, ImageTowerConfig, OutputNorm, TextPooling, TextTowerConfig, VitConfig};
use crate::weights::Renames;
use crate::{Error, Result};

/// The family of `model_type` blip and its vision half.
pub(super) struct Blip;

/// Projections and the matching head. The cross-attention's tensors lie among the text tower's.
const HEADS: [(&str, &str); 5] = [
    ("^vision_proj", "visual_projection"),
    ("^text_proj", "text_projection"),
    ("^itm_head", "matching.itm_head"),
    ("^text_encoder", "matching"),
    ("encoder.layer", "encoder.layers"),
];

impl Family for Blip {
    fn model_types(&self) -> &[&str] {
        &["blip", "blip_vision_model"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        if config.model_type()? == "blip_vision_model" {
            return Ok(Plan::Image(Box::new(image(config, OutputNorm::TokensThenPooled)?)));
        }
        // The files decide; where there are none, the architecture's name.
        let (retrieval, plain) = match source.tensors {
            Some(_) => (source.has("itm_head.weight"), source.has("visual_projection.weight")),
            None => {
                (config.architecture_ends_with("ForImageTextRetrieval"), config.architecture_ends_with("BlipModel"))
            }
        };
        match (retrieval, plain) {
            (true, _) => itm(config),
            (false, true) => model(config),
            (false, false) => Err(Error::unsupported(
                config.path().display().to_string(),
                "architecture",
                config.architecture().unwrap_or("none named"),
                "BlipForImageTextRetrieval, BlipModel (the others generate text)",
            )),
        }
    }
}

fn itm(config: &Config) -> Result<Plan> {
    let text_config = config.part("text_config")?;
    let text = blip_text::text(&text_config)?;
    let image = image(&config.part("vision_config")?, OutputNorm::Tokens)?;
    let embed_dim = config.size("image_text_hidden_size", 256)?;
    let rules: Vec<_> = HEADS.into_iter().chain(blip_text::CROSS).collect();
    Ok(Plan::Clip(Box::new(ClipPlan {
        config: ClipConfig {
            text: text.config,
            image: image.config,
            projection: ProjectionConfig::plain(ProjectionKind::LinearBias, embed_dim),
            text_projection: None,
            logits: LogitConfig::Cosine,
            matching: Some(MatchingConfig { image_token_size: blip_text::image_token_size(&text_config)? }),
        },
        text: text.renames.within("text_encoder"),
        image: image.renames.within(ClipConfig::IMAGE),
        heads: Renames::new(&rules, &["text_encoder.*", "vision_model.*"])?,
        tokens: text.tokens,
        processor: image.processor,
    })))
}

fn model(config: &Config) -> Result<Plan> {
    let mut text = blip_text::text(&config.part("text_config")?)?;
    if let TextTowerConfig::Bert(tower) = &mut text.config.tower {
        tower.pooler = true;
    }
    text.config.pooling = TextPooling::Pooler;
    let image = image(&config.part("vision_config")?, OutputNorm::TokensThenPooled)?;
    super::hf_clip::dual(text, image, config.size("projection_dim", 512)?)
}

fn image(config: &Config, output_norm: OutputNorm) -> Result<ImagePlan> {
    let tower = VitConfig {
        hidden_act: config.activation("hidden_act", Activation::Gelu)?,
        image_size: config.side("image_size", 384)?,
        output_norm,
        ..super::vit::base(config, 16, 1e-5)?
    };
    let rules = [
        ("^vision_model", ""),
        ("^embeddings.position_embedding", "embeddings.position_embedding.weight"),
        ("self_attn.projection", "self_attn.out_proj"),
    ];
    let parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
    let renames = Renames::new(&rules, &[])?.split("self_attn.qkv", &parts)?;
    let config = ImageEncoderConfig { tower: ImageTowerConfig::Vit(tower), pooling: ImagePooling::Cls };
    Ok(ImagePlan { config, renames, processor: ProcessorPlan::Folder(ProcessorClass::Blip) })
}
