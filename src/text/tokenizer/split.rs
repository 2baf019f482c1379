//! From one text to its ids: cleaning, then the tokenizer, special tokens around it left aside.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;
use tokenizers::{Model, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer};

use crate::text::{Cleaning, Splitting};

/// The special tokens that open_clip's tokenizer finds in a text, in the order of `SpecialTokens::Add`.
const OPEN_CLIP_SPECIALS: [&str; 2] = ["<start_of_text>", "<end_of_text>"];

/// Shorter texts are not worth a look at where they could be cut.
const LONG_TEXT: usize = 16 * 1024;

/// Cleans a text and splits it.
pub(super) struct Splitter {
    pub(super) tokenizer: Tokenizer,
    cleaning: Cleaning,
    /// The special tokens that are found in a text before it is normalised.
    specials: Vec<String>,
    /// The ids of [`OPEN_CLIP_SPECIALS`], for open_clip's way of splitting.
    open_clip: Option<[u32; 2]>,
    /// Whether each word gives a token or more, whatever stands around it.
    words_are_apart: bool,
}

impl Splitter {
    /// `around` are the ids that stand before and after a text.
    pub(super) fn new(
        tokenizer: Tokenizer,
        cleaning: Cleaning,
        splitting: Splitting,
        around: [Option<u32>; 2],
    ) -> Self {
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let specials =
            added.values().filter(|t| t.special && !t.normalized).map(|token| token.content.clone()).collect();
        let open_clip = match (splitting, around) {
            (Splitting::OpenClip, [Some(start), Some(end)]) => Some([start, end]),
            _ => None,
        };
        let words_are_apart = words_are_apart(&tokenizer);
        Self { tokenizer, cleaning, specials, open_clip, words_are_apart }
    }

    /// The ids of `text`; those after the first `room` need not be all of them.
    pub(super) fn ids(&self, text: &str, room: usize) -> Result<Vec<u32>, String> {
        // A table of a normaliser can be broken in ways that only show here.
        let split = || {
            let text = self.cleaning.apply(text, &self.specials);
            self.split(self.head(&text, room)).map_err(|e| e.to_string())
        };
        catch_unwind(AssertUnwindSafe(split)).unwrap_or_else(|_| Err("the tokenizer's files are broken".to_string()))
    }

    fn split(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        match self.open_clip {
            Some(ids) if OPEN_CLIP_SPECIALS.iter().any(|special| text.contains(special)) => {
                self.split_pieces(text, ids)
            }
            _ => Ok(self.tokenizer.encode_fast(text, false)?.get_ids().to_vec()),
        }
    }

    /// `SimpleTokenizer.encode` where special tokens stand in the text: a piece that is one of them has its id.
    fn split_pieces(&self, text: &str, special_ids: [u32; 2]) -> tokenizers::Result<Vec<u32>> {
        let mut pieces = PreTokenizedString::from(text);
        if let Some(pre_tokenizer) = self.tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        let mut ids = Vec::new();
        for (piece, ..) in pieces.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            match OPEN_CLIP_SPECIALS.iter().position(|&special| special == piece) {
                Some(i) => ids.push(special_ids[i]),
                None => ids.extend(self.tokenizer.get_model().tokenize(piece)?.iter().map(|token| token.id)),
            }
        }
        Ok(ids)
    }

    /// As much of a long text as gives `room` tokens for sure, so that a text without end costs no more than a row.
    ///
    /// Words of ASCII letters and digits between spaces are counted. Each gives a token at least, and what follows the space
    /// after it changes nothing before it.
    fn head<'a>(&self, text: &'a str, room: usize) -> &'a str {
        if !self.words_are_apart || text.len() < LONG_TEXT {
            return text;
        }
        let bytes = text.as_bytes();
        let (mut words, mut plain) = (0, true);
        for (i, &byte) in bytes.iter().enumerate() {
            if byte != b' ' {
                plain &= byte.is_ascii_alphanumeric();
                continue;
            }
            if plain && i > 0 && bytes[i - 1] != b' ' {
                words += 1;
                if words > room {
                    return &text[..i];
                }
            }
            plain = true;
        }
        text
    }
}

/// Whether the pre-tokeniser cuts at spaces and every word has a token, alone and beside others.
fn words_are_apart(tokenizer: &Tokenizer) -> bool {
    let json = serde_json::to_value(tokenizer.get_pre_tokenizer()).unwrap_or_default();
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    let is_apart = |part: &Value| match part["type"].as_str() {
        Some("BertPreTokenizer" | "Whitespace" | "WhitespaceSplit") => true,
        Some("ByteLevel") => part["use_regex"] != Value::Bool(false),
        // CLIP's: pieces are what its pattern finds, which never holds a space.
        Some("Split") => part["invert"] == Value::Bool(true) && part["behavior"] == "Removed" && cuts_at_spaces(part),
        _ => false,
    };
    let parts = json["pretokenizers"].as_array();
    let first = parts.and_then(|parts| parts.first()).unwrap_or(&json);
    let has_token = |c: char| tokenizer.encode_fast(c.to_string(), false).is_ok_and(|e| !e.get_ids().is_empty());
    is_apart(first)
        && added.values().all(|token| !token.content.contains(char::is_whitespace))
        && ('0'..='9').chain('A'..='Z').chain('a'..='z').all(has_token)
}

fn cuts_at_spaces(split: &Value) -> bool {
    split["pattern"]["Regex"].as_str().is_some_and(|pattern| pattern.contains(r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}"))
}
