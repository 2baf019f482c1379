//! The encoder half of T5 and mT5 as transformers writes it (`modeling_t5.py`, `modeling_mt5.py`).

use super::{Families, Family, FamilySource, Plan, Role, TextPlan, token_rules};
use crate::encoder::TextEncoderConfig;
use crate::ops::Activation;
use crate::towers::{RelativePositions, T5Config, TextPooling, TextTowerConfig};
use crate::weights::Renames;
use crate::{Error, Result};

/// The family of `model_type` t5, mt5.
pub(super) struct T5;

const RULES: [(&str, &str); 12] = [
    ("^embed_tokens", "embeddings.word_embeddings"),
    // The first block's table serves all of them.
    ("^block.0.layer.0.SelfAttention.relative_attention_bias", "encoder.relative_attention_bias"),
    ("^block", "encoder.layers"),
    ("layer.0.SelfAttention.q", "self_attn.q_proj"),
    ("layer.0.SelfAttention.k", "self_attn.k_proj"),
    ("layer.0.SelfAttention.v", "self_attn.v_proj"),
    ("layer.0.SelfAttention.o", "self_attn.out_proj"),
    ("layer.0.layer_norm", "layer_norm1"),
    ("layer.1.DenseReluDense.wi_0", "mlp.gate"),
    ("layer.1.DenseReluDense.wi_1", "mlp.fc1"),
    ("layer.1.DenseReluDense.wo", "mlp.fc2"),
    ("layer.1.layer_norm", "layer_norm2"),
];

/// From the names of an encoder (or of a whole model, whose decoder goes unused) to ours, once `prefixes` are gone. `shared` is
/// whether the files call the word table so; the encoder's own name for it is a copy then.
pub(super) fn renames(prefixes: &[&'static str], shared: bool) -> Result<Renames> {
    let rules: Vec<_> = prefixes.iter().map(|prefix| (*prefix, "")).chain(RULES).collect();
    let renames = Renames::new(&rules, &["decoder.*", "lm_head.*"])?;
    match shared {
        true => renames.rule("^shared", "embeddings.word_embeddings")?.ignore("*embed_tokens.weight"),
        false => Ok(renames),
    }
}

/// A gated activation's name: `gated-gelu` is the tanh form (`configuration_t5.py`).
pub(super) fn gate(name: &str, context: &str) -> Result<Activation> {
    match name.strip_prefix("gated-") {
        Some("gelu") => Ok(Activation::GeluTanh),
        Some(other) => Activation::from_name(other, context),
        None => Err(Error::unsupported(context, "feed_forward_proj", name, "gated-gelu, gated-silu, gated-relu")),
    }
}

impl Family for T5 {
    fn model_types(&self) -> &[&str] {
        &["t5", "mt5"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        let is_t5 = config.model_type()? == "t5";
        let feed_forward = config.text("feed_forward_proj")?;
        let feed_forward = feed_forward.unwrap_or_else(|| if is_t5 { "relu" } else { "gated-gelu" }.to_string());
        let tower = T5Config {
            vocab_size: config.size("vocab_size", if is_t5 { 32128 } else { 250_112 })?,
            hidden_size: config.size("d_model", 512)?,
            num_hidden_layers: config.size("num_layers", if is_t5 { 6 } else { 8 })?,
            num_attention_heads: config.size("num_heads", if is_t5 { 8 } else { 6 })?,
            head_size: config.size("d_kv", 64)?,
            intermediate_size: config.size("d_ff", if is_t5 { 2048 } else { 1024 })?,
            hidden_act: gate(&feed_forward, &config.path().display().to_string())?,
            layer_norm_eps: config.number("layer_norm_epsilon", 1e-6)?,
            relative_positions: RelativePositions {
                num_buckets: config.size("relative_attention_num_buckets", 32)?,
                max_distance: config.size("relative_attention_max_distance", 128)?,
            },
            context_length: config.size("n_positions", 512)?,
            initializer_range: 0.05 * config.number("initializer_factor", 1.0)?,
        };
        let pooling = if source.role == Role::Alone { TextPooling::Mean } else { TextPooling::Cls };
        let tokens = token_rules(tower.context_length, config.id("pad_token_id", 0)?);
        let config = TextEncoderConfig { tower: TextTowerConfig::T5(tower), pooling };
        let shared = source.tensors.as_ref().is_some_and(|tensors| tensors.contains_key("shared.weight"));
        Ok(Plan::Text(Box::new(TextPlan { config, renames: renames(&["^encoder"], shared)?, tokens })))
    }
}
