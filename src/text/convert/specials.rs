//! The special tokens of a folder without `tokenizer.json`, collected as transformers does
//! (`PreTrainedTokenizerBase._from_pretrained`, `TokenizersBackend.__init__`).

use std::collections::BTreeMap;

use serde_json::Value;
use tokenizers::AddedToken;

use crate::text::files::{ADDED_TOKENS, Files, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG};
use crate::{Error, Result};

/// The named tokens, in the order in which transformers adds them.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The special tokens that a folder's files and its class's defaults name.
pub(super) struct Specials {
    named: BTreeMap<&'static str, AddedToken>,
    by_id: BTreeMap<u32, AddedToken>,
    extra: Vec<AddedToken>,
}

impl Specials {
    /// Reads `tokenizer_config.json`, and where that lists no added tokens also `special_tokens_map.json` and
    /// `added_tokens.json`; what they do not name comes from `defaults`.
    pub(super) fn read(files: &Files, defaults: &[(&'static str, AddedToken)]) -> Result<Self> {
        let mut specials =
            Self { named: defaults.iter().cloned().collect(), by_id: BTreeMap::new(), extra: Vec::new() };
        let config = files.json(TOKENIZER_CONFIG)?.unwrap_or(Value::Null);
        specials.take_names(&config);
        if let Some(by_id) = config.get("added_tokens_decoder").and_then(Value::as_object) {
            for (id, token) in by_id {
                let id = id.parse().map_err(|_| {
                    Error::file(files.path(TOKENIZER_CONFIG), format!("added_tokens_decoder: '{id}' is no token id"))
                })?;
                specials.by_id.extend(added_token(token, false).map(|token| (id, token)));
            }
        } else {
            specials.take_names(&files.json(SPECIAL_TOKENS_MAP)?.unwrap_or(Value::Null));
            specials.take_added(&files.json(ADDED_TOKENS)?.unwrap_or(Value::Null));
        }
        for token in specials.named.values_mut() {
            if let Some(known) = specials.by_id.values().find(|known| known.content == token.content) {
                *token = known.clone();
            }
        }
        Ok(specials)
    }

    fn take_names(&mut self, source: &Value) {
        for name in NAMES {
            if let Some(token) = source.get(name).and_then(|token| added_token(token, true)) {
                self.named.insert(name, token);
            }
        }
        for key in ["additional_special_tokens", "extra_special_tokens"] {
            let listed = source.get(key).and_then(Value::as_array).into_iter().flatten();
            self.extra.extend(listed.filter_map(|token| added_token(token, true)));
        }
    }

    fn take_added(&mut self, source: &Value) {
        for (content, id) in source.as_object().into_iter().flatten() {
            let special = self.named.values().chain(&self.extra).any(|token| token.content == *content);
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            self.by_id.extend(id.map(|id| (id, AddedToken::from(content.as_str(), special))));
        }
    }

    /// The content of a named token, such as `cls_token`.
    pub(super) fn name(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(|token| token.content.as_str())
    }

    /// More tokens, which come last.
    pub(super) fn extend(&mut self, tokens: impl IntoIterator<Item = AddedToken>) {
        self.extra.extend(tokens);
    }

    /// All tokens, in the order in which those that the vocabulary does not hold are given ids.
    pub(super) fn into_tokens(self) -> Vec<AddedToken> {
        let mut tokens: Vec<_> = self.by_id.into_values().collect();
        let known: Vec<_> = tokens.iter().map(|token| token.content.clone()).collect();
        let names = NAMES.iter().filter_map(|name| self.named.get(name)).cloned();
        let names = names.map(|token| token.special(true));
        tokens.extend(names.chain(self.extra).filter(|token| !known.contains(&token.content)));
        tokens
    }
}

/// A token written as a string or as an object with a `content`.
fn added_token(value: &Value, special: bool) -> Option<AddedToken> {
    let content = value.get("content").unwrap_or(value).as_str()?;
    let flag = |name: &str, otherwise: bool| value.get(name).and_then(Value::as_bool).unwrap_or(otherwise);
    let special = special || flag("special", false);
    Some(
        AddedToken::from(content, special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !special)),
    )
}
