//! What open_clip's two native towers share: the options of their blocks and the names of these (reference: `Transformer`,
//! `ResidualAttentionBlock` and `CustomResidualAttentionBlock` of `transformer.py`).

use super::part::{PartSource, unsupported};
use crate::families::Config;
use crate::nn::BlockExtra;
use crate::ops::Activation;
use crate::weights::Renames;
use crate::{Error, Result};

/// The options of a block.
pub(super) struct Block {
    pub(super) intermediate_size: usize,
    pub(super) hidden_act: Activation,
    pub(super) layer_norm_eps: f64,
    pub(super) layer_scale: Option<f32>,
    pub(super) extras: Vec<BlockExtra>,
}

/// What the blocks of both towers are called there and here. Names before the blocks come first.
const BLOCKS: [(&str, &str); 16] = [
    ("^transformer.resblocks", "encoder.layers"),
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("ln_attn", "attention_norm"),
    ("ls_1.gamma", "layer_scale1.lambda1"),
    ("ls_2.gamma", "layer_scale2.lambda1"),
    ("attn", "self_attn"),
    ("self_attn.ln_q", "self_attn.q_norm"),
    ("self_attn.ln_k", "self_attn.k_norm"),
    ("self_attn.ln_inner", "self_attn.norm"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
    ("mlp.ln", "mlp.norm"),
    // PyTorch's attention where keys are as wide as queries, and where they are not.
    ("q_proj_weight", "q_proj.weight"),
    ("k_proj_weight", "k_proj.weight"),
    ("v_proj_weight", "v_proj.weight"),
];

/// The extras by the names that configurations have for them.
pub(super) const EXTRAS: [(&str, BlockExtra); 5] = [
    ("qk_norm", BlockExtra::QueryKeyNorm),
    ("scale_heads", BlockExtra::HeadScale),
    ("scale_attn_inner", BlockExtra::AttentionNorm),
    ("scale_attn", BlockExtra::AttentionOutputNorm),
    ("scale_fc", BlockExtra::MlpNorm),
];

/// Reads the options of the blocks.
///
/// # Errors
/// When one is unknown, or one that the reference itself cannot run.
pub(super) fn block(part: &PartSource<'_>, hidden_size: usize) -> Result<Block> {
    let config = part.config();
    let ratio = config.number("mlp_ratio", 4.0)?;
    if !(ratio > 0.0 && ratio < 1e4) {
        return Err(Error::file(config.path(), format!("mlp_ratio is {ratio}, not between 0 and 10000")));
    }
    if config.flag("scaled_cosine_attn", false)? {
        let why = "false (open_clip 3.3's own code multiplies tensors of four axes with `bmm`, which takes three)";
        return Err(unsupported(config, "scaled_cosine_attn", "true", why));
    }
    let mut extras = Vec::new();
    for (name, extra) in EXTRAS {
        if config.flag(name, false)? {
            extras.push(extra);
        }
    }
    // A block that is said to be a plain one has none of them, whatever else is said.
    if choice(config, "block_type", "custom", &["default", "custom"])? == "default" {
        extras.clear();
    }
    let norm = config.part("norm_kwargs")?;
    norm.only(&["eps"])?;
    let layer_scale = config.has_value("ls_init_value").then(|| config.number("ls_init_value", 0.0)).transpose()?;
    Ok(Block {
        intermediate_size: (hidden_size as f64 * ratio) as usize,
        hidden_act: activation(part)?,
        layer_norm_eps: norm.number("eps", 1e-5)?,
        layer_scale: layer_scale.map(|start| start as f32),
        extras,
    })
}

/// GELU, its tanh approximation, or QuickGELU.
fn activation(part: &PartSource<'_>) -> Result<Activation> {
    let kwargs = part.config().part("act_kwargs")?;
    kwargs.only(if part.quick_gelu { &[] } else { &["approximate"] })?;
    Ok(match choice(&kwargs, "approximate", "none", &["none", "tanh"])?.as_str() {
        _ if part.quick_gelu => Activation::QuickGelu,
        "tanh" => Activation::GeluTanh,
        _ => Activation::Gelu,
    })
}

/// A choice among texts.
///
/// # Errors
/// When the value is none of `known`.
pub(super) fn choice(config: &Config, name: &'static str, default: &str, known: &[&str]) -> Result<String> {
    let found = config.text(name)?.unwrap_or_else(|| default.to_string());
    match known.contains(&found.as_str()) {
        true => Ok(found),
        false => Err(unsupported(config, name, &found, &known.join(", "))),
    }
}

/// The names of a native tower: those of `own`, then those of the blocks.
///
/// # Errors
/// Never for rules that replace something.
pub(super) fn renames(own: &[(&str, &str)]) -> Result<Renames> {
    apart(own)?.split("in_proj_weight", &["q_proj.weight", "k_proj.weight", "v_proj.weight"])
}

/// The same where queries, keys and values have a matrix each.
///
/// # Errors
/// Never for rules that replace something.
pub(super) fn apart(own: &[(&str, &str)]) -> Result<Renames> {
    let rules: Vec<_> = own.iter().chain(&BLOCKS).copied().collect();
    Renames::new(&rules, &[])?.split("in_proj_bias", &["q_proj.bias", "k_proj.bias", "v_proj.bias"])
}
