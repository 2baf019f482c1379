//! [`TextTokenizer`]: text to token ids by a checkpoint's files, equal to transformers' and open_clip's tokenizers.
//!
//! The files decide how text is split: a `tokenizer.json`, or what came before it (`vocab.json` and `merges.txt`, `vocab.txt`, a
//! SentencePiece model). The [`TokenRules`] of the checkpoint's family decide how a text is cleaned, how long a row is and how
//! it is padded. Truncation cuts the text and keeps the special tokens around it:
//! `special tokens before ‖ text[..n] ‖ special tokens after`, at most `context_length` together. Truncation and padding
//! that are written into `tokenizer.json` itself are ignored: they are settings of whoever saved the file.

mod split;

use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;
use tokenizers::normalizers::{Lowercase, NormalizerWrapper, Sequence};
use tokenizers::{Encoding, PostProcessor, Token, Tokenizer};

use self::split::Splitter;
use crate::text::convert;
use crate::text::files::{Files, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG, TOKENIZER_JSON};
use crate::text::{Cleaning, PadId, Padding, Separator, SpecialTokens, Splitting, TokenBatch, TokenRules};
use crate::{Error, Result};

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
    splitter: Splitter,
    rules: TokenRules,
    pad_id: u32,
    before: Vec<u32>,
    after: Vec<u32>,
    /// The token at a row's last place ([`SpecialTokens::Clips`]).
    last: Option<u32>,
    /// The token that becomes 0 ([`Separator::Zero`]).
    separator: Option<u32>,
    /// Whether rows are filled up before the text.
    pads_left: bool,
    files: Files,
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
    /// The tokenizer of a checkpoint's folder: `tokenizer.json`, or else `vocab.json` and `merges.txt` (CLIP, RoBERTa), `vocab.txt`
    /// (BERT, DistilBERT, MPNet) or a SentencePiece model (XLM-R, T5, SigLIP, Gemma). `tokenizer_config.json`,
    /// `special_tokens_map.json` and `added_tokens.json` are read where they are there, for special tokens and for
    /// `model_max_length`, which can only lower the context length.
    ///
    /// # Errors
    /// When there are no such files ([`TextTokenizer::is_in`] tells), one cannot be read or used, or the context length has no
    /// room for the special tokens.
    pub fn from_folder(folder: impl AsRef<Path>, rules: TokenRules) -> Result<Self> {
        let folder = folder.as_ref();
        let files = Files::read(folder)?;
        if !Self::is_in(folder) {
            return Err(missing(folder, &rules));
        }
        Self::build(files, rules)
    }

    /// Whether `folder` holds files to make a tokenizer of. Where it does not, and the family says that the tokenizer is CLIP's,
    /// [`TextTokenizer::from_folder`] can be given another folder that does.
    #[must_use]
    pub fn is_in(folder: impl AsRef<Path>) -> bool {
        Files::are_in(folder.as_ref())
    }

    /// The tokenizer of a single `tokenizer.json`, under any name.
    ///
    /// # Errors
    /// When the file is missing or no tokenizer, or the context length has no room for the special tokens.
    pub fn from_file(path: impl AsRef<Path>, rules: TokenRules) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::file(path, e))?;
        Self::build(Files::of_tokenizer_json(path.parent().unwrap_or(path), bytes), rules)
    }

    /// The tokenizer of the content of a `tokenizer.json`.
    ///
    /// # Errors
    /// When the bytes are no tokenizer, or the context length has no room for the special tokens.
    pub fn from_bytes(tokenizer_json: impl Into<Vec<u8>>, rules: TokenRules) -> Result<Self> {
        Self::build(Files::of_tokenizer_json(Path::new(""), tokenizer_json.into()), rules)
    }

    fn build(mut files: Files, mut rules: TokenRules) -> Result<Self> {
        let path = files.path(TOKENIZER_JSON);
        let mut tokenizer = match files.get(TOKENIZER_JSON) {
            Some(bytes) => read_tokenizer(&path, bytes)?,
            None => convert::from_older_files(&files)?,
        };
        if files.get(TOKENIZER_JSON).is_none() {
            let json = tokenizer.to_string(false).map_err(|e| Error::file(&path, format!("cannot be made: {e}")))?;
            files.add(TOKENIZER_JSON, json.into_bytes());
        }
        let names = Names::read(&files)?;
        let embedded_pad = tokenizer.get_padding().map(|padding| padding.pad_id);
        let pad_id = match rules.pad_id {
            PadId::Fixed(id) => id,
            PadId::FromFiles { otherwise } => names.id("pad_token", &tokenizer).or(embedded_pad).unwrap_or(otherwise),
        };
        if rules.splitting == Splitting::OpenClip {
            tokenizer = convert::open_clip(&files)?;
        }
        // Only fails for a stride that does not fit, and `None` has no stride.
        tokenizer.with_padding(None).with_truncation(None).map_err(|e| Error::file(&path, e))?;
        if rules.cleaning == Cleaning::Lowercase {
            lowercase(&mut tokenizer).map_err(|e| Error::file(&path, e))?;
        }

        if let Some(longest) = names.model_max_length().filter(|_| !asks_for_exact_length(rules.cleaning)) {
            rules.context_length = rules.context_length.min(longest);
        }
        let required = |name| names.required_id(name, &tokenizer, files.folder());
        let (before, after, last) = match rules.special_tokens {
            SpecialTokens::Add => {
                let (before, after) = special_tokens(&path, &tokenizer)?;
                (before, after, None)
            }
            SpecialTokens::Omit => (Vec::new(), Vec::new(), None),
            SpecialTokens::Clips => {
                (vec![required("bos_token")?], vec![required("eos_token")?], Some(required("cls_token")?))
            }
        };
        let separator = match rules.separator {
            Separator::Keep => None,
            Separator::Zero => Some(required("sep_token")?),
        };
        let special = before.len() + after.len() + usize::from(last.is_some());
        if rules.context_length < special.max(1) {
            let message = format!("{} has no room for the {special} special tokens", rules.context_length);
            return Err(Error::argument("context_length", message));
        }
        let around = [before.first().copied(), after.first().copied()];
        let splitter = Splitter::new(tokenizer, rules.cleaning, rules.splitting, around);
        let pads_left = rules.splitting == Splitting::FromFiles && last.is_none() && names.pads_left(&files)?;
        Ok(Self { splitter, rules, pad_id, before, after, last, separator, pads_left, files })
    }

    /// Token ids and mask of `texts`, in their order, padded on the right unless the files say left (`padding_side`).
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
        let length = match (self.last, self.rules.padding) {
            (None, Padding::Longest) => rows.iter().map(Vec::len).max().unwrap_or(0),
            _ => self.rules.context_length,
        };
        self.filled_up(&rows, length)
    }

    /// Writes the files that the tokenizer was read from into `folder`, byte for byte; where there was no `tokenizer.json`
    /// among them, one is written too, so that the folder loads everywhere.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.files.save(folder.as_ref())
    }

    /// The rules in force: as given, the context length lowered to the files' `model_max_length` where that is smaller (never
    /// under open_clip's cleanings).
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
        self.splitter.tokenizer.get_vocab_size(true)
    }

    /// The id of a token, or `None` if the vocabulary does not hold it.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.splitter.tokenizer.token_to_id(token)
    }

    fn row(&self, text: &str) -> std::result::Result<Vec<u32>, String> {
        let special = self.before.len() + self.after.len() + usize::from(self.last.is_some());
        let room = self.rules.context_length - special;
        let mut ids = self.splitter.ids(text, room)?;
        ids.truncate(room);
        // `SiglipTokenizer` adds no end token to a text that ends in one.
        let ended = self.rules.cleaning == Cleaning::Siglip && ids.last() == self.after.first();
        let after = if ended && !ids.is_empty() { &[] } else { self.after.as_slice() };
        let mut row = [&self.before, ids.as_slice(), after].concat();
        if let Some(separator) = self.separator {
            row.iter_mut().filter(|id| **id == separator).for_each(|id| *id = 0);
        }
        Ok(row)
    }

    /// Rows filled up to `length`, on the side that the files say, before the token that stands in the last place.
    fn filled_up(&self, rows: &[Vec<u32>], length: usize) -> Result<TokenBatch> {
        let (mut ids, mut mask) = (Vec::with_capacity(rows.len() * length), Vec::with_capacity(rows.len() * length));
        for row in rows {
            let padding = length.saturating_sub(row.len() + usize::from(self.last.is_some()));
            let [before, after] = if self.pads_left { [padding, 0] } else { [0, padding] };
            for (count, keep, tokens) in
                [(before, 0, &[][..]), (0, 1, row), (after, 0, &[]), (0, 1, self.last.as_slice())]
            {
                ids.extend(std::iter::repeat_n(self.pad_id, count).chain(tokens.iter().copied()));
                mask.resize(ids.len(), keep);
            }
        }
        TokenBatch::from_ids_and_mask(ids, &mask, rows.len(), length)
    }
}

