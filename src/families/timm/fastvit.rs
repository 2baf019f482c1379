//! FastViT of MobileCLIP by timm's names (reference: `fastvit.py`). The towers' parameters are called as in timm, but queries,
//! keys and values have a matrix each. Files hold branches as trained, or what they come to (`inference_mode`): the tensors say.

use super::{TimmSource, TimmTower, count, require_mean, size};
use crate::Result;
use crate::encoder::ImageEncoderConfig;
use crate::towers::{
    AttentionNorm, BranchForm, Downsample, FastVitConfig, FastVitStageConfig, ImagePooling, ImageTowerConfig,
    TokenMixer,
};
use crate::weights::Renames;

/// What a name stands for.
#[derive(Debug, Clone, Copy)]
struct Named {
    /// Blocks of each stage.
    depths: &'static [usize],
    /// Channels of the first stage; every other has twice as many as the one before.
    width: usize,
    /// How many times wider the MLPs are inside.
    mlp_ratio: usize,
    dialect: Dialect,
}

/// What MobileCLIP's towers and those that MobileCLIP2 added do not have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// Squeeze-and-excite before the last two stages, attention in the last with batch norms.
    First,
    /// No such thing; attention in the last two stages with LayerNorms; no 1×1 branches in the stem.
    Second,
}

/// The architectures there are.
const TABLE: [(&str, Named); 5] = [
    ("fastvit_mci0", named(&[2, 6, 10, 2], 64, 3, Dialect::First)),
    ("fastvit_mci1", named(&[4, 12, 20, 4], 64, 3, Dialect::First)),
    ("fastvit_mci2", named(&[4, 12, 24, 4], 80, 3, Dialect::First)),
    ("fastvit_mci3", named(&[2, 12, 24, 4, 2], 96, 4, Dialect::Second)),
    ("fastvit_mci4", named(&[2, 12, 24, 4, 4], 128, 4, Dialect::Second)),
];

const fn named(depths: &'static [usize], width: usize, mlp_ratio: usize, dialect: Dialect) -> Named {
    Named { depths, width, mlp_ratio, dialect }
}

/// Width of a head of attention, in all of them.
const HEAD: usize = 32;
/// Stages before the first with squeeze-and-excite, and before the first with attention.
const LAST: usize = 3;

/// The names that are known here.
pub(super) fn names() -> Vec<&'static str> {
    TABLE.iter().map(|row| row.0).collect()
}

/// The tower, if the name is one of MobileCLIP's FastViTs.
///
/// # Errors
/// When an option is unknown.
pub(super) fn tower(timm: &TimmSource<'_>) -> Result<Option<TimmTower>> {
    let Some((_, named)) = TABLE.iter().find(|row| row.0 == timm.name) else { return Ok(None) };
    require_mean(timm)?;
    let fused = timm.source.shape("stem.0.reparam_conv.weight").is_some();
    let stages: Vec<_> = (0..named.depths.len()).map(|index| stage(timm, named, index, fused)).collect();
    let last = stages.last().map_or(0, |stage| stage.width);
    let (output, layer) =
        (last.saturating_mul(2), if fused { "final_conv.reparam_conv" } else { "final_conv.conv_kxk.0.conv" });
    let output_size = size(timm, &format!("{layer}.weight"), 0, output);
    let config = FastVitConfig {
        stages,
        output_size,
        output_squeeze_size: size(timm, "final_conv.se.fc1.weight", 0, squeezed(output_size, 16, 1)),
        stem_scale_branch: named.dialect == Dialect::First,
        head_size: HEAD,
        attention_norm: match named.dialect {
            Dialect::First => AttentionNorm::Batch,
            Dialect::Second => AttentionNorm::Layer,
        },
        form: if fused { BranchForm::Fused } else { BranchForm::Branches },
        image_size: timm.image_size.unwrap_or(256),
        num_channels: size(
            timm,
            if fused { "stem.0.reparam_conv.weight" } else { "stem.0.conv_kxk.0.conv.weight" },
            1,
            3,
        ),
    };
    let renames = Renames::new(&[], &["*.num_batches_tracked"])?
        .split("token_mixer.qkv", &["token_mixer.q_proj", "token_mixer.k_proj", "token_mixer.v_proj"])?;
    let config = ImageEncoderConfig { tower: ImageTowerConfig::FastVit(config), pooling: ImagePooling::Mean };
    Ok(Some(TimmTower { config, renames, classifier: "head.fc" }))
}

fn stage(timm: &TimmSource<'_>, named: &Named, index: usize, fused: bool) -> FastVitStageConfig {
    let prefix = format!("stages.{index}");
    let width = size(timm, &format!("{prefix}.blocks.0.mlp.fc2.weight"), 0, named.width << index);
    let inside = width.saturating_mul(named.mlp_ratio);
    let squeeze = format!("{prefix}.downsample.proj.0.se.fc1.weight");
    let position = format!("{prefix}.pos_emb.{}.weight", if fused { "reparam_conv" } else { "pos_enc" });
    let attends = index >= LAST;
    FastVitStageConfig {
        depth: count(timm, &format!("{prefix}.blocks"), named.depths[index]),
        width,
        intermediate_size: size(timm, &format!("{prefix}.blocks.0.mlp.fc1.weight"), 0, inside),
        mixer: if attends { TokenMixer::Attention } else { TokenMixer::RepMixer },
        downsample: match named.dialect {
            _ if index == 0 => Downsample::None,
            Dialect::First if index + 1 >= LAST => {
                Downsample::SqueezeExcite { squeeze_size: size(timm, &squeeze, 0, squeezed(width, 4, 8)) }
            }
            Dialect::First | Dialect::Second => Downsample::Convolution,
        },
        position_kernel: attends.then(|| size(timm, &position, 2, 7)),
    }
}

/// `width` over `ratio`, to the nearest multiple of `divisor` (reference: timm's `make_divisible`).
fn squeezed(width: usize, ratio: usize, divisor: usize) -> usize {
    (((width as f64 / ratio as f64) + divisor as f64 / 2.0) as usize / divisor * divisor).max(divisor)
}
