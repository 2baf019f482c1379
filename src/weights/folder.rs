//! [`Folder`]: the folder of a checkpoint, whose `config.json` says what lies in it.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Error, Result};

/// The weights where they are in one file.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// The list of the files where there are several.
pub(super) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
/// What describes the inputs of a model. Each of them may be missing.
pub(super) const OPTIONAL_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
];

/// The largest JSON file that is read, in bytes: configurations and indices are far smaller.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// The folder of a checkpoint: `config.json` and the files beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder at `path`.
    ///
    /// # Errors
    /// If there is no folder at `path`. What lies in it is looked at later, by those who need it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            return Ok(Self { path: path.to_path_buf() });
        }
        Err(Error::file(
            path,
            if path.exists() {
                "is a file; name the folder that holds config.json and the weights"
            } else {
                "the folder does not exist"
            },
        ))
    }

    /// Where the folder is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The contents of `config.json`.
    ///
    /// # Errors
    /// If the file is missing (the folder holds no model then), is no JSON (with the line), or cannot be read.
    pub fn config(&self) -> Result<Value> {
        self.json("config.json")?.ok_or_else(|| Error::file(&self.path, "is no model folder: config.json is missing"))
    }

    /// The contents of the JSON file `name` in this folder, or `None` if there is no such file.
    ///
    /// # Errors
    /// If the file is no JSON (with the line), is larger than 64 MiB, or cannot be read.
    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        self.file(name).map(|path| read_json(&path)).transpose()
    }

    /// The path of the file `name` in this folder, or `None` if there is no such file.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        let path = self.path.join(name);
        path.is_file().then_some(path)
    }
}

/// Reads a JSON file of at most [`MAX_JSON_BYTES`].
pub(super) fn read_json(path: &Path) -> Result<Value> {
    let mut text = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_JSON_BYTES + 1).read_to_end(&mut text));
    read.map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    if text.len() as u64 > MAX_JSON_BYTES {
        return Err(Error::file(path, "is larger than 64 MiB, which no configuration is"));
    }
    serde_json::from_slice(&text)
        .map_err(|e| Error::file(path, format!("is not valid JSON, line {}, column {}: {e}", e.line(), e.column())))
}