/// What the configuration files name.
struct Names([Option<Value>; 2]);

impl Names {
    fn read(files: &Files) -> Result<Self> {
        Ok(Self([files.json(TOKENIZER_CONFIG)?, files.json(SPECIAL_TOKENS_MAP)?]))
    }

    /// The id of a named token, which is a string or an object with a `content`.
    fn id(&self, name: &str, tokenizer: &Tokenizer) -> Option<u32> {
        self.0.iter().flatten().find_map(|config| {
            let token = config.get(name)?;
            tokenizer.token_to_id(token.get("content").unwrap_or(token).as_str()?)
        })
    }

    /// The same for a token that the rules ask for; those that BERT's and RoBERTa's classes name need not be written.
    fn required_id(&self, name: &'static str, tokenizer: &Tokenizer, folder: &Path) -> Result<u32> {
        let usual: &[&str] = match name {
            "sep_token" => &["[SEP]", "</s>"],
            "cls_token" => &["[CLS]", "<s>"],
            "bos_token" => &["<s>"],
            "eos_token" => &["</s>"],
            _ => &[],
        };
        let id = self.id(name, tokenizer).or_else(|| usual.iter().find_map(|token| tokenizer.token_to_id(token)));
        id.ok_or_else(|| {
            let message = format!("names no {name}, which the token rules ask for");
            Error::file(folder.join(TOKENIZER_CONFIG), message)
        })
    }

