//! [`TokenRules`]: how rows of ids are made of a text, chosen by the checkpoint's family.

use serde::{Deserialize, Serialize};

use crate::text::Cleaning;

/// How rows of ids are made: chosen by the checkpoint's family, not by the tokenizer's files.
///
/// Written as JSON, the choices that a checkpoint of transformers needs none of (`cleaning`, `separator`, `splitting`) are left
/// out where they are the default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRules {
    /// The most tokens that a row may have, special ones included.
    ///
    /// A smaller `model_max_length` of the files lowers it, except under open_clip's cleanings: open_clip does not ask them.
    pub context_length: usize,
    /// How far shorter rows are filled up.
    pub padding: Padding,
    /// The id that fills them up.
    pub pad_id: PadId,
    /// Which special tokens are put around the text.
    pub special_tokens: SpecialTokens,
    /// What is done to a text before it is split.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cleaning: Cleaning,
    /// What becomes of the separator token.
    #[serde(default, skip_serializing_if = "is_default")]
    pub separator: Separator,
    /// Whose way of splitting a text is followed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub splitting: Splitting,
}

impl TokenRules {
    /// Rows of up to `context_length` tokens with their special tokens, padded to the longest of the batch with the id that
    /// the files name (0 if they name none).
    #[must_use]
    pub fn new(context_length: usize) -> Self {
        Self {
            context_length,
            padding: Padding::Longest,
            pad_id: PadId::FromFiles { otherwise: 0 },
            special_tokens: SpecialTokens::Add,
            cleaning: Cleaning::None,
            separator: Separator::Keep,
            splitting: Splitting::FromFiles,
        }
    }

    /// The rules of open_clip's `SimpleTokenizer`: CLIP's BPE, lower case, rows of `context_length` filled up with 0.
    #[must_use]
    pub fn open_clip(context_length: usize) -> Self {
        Self {
            padding: Padding::ContextLength,
            pad_id: PadId::Fixed(0),
            cleaning: Cleaning::OpenClipLower,
            splitting: Splitting::OpenClip,
            ..Self::new(context_length)
        }
    }

    /// The rules of open_clip's `HFTokenizer`: rows of `context_length` filled up with the files' pad token, white space
    /// cleaned; its `tokenizer_kwargs` may ask for another [`Cleaning`] (`clean`) and [`Separator::Zero`] (`strip_sep_token`),
    /// its `tokenizer_mode` for [`SpecialTokens::Clips`].
    #[must_use]
    pub fn open_clip_hugging_face(context_length: usize) -> Self {
        Self { padding: Padding::ContextLength, cleaning: Cleaning::OpenClipWhitespace, ..Self::new(context_length) }
    }

    /// The rules of transformers' SigLIP: `SiglipTokenizer`'s cleaning, rows of `context_length` (64) filled up with `</s>`.
    #[must_use]
    pub fn siglip(context_length: usize) -> Self {
        Self {
            padding: Padding::ContextLength,
            pad_id: PadId::FromFiles { otherwise: 1 },
            cleaning: Cleaning::Siglip,
            ..Self::new(context_length)
        }
    }

    /// The rules of transformers' SigLIP 2: lower case, rows of `context_length` (64) filled up with `<pad>`.
    #[must_use]
    pub fn siglip2(context_length: usize) -> Self {
        Self { padding: Padding::ContextLength, cleaning: Cleaning::Lowercase, ..Self::new(context_length) }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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

/// Which special tokens a row has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SpecialTokens {
    /// Those of the files' post-processor (`[CLS]` … `[SEP]` and their like); truncation keeps them.
    Add,
    /// None: the text's own tokens alone.
    Omit,
    /// Those of open_clip's `tokenizer_mode: "clips"`: the begin token, the text, the end token, padding, and the class token at
    /// the row's last place; rows are filled up to the context length.
    Clips,
}

/// What becomes of the separator token (`sep_token` of the files) in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Separator {
    /// It stays.
    #[default]
    Keep,
    /// Each becomes id 0 (open_clip's `strip_sep_token`, for CLIPA).
    Zero,
}

/// Whose way of splitting a text into tokens is followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Splitting {
    /// The one that the tokenizer's files describe, as transformers reads them.
    #[default]
    FromFiles,
    /// That of open_clip's `SimpleTokenizer`, over the vocabulary and merges of CLIP's files: the special tokens in a text are
    /// `<start_of_text>` and `<end_of_text>`, and `<|endoftext|>` is ordinary text.
    OpenClip,
}
