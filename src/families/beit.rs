//! BEiT as transformers writes it (`modeling_beit.py`), with the names of its version 4 and 5: biases on the scores in place of
//! positions, no bias on keys, and as a rule the normed mean of the patches.

use super::{Families, Family, FamilySource, ImagePlan, Plan, ProcessorPlan, vit};
use crate::encoder::ImageEncoderConfig;
use crate::image::ProcessorClass;
use crate::nn::QkvBias;
use crate::towers::{ClassifierInput, ImagePooling, ImageTowerConfig, OutputNorm, PositionTable};
use crate::weights::Renames;
use crate::{Error, Result};

/// The family of `model_type` beit.
pub(super) struct Beit;

const PREFIX: (&str, &str) = ("^beit", "");

const RULES: [(&str, &str); 8] = [
    ("attention.attention.relative_position_bias.relative_position_bias_table", "self_attn.relative_positions.table"),
    ("relative_position_bias.relative_position_bias_table", "self_attn.relative_positions.table"),
    ("lambda_1", "layer_scale1.lambda1"),
    ("lambda_2", "layer_scale2.lambda1"),
    ("layernorm_before", "layer_norm1"),
    ("layernorm_after", "layer_norm2"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
];

impl Family for Beit {
    fn model_types(&self) -> &[&str] {
        &["beit"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        let relative = config.flag("use_relative_position_bias", false)?;
        let absolute = config.flag("use_absolute_position_embeddings", false)?;
        let shared = config.flag("use_shared_relative_position_bias", false)?;
        if shared || relative && absolute {
            let (what, found) = match shared {
                true => ("use_shared_relative_position_bias", "true (as masked training has it)"),
                false => ("use_absolute_position_embeddings", "true beside use_relative_position_bias"),
            };
            let context = config.path().display().to_string();
            return Err(Error::unsupported(
                context,
                what,
                found,
                "use_relative_position_bias, as fine-tuned models have it",
            ));
        }
        let mut tower = vit::base(config, 16, 1e-12)?;
        tower.qkv_bias = QkvBias::QueryAndValue;
        tower.positions = match (relative, absolute) {
            (true, _) => PositionTable::RelativeTable,
            (false, true) => PositionTable::All,
            (false, false) => PositionTable::None,
        };
        let scale = config.number("layer_scale_init_value", 0.1)? as f32;
        tower.layer_scale = (scale > 0.0).then_some(scale);
        let mean = config.flag("use_mean_pooling", true)?;
        if mean {
            tower.output_norm = OutputNorm::AfterPooling;
        }
        if vit::has_classifier(source) {
            tower.classifier = Some(if mean { ClassifierInput::Mean } else { ClassifierInput::Cls });
            tower.num_labels = config.label_count()?;
        }
        let pooling = match (tower.classifier, mean) {
            (Some(_), _) => ImagePooling::Logits,
            (None, true) => ImagePooling::Mean,
            (None, false) => ImagePooling::Cls,
        };
        let norm = mean.then_some(("^pooler.layernorm", "post_layernorm"));
        let rules: Vec<_> = [PREFIX].into_iter().chain(norm).chain(vit::SHARED).chain(RULES).collect();
        let renames = Renames::new(&rules, &vit::EXTRAS)?.ignore("*relative_position_index")?.ignore("lm_head.*")?;
        let config = ImageEncoderConfig { tower: ImageTowerConfig::Vit(tower), pooling };
        Ok(Plan::Image(Box::new(ImagePlan { config, renames, processor: ProcessorPlan::Folder(ProcessorClass::Beit) })))
    }
}
