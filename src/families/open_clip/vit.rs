//! The native image half: open_clip's `VisionTransformer` (reference: `transformer.py`).

use super::part::{ImagePart, PartSource, unsupported};
use crate::Result;

/// What `vision_cfg` may say: the fields of `CLIPVisionCfg` (`model.py`).
pub(super) const KNOWN: [&str; 32] = [
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
];

/// The native image half.
///
/// # Errors
/// When an option is unknown.
pub(super) fn image_part(part: &PartSource<'_>) -> Result<ImagePart> {
    Err(unsupported(part.config(), "vision_cfg", "a native vision transformer", "none yet"))
}
