//! The parts of each kind of tokenizer, as the JSON that the `tokenizers` crate reads.
//!
//! Sources: `models/clip/tokenization_clip.py`, `models/roberta/…`, `models/bert/…`, `models/mpnet/…`, `models/xlm_roberta/…`,
//! `models/t5/…`, `models/siglip/…`, `models/gemma/…` and `convert_slow_tokenizer.py` of transformers 5.23, and
//! `open_clip/tokenizer.py` 3.3.0.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::specials::Specials;
use crate::text::sentencepiece::SentencePieceModel;

/// Pairs of pieces that are joined, the most urgent first.
pub(super) struct Merges(Value);

impl Merges {
    /// Those of a `tokenizer.json`.
    pub(super) fn from_json(merges: Value) -> Self {
        Self(merges)
    }

    /// Those of a `merges.txt`: a pair a line, lines that begin with `#version` left out.
    pub(super) fn from_text(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|e| format!("is not UTF-8: {e}"))?;
        let mut merges = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version")) {
            match line.split_once(' ') {
                Some((left, right)) if !right.contains(' ') => merges.push(json!([left, right])),
                _ => return Err(format!("line {} is not two pieces with a space between them", i + 1)),
            }
        }
        Ok(Self(Value::Array(merges)))
    }
}

fn tokenizer(normalizer: Value, pre_tokenizer: Value, model: Value) -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null, "model": model,
    })
}

fn bpe(vocab: Value, merges: Merges, unk_token: Option<&str>, end_of_word_suffix: &str) -> Value {
    json!({
        "type": "BPE", "dropout": null, "unk_token": unk_token, "continuing_subword_prefix": "",
        "end_of_word_suffix": end_of_word_suffix, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": vocab, "merges": merges.0,
    })
}

fn byte_level(add_prefix_space: bool, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex})
}

fn split_to(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": true})
}

pub(super) fn clip(vocab: Value, merges: Merges, unk_token: Option<&str>) -> Value {
    const PATTERN: &str =
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    let normalizer = json!({"type": "Sequence", "normalizers": [
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Lowercase"},
    ]});
    let pre_tokenizer = json!({"type": "Sequence", "pretokenizers": [split_to(PATTERN), byte_level(false, true)]});
    let mut json = tokenizer(normalizer, pre_tokenizer, bpe(vocab, merges, unk_token, "</w>"));
    json["decoder"] = byte_level(true, true);
    json
}

/// `SimpleTokenizer`: no normaliser (the text is cleaned before), and pieces are not split a second time.
///
/// Its pattern ignores case as a whole, which leaves U+0345 in neither class: Python's `regex` drops that one character.
pub(super) fn open_clip(vocab: Value, merges: Merges, unk_token: &Value) -> Value {
    const PATTERN: &str =
        r"(?i:<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{345}]+";
    let pre_tokenizer = json!({"type": "Sequence", "pretokenizers": [split_to(PATTERN), byte_level(false, false)]});
    tokenizer(Value::Null, pre_tokenizer, bpe(vocab, merges, unk_token.as_str(), "</w>"))
}

pub(super) fn roberta(vocab: Value, merges: Merges, add_prefix_space: bool) -> Value {
    let mut json = tokenizer(Value::Null, byte_level(add_prefix_space, true), bpe(vocab, merges, None, ""));
    json["decoder"] = byte_level(true, true);
    json
}

pub(super) fn word_piece(vocab: Value, normalizer: Value, unk_token: Option<&str>) -> Value {
    let model = json!({
        "type": "WordPiece", "unk_token": unk_token, "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": vocab,
    });
    let mut json = tokenizer(normalizer, json!({"type": "BertPreTokenizer"}), model);
    json["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    json
}

/// fairseq's order: four tokens of its own, the pieces without their first three, the mask.
pub(super) fn xlm_roberta(model: &SentencePieceModel, specials: &Specials, add_prefix_space: bool) -> Value {
    let named = |name| json!([specials.name(name), 0.0]);
    let mut vocab: Vec<_> = ["bos_token", "pad_token", "eos_token", "unk_token"].map(named).to_vec();
    vocab.extend(pieces(model).skip(3));
    vocab.push(named("mask_token"));
    unigram(model, vocab, 3, if add_prefix_space { "always" } else { "never" })
}

pub(super) fn t5(model: &SentencePieceModel, sentinels: &[String]) -> Value {
    let vocab = pieces(model).chain(sentinels.iter().rev().map(|token| json!([token, 0.0]))).collect();
    unigram(model, vocab, 2, "always")
}

/// `SiglipTokenizer` leaves the work to SentencePiece itself: single spaces, one put before the text.
pub(super) fn siglip(model: &SentencePieceModel) -> Value {
    let mut normalizers: Vec<_> = charsmap(model).into_iter().collect();
    normalizers.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
    normalizers.push(json!({"type": "Strip", "strip_left": false, "strip_right": true}));
    let mut json = unigram(model, pieces(model).collect(), model.unk_id, "first");
    json["normalizer"] = json!({"type": "Sequence", "normalizers": normalizers});
    json["pre_tokenizer"] = metaspace("first");
    json["model"]["byte_fallback"] = json!(model.byte_fallback);
    json
}

fn unigram(model: &SentencePieceModel, vocab: Vec<Value>, unk_id: u32, prepend: &str) -> Value {
    let pre_tokenizer = json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace(prepend)]});
    let unigram = json!({"type": "Unigram", "unk_id": unk_id, "vocab": vocab, "byte_fallback": false});
    let mut json = tokenizer(charsmap(model).unwrap_or_default(), pre_tokenizer, unigram);
    json["decoder"] = metaspace(prepend);
    json
}

