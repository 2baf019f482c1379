//! The native text half: open_clip's `TextTransformer` (reference: `transformer.py`).

use super::native::{self, choice};
use super::part::{PartSource, Projection, TextPart};
use crate::Result;
use crate::encoder::TextEncoderConfig;
use crate::towers::{PooledToken, TextAttention, TextPooling, TextTowerConfig, TextTransformerConfig};

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

/// What stands around the blocks, there and here.
pub(super) const NAMES: [(&str, &str); 4] = [
    ("^token_embedding", "embeddings.token_embedding"),
    ("^positional_embedding", "embeddings.position_embedding.weight"),
    ("^cls_emb", "embeddings.class_embedding"),
    ("^ln_final", "final_layer_norm"),
];

/// The native text half.
///
/// # Errors
/// When an option is unknown, or one that the reference itself cannot run.
pub(super) fn text_part(part: &PartSource<'_>) -> Result<TextPart> {
    let config = part.config();
    let hidden_size = config.size("width", 512)?;
    let block = native::block(part, hidden_size)?;
    let pad_id = config.id("pad_id", 0)?;
    let causal = !config.flag("no_causal_mask", false)?;
    let has_class_token = config.flag("embed_cls", false)?;
    let attention = match (causal, has_class_token) {
        (true, true) => TextAttention::CausalWithClassToken { pad_id },
        (false, true) => TextAttention::FullWithClassToken { pad_id },
        (true, false) => TextAttention::Causal,
        (false, false) => TextAttention::Full,
    };
    let eos_id = config.id("eos_id", 2)?;
    let pool_type = choice(config, "pool_type", "argmax", &["first", "last", "argmax", "eos"])?;
    let (pooling, pooled_token) = match pool_type.as_str() {
        _ if has_class_token => (TextPooling::Last, PooledToken::FirstLargest),
        "first" => (TextPooling::Cls, PooledToken::FirstLargest),
        "last" => (TextPooling::Last, PooledToken::FirstLargest),
        "eos" => (TextPooling::Eos, PooledToken::FirstId(eos_id)),
        _ => (TextPooling::Eos, PooledToken::FirstLargest),
    };
    let tower = TextTransformerConfig {
        vocab_size: config.size("vocab_size", 49408)?,
        hidden_size,
        num_hidden_layers: config.size("layers", 12)?,
        num_attention_heads: config.size("heads", 8)?,
        intermediate_size: block.intermediate_size,
        hidden_act: block.hidden_act,
        layer_norm_eps: block.layer_norm_eps,
        context_length: config.size("context_length", 77)?,
        pooled_token,
        attention,
        layer_scale: block.layer_scale,
        extras: block.extras,
        head_size: None,
        initializer_range: 0.02,
    };
    let bias = config.flag("proj_bias", false)?;
    // Anything but `none` is a projection (reference: `TextTransformer.__init__`).
    let projection = match config.text("proj_type")?.as_deref() {
        Some("none") => Projection::none(part.embed_dim),
        _ if bias => Projection::linear("text_projection", part.embed_dim, true),
        _ => Projection::matrix("text_projection", part.embed_dim),
    };
    Ok(TextPart {
        config: TextEncoderConfig { tower: TextTowerConfig::TextTransformer(tower), pooling },
        renames: native::renames(&NAMES)?,
        projection,
        pad_id,
    })
}
