//! ConvNeXt by timm's names (reference: `convnext.py`). The towers' parameters are called as in timm.

use super::{TimmSource, TimmTower, count, require_mean, size};
use crate::Result;
use crate::encoder::ImageEncoderConfig;
use crate::towers::{ConvNextConfig, ConvNextStageConfig, ImagePooling, ImageTowerConfig};
use crate::weights::Renames;

/// Name, blocks of each stage, channels of each stage, ε of each norm.
const TABLE: [(&str, [usize; 4], [usize; 4], f64); 6] = [
    ("convnext_tiny", [3, 3, 9, 3], [96, 192, 384, 768], 1e-6),
    ("convnext_small", [3, 3, 27, 3], [96, 192, 384, 768], 1e-6),
    ("convnext_base", [3, 3, 27, 3], [128, 256, 512, 1024], 1e-6),
    ("convnext_large", [3, 3, 27, 3], [192, 384, 768, 1536], 1e-6),
    ("convnext_xlarge", [3, 3, 27, 3], [256, 512, 1024, 2048], 1e-6),
    ("convnext_xxlarge", [3, 4, 30, 3], [384, 768, 1536, 3072], 1e-5),
];

/// The names that are known here.
pub(super) fn names() -> Vec<&'static str> {
    TABLE.map(|row| row.0).to_vec()
}

/// The tower, if the name is one of ConvNeXt's.
///
/// # Errors
/// When an option is unknown.
pub(super) fn tower(timm: &TimmSource<'_>) -> Result<Option<TimmTower>> {
    let Some(&(_, depths, widths, layer_norm_eps)) = TABLE.iter().find(|row| row.0 == timm.name) else {
        return Ok(None);
    };
    require_mean(timm)?;
    let stage = |index: usize| {
        let blocks = format!("stages.{index}.blocks");
        let width = size(timm, &format!("{blocks}.0.norm.weight"), 0, widths[index]);
        ConvNextStageConfig {
            depth: count(timm, &blocks, depths[index]),
            width,
            intermediate_size: size(timm, &format!("{blocks}.0.mlp.fc1.weight"), 0, width.saturating_mul(4)),
        }
    };
    let config = ConvNextConfig {
        stages: (0..depths.len()).map(stage).collect(),
        patch_size: size(timm, "stem.0.weight", 2, 4),
        kernel_size: size(timm, "stages.0.blocks.0.conv_dw.weight", 2, 7),
        layer_norm_eps,
        image_size: timm.image_size.unwrap_or(224),
        num_channels: size(timm, "stem.0.weight", 1, 3),
    };
    let config = ImageEncoderConfig { tower: ImageTowerConfig::ConvNext(config), pooling: ImagePooling::Mean };
    Ok(Some(TimmTower { config, renames: Renames::default(), classifier: "head.fc" }))
}
