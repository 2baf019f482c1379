//! DINOv2 as transformers writes it (`modeling_dinov2.py`, `modeling_dinov2_with_registers.py`), with the names of its version 4
//! and 5. With registers, positions are resized with antialiasing, without them they are not.

use super::{Families, Family, FamilySource, ImagePlan, Plan, ProcessorPlan, vit};
use crate::Result;
use crate::encoder::ImageEncoderConfig;
use crate::image::ProcessorClass;
use crate::nn::{MlpKind, PositionResize};
use crate::ops::Activation;
use crate::towers::{ClassifierInput, ImageTowerConfig, PositionTable, PrefixTokens};
use crate::weights::Renames;

/// The family of `model_type` dinov2, dinov2_with_registers.
pub(super) struct Dinov2;

const PREFIXES: [(&str, &str); 2] = [("^dinov2", ""), ("^dinov2_with_registers", "")];

const RULES: [(&str, &str); 6] = [
    ("norm1", "layer_norm1"),
    ("norm2", "layer_norm2"),
    ("mlp.weights_out", "mlp.fc2"),
    ("mlp.gate_proj", "mlp.gate"),
    ("mlp.up_proj", "mlp.fc1"),
    ("mlp.down_proj", "mlp.fc2"),
];

impl Family for Dinov2 {
    fn model_types(&self) -> &[&str] {
        &["dinov2", "dinov2_with_registers"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        let mut tower = vit::base(config, 14, 1e-6)?;
        let inner = (tower.hidden_size as f64 * config.number("mlp_ratio", 4.0)?) as usize;
        let swiglu = config.flag("use_swiglu_ffn", false)?;
        // SwiGLU keeps the parameter count with two thirds of the width, rounded up to a multiple of eight.
        tower.intermediate_size = if swiglu { ((inner as f64 * 2.0 / 3.0) as usize).div_ceil(8) * 8 } else { inner };
        if swiglu {
            (tower.mlp, tower.hidden_act) = (MlpKind::Gated, Activation::Silu);
        }
        if config.model_type()? == "dinov2_with_registers" {
            tower.prefix_tokens = PrefixTokens::ClassAndRegisters(config.size("num_register_tokens", 4)?);
            tower.positions = PositionTable::WithoutRegisters;
            tower.position_resize = PositionResize::BicubicAntialias;
        }
        tower.layer_scale = Some(config.number("layerscale_value", 1.0)? as f32);
        if vit::has_classifier(source) {
            tower.classifier = Some(ClassifierInput::ClsAndMean);
            tower.num_labels = config.label_count()?;
        }
        let pooling = vit::pooling(tower.classifier, None);
        let rules: Vec<_> = PREFIXES.into_iter().chain(vit::SHARED).chain(RULES).collect();
        let renames = Renames::new(&rules, &vit::EXTRAS)?.split("mlp.weights_in", &["mlp.gate", "mlp.fc1"])?;
        let config = ImageEncoderConfig { tower: ImageTowerConfig::Vit(tower), pooling };
        let processor = ProcessorPlan::Folder(ProcessorClass::Bit);
        Ok(Plan::Image(Box::new(ImagePlan { config, renames, processor })))
    }
}
