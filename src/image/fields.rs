//! The fields of a processor's JSON file, read with errors that name the file and the field.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::config::{ImageSize, Normalize};
use super::filter::Filter;
use crate::{Error, Result};

/// The file of a folder that describes its processor, and its contents: `processor_config.json` if that has an
/// `image_processor`, else `preprocessor_config.json`.
pub(super) fn read_folder(folder: &Path) -> Result<(PathBuf, Value)> {
    let read = |name: &str| -> Result<Option<(PathBuf, Value)>> {
        let path = folder.join(name);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).map_err(|error| Error::file(&path, error))?;
        let json = serde_json::from_str(&text).map_err(|error| Error::file(&path, format!("not JSON: {error}")))?;
        Ok(Some((path, json)))
    };
    if let Some(nested) = read("processor_config.json")?.filter(|(_, json)| json.get("image_processor").is_some()) {
        return Ok(nested);
    }
    read("preprocessor_config.json")?.ok_or_else(|| {
        let message = "this folder says nowhere how its images are prepared: it has neither a \
                       preprocessor_config.json nor a processor_config.json with an `image_processor`";
        Error::file(folder, message)
    })
}

/// The fields of one file. Null is the same as missing, as in transformers.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
}

impl<'a> Fields<'a> {
    pub(super) fn new(json: &'a Value, path: &'a Path) -> Result<Self> {
        let processor = json.get("image_processor").unwrap_or(json);
        let map = processor.as_object().ok_or_else(|| Error::file(path, "the image processor is not a JSON object"))?;
        Ok(Self { map, path })
    }

    /// The class that the file names, by its present or its old field.
    pub(super) fn class_name(&self) -> Result<Option<&'a str>> {
        match self.text("image_processor_type")? {
            Some(name) => Ok(Some(name)),
            None => self.text("feature_extractor_type"),
        }
    }

    /// `resample` by its number in Pillow.
    pub(super) fn filter(&self, default: Filter) -> Result<Filter> {
        let Some(value) = self.get("resample") else { return Ok(default) };
        value.as_u64().and_then(Filter::from_pillow).ok_or_else(|| {
            let supported = "0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5 hamming, 6 mks2013, 7 mks2021";
            self.error("resample", format!("{value} is no filter of Pillow; supported: {supported}"))
        })
    }

    /// `rescale_factor`, unless `do_rescale` is false.
    pub(super) fn rescale_factor(&self) -> Result<Option<f64>> {
        let factor = match self.get("rescale_factor") {
            None => 1.0 / 255.0,
            Some(value) => {
                value.as_f64().ok_or_else(|| self.error("rescale_factor", format!("{value} is not a number")))?
            }
        };
        Ok(self.flag("do_rescale")?.unwrap_or(true).then_some(factor))
    }

    /// `image_mean` and `image_std`, unless `do_normalize` is false.
    pub(super) fn normalize(&self, default: Normalize) -> Result<Option<Normalize>> {
        let mean = self.channels("image_mean")?.unwrap_or(default.mean);
        let std = self.channels("image_std")?.unwrap_or(default.std);
        Ok(self.flag("do_normalize")?.unwrap_or(true).then_some(Normalize { mean, std }))
    }

    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn error(&self, field: &str, message: impl std::fmt::Display) -> Error {
        Error::file(self.path, format!("{field}: {message}"))
    }

    pub(super) fn text(&self, field: &str) -> Result<Option<&'a str>> {
        let text = |value: &'a Value| value.as_str().ok_or_else(|| self.error(field, format!("{value} is not a text")));
        self.get(field).map(text).transpose()
    }

    pub(super) fn flag(&self, field: &str) -> Result<Option<bool>> {
        let flag =
            |value: &Value| value.as_bool().ok_or_else(|| self.error(field, format!("{value} is not true or false")));
        self.get(field).map(flag).transpose()
    }

    /// One of this crate's own choices, by its serialised name.
    pub(super) fn choice<T: serde::de::DeserializeOwned>(&self, field: &str) -> Result<Option<T>> {
        let choice = |value: &Value| serde_json::from_value(value.clone()).map_err(|error| self.error(field, error));
        self.get(field).map(choice).transpose()
    }

    /// A number of pixels.
    pub(super) fn length(&self, field: &str, value: &Value) -> Result<u32> {
        let length = value.as_u64().and_then(|length| u32::try_from(length).ok()).filter(|&length| length > 0);
        length.ok_or_else(|| self.error(field, format!("{value} is not a number of pixels of at least 1")))
    }

    /// A height and a width: an object with these, or a list in this order.
    pub(super) fn exact_size(&self, field: &str, value: &Value) -> Result<ImageSize> {
        let edges = match value.as_array().map(Vec::as_slice) {
            Some([height, width]) => Some((height, width)),
            _ => value.get("height").zip(value.get("width")),
        };
        let (height, width) = edges.ok_or_else(|| {
            let forms = if field == "size" { "a number, {\"shortest_edge\"}, " } else { "a number, " };
            self.error(field, format!("{value} is not a size; supported: {forms}{{\"height\", \"width\"}}"))
        })?;
        Ok(ImageSize { height: self.length(field, height)?, width: self.length(field, width)? })
    }

    /// Three numbers, or one for all channels.
    pub(super) fn channels(&self, field: &str) -> Result<Option<[f64; 3]>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        if let Some(number) = value.as_f64() {
            return Ok(Some([number; 3]));
        }
        let numbers = value.as_array().map(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        let channels = numbers.flatten().and_then(|list| <[f64; 3]>::try_from(list).ok());
        channels
            .map(Some)
            .ok_or_else(|| self.error(field, format!("{value} is not a list of three numbers (red, green, blue)")))
    }
}
