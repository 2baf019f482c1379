//! The encoder half of M2M100 and NLLB as transformers writes it (`modeling_m2m_100.py`).

use super::{Families, Family, FamilySource, Plan, Role, TextPlan, token_rules};
use crate::Result;
use crate::encoder::TextEncoderConfig;
use crate::ops::Activation;
use crate::towers::{M2m100Config, TextPooling, TextTowerConfig};
use crate::weights::Renames;

/// The family of `model_type` m2m_100.
pub(super) struct M2m100;

const RULES: [(&str, &str); 7] = [
    ("^embed_tokens", "embeddings.word_embeddings"),
    ("^layers", "encoder.layers"),
    ("self_attn_layer_norm", "layer_norm1"),
    ("final_layer_norm", "layer_norm2"),
    ("fc1", "mlp.fc1"),
    ("fc2", "mlp.fc2"),
    ("^layer_norm", "final_layer_norm"),
];

/// From the names of an encoder (or of a whole model, whose decoder goes unused) to ours, once `prefixes` are gone. `shared` is
/// whether the files call the word table so; the encoder's own name for it is a copy then.
pub(super) fn renames(prefixes: &[&'static str], shared: bool) -> Result<Renames> {
    let rules: Vec<_> = prefixes.iter().map(|prefix| (*prefix, "")).chain(RULES).collect();
    // The sinusoids are computed; older files carry them all the same.
    let renames = Renames::new(&rules, &["decoder.*", "model.decoder.*", "lm_head.*", "*embed_positions.weights"])?;
    match shared {
        // The whole model's word table stands below `model.` in files with a head.
        true => renames.rule("^shared", "embeddings.word_embeddings")?.ignore("*embed_tokens.weight"),
        false => Ok(renames),
    }
}

/// The epsilon of all its LayerNorms: PyTorch's own, which the class leaves alone.
pub(super) const EPS: f64 = 1e-5;

impl Family for M2m100 {
    fn model_types(&self) -> &[&str] {
        &["m2m_100"]
    }

    fn plan(&self, _: &Families, source: &FamilySource<'_>) -> Result<Plan> {
        let config = &source.config;
        let hidden_size = config.size("d_model", 1024)?;
        let scaled = config.flag("scale_embedding", true)?;
        let pad_token_id = config.id("pad_token_id", 1)?;
        let tower = M2m100Config {
            vocab_size: config.size("vocab_size", 128_112)?,
            hidden_size,
            num_hidden_layers: config.size("encoder_layers", 12)?,
            num_attention_heads: config.size("encoder_attention_heads", 16)?,
            intermediate_size: config.size("encoder_ffn_dim", 4096)?,
            hidden_act: config.activation("activation_function", Activation::Relu)?,
            layer_norm_eps: EPS,
            max_position_embeddings: config.size("max_position_embeddings", 1024)?,
            pad_token_id,
            embedding_scale: if scaled { (hidden_size as f64).sqrt() } else { 1.0 },
            initializer_range: config.number("init_std", 0.02)?,
        };
        let pooling = if source.role == Role::Alone { TextPooling::Mean } else { TextPooling::Cls };
        let tokens = token_rules(tower.max_position_embeddings, pad_token_id);
        let config = TextEncoderConfig { tower: TextTowerConfig::M2m100(tower), pooling };
        let shared = source.has("shared.weight");
        Ok(Plan::Text(Box::new(TextPlan { config, renames: renames(&["^model", "^encoder"], shared)?, tokens })))
    }
}
