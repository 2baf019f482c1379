//! [`TextTokenizer`]: text to token ids by a checkpoint's `tokenizer.json`, equal to transformers' fast tokenizers.
//!
//! The file decides how text is split (and lower-cased, and normalised); the [`TokenRules`] of the checkpoint's family
//! decide how long a row is and how it is padded. Truncation cuts the text and keeps the special tokens around it:
//! `special tokens before ‖ text[..n] ‖ special tokens after`, at most `context_length` together. Truncation and padding
//! that are written into `tokenizer.json` itself are ignored: they are settings of whoever saved the file.

use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokenizers::{Encoding, PostProcessor, Token, Tokenizer};

use crate::text::TokenBatch;
use crate::{Error, Result};

const TOKENIZER_JSON: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";

/// How rows of ids are made: chosen by the checkpoint's family, not by the tokenizer's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRules {
    /// The most tokens that a row may have, special ones included.
    pub context_length: usize,
    /// How far shorter rows are filled up.
    pub padding: Padding,
    /// The id that fills them up.
    pub pad_id: PadId,
    /// Whether the special tokens of the file's post-processor are put around the text.
    pub special_tokens: SpecialTokens,
}

impl TokenRules {
    /// Rows of up to `context_length` tokens with their special tokens, padded to the longest of the batch with the id that
    /// the files name (0 if they name none).
    #[must_use]
    pub fn new(context_length: usize) -> Self {
        let (padding, pad_id) = (Padding::Longest, PadId::FromFiles { otherwise: 0 });
        Self { context_length, padding, pad_id, special_tokens: SpecialTokens::Add }
    }
}

/// How far a row is filled up with padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Padding {
    /// To the longest row of the batch.
    Longest,
    /// To the context length: for towers that read padding as text (SigLIP) and for graphs of a fixed shape.
    ContextLength,
}

/// Which id fills up a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PadId {
    /// The pad token of `tokenizer_config.json`, of `special_tokens_map.json` or of `tokenizer.json`, the first that names
    /// one (the order of transformers).
    FromFiles {
        /// The id to take where no file names a pad token.
        otherwise: u32,
    },
    /// This id, whatever the files say (open_clip pads with 0).
    Fixed(u32),
}

/// Whether the special tokens of the file's post-processor (`[CLS]` … `[SEP]` and their like) are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpecialTokens {
    /// They are added; truncation keeps them.
    Add,
    /// The text's own tokens alone.
    Omit,
}

/// A checkpoint's tokenizer together with the rules for its rows.
///
/// # Examples
/// ```no_run
/// # fn main() -> diptych::Result<()> {
/// use diptych::text::{TextTokenizer, TokenRules};
/// let tokenizer = TextTokenizer::from_folder("clip-vit-base-patch32", TokenRules::new(77))?;
/// let tokens = tokenizer.encode(&["a photo of a cat", "two dogs"])?;
/// assert_eq!((tokens.batch(), tokens.length()), (2, 7));
/// # Ok(())
/// # }
/// ```
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    rules: TokenRules,
    pad_id: u32,
    before: Vec<u32>,
    after: Vec<u32>,
    /// The files as they were read, by name, to be written back byte for byte.
    files: Vec<(&'static str, Vec<u8>)>,
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextTokenizer")
            .field("rules", &self.rules)
            .field("pad_id", &self.pad_id)
            .finish_non_exhaustive()
    }
}

impl TextTokenizer {
    /// The tokenizer of a checkpoint's folder: `tokenizer.json` and, where they are there, `tokenizer_config.json` and
    /// `special_tokens_map.json` (for the pad token and for `model_max_length`, which can only lower the context length).
    ///
    /// # Errors
    /// When `tokenizer.json` is missing or unreadable, a file is no JSON, or the context length has no room for the special
    /// tokens.
    pub fn from_folder(folder: impl AsRef<Path>, rules: TokenRules) -> Result<Self> {
        let folder = folder.as_ref();
        if !folder.join(TOKENIZER_JSON).is_file() {
            return Err(missing(folder));
        }
        let mut files = Vec::new();
        for name in [TOKENIZER_JSON, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP] {
            let path = folder.join(name);
            if path.is_file() {
                files.push((name, std::fs::read(&path).map_err(|e| Error::file(&path, e))?));
            }
        }
        Self::build(folder, files, rules)
    }

