//! Processors as open_clip writes them: `preprocess_cfg` in `open_clip_config.json`.
//!
//! | `resize_mode` | resize | crop |
//! |---|---|---|
//! | `shortest`, square | the shorter edge | centre |
//! | `shortest`, else | the smallest size that covers, always bicubic | centre |
//! | `longest` | the largest size that fits in | centre, the rest is `fill_color` |
//! | `squash` | exactly | none |
//!
//! Then `(rgb / 255 − mean) / std`. Images are resized before they are converted to RGB, see
//! [`Transparency::DroppedAfterResize`], and crops are rounded as [`CropRounding::HalfToEven`].
//!
//! Reference: open_clip 3.3, `transform.py` (`PreprocessCfg`, `image_transform` with `is_train=False`), on torchvision 0.26.

use std::path::Path;

use serde_json::{Value, json};

use super::config::{CropRounding, ImageProcessorConfig, ImageSize, Normalize, Resize, ResizeTo, Transparency};
use super::fields::Fields;
use super::filter::Filter;
use super::hugging_face::CLIP_NORMALIZE;
use crate::{Error, Result};

/// What open_clip takes where neither the model nor its `preprocess_cfg` says a size.
const DEFAULT_EDGE: u32 = 224;

impl ImageProcessorConfig {
    /// Reads the `preprocess_cfg` of an `open_clip_config.json`. Fields that are missing or null take open_clip's defaults
    /// (CLIP's mean and standard deviation, bicubic, `shortest`); a `preprocess_cfg` that is null takes them all.
    ///
    /// `image_size` is the input size of the model (`vision_cfg.image_size`), which open_clip puts above that of the
    /// `preprocess_cfg`. `path` is where the JSON comes from; errors name it.
    ///
    /// # Errors
    /// If a field's value cannot be used; the error names the field.
    pub fn from_open_clip(preprocess_cfg: &Value, image_size: Option<ImageSize>, path: &Path) -> Result<Self> {
        let empty = json!({});
        let fields = Fields::new(if preprocess_cfg.is_null() { &empty } else { preprocess_cfg }, path)?;
        let unsupported =
            |what, found: &str, supported| Err(Error::unsupported(path.display().to_string(), what, found, supported));
        if let Some(mode) = fields.text("mode")?.filter(|&mode| mode != "RGB") {
            return unsupported("image mode", mode, "RGB");
        }
        let size = match (image_size, fields.get("size")) {
            (Some(size), _) => size,
            (None, None) => ImageSize::square(DEFAULT_EDGE),
            (None, Some(size)) if size.is_number() => ImageSize::square(fields.length("size", size)?),
            (None, Some(size)) => fields.exact_size("size", size)?,
        };
        let filter = match fields.text("interpolation")? {
            // `random` is a choice for training; inference takes the default.
            None | Some("bicubic" | "random") => Filter::Bicubic,
            Some("bilinear") => Filter::Bilinear,
            Some(other) => return unsupported("interpolation", other, "bicubic, bilinear, random"),
        };
        let (to, filter, crop) = match fields.text("resize_mode")? {
            None | Some("shortest") if size.height == size.width => {
                (ResizeTo::ShortestEdge(size.height), filter, Some(size))
            }
            // open_clip does not pass the filter on here.
            None | Some("shortest") => (ResizeTo::Covering(size), Filter::Bicubic, Some(size)),
            Some("longest") => (ResizeTo::Within(size), filter, Some(size)),
            Some("squash") => (ResizeTo::Exact(size), filter, None),
            Some(other) => return unsupported("resize mode", other, "shortest, longest, squash"),
        };
        let config = Self {
            resize: Some(Resize { to, filter }),
            crop,
            crop_rounding: CropRounding::HalfToEven,
            fill: fill(&fields)?,
            rescale_factor: Some(1.0 / 255.0),
            normalize: Some(Normalize {
                mean: fields.channels("mean")?.unwrap_or(CLIP_NORMALIZE.mean),
                std: fields.channels("std")?.unwrap_or(CLIP_NORMALIZE.std),
            }),
            transparency: Transparency::DroppedAfterResize,
        };
        config.problem().map_or(Ok(config), |(field, message)| Err(fields.error(theirs(field), message)))
    }

