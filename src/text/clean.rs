//! [`Cleaning`]: what is done to a text before its tokenizer sees it.
//!
//! Transformers' tokenizers clean by their own files; open_clip and SigLIP clean in Python, which is done here with Python's
//! idea of white space and of case (`str.split`, `str.strip`, `str.lower`, `html.unescape`).

mod html;
mod repair;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// What is done to a text before it is split into tokens.
///
/// Those of open_clip begin with its `basic_clean`: `ftfy.fix_text` (curly quotes, ligatures, full widths, controls, line breaks
/// and NFC; its repair of mojibake, text decoded in the wrong encoding, is not made: such text gives other ids), HTML
/// references twice, white space at the ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cleaning {
    /// Nothing: the tokenizer's file does what is needed (transformers).
    #[default]
    None,
    /// open_clip's `lower`: `basic_clean`, white space made single spaces, lower case (its tokenizer of CLIP's BPE).
    OpenClipLower,
    /// open_clip's `whitespace`: `basic_clean`, white space made single spaces (its Hugging Face tokenizers).
    OpenClipWhitespace,
    /// open_clip's `canonicalize`: `basic_clean`, underscores made spaces, ASCII punctuation removed, lower case, single spaces.
    OpenClipCanonicalize,
    /// Of transformers' `SiglipTokenizer`: lower case, ASCII punctuation (underscores too) removed, single spaces; special
    /// tokens written in the text are left alone.
    Siglip,
    /// Of transformers' `Siglip2Tokenizer`: each character in lower case, special tokens left alone.
    Lowercase,
}

impl Cleaning {
    /// The cleaning that open_clip calls `name` in its `tokenizer_kwargs`.
    #[must_use]
    pub fn from_open_clip(name: &str) -> Option<Self> {
        match name {
            "lower" => Some(Self::OpenClipLower),
            "whitespace" => Some(Self::OpenClipWhitespace),
            "canonicalize" => Some(Self::OpenClipCanonicalize),
            _ => None,
        }
    }

    /// `text` cleaned. `specials` are the tokens that SigLIP's cleaning must leave alone.
    ///
    /// [`Cleaning::Lowercase`] changes nothing here: it is a normaliser of the tokenizer itself.
    pub(super) fn apply<'a>(self, text: &'a str, specials: &[String]) -> Cow<'a, str> {
        match self {
            Self::None | Self::Lowercase => Cow::Borrowed(text),
            Self::OpenClipLower => Cow::Owned(single_spaces(&basic_clean(text)).to_lowercase()),
            Self::OpenClipWhitespace => Cow::Owned(single_spaces(&basic_clean(text))),
            Self::OpenClipCanonicalize => Cow::Owned(without_punctuation_lower(&basic_clean(text).replace('_', " "))),
            Self::Siglip => Cow::Owned(siglip(text, specials)),
        }
    }
}

/// What Python's `str.isspace` takes for white space: Unicode's and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// `" ".join(text.split())`
fn single_spaces(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split(is_space).filter(|word| !word.is_empty()) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

/// open_clip's `basic_clean`.
fn basic_clean(text: &str) -> String {
    let text = repair::repair(text);
    let once = html::unescape(&text);
    html::unescape(&once).trim_matches(is_space).to_string()
}

fn without_punctuation_lower(text: &str) -> String {
    single_spaces(&text.replace(|c: char| c.is_ascii_punctuation(), "").to_lowercase())
}

/// Cleans what stands between special tokens, and puts it together again; the mark of SentencePiece is a space.
fn siglip(text: &str, specials: &[String]) -> String {
    let text = text.replace('▁', " ");
    let mut out = String::with_capacity(text.len());
    let (mut start, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        match specials.iter().find(|special| !special.is_empty() && rest.starts_with(special.as_bytes())) {
            Some(special) => {
                out.push_str(&lower_without_punctuation(&text[start..at]));
                out.push_str(special);
                at += special.len();
                start = at;
            }
            None => at += 1,
        }
    }
    out.push_str(&lower_without_punctuation(&text[start..]));
    out
}

/// `SiglipTokenizer.canonicalize_text`: lower case comes first, so that a capital sigma still sees the punctuation.
fn lower_without_punctuation(text: &str) -> String {
    single_spaces(&text.to_lowercase().replace(|c: char| c.is_ascii_punctuation(), ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_clips_cleanings_differ_in_case_and_punctuation() {
        let text = " A&amp;lt;b  “Don’t”\u{1c}snake_CASE!\u{3000}ΣΑΣ ";
        let cleaned = |cleaning: Cleaning| cleaning.apply(text, &[]).into_owned();
        assert_eq!(cleaned(Cleaning::None), text);
        assert_eq!(cleaned(Cleaning::OpenClipWhitespace), "A<b \"Don't\"snake_CASE! ΣΑΣ");
        assert_eq!(cleaned(Cleaning::OpenClipLower), "a<b \"don't\"snake_case! σας");
        assert_eq!(cleaned(Cleaning::OpenClipCanonicalize), "ab dontsnake case σας");
    }

    #[test]
    fn siglips_cleaning_leaves_special_tokens_alone() {
        let specials = ["</s>".to_string(), "<unk>".to_string()];
        let cleaned = Cleaning::Siglip.apply(" A Cat_s,  nap</s><unk> <B>! ", &specials).into_owned();
        assert_eq!(cleaned, "a cats nap</s><unk>b");
    }

    #[test]
    fn cleanings_are_known_by_open_clips_names() {
        assert_eq!(Cleaning::from_open_clip("canonicalize"), Some(Cleaning::OpenClipCanonicalize));
        assert_eq!(Cleaning::from_open_clip("upper"), None);
    }

    #[test]
    fn white_space_is_what_python_takes_for_it() {
        assert_eq!(single_spaces("\u{1f}a\u{85}\u{a0}b\u{200b}c\u{2028}"), "a b\u{200b}c");
        assert_eq!(single_spaces(" \n "), "");
    }
}