    /// Whether rows are filled up on the left: `padding_side`, or what the classes of Gemma and SigLIP 2 do without it.
    fn pads_left(&self, files: &Files) -> Result<bool> {
        let text = |name: &str| self.0[0].as_ref().and_then(|config| config.get(name)?.as_str());
        match text("padding_side") {
            Some("left") => Ok(true),
            Some("right") => Ok(false),
            Some(other) => {
                let context = files.path(TOKENIZER_CONFIG).display().to_string();
                Err(Error::unsupported(context, "padding_side", other, "left, right"))
            }
            None => {
                let class = text("tokenizer_class").unwrap_or_default();
                Ok(["GemmaTokenizer", "Siglip2Tokenizer"].contains(&class.strip_suffix("Fast").unwrap_or(class)))
            }
        }
    }

    fn model_max_length(&self) -> Option<usize> {
        // Files without a limit say 1e30; the cast saturates.
        Some(self.0[0].as_ref()?.get("model_max_length")?.as_f64()? as usize)
    }
}

/// open_clip gives its tokenizers the length and does not ask the files.
fn asks_for_exact_length(cleaning: Cleaning) -> bool {
    matches!(cleaning, Cleaning::OpenClipLower | Cleaning::OpenClipWhitespace | Cleaning::OpenClipCanonicalize)
}

/// Puts lower-casing before the tokenizer's own normaliser, where special tokens are already taken out of the text.
fn lowercase(tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
    let mut normalizers: Vec<NormalizerWrapper> = vec![Lowercase.into()];
    normalizers.extend(tokenizer.get_normalizer().cloned());
    tokenizer.with_normalizer(Some(Sequence::new(normalizers)))?;
    Ok(())
}

/// The error for a folder without any vocabulary.
fn missing(folder: &Path, rules: &TokenRules) -> Error {
    let message = match rules.splitting {
        Splitting::OpenClip => {
            "is missing; this checkpoint uses CLIP's vocabulary: copy tokenizer.json (or vocab.json and merges.txt) of \
             openai/clip-vit-base-patch32 into the folder"
        }
        Splitting::FromFiles => {
            "is missing, and so are vocab.json with merges.txt, vocab.txt and spiece.model; a text encoder needs one of them"
        }
    };
    Error::file(folder.join(TOKENIZER_JSON), message)
}

pub(super) fn read_tokenizer(path: &Path, bytes: &[u8]) -> Result<Tokenizer> {
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

#[cfg(test)]
mod tests;
