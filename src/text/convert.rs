//! Tokenizers from files older than `tokenizer.json`, put together as transformers 5.23 does.
//!
//! Each kind is one JSON description of normaliser, pre-tokeniser and model (`models/*/tokenization_*.py`), read by the
//! `tokenizers` crate; the special tokens are added to it. What comes out is written as `tokenizer.json`.

mod pipeline;
mod specials;

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, PaddingParams, Tokenizer};

use self::pipeline::Merges;
use self::specials::Specials;
use crate::text::files::{Files, MERGES_TXT, TOKENIZER_CONFIG, TOKENIZER_JSON, VOCAB_JSON, VOCAB_TXT};
use crate::text::sentencepiece::{Algorithm, PieceKind, SentencePieceModel};
use crate::{Error, Result};

/// The kinds of tokenizers that older files describe, named by their class in transformers.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Clip,
    Roberta,
    Bert,
    Mpnet,
    XlmRoberta,
    T5,
    Siglip,
    Gemma,
}

const SUPPORTED: &str = "CLIPTokenizer, RobertaTokenizer, BertTokenizer, DistilBertTokenizer, MPNetTokenizer, \
    XLMRobertaTokenizer, T5Tokenizer, SiglipTokenizer, GemmaTokenizer; any other with a tokenizer.json";

/// The tokenizer of files that hold no `tokenizer.json`; its padding names the pad token of its class.
///
/// # Errors
/// When there is no vocabulary, or its files contradict each other or are of an unknown kind.
pub(super) fn from_older_files(files: &Files) -> Result<Tokenizer> {
    let config = files.json(TOKENIZER_CONFIG)?.unwrap_or(Value::Null);
    let kind = kind(files, &config)?;
    let mut specials = Specials::read(files, &defaults(kind))?;
    let (description, extra) = match kind {
        Kind::Clip => (clip(files, &specials)?, Vec::new()),
        Kind::Roberta => (roberta(files, &config)?, Vec::new()),
        Kind::Bert | Kind::Mpnet => (word_piece(files, &config, &specials)?, Vec::new()),
        Kind::XlmRoberta | Kind::T5 | Kind::Siglip | Kind::Gemma => sentencepiece(files, kind, &config, &specials)?,
    };
    specials.extend(extra);
    let around = around(kind, &config, &specials);
    let pad = specials.name("pad_token").map(str::to_string);
    let mut tokenizer = assemble(files.folder(), &description, specials, kind, around)?;
    if let Some(pad_token) = pad
        && let Some(pad_id) = tokenizer.token_to_id(&pad_token)
    {
        tokenizer.with_padding(Some(PaddingParams { pad_id, pad_token, ..PaddingParams::default() }));
    }
    Ok(tokenizer)
}

/// The tokenizer of open_clip's `SimpleTokenizer` over the vocabulary and merges of CLIP's files, in whichever form.
///
/// # Errors
/// When the files hold no byte-level BPE with `</w>` and CLIP's two special tokens.
pub(super) fn open_clip(files: &Files) -> Result<Tokenizer> {
    let (source, vocab, merges) = match files.json(TOKENIZER_JSON)? {
        Some(mut json) => {
            let mut part = |name: &str| json.get_mut("model").and_then(|model| model.get_mut(name)).map(Value::take);
            (TOKENIZER_JSON, part("vocab").unwrap_or_default(), Merges::from_json(part("merges").unwrap_or_default()))
        }
        None => (VOCAB_JSON, files.json(VOCAB_JSON)?.unwrap_or_default(), merges(files)?),
    };
    let id = |names: [&str; 2]| {
        names.into_iter().find_map(|name| Some(json!([name, vocab.get(name)?.as_u64()?]))).ok_or_else(|| {
            let message = format!("holds no token '{}'; open_clip's tokenizer needs the vocabulary of CLIP", names[0]);
            Error::file(files.path(source), message)
        })
    };
    let start = id(["<|startoftext|>", "<start_of_text>"])?;
    let end = id(["<|endoftext|>", "<end_of_text>"])?;
    let around = json!({"type": "RobertaProcessing", "cls": start, "sep": end, "trim_offsets": false, "add_prefix_space": false});
    let description = pipeline::open_clip(vocab, merges, &end[0]);
    let mut tokenizer = read(&files.path(source), &description)?;
    tokenizer.with_post_processor(Some(processor(&files.path(source), around)?));
    Ok(tokenizer)
}

