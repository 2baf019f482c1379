//! Hugging Face text towers inside an open_clip model (`hf_model_name`; reference: `hf_model.py`): tensors below
//! `transformer.`, the projection below `proj`.
//!
//! The folder holds no configuration of the text model, only its name on the hub. A table has what published configurations
//! say; sizes that tensors show are taken from the tensors. The text is masked where ids are the model's padding id, which is
//! also what rows are padded with.

use super::super::bert::BLOCKS;
use super::super::{m2m100, t5};
use super::part::{PartSource, Projection, TextPart, unsupported};
use crate::encoder::TextEncoderConfig;
use crate::ops::Activation;
use crate::towers::{
    BertConfig, BertHead, M2m100Config, Positions, RelativePositions, T5Config, TextPooling, TextTowerConfig,
};
use crate::weights::Renames;
use crate::{Error, Result};

/// The class of a text model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bert,
    Roberta,
    Mt5,
    M2m100,
}

/// What the published configuration of a text model says.
struct Published {
    names: &'static [&'static str],
    kind: Kind,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
}

/// A row: names on the hub, class, then V, E, blocks, heads, MLP, positions.
const fn row(names: &'static [&'static str], kind: Kind, sizes: [usize; 6]) -> Published {
    let [vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, positions] = sizes;
    Published {
        names,
        kind,
        vocab_size,
        hidden_size,
        num_hidden_layers,
        num_attention_heads,
        intermediate_size,
        max_position_embeddings: positions,
    }
}

/// From the `config.json` of each repository. mT5 sets no limit to positions.
const PUBLISHED: [Published; 14] = [
    row(&["bert-base-uncased", "google-bert/bert-base-uncased"], Kind::Bert, [30522, 768, 12, 12, 3072, 512]),
    row(&["bert-base-cased", "google-bert/bert-base-cased"], Kind::Bert, [28996, 768, 12, 12, 3072, 512]),
    row(
        &["bert-base-multilingual-cased", "google-bert/bert-base-multilingual-cased"],
        Kind::Bert,
        [119_547, 768, 12, 12, 3072, 512],
    ),
    row(&["roberta-base", "FacebookAI/roberta-base"], Kind::Roberta, [50265, 768, 12, 12, 3072, 514]),
    row(&["roberta-large", "FacebookAI/roberta-large"], Kind::Roberta, [50265, 1024, 24, 16, 4096, 514]),
    row(&["xlm-roberta-base", "FacebookAI/xlm-roberta-base"], Kind::Roberta, [250_002, 768, 12, 12, 3072, 514]),
    row(&["xlm-roberta-large", "FacebookAI/xlm-roberta-large"], Kind::Roberta, [250_002, 1024, 24, 16, 4096, 514]),
    row(&["google/mt5-small"], Kind::Mt5, [250_112, 512, 8, 6, 1024, 0]),
    row(&["google/mt5-base"], Kind::Mt5, [250_112, 768, 12, 12, 2048, 0]),
    row(&["google/mt5-large"], Kind::Mt5, [250_112, 1024, 24, 16, 2816, 0]),
    row(&["google/mt5-xl"], Kind::Mt5, [250_112, 2048, 24, 32, 5120, 0]),
    row(&["facebook/nllb-200-distilled-600M"], Kind::M2m100, [256_206, 1024, 12, 16, 4096, 1024]),
    row(&["facebook/nllb-200-distilled-1.3B"], Kind::M2m100, [256_206, 1024, 24, 16, 8192, 1024]),
    row(&["facebook/nllb-200-1.3B"], Kind::M2m100, [256_206, 1024, 24, 16, 8192, 1024]),
];

/// The text half with a Hugging Face tower.
///
/// # Errors
/// When the name or an option is unknown.
pub(super) fn text_part(part: &PartSource<'_>, name: &str) -> Result<TextPart> {
    let published = PUBLISHED.iter().find(|row| row.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = PUBLISHED.iter().flat_map(|row| row.names).copied().collect();
        unsupported(part.config(), "hf_model_name", name, &known.join(", "))
    })?;
    let pooling = pooling(part, published.kind)?;
    let context_length = part.config().size("context_length", 77)?;
    let pad_id = if matches!(published.kind, Kind::Bert | Kind::Mt5) { 0 } else { 1 };
    let (tower, renames) = match published.kind {
        Kind::Bert | Kind::Roberta => bert(part, published, pad_id, pooling)?,
        Kind::Mt5 => (mt5(part, published, context_length)?, t5::renames(&["^transformer"], false)?),
        Kind::M2m100 => (nllb(part, published, pad_id)?, m2m100::renames(&["^transformer"], false)?),
    };
    let config = TextEncoderConfig { tower, pooling };
    let projection = projection(part, config.pooled_size())?;
    Ok(TextPart { config, renames, projection, pad_id })
}

