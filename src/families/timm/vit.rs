//! Towers that are timm's `VisionTransformer` or near to it (reference: `vision_transformer.py`, `vision_transformer_hybrid.py`,
//! `vision_transformer_relpos.py`): SigLIP's, CLIP's ViT-L/14, MobileCLIP's ViT-B, and two of ImageNet's.

use super::{Pool, PoolRules, Sizes, TimmSource, TimmTower};
use crate::Result;
use crate::encoder::ImageEncoderConfig;
use crate::nn::{PositionResize, QkvBias};
use crate::ops::Activation;
use crate::towers::{ImagePooling, ImageTowerConfig, MapHeadConfig, PatchStem, PositionTable, PrefixTokens, VitConfig};
use crate::weights::Renames;

/// What a name stands for besides sizes.
#[derive(Debug, Clone, Copy)]
enum Dialect {
    /// No class token, attention pooling; the first models have exact GELU, some later ones tanh's.
    SigLip(Activation),
    /// A norm before the blocks, patches without bias.
    Clip,
    /// MobileCLIP's: patches by three convolutions, no position for the class token.
    MobileClip,
    /// No class token and no biases on queries, keys, values; LayerScale; the mean of normed patches.
    Gap,
    /// Relative positions by an MLP of their logarithms, as wide inside as said; no biases on queries, keys, values.
    RelativePositions(usize),
}

use Activation::{Gelu, GeluTanh};
use Dialect::{Clip, Gap, MobileClip, RelativePositions, SigLip};

/// Name, dialect, (input, patch, width, blocks, heads, width of the MLP).
const TABLE: [(&str, Dialect, [usize; 6]); 20] = [
    ("vit_base_patch32_siglip_256", SigLip(GeluTanh), [256, 32, 768, 12, 12, 3072]),
    ("vit_base_patch16_siglip_224", SigLip(Gelu), [224, 16, 768, 12, 12, 3072]),
    ("vit_base_patch16_siglip_256", SigLip(Gelu), [256, 16, 768, 12, 12, 3072]),
    ("vit_base_patch16_siglip_384", SigLip(Gelu), [384, 16, 768, 12, 12, 3072]),
    ("vit_base_patch16_siglip_512", SigLip(Gelu), [512, 16, 768, 12, 12, 3072]),
    ("vit_large_patch16_siglip_256", SigLip(Gelu), [256, 16, 1024, 24, 16, 4096]),
    ("vit_large_patch16_siglip_384", SigLip(Gelu), [384, 16, 1024, 24, 16, 4096]),
    ("vit_large_patch16_siglip_512", SigLip(GeluTanh), [512, 16, 1024, 24, 16, 4096]),
    ("vit_so400m_patch14_siglip_224", SigLip(Gelu), [224, 14, 1152, 27, 16, 4304]),
    ("vit_so400m_patch14_siglip_378", SigLip(Gelu), [378, 14, 1152, 27, 16, 4304]),
    ("vit_so400m_patch14_siglip_384", SigLip(Gelu), [384, 14, 1152, 27, 16, 4304]),
    ("vit_so400m_patch16_siglip_256", SigLip(GeluTanh), [256, 16, 1152, 27, 16, 4304]),
    ("vit_so400m_patch16_siglip_384", SigLip(GeluTanh), [384, 16, 1152, 27, 16, 4304]),
    ("vit_so400m_patch16_siglip_512", SigLip(GeluTanh), [512, 16, 1152, 27, 16, 4304]),
    ("vit_giantopt_patch16_siglip_256", SigLip(GeluTanh), [256, 16, 1536, 40, 16, 6144]),
    ("vit_giantopt_patch16_siglip_384", SigLip(GeluTanh), [384, 16, 1536, 40, 16, 6144]),
    ("vit_large_patch14_clip_224", Clip, [224, 14, 1024, 24, 16, 4096]),
    ("vit_base_mci_224", MobileClip, [224, 16, 768, 12, 12, 3072]),
    ("vit_medium_patch16_gap_256", Gap, [256, 16, 512, 12, 8, 2048]),
    ("vit_relpos_medium_patch16_cls_224", RelativePositions(256), [224, 16, 512, 12, 8, 2048]),
];

/// timm's names below the trunk, and ours; `vit.rs` and `eva.rs` share them.
pub(super) const RULES: [(&str, &str); 23] = [
    ("^blocks", "encoder.layers"),
    ("^norm_pre", "pre_layrnorm"),
    ("^norm", "post_layernorm"),
    ("^fc_norm", "post_layernorm"),
    ("^cls_token", "embeddings.class_embedding"),
    ("^pos_embed", "embeddings.position_embedding.weight"),
    ("^patch_embed.proj", "embeddings.patch_embedding"),
    ("^patch_embed.backbone", "embeddings.stem"),
    ("^attn_pool.latent", "head.probe"),
    ("^attn_pool.q", "head.attention.q_proj"),
    ("^attn_pool.kv", "head.attention.kv"),
    ("^attn_pool.proj", "head.attention.out_proj"),
    ("^attn_pool.norm", "head.layernorm"),
    ("^attn_pool.mlp", "head.mlp"),
    ("norm1", "layer_norm1"),
    ("norm2", "layer_norm2"),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("ls2.gamma", "layer_scale2.lambda1"),
    ("attn.q_bias", "attn.q_proj.bias"),
    ("attn.v_bias", "attn.v_proj.bias"),
    ("attn.proj", "attn.out_proj"),
    ("attn", "self_attn"),
    ("self_attn.rel_pos.mlp", "self_attn.relative_positions"),
];

