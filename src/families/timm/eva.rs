//! Towers that are timm's `Eva` (reference: `eva.py`): EVA, EVA-02 (Fang et al. 2023, arXiv 2303.11331) and Meta's Perception
//! Encoder (Bolya et al. 2025, arXiv 2504.13181).

use super::vit::{base, finish, patch_rows, renames};
use super::{Pool, PoolRules, Sizes, TimmSource, TimmTower};
use crate::Result;
use crate::nn::{BlockExtra, GridAxes, GridRope, MlpKind, NormPosition, QkvBias};
use crate::ops::Activation;
use crate::towers::{ImagePooling, MapHeadConfig, PrefixTokens, VitConfig};

/// What a name stands for besides sizes; the number is the side of the grid that rotary positions refer to.
#[derive(Debug, Clone, Copy)]
enum Dialect {
    /// EVA: queries and values with bias.
    Eva,
    /// EVA-02: rotary positions, SwiGLU, norms inside attention and MLP.
    Eva02(usize),
    /// EVA-02's largest: norms on what attention and MLP give, and none of the rest.
    Eva02Enormous,
    /// Perception Encoder: rotary positions that begin at one, a norm before the blocks, attention pooling of all tokens.
    Perception(usize),
    /// Its largest: without class token, positions begin at zero.
    PerceptionGigantic(usize),
}

use Dialect::{Eva, Eva02, Eva02Enormous, Perception, PerceptionGigantic};

/// Name, dialect, (input, patch, width, blocks, heads, width of the MLP).
const TABLE: [(&str, Dialect, [usize; 6]); 10] = [
    ("eva_giant_patch14_224", Eva, [224, 14, 1408, 40, 16, 6144]),
    ("eva02_base_patch16_clip_224", Eva02(16), [224, 16, 768, 12, 12, 2048]),
    ("eva02_large_patch14_clip_224", Eva02(16), [224, 14, 1024, 24, 16, 2730]),
    ("eva02_large_patch14_clip_336", Eva02(16), [336, 14, 1024, 24, 16, 2730]),
    ("eva02_enormous_patch14_clip_224", Eva02Enormous, [224, 14, 1792, 64, 16, 15360]),
    ("vit_pe_core_tiny_patch16_384", Perception(24), [384, 16, 192, 12, 3, 768]),
    ("vit_pe_core_small_patch16_384", Perception(24), [384, 16, 384, 12, 6, 1536]),
    ("vit_pe_core_base_patch16_224", Perception(14), [224, 16, 768, 12, 12, 3072]),
    ("vit_pe_core_large_patch14_336", Perception(24), [336, 14, 1024, 24, 16, 4096]),
    ("vit_pe_core_gigantic_patch14_448", PerceptionGigantic(32), [448, 14, 1536, 50, 16, 8960]),
];

/// The heads and the ratio of width to width of the Perception Encoder's attention pooling.
const POOL_HEADS: usize = 8;
const POOL_RATIO: usize = 4;

/// SwiGLU's names.
const RULES: [(&str, &str); 2] = [("mlp.fc1_g", "mlp.gate"), ("mlp.fc1_x", "mlp.fc1")];

/// The names that are known here.
pub(super) fn names() -> Vec<&'static str> {
    TABLE.map(|row| row.0).to_vec()
}

/// The tower of that name, if it is one of these.
pub(super) fn tower(timm: &TimmSource<'_>) -> Result<Option<TimmTower>> {
    let Some(&(_, dialect, row)) = TABLE.iter().find(|(name, ..)| *name == timm.name) else { return Ok(None) };
    let sizes = Sizes::new(row).of_files(timm)?;
    let (prefix, default) = match dialect {
        Eva => (PrefixTokens::Class, Pool::Average),
        Eva02(_) | Eva02Enormous => (PrefixTokens::Class, Pool::Token),
        Perception(_) => (PrefixTokens::Class, Pool::Map),
        PerceptionGigantic(_) => (PrefixTokens::None, Pool::Map),
    };
    let class_token = prefix == PrefixTokens::Class;
    let (pooling, output_norm) =
        PoolRules { default, class_token, map: default == Pool::Map, norm_mean: true }.resolve(timm)?;
    let mut config = VitConfig { output_norm, ..base(timm, sizes, prefix) };
    config.image_size = sizes.image_size_of(patch_rows(timm, prefix.count()));
    match dialect {
        Eva => config.qkv_bias = QkvBias::QueryAndValue,
        Eva02(reference_grid) => {
            config.qkv_bias = QkvBias::QueryAndValue;
            config.mlp = MlpKind::Gated;
            config.hidden_act = Activation::Silu;
            config.extras = vec![BlockExtra::AttentionNorm, BlockExtra::MlpNorm];
            config.rope = Some(GridRope { reference_grid, ..GridRope::default() });
        }
        Eva02Enormous => {
            config.qkv_bias = QkvBias::QueryAndValue;
            config.norm = NormPosition::Residual;
        }
        Perception(reference_grid) | PerceptionGigantic(reference_grid) => {
            let offset = if class_token { 1.0 } else { 0.0 };
            config.rope = Some(GridRope { reference_grid, offset, axes: GridAxes::ColumnFirst, ..GridRope::default() });
            config.norm_embeddings = true;
            config.patch_bias = false;
            config.layer_norm_eps = 1e-5;
        }
    }
    if pooling == ImagePooling::Map {
        let inner = timm.source.shape("attn_pool.mlp.fc1.weight").and_then(|shape| shape.first()).copied();
        let intermediate_size = inner.unwrap_or(POOL_RATIO * sizes.hidden_size);
        config.map_head = Some(MapHeadConfig { num_attention_heads: POOL_HEADS, intermediate_size });
    }
    Ok(Some(finish(config, pooling, renames(&RULES)?)))
}