/// `hf_pooler_type`; what the class has by default where it is null, the mean where it is left out. BERT is built without its
/// pooler where that is not asked for by name, and the first token is taken then.
fn pooling(part: &PartSource<'_>, kind: Kind) -> Result<TextPooling> {
    let config = part.config();
    let default = match kind {
        _ if !config.has("hf_pooler_type") => "mean_pooler",
        Kind::Roberta | Kind::Mt5 => "mean_pooler",
        Kind::Bert | Kind::M2m100 => "cls_last_hidden_state_pooler",
    };
    let found = config.text("hf_pooler_type")?.unwrap_or_else(|| default.to_string());
    match (found.as_str(), kind) {
        ("mean_pooler", _) => Ok(TextPooling::Mean),
        ("cls_last_hidden_state_pooler", _) => Ok(TextPooling::Cls),
        // Encoders of translators have no pooler: the reference takes the first token then.
        ("cls_pooler", Kind::Mt5 | Kind::M2m100) => Ok(TextPooling::Cls),
        ("cls_pooler", Kind::Bert | Kind::Roberta) => Ok(TextPooling::Pooler),
        // max_pooler is in the reference's list, but PyTorch refuses what it does with the mask.
        _ => {
            Err(unsupported(config, "hf_pooler_type", &found, "mean_pooler, cls_pooler, cls_last_hidden_state_pooler"))
        }
    }
}

/// `hf_proj_type`; null is no projection, which needs equal widths.
fn projection(part: &PartSource<'_>, pooled_size: usize) -> Result<Projection> {
    let config = part.config();
    if !config.has("hf_proj_type") || config.has_value("hf_proj_type") {
        return Projection::of_hugging_face(part, pooled_size);
    }
    if pooled_size != part.embed_dim {
        let message =
            format!("hf_proj_type is null, but the text tower is {pooled_size} wide and not {}", part.embed_dim);
        return Err(Error::file(config.path(), message));
    }
    Ok(Projection::none(part.embed_dim))
}

/// What the tensors show of a tower, else what the table says.
struct Sizes<'a> {
    part: &'a PartSource<'a>,
    published: &'a Published,
}

impl Sizes<'_> {
    /// One dimension of the tensor `transformer.{name}`.
    fn of(&self, name: &str, dimension: usize, otherwise: usize) -> usize {
        let shape = self.part.source.shape(&format!("transformer.{name}"));
        shape.and_then(|shape| shape.get(dimension)).copied().unwrap_or(otherwise)
    }

    /// Blocks below `transformer.{prefix}`.
    fn blocks(&self, prefix: &str) -> usize {
        let count = self.part.source.count(&format!("transformer.{prefix}"));
        count.filter(|&count| count > 0).unwrap_or(self.published.num_hidden_layers)
    }

    /// The table's heads where they divide the width, else heads of 64 columns, else one.
    fn heads(&self, hidden_size: usize) -> usize {
        let published = self.published.num_attention_heads;
        match hidden_size {
            _ if hidden_size.is_multiple_of(published) => published,
            _ if hidden_size.is_multiple_of(64) => hidden_size / 64,
            _ => 1,
        }
    }
}