/// From timm's names to ours, fused projections taken apart.
pub(super) fn renames(rules: &[(&str, &str)]) -> Result<Renames> {
    let rules: Vec<_> = rules.iter().chain(&RULES).copied().collect();
    // What timm keeps as buffers in some versions, and counters of batch norms.
    let extras = ["*.relative_position_index", "*.attn_mask", "*.rel_coords_log", "*.num_batches_tracked", "rope.*"];
    let renames = extras.iter().try_fold(Renames::new(&rules, &[])?, |renames, glob| renames.ignore(glob))?;
    let fused = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
    renames
        .split("self_attn.qkv", &fused)?
        .split("head.attention.kv", &["head.attention.k_proj", "head.attention.v_proj"])
}

/// The tower of these sizes, as `VisionTransformer` is where nothing else is said.
pub(super) fn base(timm: &TimmSource<'_>, sizes: Sizes, prefix: PrefixTokens) -> VitConfig {
    let channels = timm.source.shape("patch_embed.proj.weight").and_then(|shape| shape.get(1)).copied();
    VitConfig {
        hidden_size: sizes.hidden_size,
        num_hidden_layers: sizes.layers,
        num_attention_heads: sizes.heads,
        intermediate_size: sizes.intermediate_size,
        hidden_act: Activation::Gelu,
        layer_norm_eps: 1e-6,
        image_size: sizes.image_size,
        patch_size: sizes.patch_size,
        num_channels: channels.unwrap_or(3),
        stem: PatchStem::Patches,
        prefix_tokens: prefix,
        positions: if prefix == PrefixTokens::None { PositionTable::Patches } else { PositionTable::All },
        position_resize: PositionResize::BicubicAntialias,
        initializer_range: 0.02,
        ..VitConfig::default()
    }
}

/// Rows of the position table that are patches.
pub(super) fn patch_rows(timm: &TimmSource<'_>, prefix: usize) -> Option<usize> {
    let shape = timm.source.shape("pos_embed")?;
    shape.len().checked_sub(2).map(|axis| shape[axis].saturating_sub(prefix))
}

/// The tower, ready for open_clip.
pub(super) fn finish(config: VitConfig, pooling: ImagePooling, renames: Renames) -> TimmTower {
    let config = ImageEncoderConfig { tower: ImageTowerConfig::Vit(config), pooling };
    TimmTower { config, renames, classifier: "head" }
}

/// The tower of that name, if it is one of these.
pub(super) fn tower(timm: &TimmSource<'_>) -> Result<Option<TimmTower>> {
    let Some(&(_, dialect, row)) = TABLE.iter().find(|(name, ..)| *name == timm.name) else { return Ok(None) };
    let sizes = Sizes::new(row).of_files(timm)?;
    let prefix = match dialect {
        SigLip(_) | Gap => PrefixTokens::None,
        Clip | MobileClip | RelativePositions(_) => PrefixTokens::Class,
    };
    let class_token = prefix == PrefixTokens::Class;
    let rules = |default, norm_mean| PoolRules { default, class_token, map: norm_mean, norm_mean };
    let rules = match dialect {
        SigLip(_) => rules(Pool::Map, true),
        Clip | MobileClip => rules(Pool::Token, true),
        Gap => PoolRules { map: true, ..rules(Pool::Average, false) },
        RelativePositions(_) => rules(Pool::Token, false),
    };
    let (pooling, output_norm) = rules.resolve(timm)?;
    let mut config = VitConfig { output_norm, ..base(timm, sizes, prefix) };
    match dialect {
        SigLip(activation) => config.hidden_act = activation,
        Clip => {
            config.norm_embeddings = true;
            config.patch_bias = false;
            config.layer_norm_eps = 1e-5;
        }
        MobileClip => {
            let inner = timm.source.shape("patch_embed.backbone.0.conv.weight").and_then(|shape| shape.first());
            config.stem = PatchStem::MobileClip { inner: inner.copied().unwrap_or(sizes.hidden_size / 4) };
            config.positions = PositionTable::Patches;
        }
        Gap => {
            config.qkv_bias = QkvBias::None;
            config.layer_scale = Some(1e-6);
        }
        RelativePositions(hidden) => {
            config.qkv_bias = QkvBias::None;
            config.layer_scale = Some(1e-6);
            let found = timm.source.shape("blocks.0.attn.rel_pos.mlp.fc1.weight").and_then(|shape| shape.first());
            config.positions = PositionTable::Relative(found.copied().unwrap_or(hidden));
        }
    }
    let positioned = if config.positions == PositionTable::All { prefix.count() } else { 0 };
    config.image_size = sizes.image_size_of(patch_rows(timm, positioned));
    if pooling == ImagePooling::Map {
        // timm gives the head the blocks' heads and the blocks' ratio.
        let inner = timm.source.shape("attn_pool.mlp.fc1.weight").and_then(|shape| shape.first());
        let intermediate_size = inner.copied().unwrap_or(sizes.intermediate_size);
        config.map_head = Some(MapHeadConfig { num_attention_heads: sizes.heads, intermediate_size });
    }
    Ok(Some(finish(config, pooling, renames(&[])?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_ratios_of_the_table_fit() {
        for (name, _, row) in TABLE {
            let sizes = Sizes::new(row);
            assert_eq!(sizes.hidden_size % sizes.heads, 0, "{name}");
            assert!(name.ends_with(&sizes.image_size.to_string()), "{name}");
            assert!(!name.contains("patch") || name.contains(&format!("patch{}_", sizes.patch_size)), "{name}");
        }
    }
}