/// Which kind the files are of: as `tokenizer_config.json` says, else by their names and what the vocabulary holds.
fn kind(files: &Files, config: &Value) -> Result<Kind> {
    if let Some(class) = config.get("tokenizer_class").and_then(Value::as_str) {
        return Ok(match class.strip_suffix("Fast").unwrap_or(class) {
            "CLIPTokenizer" => Kind::Clip,
            "RobertaTokenizer" => Kind::Roberta,
            "BertTokenizer" | "DistilBertTokenizer" => Kind::Bert,
            "MPNetTokenizer" => Kind::Mpnet,
            "XLMRobertaTokenizer" => Kind::XlmRoberta,
            "T5Tokenizer" => Kind::T5,
            "SiglipTokenizer" => Kind::Siglip,
            "GemmaTokenizer" | "Siglip2Tokenizer" => Kind::Gemma,
            _ => {
                let context = files.path(TOKENIZER_CONFIG).display().to_string();
                return Err(Error::unsupported(context, "tokenizer class", class, SUPPORTED));
            }
        });
    }
    if let Some(words) = files.get(VOCAB_TXT) {
        return Ok(if words.starts_with(b"<s>") { Kind::Mpnet } else { Kind::Bert });
    }
    if let Some((name, _)) = files.sentencepiece() {
        return Ok(match name {
            "sentencepiece.bpe.model" => Kind::XlmRoberta,
            "spiece.model" => Kind::T5,
            _ => Kind::Gemma,
        });
    }
    let vocab = files.json(VOCAB_JSON)?.unwrap_or_default();
    let is_clip = vocab.as_object().is_some_and(|vocab| vocab.keys().any(|token| token.ends_with("</w>")));
    Ok(if is_clip { Kind::Clip } else { Kind::Roberta })
}

