//! The files of a tokenizer, read as bytes so that they can be written back as they were.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Error, Result};

pub(super) const TOKENIZER_JSON: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
pub(super) const ADDED_TOKENS: &str = "added_tokens.json";
pub(super) const VOCAB_JSON: &str = "vocab.json";
pub(super) const MERGES_TXT: &str = "merges.txt";
pub(super) const VOCAB_TXT: &str = "vocab.txt";
/// The names under which SentencePiece models go.
pub(super) const SENTENCEPIECE: [&str; 3] = ["sentencepiece.bpe.model", "spiece.model", "tokenizer.model"];

/// The names of all files that belong to a tokenizer.
fn names() -> impl Iterator<Item = &'static str> {
    [TOKENIZER_JSON, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS, VOCAB_JSON, MERGES_TXT, VOCAB_TXT]
        .into_iter()
        .chain(SENTENCEPIECE)
}

/// The files that a tokenizer was read from, by name.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Files {
    /// All tokenizer files of `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::file(folder, "is no folder"));
        }
        let mut files = Vec::new();
        for name in names() {
            let path = folder.join(name);
            if path.is_file() {
                files.push((name, std::fs::read(&path).map_err(|e| Error::file(&path, e))?));
            }
        }
        Ok(Self { folder: folder.to_path_buf(), files })
    }

    /// The content of one `tokenizer.json`; `folder` is for messages.
    pub(super) fn of_tokenizer_json(folder: &Path, bytes: Vec<u8>) -> Self {
        Self { folder: folder.to_path_buf(), files: vec![(TOKENIZER_JSON, bytes)] }
    }

    /// Whether `folder` holds the files of a vocabulary.
    pub(super) fn are_in(folder: &Path) -> bool {
        let has = |name: &str| folder.join(name).is_file();
        has(TOKENIZER_JSON)
            || has(VOCAB_TXT)
            || (has(VOCAB_JSON) && has(MERGES_TXT))
            || SENTENCEPIECE.into_iter().any(has)
    }

    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        self.files.iter().find(|(other, _)| *other == name).map(|(_, bytes)| bytes.as_slice())
    }

    /// The SentencePiece model and its name.
    pub(super) fn sentencepiece(&self) -> Option<(&'static str, &[u8])> {
        SENTENCEPIECE.into_iter().find_map(|name| Some((name, self.get(name)?)))
    }

    /// The value in a JSON file, if the file is there.
    pub(super) fn json(&self, name: &str) -> Result<Option<Value>> {
        let parse = |bytes| serde_json::from_slice(bytes);
        self.get(name)
            .map(parse)
            .transpose()
            .map_err(|e| Error::file(self.path(name), format!("is not valid JSON: {e}")))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn add(&mut self, name: &'static str, bytes: Vec<u8>) {
        self.files.push((name, bytes));
    }

    pub(super) fn save(&self, folder: &Path) -> Result<()> {
        for (name, bytes) in &self.files {
            let path = folder.join(name);
            std::fs::write(&path, bytes).map_err(|e| Error::file(&path, e))?;
        }
        Ok(())
    }
}
