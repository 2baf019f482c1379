//! [`Folder`]: the folder of a checkpoint, whose `config.json` or `open_clip_config.json` says what lies in it.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::layout::{self, Form, Layout, WeightsName, no_weights};
use crate::{Error, Result};

/// The largest JSON file that is read, in bytes: configurations and indices are far smaller.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// The folder of a checkpoint: `config.json` or `open_clip_config.json`, or both, and the files beside them.
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
                "is a file; name the folder that holds config.json (or open_clip_config.json) and the weights"
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

    /// Whose conventions the folder follows. Where it holds both layouts: Hugging Face's if its `config.json` has a
    /// `model_type` and its weights are there, else open_clip's. Either can be asked for by name all the same.
    ///
    /// # Errors
    /// If neither configuration is there (the folder holds no model then), or `config.json` cannot be read.
    pub fn layout(&self) -> Result<Layout> {
        let missing =
            || Error::file(&self.path, "is no model folder: config.json is missing, and open_clip_config.json");
        self.find_layout()?.ok_or_else(missing)
    }

    /// The contents of `config.json`, Hugging Face's configuration.
    ///
    /// # Errors
    /// If the file is missing (the folder holds no model of that layout then), is no JSON (with the line), or cannot be read.
    pub fn config(&self) -> Result<Value> {
        self.config_of(Layout::HuggingFace)
    }

    /// The contents of `open_clip_config.json`, open_clip's configuration.
    ///
    /// # Errors
    /// As [`Folder::config`].
    pub fn open_clip_config(&self) -> Result<Value> {
        self.config_of(Layout::OpenClip)
    }

    /// The contents of the layout's configuration.
    ///
    /// # Errors
    /// As [`Folder::config`].
    pub fn config_of(&self, layout: Layout) -> Result<Value> {
        let name = layout.config_file();
        self.json(name)?.ok_or_else(|| Error::file(&self.path, format!("is no model folder: {name} is missing")))
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

    /// The layout, or `None` where no configuration is there.
    pub(super) fn find_layout(&self) -> Result<Option<Layout>> {
        let has = |name: &str| self.file(name).is_some();
        let model_type = || Ok::<_, Error>(self.json("config.json")?.is_some_and(|config| has_model_type(&config)));
        // Without open_clip's configuration there is nothing to choose, and the other may be broken: its reader says how.
        let model_type = if has("open_clip_config.json") { model_type()? } else { true };
        Ok(layout::choose(has, model_type))
    }

    /// The layout's weights.
    pub(super) fn weights(&self, layout: Layout) -> Result<(WeightsName, PathBuf)> {
        let found = layout.weights(|name| self.file(name).is_some());
        if let Some((weights, path)) = found.and_then(|weights| Some((weights, self.file(weights.name)?))) {
            return Ok((weights, path));
        }
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        let names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        Err(Error::file(&self.path, no_weights(layout, names.iter().map(String::as_str))))
    }

    /// Checks that the layout's configuration and all of its weights are there.
    pub(super) fn check(&self, layout: Layout) -> Result<()> {
        if self.file(layout.config_file()).is_none() {
            return Err(Error::file(&self.path, format!("is no model folder: {} is missing", layout.config_file())));
        }
        let (weights, path) = self.weights(layout)?;
        if weights.form == Form::Index {
            weights.shards(&path, |shard| self.file(shard).is_some())?;
        }
        Ok(())
    }
}

/// Whether a `config.json` is one of transformers', and not timm's or another program's.
pub(super) fn has_model_type(config: &Value) -> bool {
    config.get("model_type").is_some_and(Value::is_string)
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
