//! ModernBERT as transformers writes it (`modeling_modernbert.py`), in the spelling of its versions 4 and 5.

use serde_json::Value;

use super::{Config, Families, Family, FamilySource, Plan, TextPlan, token_rules};
use crate::encoder::TextEncoderConfig;
use crate::ops::Activation;
use crate::towers::{BiasedLayers, ModernBertConfig, Sight, TextPooling, TextTowerConfig};
use crate::weights::Renames;
use crate::{Error, Result};

/// The family of `model_type` modernbert.
pub(super) struct ModernBert;

const RULES: [(&str, &str); 9] = [
    ("^model", ""),
    ("embeddings.tok_embeddings", "embeddings.word_embeddings"),
    ("embeddings.norm", "embeddings.layer_norm"),
    ("^layers", "encoder.layers"),
    ("attn_norm", "layer_norm1"),
    ("mlp_norm", "layer_norm2"),
    ("attn.Wo", "self_attn.out_proj"),
    ("mlp.Wo", "mlp.fc2"),
    ("^final_norm", "final_layer_norm"),
];

/// Heads of other tasks.
const EXTRAS: [&str; 3] = ["head.*", "decoder.*", "classifier.*"];

/// More blocks than any tower has; the tower refuses them by name.
const MOST_LAYERS: usize = 1 << 11;

impl Family for ModernBert {
    fn model_types(&self) -> &[&str] {
        &["modernbert"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        let biases = [
            ("norm_bias", BiasedLayers::Norms),
            ("attention_bias", BiasedLayers::Attention),
            ("mlp_bias", BiasedLayers::Mlp),
        ];
        let biases = biases.into_iter().map(|(flag, layers)| Ok(config.flag(flag, false)?.then_some(layers)));
        let tower = ModernBertConfig {
            vocab_size: config.size("vocab_size", 50368)?,
            hidden_size: config.size("hidden_size", 768)?,
            num_attention_heads: config.size("num_attention_heads", 12)?,
            intermediate_size: config.size("intermediate_size", 1152)?,
            hidden_act: config.activation("hidden_activation", Activation::Gelu)?,
            layer_norm_eps: config.number("norm_eps", 1e-5)?,
            layers: layers(config)?,
            local_reach: config.size("local_attention", 128)? / 2,
            global_rope_theta: rope_theta(config, "full_attention", "global_rope_theta", 160_000.0)?,
            local_rope_theta: rope_theta(config, "sliding_attention", "local_rope_theta", 10_000.0)?,
            biases: biases.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect(),
            max_position_embeddings: config.size("max_position_embeddings", 8192)?,
            initializer_range: config.number("initializer_range", 0.02)?,
        };
        let pooling = match config.text("classifier_pooling")?.as_deref() {
            None | Some("cls") => TextPooling::Cls,
            Some("mean") => TextPooling::Mean,
            Some(other) => return Err(unsupported(config, "classifier_pooling", other, "cls, mean")),
        };
        let renames = Renames::new(&RULES, &EXTRAS)?
            .split("attn.Wqkv", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"])?
            .split("mlp.Wi", &["mlp.gate", "mlp.fc1"])?;
        let tokens = token_rules(tower.max_position_embeddings, config.id("pad_token_id", 50283)?);
        let config = TextEncoderConfig { tower: TextTowerConfig::ModernBert(tower), pooling };
        Ok(Plan::Text(Box::new(TextPlan { config, renames, tokens })))
    }
}

/// Version 5 lists the layers; version 4 says every how many of them is global, the first being one.
fn layers(config: &Config) -> Result<Vec<Sight>> {
    let count = config.size("num_hidden_layers", 22)?.min(MOST_LAYERS);
    let Some(Value::Array(listed)) = config.to_value().get("layer_types").cloned() else {
        let every = config.size("global_attn_every_n_layers", 3)?.max(1);
        return Ok((0..count).map(|i| if i % every == 0 { Sight::Global } else { Sight::Local }).collect());
    };
    if listed.len() != count {
        let message = format!("layer_types lists {} layers, num_hidden_layers says {count}", listed.len());
        return Err(Error::file(config.path(), message));
    }
    let sight = |layer: &Value| match layer.as_str() {
        Some("full_attention") => Ok(Sight::Global),
        Some("sliding_attention") => Ok(Sight::Local),
        _ => Err(unsupported(config, "layer_types", &layer.to_string(), "full_attention, sliding_attention")),
    };
    listed.iter().map(sight).collect()
}

/// Version 5 has `rope_parameters` for each kind of layer, version 4 a number; an angle that is scaled is refused.
fn rope_theta(config: &Config, kind: &str, old: &str, default: f64) -> Result<f64> {
    if config.has_value("rope_scaling") {
        return Err(unsupported(config, "rope_scaling", "an object", "null"));
    }
    let rope = config.part("rope_parameters")?.part(kind)?;
    rope.require("rope_type", "default")?;
    rope.number("rope_theta", config.number(old, default)?)
}

fn unsupported(config: &Config, what: &'static str, value: &str, known: &str) -> Error {
    Error::unsupported(config.path().display().to_string(), what, value, known)
}
