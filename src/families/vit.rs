//! ViT and DeiT as transformers writes them (`modeling_vit.py`, `modeling_deit.py`), with the names of its version 4 and 5.

use super::{Config, Families, Family, FamilySource, ImagePlan, Plan, ProcessorPlan};
use crate::Result;
use crate::encoder::ImageEncoderConfig;
use crate::image::ProcessorClass;
use crate::nn::QkvBias;
use crate::ops::Activation;
use crate::towers::{ClassifierInput, ImagePooling, ImageTowerConfig, PatchStem, Pooler, PrefixTokens, VitConfig};
use crate::weights::Renames;

/// The family of `model_type` vit, deit.
pub(super) struct Vit;

const PREFIXES: [(&str, &str); 2] = [("^vit", ""), ("^deit", "")];

const RULES: [(&str, &str); 6] = [
    ("layernorm_before", "layer_norm1"),
    ("layernorm_after", "layer_norm2"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("^cls_classifier", "classifier"),
    ("embeddings.distillation_token", "embeddings.distillation_embedding"),
];

/// What ViT, DeiT and DINOv2 name alike, in the spellings of transformers 4 and 5. Prefixes are dropped before.
pub(super) const SHARED: [(&str, &str); 14] = [
    ("^layers", "encoder.layers"),
    ("encoder.layer", "encoder.layers"),
    ("attention.attention.query", "self_attn.q_proj"),
    ("attention.attention.key", "self_attn.k_proj"),
    ("attention.attention.value", "self_attn.v_proj"),
    ("attention.output.dense", "self_attn.out_proj"),
    ("attention.q_proj", "self_attn.q_proj"),
    ("attention.k_proj", "self_attn.k_proj"),
    ("attention.v_proj", "self_attn.v_proj"),
    ("attention.o_proj", "self_attn.out_proj"),
    ("^layernorm", "post_layernorm"),
    ("embeddings.cls_token", "embeddings.class_embedding"),
    ("embeddings.position_embeddings", "embeddings.position_embedding.weight"),
    ("embeddings.patch_embeddings.projection", "embeddings.patch_embedding"),
];

/// Poolers and heads that pooling does not read, and the token of masked training.
pub(super) const EXTRAS: [&str; 6] =
    ["*pooler.*", "classifier.*", "cls_classifier.*", "distillation_classifier.*", "*mask_token", "decoder.*"];

/// The pooling that the reference would call "pooled": logits of a classifier, else the pooler, else the class token.
pub(super) fn pooling(classifier: Option<ClassifierInput>, pooler: Option<Pooler>) -> ImagePooling {
    match (classifier, pooler) {
        (Some(_), _) => ImagePooling::Logits,
        (None, Some(_)) => ImagePooling::Pooler,
        (None, None) => ImagePooling::Cls,
    }
}

/// Fields that ViT, DeiT and DINOv2 configurations share; the rest is as ViT has it.
pub(super) fn base(config: &Config, patch_size: usize, layer_norm_eps: f64) -> Result<VitConfig> {
    Ok(VitConfig {
        hidden_size: config.size("hidden_size", 768)?,
        num_hidden_layers: config.size("num_hidden_layers", 12)?,
        num_attention_heads: config.size("num_attention_heads", 12)?,
        intermediate_size: config.size("intermediate_size", 3072)?,
        hidden_act: config.activation("hidden_act", Activation::Gelu)?,
        layer_norm_eps: config.number("layer_norm_eps", layer_norm_eps)?,
        image_size: config.side("image_size", 224)?,
        patch_size: config.side("patch_size", patch_size)?,
        num_channels: config.size("num_channels", 3)?,
        stem: PatchStem::Patches,
        qkv_bias: if config.flag("qkv_bias", true)? { QkvBias::All } else { QkvBias::None },
        initializer_range: config.number("initializer_range", 0.02)?,
        ..VitConfig::default()
    })
}

/// Whether there is a classifier: the files decide, or the architecture's name where there are none.
pub(super) fn has_classifier(source: &FamilySource<'_>) -> bool {
    match source.tensors {
        Some(_) => source.has("classifier.weight"),
        None => ["ForImageClassification", "ForImageClassificationWithTeacher"]
            .iter()
            .any(|suffix| source.config.architecture_ends_with(suffix)),
    }
}

impl Family for Vit {
    fn model_types(&self) -> &[&str] {
        &["vit", "deit"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        let mut tower = base(config, 16, 1e-12)?;
        let is_deit = config.model_type()? == "deit";
        if is_deit {
            tower.prefix_tokens = PrefixTokens::ClassAndDistillation;
        }
        if source.has_pooler() {
            tower.pooler = Some(Pooler {
                size: config.size("pooler_output_size", tower.hidden_size)?,
                activation: config.activation("pooler_act", Activation::Tanh)?,
            });
        }
        if has_classifier(source) {
            let teacher = source.has("distillation_classifier.weight")
                || source.tensors.is_none() && config.architecture_ends_with("WithTeacher");
            tower.classifier = Some(if teacher { ClassifierInput::ClsAndDistillation } else { ClassifierInput::Cls });
            tower.num_labels = config.label_count()?;
        }
        let pooling = pooling(tower.classifier, tower.pooler);
        let rules: Vec<_> = PREFIXES.into_iter().chain(SHARED).chain(RULES).collect();
        let renames = Renames::new(&rules, &EXTRAS)?;
        let processor = if is_deit { ProcessorClass::Deit } else { ProcessorClass::Vit };
        let config = ImageEncoderConfig { tower: ImageTowerConfig::Vit(tower), pooling };
        let processor = ProcessorPlan::Folder(processor);
        Ok(Plan::Image(Box::new(ImagePlan { config, renames, processor })))
    }
}