fn bert(
    part: &PartSource<'_>,
    published: &Published,
    pad_id: u32,
    pooling: TextPooling,
) -> Result<(TextTowerConfig, Renames)> {
    let sizes = Sizes { part, published };
    let words = "embeddings.word_embeddings.weight";
    let hidden_size = sizes.of(words, 1, published.hidden_size);
    let is_bert = published.kind == Kind::Bert;
    let tower = BertConfig {
        vocab_size: sizes.of(words, 0, published.vocab_size),
        hidden_size,
        num_hidden_layers: sizes.blocks("encoder.layer"),
        num_attention_heads: sizes.heads(hidden_size),
        intermediate_size: sizes.of("encoder.layer.0.intermediate.dense.weight", 0, published.intermediate_size),
        hidden_act: Activation::Gelu,
        layer_norm_eps: if is_bert { 1e-12 } else { 1e-5 },
        max_position_embeddings: sizes.of(
            "embeddings.position_embeddings.weight",
            0,
            published.max_position_embeddings,
        ),
        type_vocab_size: sizes.of("embeddings.token_type_embeddings.weight", 0, if is_bert { 2 } else { 1 }),
        positions: if is_bert { Positions::FromZero } else { Positions::AfterPadding(pad_id) },
        relative_positions: None,
        head: BertHead::None,
        // The reference builds one where it is asked for only.
        pooler: match part.source.tensors {
            Some(_) => part.source.has_pooler(),
            None => pooling == TextPooling::Pooler,
        },
        initializer_range: 0.02,
    };
    let rules: Vec<_> = [("^transformer", "")].into_iter().chain(BLOCKS).collect();
    let renames = Renames::new(&rules, &["*embeddings.position_ids", "*embeddings.token_type_ids", "*pooler.*"])?;
    Ok((TextTowerConfig::Bert(tower), renames))
}

fn mt5(part: &PartSource<'_>, published: &Published, context_length: usize) -> Result<TextTowerConfig> {
    const HEAD_SIZE: usize = 64;
    let sizes = Sizes { part, published };
    let bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    let heads = sizes.of(bias, 1, published.num_attention_heads);
    let inner = sizes.of("block.0.layer.0.SelfAttention.q.weight", 0, heads.saturating_mul(HEAD_SIZE));
    Ok(TextTowerConfig::T5(T5Config {
        vocab_size: sizes.of("embed_tokens.weight", 0, published.vocab_size),
        hidden_size: sizes.of("embed_tokens.weight", 1, published.hidden_size),
        num_hidden_layers: sizes.blocks("block"),
        num_attention_heads: heads,
        head_size: inner / heads.max(1),
        intermediate_size: sizes.of("block.0.layer.1.DenseReluDense.wi_0.weight", 0, published.intermediate_size),
        hidden_act: Activation::GeluTanh,
        layer_norm_eps: 1e-6,
        relative_positions: RelativePositions { num_buckets: sizes.of(bias, 0, 32), max_distance: 128 },
        context_length,
        initializer_range: 0.05,
    }))
}

fn nllb(part: &PartSource<'_>, published: &Published, pad_token_id: u32) -> Result<TextTowerConfig> {
    let sizes = Sizes { part, published };
    let hidden_size = sizes.of("embed_tokens.weight", 1, published.hidden_size);
    Ok(TextTowerConfig::M2m100(M2m100Config {
        vocab_size: sizes.of("embed_tokens.weight", 0, published.vocab_size),
        hidden_size,
        num_hidden_layers: sizes.blocks("layers"),
        num_attention_heads: sizes.heads(hidden_size),
        intermediate_size: sizes.of("layers.0.fc1.weight", 0, published.intermediate_size),
        hidden_act: Activation::Relu,
        layer_norm_eps: m2m100::EPS,
        max_position_embeddings: published.max_position_embeddings,
        pad_token_id,
        embedding_scale: (hidden_size as f64).sqrt(),
        initializer_range: 0.02,
    }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::families::{Config, FamilySource, Role};

    #[test]
    fn null_is_the_pooling_of_the_class_without_a_pooler_of_its_own() {
        let pooling = |name: &str, pooler: serde_json::Value| {
            let fields = json!({"hf_model_name": name, "hf_pooler_type": pooler});
            let config = Config::new(Path::new("open_clip_config.json"), fields).unwrap();
            let source = FamilySource { config, tensors: None, role: Role::Half };
            let part = PartSource { source, embed_dim: 512, quick_gelu: false };
            text_part(&part, name).unwrap().config.pooling
        };
        assert_eq!(pooling("bert-base-uncased", json!(null)), TextPooling::Cls);
        assert_eq!(pooling("bert-base-uncased", json!("cls_pooler")), TextPooling::Pooler);
        assert_eq!(pooling("roberta-base", json!(null)), TextPooling::Mean);
        assert_eq!(pooling("facebook/nllb-200-distilled-600M", json!(null)), TextPooling::Cls);
    }
}
