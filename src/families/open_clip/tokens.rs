//! How texts become rows of ids for an open_clip model (reference: `get_tokenizer` of `factory.py`, `tokenizer.py`).

use super::part::{TextPart, unsupported};
use crate::Result;
use crate::families::Config;
use crate::text::{Cleaning, PadId, Padding, Separator, SpecialTokens, TokenRules};
use crate::towers::{PooledToken, TextPooling, TextTowerConfig};

/// Repositories with CLIP's vocabulary.
const CLIPS: [&str; 2] = ["openai/clip-vit-base-patch32", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"];

/// Rows of up to `context_length` ids. Without `hf_tokenizer_name` the tokenizer is CLIP's.
///
/// open_clip fills every row up to the context length; where the tower gives the same numbers for shorter rows, they are as
/// long as the longest of the batch here.
///
/// # Errors
/// When an option is unknown.
pub(super) fn token_rules(config: &Config, text: &TextPart) -> Result<TokenRules> {
    let context_length = config.size("context_length", 77)?.min(text.config.tower.context_length());
    let kwargs = config.part("tokenizer_kwargs")?;
    let hugging_face = config.text("hf_tokenizer_name")?.is_some_and(|name| !name.is_empty());
    let mut rules = if hugging_face {
        kwargs.only(&["clean", "strip_sep_token"])?;
        let rules = TokenRules::open_clip_hugging_face(context_length);
        let separator = if kwargs.flag("strip_sep_token", false)? { Separator::Zero } else { Separator::Keep };
        let special_tokens = match config.text("tokenizer_mode")?.as_deref() {
            None | Some("") => SpecialTokens::Add,
            Some("clips") => SpecialTokens::Clips,
            Some(other) => return Err(unsupported(config, "tokenizer_mode", other, "clips")),
        };
        TokenRules { pad_id: PadId::FromFiles { otherwise: text.pad_id }, separator, special_tokens, ..rules }
    } else {
        kwargs.only(&["clean"])?;
        TokenRules::open_clip(context_length)
    };
    if let Some(name) = kwargs.text("clean")? {
        let known = "lower, whitespace, canonicalize";
        rules.cleaning = Cleaning::from_open_clip(&name).ok_or_else(|| unsupported(&kwargs, "clean", &name, known))?;
    }
    if rules.special_tokens == SpecialTokens::Add && !reads_padding(text, hugging_face) {
        rules.padding = Padding::Longest;
    }
    Ok(rules)
}

/// The repositories whose tokenizer is the model's, where the folder itself has none: `hf_tokenizer_name`, else those that hold
/// CLIP's.
pub(crate) fn tokenizer_repositories(config: &serde_json::Value) -> Vec<&str> {
    let model = config.get("model_cfg").unwrap_or(config);
    let named = model.get("text_cfg").and_then(|text| text.get("hf_tokenizer_name")?.as_str());
    match named.filter(|name| !name.is_empty()) {
        Some(name) => vec![name],
        None => CLIPS.to_vec(),
    }
}

/// Whether features depend on how far rows are filled up.
fn reads_padding(text: &TextPart, hugging_face: bool) -> bool {
    let pooling = text.config.pooling;
    // The largest id of a row may be that of padding, where it is not 0.
    let largest = match &text.config.tower {
        TextTowerConfig::TextTransformer(tower) => tower.pooled_token == PooledToken::FirstLargest,
        _ => false,
    };
    text.config.tower.reads_padding(pooling) || hugging_face && largest && pooling == TextPooling::Eos
}
