//! ViTamin (Chen et al. 2024, arXiv 2404.02132; reference: `vitamin.py` of timm): two convolutional stages, then a vision
//! transformer with gated MLPs.

use super::vit::{base, finish, patch_rows, renames};
use super::{Pool, PoolRules, Sizes, TimmSource, TimmTower};
use crate::Result;
use crate::nn::{BlockExtra, MlpKind};
use crate::towers::{PatchStem, PositionTable, PrefixTokens, VitConfig};

/// Name, channels before the stages and of each, (input, patch, width, blocks, heads, width of the MLP).
const TABLE: [(&str, [usize; 3], [usize; 6]); 13] = [
    ("vitamin_small_224", [64, 64, 128], [224, 16, 384, 14, 6, 768]),
    ("vitamin_base_224", [128, 128, 256], [224, 16, 768, 14, 12, 1536]),
    ("vitamin_large_224", [160, 160, 320], [224, 16, 1024, 31, 16, 2048]),
    ("vitamin_large_256", [160, 160, 320], [256, 16, 1024, 31, 16, 2048]),
    ("vitamin_large_336", [160, 160, 320], [336, 16, 1024, 31, 16, 2048]),
    ("vitamin_large_384", [160, 160, 320], [384, 16, 1024, 31, 16, 2048]),
    ("vitamin_large2_224", [160, 160, 320], [224, 16, 1024, 31, 16, 2048]),
    ("vitamin_large2_256", [160, 160, 320], [256, 16, 1024, 31, 16, 2048]),
    ("vitamin_large2_336", [160, 160, 320], [336, 16, 1024, 31, 16, 2048]),
    ("vitamin_large2_384", [160, 160, 320], [384, 16, 1024, 31, 16, 2048]),
    ("vitamin_xlarge_256", [192, 192, 384], [256, 16, 1152, 32, 16, 2304]),
    ("vitamin_xlarge_336", [192, 192, 384], [336, 16, 1152, 32, 16, 2304]),
    ("vitamin_xlarge_384", [192, 192, 384], [384, 16, 1152, 32, 16, 2304]),
];

/// Blocks of the stages, in all of them.
const DEPTHS: [usize; 2] = [2, 4];

const RULES: [(&str, &str); 6] = [
    ("^patch_embed.backbone.stem", "embeddings.stem.input"),
    ("^patch_embed.backbone.pool", "embeddings.stem.output"),
    ("mlp.norm", "mlp.input_norm"),
    ("mlp.w0", "mlp.gate"),
    ("mlp.w1", "mlp.fc1"),
    ("mlp.w2", "mlp.fc2"),
];

/// The names that are known here.
pub(super) fn names() -> Vec<&'static str> {
    TABLE.map(|row| row.0).to_vec()
}

/// The tower of that name, if it is one of these.
pub(super) fn tower(timm: &TimmSource<'_>) -> Result<Option<TimmTower>> {
    let Some(&(name, widths, row)) = TABLE.iter().find(|(name, ..)| *name == timm.name) else { return Ok(None) };
    let sizes = Sizes::new(row).of_files(timm)?;
    let rules = PoolRules { default: Pool::Average, class_token: false, map: false, norm_mean: true };
    let (pooling, output_norm) = rules.resolve(timm)?;
    let width = |tensor: &str, named: usize| {
        let tensor = format!("patch_embed.backbone.{tensor}.weight");
        timm.source.shape(&tensor).and_then(|shape| shape.first()).copied().unwrap_or(named)
    };
    let depth = |stage: usize| {
        let found = timm.source.count(&format!("patch_embed.backbone.stages.{stage}"));
        found.filter(|&count| count > 0).unwrap_or(DEPTHS[stage])
    };
    let stem = PatchStem::Vitamin {
        widths: [
            width("stem.conv1", widths[0]),
            width("stages.0.0.conv3_1x1", widths[1]),
            width("stages.1.0.conv3_1x1", widths[2]),
        ],
        depths: [depth(0), depth(1)],
    };
    let config = VitConfig {
        stem,
        output_norm,
        mlp: MlpKind::Gated,
        extras: vec![BlockExtra::MlpInputNorm],
        positions: if name.starts_with("vitamin_xlarge") { PositionTable::None } else { PositionTable::Patches },
        image_size: sizes.image_size_of(patch_rows(timm, 0)),
        ..base(timm, sizes, PrefixTokens::None)
    };
    Ok(Some(finish(config, pooling, renames(&RULES)?)))
}
