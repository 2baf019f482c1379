//! Swin by timm's names (reference: `swin_transformer.py`).

use super::vit::renames;
use super::{TimmSource, TimmTower, count, require_mean, size};
use crate::Result;
use crate::encoder::ImageEncoderConfig;
use crate::towers::{ImagePooling, ImageTowerConfig, SwinConfig, SwinStageConfig};

/// The one name that open_clip's configurations use, its blocks and heads of each stage.
const NAME: &str = "swin_base_patch4_window7_224";
const DEPTHS: [usize; 4] = [2, 2, 18, 2];
const HEADS: [usize; 4] = [4, 8, 16, 32];
/// Side of a window in patches, where the map is not smaller.
const WINDOW: usize = 7;

const RULES: [(&str, &str); 2] = [("^layers", "stages"), ("^patch_embed.norm", "embeddings.norm")];

/// The names that are known here.
pub(super) fn names() -> Vec<&'static str> {
    vec![NAME]
}

/// The tower, if the name is Swin's. All sizes show in the tensors' shapes.
///
/// # Errors
/// When an option is unknown.
pub(super) fn tower(timm: &TimmSource<'_>) -> Result<Option<TimmTower>> {
    if timm.name != NAME {
        return Ok(None);
    }
    require_mean(timm)?;
    let hidden_size = size(timm, "patch_embed.proj.weight", 0, 128);
    let patch_size = size(timm, "patch_embed.proj.weight", 2, 4);
    let image_size = timm.image_size.unwrap_or(224);
    let stage = |index: usize| {
        let blocks = format!("layers.{index}.blocks");
        let table = format!("{blocks}.0.attn.relative_position_bias_table");
        let side = (0..index).fold(image_size / patch_size.max(1), |side, _| side.div_ceil(2));
        // (2w − 1)² ways.
        let ways = timm.source.shape(&table).and_then(|shape| shape.first());
        let window = ways.map_or(side.min(WINDOW), |&ways| (ways as f64).sqrt() as usize / 2 + 1);
        SwinStageConfig {
            depth: count(timm, &blocks, DEPTHS[index]),
            num_attention_heads: size(timm, &table, 1, HEADS[index]),
            intermediate_size: size(timm, &format!("{blocks}.0.mlp.fc1.weight"), 0, (4 * hidden_size) << index),
            window_size: window,
        }
    };
    let config = SwinConfig {
        stages: (0..DEPTHS.len()).map(stage).collect(),
        hidden_size,
        patch_size,
        image_size,
        num_channels: size(timm, "patch_embed.proj.weight", 1, 3),
        layer_norm_eps: 1e-5,
        initializer_range: 0.02,
    };
    let config = ImageEncoderConfig { tower: ImageTowerConfig::Swin(config), pooling: ImagePooling::Mean };
    Ok(Some(TimmTower { config, renames: renames(&RULES)?, classifier: "head.fc" }))
}