pub(super) fn gemma(model: &SentencePieceModel, unk_token: Option<&str>) -> Value {
    let vocab: Map<_, _> =
        model.pieces.iter().zip(0..).map(|(piece, id): (_, u32)| (piece.text.clone(), json!(id))).collect();
    let mut bpe = bpe(Value::Object(vocab), merges_of(model), unk_token, "");
    for (name, value) in [("fuse_unk", json!(true)), ("byte_fallback", json!(true))] {
        bpe[name] = value;
    }
    for name in ["continuing_subword_prefix", "end_of_word_suffix"] {
        bpe[name] = Value::Null;
    }
    let normalizer = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let split = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    let mut json = tokenizer(normalizer, split, bpe);
    json["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]});
    json
}

/// SentencePiece keeps no merges: each way to make a piece of two others is one, in the order of the pieces and, for one
/// piece, of the length of the left part (`generate_merges`).
fn merges_of(model: &SentencePieceModel) -> Merges {
    let ids: HashMap<&str, usize> =
        model.pieces.iter().enumerate().map(|(i, piece)| (piece.text.as_str(), i)).collect();
    let mut merges = Vec::new();
    for (i, piece) in model.pieces.iter().enumerate() {
        // Of pieces that are there twice, the dictionary of the reference keeps the last id.
        if ids.get(piece.text.as_str()) != Some(&i) {
            continue;
        }
        for (at, _) in piece.text.char_indices().skip(1) {
            let (left, right) = piece.text.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                merges.push(json!([left, right]));
            }
        }
    }
    Merges(Value::Array(merges))
}

fn pieces(model: &SentencePieceModel) -> impl Iterator<Item = Value> {
    model.pieces.iter().map(|piece| json!([piece.text, f64::from(piece.score)]))
}

fn metaspace(prepend: &str) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend, "split": true})
}

fn charsmap(model: &SentencePieceModel) -> Option<Value> {
    let table = || json!({"type": "Precompiled", "precompiled_charsmap": base64(&model.charsmap)});
    (!model.charsmap.is_empty()).then(table)
}

/// The tokens around a text; between two texts comes `after`, twice where the class doubles it.
pub(super) fn template(before: Option<(String, u32)>, after: Option<(String, u32)>, doubled: bool) -> Value {
    let token = |token: &Option<(String, u32)>, side: u32| {
        token.as_ref().map(|(token, _)| json!({"SpecialToken": {"id": token, "type_id": side}}))
    };
    let text = |name: &str, side: u32| Some(json!({"Sequence": {"id": name, "type_id": side}}));
    let list = |items: &[Option<Value>]| items.iter().flatten().cloned().collect::<Vec<_>>();
    let single = [token(&before, 0), text("A", 0), token(&after, 0)];
    let between = if doubled { token(&after, 0) } else { None };
    let second = [between, text("B", 1), token(&after, 1)];
    let named = [&before, &after].into_iter().flatten();
    let special: Map<_, _> =
        named.map(|(token, id)| (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}))).collect();
    let pair = [single.as_slice(), second.as_slice()].concat();
    json!({"type": "TemplateProcessing", "single": list(&single), "pair": list(&pair), "special_tokens": special})
}

/// Standard base 64 with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_64_is_padded() {
        for (bytes, expected) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("fooba", "Zm9vYmE=")] {
            assert_eq!(base64(bytes.as_bytes()), expected);
        }
    }
}
