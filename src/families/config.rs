//! [`Config`]: a foreign `config.json`, read value by value with errors that name the file and the field.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::ops::Activation;
use crate::{Error, Result};

/// A foreign configuration or a part of it. Unknown fields are tolerated; a known field of the wrong type is an error.
#[derive(Debug, Clone)]
pub struct Config {
    path: PathBuf,
    part: String,
    fields: Map<String, Value>,
}

impl Config {
    /// The configuration `value`, read from `path`.
    ///
    /// # Errors
    /// When it is no JSON object.
    pub fn new(path: &Path, value: Value) -> Result<Self> {
        match value {
            Value::Object(fields) => Ok(Self { path: path.to_path_buf(), part: String::new(), fields }),
            _ => Err(Error::file(path, "expected a JSON object")),
        }
    }

    /// The file it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole of it as JSON.
    #[must_use]
    pub fn to_value(&self) -> Value {
        Value::Object(self.fields.clone())
    }

    /// The part under `name`, empty where there is none. Old CLIP files carry `{name}_dict` too: where it is not null it wins,
    /// and what it does not say has the class's default (reference: `configuration_clip.py` of transformers, which fills it
    /// up before it overrides).
    ///
    /// # Errors
    /// When it is no JSON object.
    pub fn part(&self, name: &str) -> Result<Self> {
        let keys = [format!("{name}_dict"), name.to_string()];
        let found = keys.iter().find_map(|key| Some((key, self.fields.get(key).filter(|value| !value.is_null())?)));
        let mut fields = match found {
            None => Map::new(),
            Some((_, Value::Object(part))) => part.clone(),
            Some((key, other)) => return Err(self.wrong(key, other, "an object")),
        };
        if let (false, Some(model_type)) =
            (fields.contains_key("model_type"), self.fields.get(name).and_then(|part| part.get("model_type")))
        {
            fields.insert("model_type".to_string(), model_type.clone());
        }
        Ok(Self { path: self.path.clone(), part: format!("{}{name}.", self.part), fields })
    }

    /// Whether the file says anything under this name, be it null.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// Whether the file says anything but null under this name.
    #[must_use]
    pub fn has_value(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(|value| !value.is_null())
    }

    /// The value under this name as it stands in the file.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.fields.get(name)
    }

    /// Whether the value under this name is a list.
    #[must_use]
    pub fn is_list(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(Value::is_array)
    }

    /// Refuses names that are not in `known`: in a layout where every name has a meaning, an unknown one could change the
    /// mathematics.
    ///
    /// # Errors
    /// When there is one; the error lists those that are known.
    pub fn only(&self, known: &[&str]) -> Result<()> {
        match self.fields.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => {
                let place = format!("{}: {}", self.path.display(), self.part.trim_end_matches('.'));
                Err(Error::unsupported(place, "field", name.clone(), known.join(", ")))
            }
            None => Ok(()),
        }
    }

    /// The value of `model_type`.
    ///
    /// # Errors
    /// When it is missing.
    pub fn model_type(&self) -> Result<String> {
        self.text("model_type")?.ok_or_else(|| {
            let message = format!("{}model_type is missing, so the architecture is unknown", self.part);
            Error::file(&self.path, message)
        })
    }

    /// Whether the class named under `architectures` ends like this.
    #[must_use]
    pub fn architecture_ends_with(&self, suffix: &str) -> bool {
        self.architecture().is_some_and(|name| name.ends_with(suffix))
    }

    /// The class named under `architectures`, the first of them.
    #[must_use]
    pub fn architecture(&self) -> Option<&str> {
        self.fields.get("architectures")?.get(0)?.as_str()
    }

    /// A number of things, or `default` where the file says nothing.
    ///
    /// # Errors
    /// When it is no whole number, or negative.
    pub fn size(&self, name: &str, default: usize) -> Result<usize> {
        self.read(name, "a whole number")?.map_or(Ok(default), Ok)
    }

    /// A number, or `default`.
    ///
    /// # Errors
    /// When it is no number.
    pub fn number(&self, name: &str, default: f64) -> Result<f64> {
        self.read(name, "a number")?.map_or(Ok(default), Ok)
    }

    /// A token id, or `default`; a list that holds one id is that id.
    ///
    /// # Errors
    /// When it is no id.
    pub fn id(&self, name: &str, default: u32) -> Result<u32> {
        if let Some(list @ Value::Array(ids)) = self.fields.get(name) {
            let id =
                ids.first().filter(|_| ids.len() == 1).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
            return id.ok_or_else(|| self.wrong(name, list, "one token id"));
        }
        self.read(name, "a token id")?.map_or(Ok(default), Ok)
    }

    /// Yes or no, or `default`.
    ///
    /// # Errors
    /// When it is neither.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        self.read(name, "true or false")?.map_or(Ok(default), Ok)
    }

    /// A text, if there is one.
    ///
    /// # Errors
    /// When it is no text.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        self.read(name, "a text")
    }

    /// The side of a square input or patch in pixels: a number, or two equal ones.
    ///
    /// # Errors
    /// When it is neither.
    pub fn side(&self, name: &str, default: usize) -> Result<usize> {
        match self.fields.get(name) {
            Some(Value::Array(pair)) if pair.len() == 2 && pair[0] == pair[1] => {
                let side = pair[0].as_u64().and_then(|side| usize::try_from(side).ok());
                side.ok_or_else(|| self.wrong(name, &pair[0], "a whole number"))
            }
            Some(other @ Value::Array(_)) => Err(self.wrong(name, other, "one number (inputs are square)")),
            _ => self.size(name, default),
        }
    }

    /// An activation's name.
    ///
    /// # Errors
    /// When it is one that this crate does not have; the error lists those it has.
    pub fn activation(&self, name: &str, default: Activation) -> Result<Activation> {
        match self.text(name)? {
            Some(found) => Activation::from_name(&found, &format!("{}: {}{name}", self.path.display(), self.part)),
            None => Ok(default),
        }
    }

    /// How many labels a classifier has: `num_labels`, or the length of `id2label`, or transformers' default of two.
    ///
    /// # Errors
    /// When `num_labels` is no number.
    pub fn label_count(&self) -> Result<usize> {
        let named = self.fields.get("id2label").and_then(Value::as_object).map(Map::len);
        self.size("num_labels", named.unwrap_or(2))
    }

    /// Refuses a value of a choice that this crate has only one of.
    ///
    /// # Errors
    /// When the file says something else than `only`.
    pub fn require(&self, name: &'static str, only: &str) -> Result<()> {
        match self.text(name)? {
            Some(found) if found != only => Err(Error::unsupported(self.path.display().to_string(), name, found, only)),
            _ => Ok(()),
        }
    }

    fn read<'de, T: Deserialize<'de>>(&'de self, name: &str, expected: &str) -> Result<Option<T>> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value).map(Some).map_err(|_| self.wrong(name, value, expected)),
        }
    }

    fn wrong(&self, name: &str, found: &Value, expected: &str) -> Error {
        let mut found = found.to_string();
        if found.len() > 60 {
            found = found.chars().take(60).chain(['…']).collect();
        }
        Error::file(&self.path, format!("{}{name}: expected {expected}, found {found}", self.part))
    }
}