    /// The tokenizer of a single `tokenizer.json`, under any name.
    ///
    /// # Errors
    /// When the file is missing or no tokenizer, or the context length has no room for the special tokens.
    pub fn from_file(path: impl AsRef<Path>, rules: TokenRules) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::file(path, e))?;
        Self::build(path.parent().unwrap_or(path), vec![(TOKENIZER_JSON, bytes)], rules)
    }

    /// The tokenizer of the content of a `tokenizer.json`.
    ///
    /// # Errors
    /// When the bytes are no tokenizer, or the context length has no room for the special tokens.
    pub fn from_bytes(tokenizer_json: impl Into<Vec<u8>>, rules: TokenRules) -> Result<Self> {
        Self::build(Path::new(""), vec![(TOKENIZER_JSON, tokenizer_json.into())], rules)
    }

    fn build(folder: &Path, files: Vec<(&'static str, Vec<u8>)>, mut rules: TokenRules) -> Result<Self> {
        let bytes_of = |name| files.iter().find(|(other, _)| *other == name).map(|(_, bytes)| bytes.as_slice());
        let json_of = |name| bytes_of(name).map(|bytes| parse(&folder.join(name), bytes)).transpose();
        let mut tokenizer = read_tokenizer(&folder.join(TOKENIZER_JSON), bytes_of(TOKENIZER_JSON).unwrap_or_default())?;
        let configs = [json_of(TOKENIZER_CONFIG)?, json_of(SPECIAL_TOKENS_MAP)?];

        let embedded_pad = tokenizer.get_padding().map(|padding| padding.pad_id);
        // Only fails for a stride that does not fit, and `None` has no stride.
        tokenizer.with_padding(None).with_truncation(None).map_err(|e| Error::file(folder, e))?;

        if let Some(longest) = configs[0].as_ref().and_then(|config| config.get("model_max_length")?.as_f64()) {
            // Files without a limit say 1e30; the cast saturates.
            rules.context_length = rules.context_length.min(longest as usize);
        }
        let (before, after) = match rules.special_tokens {
            SpecialTokens::Add => special_tokens(&folder.join(TOKENIZER_JSON), &tokenizer)?,
            SpecialTokens::Omit => (Vec::new(), Vec::new()),
        };
        let special = before.len() + after.len();
        if rules.context_length < special.max(1) {
            let message = format!("{} has no room for the {special} special tokens", rules.context_length);
            return Err(Error::argument("context_length", message));
        }
        let named_pad = || configs.iter().flatten().find_map(|config| pad_token(config, &tokenizer));
        let pad_id = match rules.pad_id {
            PadId::Fixed(id) => id,
            PadId::FromFiles { otherwise } => named_pad().or(embedded_pad).unwrap_or(otherwise),
        };
        Ok(Self { tokenizer, rules, pad_id, before, after, files })
    }

    /// Token ids and mask of `texts`, in their order, padded on the right.
    ///
    /// The texts are split in parallel, on rayon's current pool.
    ///
    /// # Shapes
    /// B texts → (B,L), L ≤ `context_length`.
    ///
    /// # Errors
    /// When `texts` is empty, a text gives no token at all (possible without special tokens only), or the vocabulary has
    /// neither a token nor an unknown token for a piece of text.
    pub fn encode(&self, texts: &[impl AsRef<str> + Sync]) -> Result<TokenBatch> {
        if texts.is_empty() {
            return Err(Error::argument("texts", "the list is empty; at least one text is needed"));
        }
        let rows: Vec<Vec<u32>> = texts
            .par_iter()
            .enumerate()
            .map(|(i, text)| match self.row(text.as_ref()) {
                Ok(row) if row.is_empty() => Err(Error::argument("texts", format!("text {i} gives no tokens"))),
                Ok(row) => Ok(row),
                Err(e) => Err(Error::argument("texts", format!("text {i} cannot be split: {e}"))),
            })
            .collect::<Result<_>>()?;
        match self.rules.padding {
            Padding::Longest => TokenBatch::from_rows(&rows, self.pad_id),
            Padding::ContextLength => TokenBatch::from_rows_of_length(&rows, self.pad_id, self.rules.context_length),
        }
    }

    /// Writes the files that the tokenizer was read from into `folder`, byte for byte.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        for (name, bytes) in &self.files {
            let path = folder.as_ref().join(name);
            std::fs::write(&path, bytes).map_err(|e| Error::file(&path, e))?;
        }
        Ok(())
    }

    /// The rules in force: as given, the context length lowered to the files' `model_max_length` where that is smaller.
    #[must_use]
    pub fn rules(&self) -> &TokenRules {
        &self.rules
    }

    /// The id that fills up a row.
    #[must_use]
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// How many ids there are, added tokens included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The id of a token, or `None` if the vocabulary does not hold it.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    fn row(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false)?;
        let room = self.rules.context_length - self.before.len() - self.after.len();
        let ids = encoding.get_ids();
        Ok([&self.before, &ids[..ids.len().min(room)], &self.after].concat())
    }
}