/// The special tokens that a class names where the files do not.
fn defaults(kind: Kind) -> Vec<(&'static str, AddedToken)> {
    const ROBERTA: [(&str, &str); 7] = [
        ("bos_token", "<s>"),
        ("eos_token", "</s>"),
        ("sep_token", "</s>"),
        ("cls_token", "<s>"),
        ("unk_token", "<unk>"),
        ("pad_token", "<pad>"),
        ("mask_token", "<mask>"),
    ];
    let plain = |token: &str| AddedToken::from(token, true);
    let all = |names: &[(&'static str, &str)]| names.iter().map(|&(name, token)| (name, plain(token))).collect();
    match kind {
        Kind::Clip => all(&[
            ("unk_token", "<|endoftext|>"),
            ("bos_token", "<|startoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("pad_token", "<|endoftext|>"),
        ]),
        Kind::Roberta | Kind::XlmRoberta => all(&ROBERTA),
        Kind::Bert => all(&[
            ("unk_token", "[UNK]"),
            ("sep_token", "[SEP]"),
            ("pad_token", "[PAD]"),
            ("cls_token", "[CLS]"),
            ("mask_token", "[MASK]"),
        ]),
        Kind::Mpnet => {
            let token = |(name, content)| match name {
                "unk_token" => (name, plain("[UNK]")),
                "mask_token" => (name, plain(content).lstrip(true)),
                _ => (name, plain(content)),
            };
            ROBERTA.map(token).to_vec()
        }
        Kind::T5 => all(&[("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")]),
        Kind::Siglip => [("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "</s>")]
            .map(|(name, token)| (name, plain(token).lstrip(true).rstrip(true)))
            .to_vec(),
        Kind::Gemma => all(&[
            ("unk_token", "<unk>"),
            ("bos_token", "<bos>"),
            ("eos_token", "<eos>"),
            ("pad_token", "<pad>"),
            ("mask_token", "<mask>"),
        ]),
    }
}

fn clip(files: &Files, specials: &Specials) -> Result<Value> {
    Ok(pipeline::clip(vocab(files)?, merges(files)?, specials.name("unk_token")))
}

fn roberta(files: &Files, config: &Value) -> Result<Value> {
    Ok(pipeline::roberta(vocab(files)?, merges(files)?, flag(config, "add_prefix_space", false)))
}

fn word_piece(files: &Files, config: &Value, specials: &Specials) -> Result<Value> {
    let path = files.path(VOCAB_TXT);
    let bytes = files.get(VOCAB_TXT).ok_or_else(|| Error::file(&path, "is missing"))?;
    let text = std::str::from_utf8(bytes).map_err(|e| Error::file(&path, format!("is not UTF-8: {e}")))?;
    // `split`, not `lines`: a carriage return is white space at the end, which goes with the rest of it.
    let lines = text.strip_suffix('\n').unwrap_or(text).split('\n');
    let vocab = lines.enumerate().map(|(id, word)| (word.trim_end().to_string(), json!(id))).collect();
    let normalizer = json!({
        "type": "BertNormalizer", "clean_text": true,
        "handle_chinese_chars": flag(config, "tokenize_chinese_chars", true),
        "strip_accents": config.get("strip_accents").and_then(Value::as_bool),
        "lowercase": flag(config, "do_lower_case", true),
    });
    Ok(pipeline::word_piece(Value::Object(vocab), normalizer, specials.name("unk_token")))
}

/// The description of a SentencePiece model, and the tokens that it names itself.
fn sentencepiece(files: &Files, kind: Kind, config: &Value, specials: &Specials) -> Result<(Value, Vec<AddedToken>)> {
    let Some((name, bytes)) = files.sentencepiece() else {
        return Err(Error::file(files.folder(), "holds no SentencePiece model (spiece.model or its like)"));
    };
    let path = files.path(name);
    let model = SentencePieceModel::read(&path, bytes)?;
    let expected = if kind == Kind::Gemma { Algorithm::Bpe } else { Algorithm::Unigram };
    if model.algorithm != expected {
        let found = format!("{:?}", model.algorithm).to_lowercase();
        let expected = format!("{expected:?} for {kind:?}").to_lowercase();
        return Err(Error::unsupported(path.display().to_string(), "SentencePiece algorithm", found, expected));
    }
    let mut extra: Vec<_> = model
        .pieces
        .iter()
        .filter(|piece| piece.kind != PieceKind::Ordinary && kind != Kind::Siglip)
        .map(|piece| AddedToken::from(piece.text.as_str(), piece.kind == PieceKind::Control).normalized(false))
        .collect();
    let description = match kind {
        Kind::XlmRoberta => pipeline::xlm_roberta(&model, specials, flag(config, "add_prefix_space", true)),
        Kind::T5 => {
            let count = config.get("extra_ids").and_then(Value::as_u64).unwrap_or(100).min(10_000);
            let sentinels: Vec<_> = (0..count).map(|i| format!("<extra_id_{i}>")).collect();
            extra.extend(sentinels.iter().map(|token| AddedToken::from(token.as_str(), true)));
            pipeline::t5(&model, &sentinels)
        }
        Kind::Siglip => pipeline::siglip(&model),
        _ => pipeline::gemma(&model, specials.name("unk_token")),
    };
    Ok((description, extra))
}

/// The tokens that stand before and after a text, by content.
fn around(kind: Kind, config: &Value, specials: &Specials) -> [Option<String>; 2] {
    let [before, after] = match kind {
        Kind::Clip | Kind::XlmRoberta => ["bos_token", "eos_token"].map(Some),
        Kind::Roberta | Kind::Bert | Kind::Mpnet => ["cls_token", "sep_token"].map(Some),
        Kind::T5 | Kind::Siglip => [None, Some("eos_token")],
        Kind::Gemma => [
            flag(config, "add_bos_token", false).then_some("bos_token"),
            flag(config, "add_eos_token", false).then_some("eos_token"),
        ],
    };
    [before, after].map(|name| specials.name(name?).map(str::to_string))
}

/// Reads the description, adds the tokens and says which of them stand around a text.
fn assemble(
    folder: &Path,
    description: &Value,
    specials: Specials,
    kind: Kind,
    around: [Option<String>; 2],
) -> Result<Tokenizer> {
    let mut tokenizer = read(folder, description)?;
    tokenizer
        .add_tokens(specials.into_tokens())
        .map_err(|e| Error::file(folder, format!("the special tokens: {e}")))?;
    let id = |token: Option<String>| {
        let Some(token) = token else { return Ok(None) };
        match tokenizer.token_to_id(&token) {
            Some(id) => Ok(Some((token, id))),
            None => Err(Error::file(folder, format!("the vocabulary does not hold the special token '{token}'"))),
        }
    };
    let [before, after] = around;
    let around = match (kind, id(before)?, id(after)?) {
        (Kind::Clip | Kind::Roberta | Kind::Mpnet, Some(before), Some(after)) => json!({
            "type": "RobertaProcessing", "cls": before, "sep": after,
            "trim_offsets": kind != Kind::Clip, "add_prefix_space": false,
        }),
        (_, before, after) => pipeline::template(before, after, kind == Kind::XlmRoberta),
    };
    tokenizer.with_post_processor(Some(processor(folder, around)?));
    Ok(tokenizer)
}

fn read(path: &Path, description: &Value) -> Result<Tokenizer> {
    super::tokenizer::read_tokenizer(path, description.to_string().as_bytes())
}

fn processor(path: &Path, description: Value) -> Result<PostProcessorWrapper> {
    serde_json::from_value(description)
        .map_err(|e| Error::file(path, format!("the special tokens cannot be used: {e}")))
}

fn vocab(files: &Files) -> Result<Value> {
    files.json(VOCAB_JSON)?.ok_or_else(|| Error::file(files.path(VOCAB_JSON), "is missing"))
}

fn merges(files: &Files) -> Result<Merges> {
    let path = files.path(MERGES_TXT);
    let bytes =
        files.get(MERGES_TXT).ok_or_else(|| Error::file(&path, "is missing; vocab.json is of no use without it"))?;
    Merges::from_text(bytes).map_err(|message| Error::file(path, message))
}

fn flag(config: &Value, name: &str, otherwise: bool) -> bool {
    config.get(name).and_then(Value::as_bool).unwrap_or(otherwise)
}