    /// A `preprocess_cfg` from which open_clip makes the same processor.
    ///
    /// open_clip always rounds crops as [`CropRounding::HalfToEven`] and resizes transparent images as
    /// [`Transparency::DroppedAfterResize`], whatever these are here: another choice shows only in crops that cannot be
    /// centred exactly, and in images with transparency.
    ///
    /// # Errors
    /// If every image would look different: with another filter, a crop that is not of the size of the resize, no resize, no
    /// normalisation, or another factor than 1/255.
    pub fn to_open_clip(&self) -> Result<Value> {
        let unsupported =
            |what, found: String, supported| Err(Error::unsupported("open_clip_config.json", what, found, supported));
        let Some(Resize { to, filter }) = self.resize else {
            return unsupported("resize", "none".to_owned(), "a resize to the size of the input");
        };
        let (mode, size) = match (to, self.crop) {
            (ResizeTo::Exact(size), None) => ("squash", size),
            (ResizeTo::Exact(size), Some(crop)) if size == crop => ("squash", size),
            (ResizeTo::ShortestEdge(edge), Some(crop)) if crop == ImageSize::square(edge) => ("shortest", crop),
            (ResizeTo::Covering(size), Some(crop)) if size == crop => ("shortest", crop),
            (ResizeTo::Within(size), Some(crop)) if size == crop => ("longest", crop),
            (to, crop) => {
                let crop = crop.map_or("none".to_owned(), |crop| crop.to_string());
                return unsupported(
                    "resize and crop",
                    format!("{to:?} and {crop}"),
                    "a crop of the size of the resize",
                );
            }
        };
        let interpolation = match (filter, to) {
            (Filter::Bicubic, _) => "bicubic",
            (Filter::Bilinear, ResizeTo::Exact(_) | ResizeTo::ShortestEdge(_) | ResizeTo::Within(_)) => "bilinear",
            (other, _) => return unsupported("filter", format!("{other:?}"), "Bicubic, Bilinear unless `Covering`"),
        };
        // A factor that gives the same values in single precision.
        if !self.rescale_factor.is_some_and(|factor| (factor * 255.0 - 1.0).abs() < 1e-9) {
            return unsupported("rescale factor", format!("{:?}", self.rescale_factor), "1/255");
        }
        let Some(Normalize { mean, std }) = self.normalize else {
            return unsupported("normalisation", "none".to_owned(), "a mean and a standard deviation");
        };
        Ok(json!({
            "size": if size.height == size.width { json!(size.height) } else { json!([size.height, size.width]) },
            "mode": "RGB",
            "mean": mean,
            "std": std,
            "interpolation": interpolation,
            "resize_mode": mode,
            "fill_color": self.fill,
        }))
    }
}

fn fill(fields: &Fields) -> Result<u8> {
    let Some(value) = fields.get("fill_color") else { return Ok(0) };
    let fill = value.as_u64().and_then(|value| u8::try_from(value).ok());
    fill.ok_or_else(|| fields.error("fill_color", format!("{value} is not a whole number from 0 to 255")))
}

/// open_clip's name of a field that is called `field` by Hugging Face.
fn theirs(field: &str) -> &str {
    match field {
        "image_mean" => "mean",
        "image_std" => "std",
        "crop_size" => "size",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: Value) -> Result<ImageProcessorConfig> {
        ImageProcessorConfig::from_open_clip(&json, None, Path::new("folder/open_clip_config.json"))
    }

    #[test]
    fn what_is_missing_takes_the_defaults_and_the_models_size_comes_first() {
        let plain = read(Value::Null).unwrap();
        assert_eq!(plain, read(json!({"size": 224, "mean": null, "interpolation": "random", "other": 1})).unwrap());
        assert_eq!((plain.crop, plain.normalize), (Some(ImageSize::square(224)), Some(CLIP_NORMALIZE)));
        let size = ImageSize { height: 20, width: 30 };
        let json = json!({"size": 224, "interpolation": "bilinear"});
        let wide = ImageProcessorConfig::from_open_clip(&json, Some(size), Path::new("p")).unwrap();
        assert_eq!(wide.resize, Some(Resize { to: ResizeTo::Covering(size), filter: Filter::Bicubic }));
    }

    #[test]
    fn what_is_written_is_read_again() {
        for mode in ["shortest", "longest", "squash"] {
            for size in [json!(64), json!([32, 48])] {
                for interpolation in ["bicubic", "bilinear"] {
                    let config = read(json!({"size": size, "resize_mode": mode, "interpolation": interpolation,
                        "mean": 0, "std": [0.1, 0.2, 0.3], "fill_color": 7}));
                    let config = config.unwrap();
                    assert_eq!(read(config.to_open_clip().unwrap()).unwrap(), config, "{mode} {size}");
                }
            }
        }
    }

    #[test]
    fn what_open_clip_cannot_do_is_an_error() {
        let clip = ImageProcessorConfig::clip();
        assert!(clip.to_open_clip().is_ok());
        let resize = |to, filter| Some(Resize { to, filter });
        for config in [
            ImageProcessorConfig { resize: None, ..clip.clone() },
            ImageProcessorConfig { crop: None, ..clip.clone() },
            ImageProcessorConfig { normalize: None, ..clip.clone() },
            ImageProcessorConfig { rescale_factor: None, ..clip.clone() },
            ImageProcessorConfig { rescale_factor: Some(1.0 / 127.5), ..clip.clone() },
            ImageProcessorConfig { resize: resize(ResizeTo::ShortestEdge(256), Filter::Bicubic), ..clip.clone() },
            ImageProcessorConfig { resize: resize(ResizeTo::ShortestEdge(224), Filter::Lanczos), ..clip.clone() },
        ] {
            let message = config.to_open_clip().unwrap_err().to_string();
            assert!(message.contains("open_clip_config.json"), "{message}");
        }
    }

    #[test]
    fn a_value_that_cannot_be_used_is_named_with_its_field_and_file() {
        for (field, value) in [
            ("size", json!(0)),
            ("size", json!([1, 2, 3])),
            ("mode", json!("L")),
            ("mean", json!([0.5])),
            ("std", json!([0.5, 0.0, 0.5])),
            ("interpolation", json!("lanczos")),
            ("resize_mode", json!("crop")),
            ("fill_color", json!(256)),
            ("fill_color", json!([1, 2, 3])),
        ] {
            let message = read(json!({ field: value })).expect_err(field).to_string();
            assert!(message.contains("folder/open_clip_config.json"), "{message}");
            assert!(message.contains(&field.replace('_', " ")) || message.contains(field), "{field}: {message}");
        }
    }
}
