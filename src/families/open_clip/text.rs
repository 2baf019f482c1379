//! The native text half: open_clip's `TextTransformer` (reference: `transformer.py`).

use super::part::{PartSource, TextPart, unsupported};
use crate::Result;

/// What `text_cfg` may say: the fields of `CLIPTextCfg` (`model.py`).
pub(super) const KNOWN: [&str; 32] = [
    "context_length",
    "vocab_size",
    "hf_tokenizer_name",
    "tokenizer_mode",
    "tokenizer_kwargs",
    "width",
    "heads",
    "layers",
    "mlp_ratio",
    "ls_init_value",
    "embed_cls",
    "pad_id",
    "eos_id",
    "no_causal_mask",
    "final_ln_after_pool",
    "pool_type",
    "proj_bias",
    "proj_type",
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
    "hf_model_name",
    "hf_model_pretrained",
    "hf_proj_type",
    "hf_pooler_type",
];

/// The native text half.
///
/// # Errors
/// When an option is unknown.
pub(super) fn text_part(part: &PartSource<'_>) -> Result<TextPart> {
    Err(unsupported(part.config(), "text_cfg", "a native text transformer", "none yet"))
}
