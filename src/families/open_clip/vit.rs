//! The native image half: open_clip's `VisionTransformer` (reference: `transformer.py`).

use serde_json::Value;

use super::native::{self, choice};
use super::part::{ImagePart, PartSource, Projection, unsupported};
use crate::Result;
use crate::encoder::ImageEncoderConfig;
use crate::nn::PositionResize;
use crate::towers::{ImagePooling, ImageTowerConfig, OutputNorm, PatchStem, QueryPoolConfig, QueryPoolRow, VitConfig};

/// What `vision_cfg` may say: the fields of `CLIPVisionCfg` (`model.py`).
pub(super) const KNOWN: [&str; 34] = [
    "layers",
    "width",
    "head_width",
    "mlp_ratio",
    "patch_size",
    "image_size",
    "ls_init_value",
    "patch_dropout",
    "attentional_pool",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "no_ln_pre",
    "pos_embed_type",
    "final_ln_after_pool",
    "pool_type",
    "output_tokens",
    "act_kwargs",
    "norm_kwargs",
    "block_type",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
    "timm_model_name",
    "timm_model_pretrained",
    "timm_pool",
    "timm_proj",
    "timm_proj_bias",
    "timm_drop",
    "timm_drop_path",
    "timm_model_kwargs",
    "model_args",
];

/// What stands around the blocks, there and here.
pub(super) const NAMES: [(&str, &str); 13] = [
    ("^conv1", "embeddings.patch_embedding"),
    ("^class_embedding", "embeddings.class_embedding"),
    ("^positional_embedding", "embeddings.position_embedding.weight"),
    ("^ln_pre", "pre_layrnorm"),
    ("^ln_post", "post_layernorm"),
    ("^attn_pool", "attention_pool"),
    ("^attn_pool_contrastive", "contrastive_pool"),
    ("attention_pool.attn", "attention_pool.attention"),
    ("contrastive_pool.attn", "contrastive_pool.attention"),
    ("^attention_pool.ln_q", "attention_pool.query_norm"),
    ("^attention_pool.ln_k", "attention_pool.key_norm"),
    ("^contrastive_pool.ln_q", "contrastive_pool.query_norm"),
    ("^contrastive_pool.ln_k", "contrastive_pool.key_norm"),
];

/// The native image half.
///
/// # Errors
/// When an option is unknown, or one that the reference itself cannot run.
pub(super) fn image_part(part: &PartSource<'_>) -> Result<ImagePart> {
    let config = part.config();
    let hidden_size = config.size("width", 768)?;
    let block = native::block(part, hidden_size)?;
    let patch_size = config.side("patch_size", 16)?;
    let image_size = config.side("image_size", 224)?;
    // Weights made for another grid are resized on loading (reference: `resize_pos_embed` of `model.py`).
    let image_size = grid_in_files(part).map_or(image_size, |grid| grid.saturating_mul(patch_size));
    choice(config, "pos_embed_type", "learnable", &["learnable", "sin_cos_2d"])?;
    let (pooling, output_norm, query_pool) = pooling(part, hidden_size)?;
    let tower = VitConfig {
        hidden_size,
        num_hidden_layers: config.size("layers", 12)?,
        num_attention_heads: hidden_size / config.size("head_width", 64)?.max(1),
        intermediate_size: block.intermediate_size,
        hidden_act: block.hidden_act,
        layer_norm_eps: block.layer_norm_eps,
        image_size,
        patch_size,
        num_channels: 3,
        patch_bias: false,
        stem: PatchStem::Patches,
        extras: block.extras,
        position_resize: PositionResize::BicubicAntialias,
        norm_embeddings: !config.flag("no_ln_pre", false)?,
        output_norm,
        layer_scale: block.layer_scale,
        query_pool,
        initializer_range: 0.02,
        ..VitConfig::default()
    };
    let parallel = query_pool.is_some_and(|pool| pool.row == QueryPoolRow::Parallel);
    let renames = native::renames(&NAMES)?;
    Ok(ImagePart {
        config: ImageEncoderConfig { tower: ImageTowerConfig::Vit(tower), pooling },
        // The queries that only a text decoder would read.
        renames: if parallel { renames.ignore("attn_pool.*")? } else { renames },
        projection: Projection::matrix("proj", part.embed_dim),
    })
}

/// How tokens become one row (reference: `VisionTransformer._pool`).
fn pooling(part: &PartSource<'_>, hidden_size: usize) -> Result<(ImagePooling, OutputNorm, Option<QueryPoolConfig>)> {
    let config = part.config();
    let pool_type = choice(config, "pool_type", "tok", &["tok", "avg"])?;
    let row = match config.value("attentional_pool") {
        None | Some(Value::Null | Value::Bool(false)) => None,
        Some(Value::Bool(true)) if pool_type == "avg" => Some(QueryPoolRow::MeanWithoutFirst),
        Some(Value::Bool(true)) => Some(QueryPoolRow::First),
        Some(Value::String(text)) if text == "parallel" => Some(QueryPoolRow::Parallel),
        Some(Value::String(text)) if text == "cascade" => Some(QueryPoolRow::Cascade),
        Some(other) => {
            return Err(unsupported(config, "attentional_pool", &other.to_string(), "true, false, parallel, cascade"));
        }
    };
    if let Some(row) = row {
        let pool = QueryPoolConfig {
            size: part.embed_dim,
            num_attention_heads: config.size("attn_pooler_heads", 8)?,
            num_queries: config.size("attn_pooler_queries", 256)?,
            row,
        };
        let pooled_row = config.text("attentional_pool").ok().flatten().unwrap_or_default();
        if !row.is_normed_behind() && hidden_size != part.embed_dim {
            let found = format!("{pooled_row} with width {hidden_size} and embed_dim {}", part.embed_dim);
            return Err(unsupported(
                config,
                "attentional_pool",
                &found,
                "equal ones, as in open_clip, whose norm has embed_dim",
            ));
        }
        return Ok((ImagePooling::Queries, OutputNorm::Pooled, Some(pool)));
    }
    let after = config.flag("final_ln_after_pool", false)?;
    Ok(match pool_type.as_str() {
        "avg" if after => (ImagePooling::Mean, OutputNorm::AfterPooling, None),
        "avg" => (ImagePooling::Mean, OutputNorm::Tokens, None),
        _ => (ImagePooling::Cls, OutputNorm::Pooled, None),
    })
}

/// Rows and columns of the grid that the files' position table has.
fn grid_in_files(part: &PartSource<'_>) -> Option<usize> {
    let rows = *part.source.shape("positional_embedding")?.first()?;
    let grid = rows.saturating_sub(1).isqrt();
    (grid > 0 && grid * grid + 1 == rows).then_some(grid)
}
