//! What all readers of pairs share: the names of fields, samples grouped by image, and what becomes of bad ones.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::open::PairOptions;
use super::pairs::{Entry, PairDataset};
use super::skipped::Skipped;
use super::table::data_error;
use crate::image::ImageSource;
use crate::{Error, ErrorKind, Result};

/// One image with captions, as a reader found it.
pub(super) struct Sample {
    /// The image's name: a path relative to the data set's folder, unless `source` says where it is.
    pub(super) image: String,
    pub(super) source: Option<ImageSource>,
    /// One at least.
    pub(super) captions: Vec<String>,
    pub(super) split: Option<String>,
}

/// Gathers samples into a [`PairDataset`].
pub(super) struct Builder<'o> {
    pub(super) options: &'o PairOptions,
    path: PathBuf,
    folder: PathBuf,
    images: Vec<Entry>,
    place: HashMap<String, usize>,
    splits: Vec<String>,
    skipped: Vec<Skipped>,
    rows: usize,
}

impl<'o> Builder<'o> {
    /// Starts a data set that is read from `path` and whose images' names are relative to `folder`.
    pub(super) fn new(path: &Path, folder: &Path, options: &'o PairOptions) -> Self {
        Self {
            options,
            path: path.to_path_buf(),
            folder: folder.to_path_buf(),
            images: Vec::new(),
            place: HashMap::new(),
            splits: Vec::new(),
            skipped: Vec::new(),
            rows: 0,
        }
    }

    /// Takes the sample on `line` of `file`, or passes over a bad one.
    pub(super) fn add(&mut self, file: &Path, line: Option<u64>, sample: Result<Sample>) -> Result<()> {
        self.rows += 1;
        let sample = match sample {
            Ok(sample) => sample,
            Err(error) => return self.skip(error),
        };
        let split = sample.split.map(|name| split_index(&mut self.splits, name));
        let index = *self.place.entry(sample.image).or_insert_with_key(|image| {
            let (image, source) = (image.clone(), sample.source);
            self.images.push(Entry { image, source, captions: Vec::new(), split });
            self.images.len() - 1
        });
        let entry = &mut self.images[index];
        if entry.split != split {
            // Training and testing on it would not be noticed otherwise.
            let message = format!("image '{}' already stands in another split", entry.image);
            return Err(data_error(file, line, message));
        }
        entry.captions.extend(sample.captions);
        Ok(())
    }

    /// Notes a bad sample; where none is allowed, it is an error at once.
    fn skip(&mut self, error: Error) -> Result<()> {
        if self.options.tolerance.allowed(usize::MAX) == 0 {
            return Err(error);
        }
        self.skipped.push(match error.kind() {
            ErrorKind::Data { path, line: Some(line), message } => {
                Skipped { name: format!("{}, line {line}", path.display()), reason: message.clone() }
            }
            ErrorKind::Data { path, line: None, message } => {
                Skipped { name: path.display().to_string(), reason: message.clone() }
            }
            _ => return Err(error),
        });
        Ok(())
    }

    /// The data set.
    pub(super) fn finish(self) -> Result<PairDataset> {
        let Self { options, path, folder, images, splits, skipped, rows, .. } = self;
        let fail = |message: String| Err(data_error(&path, None, message));
        if let Some(message) = options.tolerance.exceeded("samples cannot be used", rows, skipped.len(), skipped.iter())
        {
            return fail(message);
        }
        if images.is_empty() {
            let first = skipped.first().map(|first| format!("; the first: {first}")).unwrap_or_default();
            return fail(format!("has no pair of an image and a caption{first}"));
        }
        let without = images.iter().filter(|entry| entry.split.is_none()).count();
        if let Some(first) = images.iter().find(|entry| entry.split.is_none()).filter(|_| !splits.is_empty()) {
            let message = format!(
                "{without} of {} images have no split, others have; the first: '{}'. Give all of them one, or none",
                images.len(),
                first.image
            );
            return fail(message);
        }
        Ok(PairDataset { path, folder, images, splits, skipped })
    }
}

fn split_index(splits: &mut Vec<String>, name: String) -> usize {
    splits.iter().position(|s| *s == name).unwrap_or_else(|| {
        splits.push(name);
        splits.len() - 1
    })
}

/// The split that a file or folder is named after: `train-00001`, `val`, `test_2`. `training`, `validation`, `valid` and `dev` are
/// read as `train` and `val`.
pub(super) fn split_of_name(name: &str) -> Option<&'static str> {
    let word: String = name.chars().take_while(char::is_ascii_alphabetic).collect();
    match word.to_ascii_lowercase().as_str() {
        "train" | "training" => Some("train"),
        "val" | "valid" | "validation" | "dev" => Some("val"),
        "test" | "testing" => Some("test"),
        _ => None,
    }
}

/// The first of `keys` that `fields` has.
fn field<'v>(fields: &'v Map<String, Value>, keys: &[String]) -> Option<&'v Value> {
    keys.iter().find_map(|key| fields.get(key)).filter(|value| !value.is_null())
}

/// The captions of a JSON object: a string, or a list of them.
pub(super) fn captions(fields: &Map<String, Value>, keys: &[String]) -> std::result::Result<Vec<String>, String> {
    let value = field(fields, keys).ok_or_else(|| missing("caption", fields, keys))?;
    let one = |value: &Value| match value {
        Value::String(text) if !text.trim().is_empty() => Ok(text.trim().to_string()),
        Value::String(_) => Err(String::from("the caption is empty")),
        other => Err(format!("a caption is {other}, not a string")),
    };
    match value {
        Value::Array(all) if all.is_empty() => Err(String::from("the list of captions is empty")),
        Value::Array(all) => all.iter().map(one).collect(),
        other => Ok(vec![one(other)?]),
    }
}

/// A field that holds a string.
pub(super) fn string(
    what: &str,
    fields: &Map<String, Value>,
    keys: &[String],
) -> std::result::Result<Option<String>, String> {
    match field(fields, keys) {
        None => Ok(None),
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(Some(text.trim().to_string())),
        Some(other) => Err(format!("the {what} is {other}; a string with text is needed")),
    }
}

/// What is said where a field is not there.
pub(super) fn missing(what: &str, fields: &Map<String, Value>, keys: &[String]) -> String {
    let found: Vec<&str> = fields.keys().map(String::as_str).collect();
    format!("has no {what}: looked for '{}', found: {}", keys.join("', '"), found.join(", "))
}