/// The error for a folder without `tokenizer.json`; older checkpoints hold the vocabulary in another form.
fn missing(folder: &Path) -> Error {
    if !folder.is_dir() {
        return Error::file(folder, "is no folder");
    }
    let older = ["vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"];
    let message = match older.iter().find(|name| folder.join(name).is_file()) {
        None => "is missing; the folder of a text encoder needs it".to_string(),
        Some(name) => format!(
            "is missing; the folder holds {name}, from which Python makes it: \
             transformers.AutoTokenizer.from_pretrained(dir).save_pretrained(dir)"
        ),
    };
    Error::file(folder.join(TOKENIZER_JSON), message)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::file(path, format!("is not valid JSON: {e}")))
}

fn read_tokenizer(path: &Path, bytes: &[u8]) -> Result<Tokenizer> {
    // A file that is JSON but not a tokenizer can reach an assertion inside the tokenizers crate.
    match std::panic::catch_unwind(|| Tokenizer::from_bytes(bytes)) {
        Ok(Ok(tokenizer)) => Ok(tokenizer),
        Ok(Err(e)) => Err(Error::file(path, format!("is not a tokenizer: {e}"))),
        Err(_) => Err(Error::file(path, "is not a tokenizer: its parts contradict each other")),
    }
}

/// What the post-processor puts before and after a text, found by sending a marker through it.
fn special_tokens(path: &Path, tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    const MARKER: u32 = u32::MAX;
    let Some(processor) = tokenizer.get_post_processor() else { return Ok((Vec::new(), Vec::new())) };
    let marker = Encoding::from_tokens(vec![Token::new(MARKER, "a".to_string(), (0, 1))], 0);
    let failed = |what: String| Error::file(path, format!("the post-processor cannot be used: {what}"));
    let ids = processor.process(marker, None, true).map_err(|e| failed(e.to_string()))?.get_ids().to_vec();
    let mut parts = ids.split(|&id| id == MARKER);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(before), Some(after), None) => Ok((before.to_vec(), after.to_vec())),
        _ => Err(failed("it does not hold the text exactly once".to_string())),
    }
}

/// The id of a config's `pad_token`, which is a string or an object with a `content`.
fn pad_token(config: &Value, tokenizer: &Tokenizer) -> Option<u32> {
    let token = config.get("pad_token")?;
    tokenizer.token_to_id(token.get("content").unwrap_or(token).as_str()?)
}

#[cfg(test)]
mod tests;
