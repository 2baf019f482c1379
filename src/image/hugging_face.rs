//! Processors as Hugging Face writes them: `preprocessor_config.json`, and the `image_processor` object of transformers
//! 5's `processor_config.json`.
//!
//! A field that is missing or null takes the default of the processor class the file names, as in transformers 5.23
//! (`image_processing_pil_*.py`).

use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{ImageProcessorConfig, ImageSize, Normalize, Resize, ResizeTo, Transparency};
use super::filter::Filter;
use crate::{Error, Result};

const CLIP_NORMALIZE: Normalize =
    Normalize { mean: [0.48145466, 0.4578275, 0.40821073], std: [0.26862954, 0.26130258, 0.27577711] };
const HALF_NORMALIZE: Normalize = Normalize { mean: [0.5; 3], std: [0.5; 3] };

/// The Hugging Face image processors that this crate has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProcessorClass {
    /// `CLIPImageProcessor`.
    Clip,
    /// `ChineseCLIPImageProcessor`.
    ChineseClip,
    /// `ViTImageProcessor`.
    Vit,
    /// `DeiTImageProcessor`.
    Deit,
    /// `BitImageProcessor`, which DINOv2 uses.
    Bit,
    /// `SiglipImageProcessor`.
    Siglip,
    /// `BlipImageProcessor`.
    Blip,
}

/// What a whole-number `size` means to a class.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WholeSize {
    Square,
    ShortestEdge,
}

impl ProcessorClass {
    const ALL: [Self; 7] = [Self::Clip, Self::ChineseClip, Self::Vit, Self::Deit, Self::Bit, Self::Siglip, Self::Blip];

    /// The class's name in transformers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Clip => "CLIPImageProcessor",
            Self::ChineseClip => "ChineseCLIPImageProcessor",
            Self::Vit => "ViTImageProcessor",
            Self::Deit => "DeiTImageProcessor",
            Self::Bit => "BitImageProcessor",
            Self::Siglip => "SiglipImageProcessor",
            Self::Blip => "BlipImageProcessor",
        }
    }

    /// The class of the given name; the old `…FeatureExtractor` and the `…Fast` and `…Pil` variants count as well.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let base = name.trim_end_matches("Fast").trim_end_matches("Pil").replace("FeatureExtractor", "ImageProcessor");
        Self::ALL.into_iter().find(|class| class.name() == base)
    }

    /// What the class does where its file says nothing.
    #[must_use]
    pub fn config(self) -> ImageProcessorConfig {
        let square = |edge| ResizeTo::Exact(ImageSize::square(edge));
        let (to, filter) = match self {
            Self::Clip | Self::ChineseClip | Self::Bit => (ResizeTo::ShortestEdge(224), Filter::Bicubic),
            Self::Vit => (square(224), Filter::Bilinear),
            Self::Deit => (square(256), Filter::Bicubic),
            Self::Siglip => (square(224), Filter::Bicubic),
            Self::Blip => (square(384), Filter::Bicubic),
        };
        let crops = matches!(self, Self::Clip | Self::ChineseClip | Self::Deit | Self::Bit);
        let imagenet_standard = matches!(self, Self::Vit | Self::Deit | Self::Siglip);
        ImageProcessorConfig {
            resize: Some(Resize { to, filter }),
            crop: crops.then(|| ImageSize::square(224)),
            rescale_factor: Some(1.0 / 255.0),
            normalize: Some(if imagenet_standard { HALF_NORMALIZE } else { CLIP_NORMALIZE }),
            transparency: match self {
                Self::Vit | Self::Deit => Transparency::Dropped,
                _ => Transparency::OnWhite,
            },
        }
    }

    fn whole_size(self) -> WholeSize {
        match self {
            Self::Vit | Self::Deit | Self::Blip => WholeSize::Square,
            _ => WholeSize::ShortestEdge,
        }
    }

    fn supported() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl ImageProcessorConfig {
    /// Reads the processor of a model folder, from `processor_config.json` if that describes one, as transformers 5
    /// writes it, else from `preprocessor_config.json`. Where the file names no processor class, as old ones do not, it is
    /// `class`: transformers takes the one of the model's architecture.
    ///
    /// # Errors
    /// If there is neither file, or what there is cannot be used; see [`ImageProcessorConfig::from_hugging_face`].
    pub fn from_folder(folder: impl AsRef<Path>, class: ProcessorClass) -> Result<Self> {
        let read = |name: &str| -> Result<Option<(std::path::PathBuf, Value)>> {
            let path = folder.as_ref().join(name);
            if !path.exists() {
                return Ok(None);
            }
            let text = std::fs::read_to_string(&path).map_err(|error| Error::file(&path, error))?;
            let json = serde_json::from_str(&text).map_err(|error| Error::file(&path, format!("not JSON: {error}")))?;
            Ok(Some((path, json)))
        };
        let nested = read("processor_config.json")?.filter(|(_, json)| json.get("image_processor").is_some());
        let (path, json) = match nested {
            Some(found) => found,
            None => read("preprocessor_config.json")?.ok_or_else(|| {
                let message = "this folder says nowhere how its images are prepared: it has neither a \
                               preprocessor_config.json nor a processor_config.json with an `image_processor`";
                Error::file(folder.as_ref(), message)
            })?,
        };
        Self::from_hugging_face(&json, &path, class)
    }

    /// Reads the contents of a `preprocessor_config.json` or of transformers 5's `processor_config.json`.
    ///
    /// `path` is where `json` comes from; errors name it. Fields that no image processor here has are left alone. `class` is
    /// the processor class of a file that names none.
    ///
    /// # Errors
    /// If the file names a processor class that this crate does not have, or a field's value cannot be used.
    pub fn from_hugging_face(json: &Value, path: &Path, class: ProcessorClass) -> Result<Self> {
        let fields = Fields::new(json, path)?;
        let name = match fields.text("image_processor_type")? {
            Some(name) => Some(name),
            None => fields.text("feature_extractor_type")?,
        };
        let Some(name) = name else { return fields.config(class) };
        let class = ProcessorClass::from_name(name).ok_or_else(|| {
            let context = path.display().to_string();
            Error::unsupported(context, "image processor", name, ProcessorClass::supported())
        })?;
        fields.config(class)
    }

    /// A `preprocessor_config.json` from which transformers makes the same processor.
    #[must_use]
    pub fn to_hugging_face(&self) -> Value {
        let class = match (self.transparency, self.crop) {
            (Transparency::Dropped, None) => ProcessorClass::Vit,
            _ => ProcessorClass::Clip,
        };
        let edges = |size: ImageSize| json!({"height": size.height, "width": size.width});
        let mut json = json!({
            "image_processor_type": class.name(),
            "do_convert_rgb": self.transparency == Transparency::OnWhite,
            "do_resize": self.resize.is_some(),
            "do_center_crop": self.crop.is_some(),
            "do_rescale": self.rescale_factor.is_some(),
            "do_normalize": self.normalize.is_some(),
        });
        if let Some(resize) = self.resize {
            json["size"] = match resize.to {
                ResizeTo::Exact(size) => edges(size),
                ResizeTo::ShortestEdge(edge) => json!({"shortest_edge": edge}),
                ResizeTo::EdgeRange { shortest, longest } => {
                    json!({"shortest_edge": shortest, "longest_edge": longest})
                }
            };
            json["resample"] = resize.filter.pillow().into();
        }
        if let Some(crop) = self.crop {
            json["crop_size"] = edges(crop);
        }
        if let Some(factor) = self.rescale_factor {
            json["rescale_factor"] = factor.into();
        }
        if let Some(normalize) = self.normalize {
            json["image_mean"] = json!(normalize.mean);
            json["image_std"] = json!(normalize.std);
        }
        json
    }
}

/// The fields of one file. Null is the same as missing, as in transformers.
struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
}

impl<'a> Fields<'a> {
    fn new(json: &'a Value, path: &'a Path) -> Result<Self> {
        let processor = json.get("image_processor").unwrap_or(json);
        let map = processor.as_object().ok_or_else(|| Error::file(path, "the image processor is not a JSON object"))?;
        Ok(Self { map, path })
    }

    fn config(&self, class: ProcessorClass) -> Result<ImageProcessorConfig> {
        let default = class.config();
        if self.flag("do_pad")? == Some(true) {
            return Err(
                self.error("do_pad", "padding is not supported; images get one size by a crop or an exact resize")
            );
        }
        let config = ImageProcessorConfig {
            resize: self.resize(class, default.resize)?,
            crop: self.crop(default.crop)?,
            rescale_factor: self.rescale_factor()?,
            normalize: self.normalize(default.normalize)?,
            transparency: match self.flag("do_convert_rgb")? {
                Some(true) => Transparency::OnWhite,
                Some(false) => Transparency::Dropped,
                None => default.transparency,
            },
        };
        config.problem().map_or(Ok(config), |(field, message)| Err(self.error(field, message)))
    }

    fn resize(&self, class: ProcessorClass, default: Option<Resize>) -> Result<Option<Resize>> {
        let filter = match self.get("resample") {
            None => default.map_or(Filter::Bilinear, |resize| resize.filter),
            Some(value) => value.as_u64().and_then(Filter::from_pillow).ok_or_else(|| {
                let supported = "0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5 hamming, 6 mks2013, 7 mks2021";
                self.error("resample", format!("{value} is no filter of Pillow; supported: {supported}"))
            })?,
        };
        let to = match self.get("size") {
            None => default.map(|resize| resize.to),
            Some(size) if size.is_number() => Some(match (self.length("size", size)?, class.whole_size()) {
                (edge, WholeSize::Square) => ResizeTo::Exact(ImageSize::square(edge)),
                (edge, WholeSize::ShortestEdge) => ResizeTo::ShortestEdge(edge),
            }),
            Some(size) if size.get("shortest_edge").is_some_and(|edge| !edge.is_null()) => {
                let shortest = self.length("size", &size["shortest_edge"])?;
                Some(match size.get("longest_edge").filter(|edge| !edge.is_null()) {
                    Some(longest) => ResizeTo::EdgeRange { shortest, longest: self.length("size", longest)? },
                    None => ResizeTo::ShortestEdge(shortest),
                })
            }
            Some(size) => Some(ResizeTo::Exact(self.exact_size("size", size)?)),
        };
        let resizes = self.flag("do_resize")?.unwrap_or(true);
        Ok(to.filter(|_| resizes).map(|to| Resize { to, filter }))
    }

    fn crop(&self, default: Option<ImageSize>) -> Result<Option<ImageSize>> {
        let size = match self.get("crop_size") {
            None => default,
            Some(size) if size.is_number() => Some(ImageSize::square(self.length("crop_size", size)?)),
            Some(size) => Some(self.exact_size("crop_size", size)?),
        };
        match (self.flag("do_center_crop")?.unwrap_or(default.is_some()), size) {
            (false, _) => Ok(None),
            (true, Some(size)) => Ok(Some(size)),
            (true, None) => Err(self.error("crop_size", "the field is missing, but do_center_crop is true")),
        }
    }

    fn rescale_factor(&self) -> Result<Option<f64>> {
        let factor = match self.get("rescale_factor") {
            None => 1.0 / 255.0,
            Some(value) => {
                value.as_f64().ok_or_else(|| self.error("rescale_factor", format!("{value} is not a number")))?
            }
        };
        Ok(self.flag("do_rescale")?.unwrap_or(true).then_some(factor))
    }

    fn normalize(&self, default: Option<Normalize>) -> Result<Option<Normalize>> {
        let default = default.unwrap_or(HALF_NORMALIZE);
        let mean = self.channels("image_mean")?.unwrap_or(default.mean);
        let std = self.channels("image_std")?.unwrap_or(default.std);
        Ok(self.flag("do_normalize")?.unwrap_or(true).then_some(Normalize { mean, std }))
    }

    fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    fn error(&self, field: &str, message: impl std::fmt::Display) -> Error {
        Error::file(self.path, format!("{field}: {message}"))
    }

    fn text(&self, field: &str) -> Result<Option<&'a str>> {
        let text = |value: &'a Value| value.as_str().ok_or_else(|| self.error(field, format!("{value} is not a text")));
        self.get(field).map(text).transpose()
    }

    fn flag(&self, field: &str) -> Result<Option<bool>> {
        let flag =
            |value: &Value| value.as_bool().ok_or_else(|| self.error(field, format!("{value} is not true or false")));
        self.get(field).map(flag).transpose()
    }

    /// A number of pixels.
    fn length(&self, field: &str, value: &Value) -> Result<u32> {
        let length = value.as_u64().and_then(|length| u32::try_from(length).ok()).filter(|&length| length > 0);
        length.ok_or_else(|| self.error(field, format!("{value} is not a number of pixels of at least 1")))
    }

    /// A height and a width: an object with these, or a list in this order.
    fn exact_size(&self, field: &str, value: &Value) -> Result<ImageSize> {
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
    fn channels(&self, field: &str) -> Result<Option<[f64; 3]>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: Value) -> Result<ImageProcessorConfig> {
        ImageProcessorConfig::from_hugging_face(
            &json,
            Path::new("folder/preprocessor_config.json"),
            ProcessorClass::Clip,
        )
    }

    #[test]
    fn a_whole_number_is_a_square_or_a_short_edge_as_the_class_has_it() {
        let to = |class: &str| read(json!({"image_processor_type": class, "size": 96})).unwrap().resize.unwrap().to;
        for class in ["CLIPFeatureExtractor", "BitImageProcessorFast", "SiglipImageProcessor"] {
            assert_eq!(to(class), ResizeTo::ShortestEdge(96), "{class}");
        }
        for class in ["ViTImageProcessor", "DeiTImageProcessorPil", "BlipImageProcessor"] {
            assert_eq!(to(class), ResizeTo::Exact(ImageSize::square(96)), "{class}");
        }
    }

    #[test]
    fn the_old_and_the_nested_form_give_the_same_processor() {
        let old =
            json!({"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "resample": 3});
        let nested = json!({"processor_class": "CLIPProcessor", "image_processor": {
            "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, "do_pad": null, "new": 1}});
        assert_eq!(read(old).unwrap(), ImageProcessorConfig::clip());
        assert_eq!(read(nested).unwrap(), ImageProcessorConfig::clip());
    }

    #[test]
    fn what_is_written_is_read_again() {
        for class in ProcessorClass::ALL {
            let mut config = class.config();
            assert_eq!(read(config.to_hugging_face()).unwrap(), config, "{class:?}");
            config = ImageProcessorConfig { resize: None, crop: None, rescale_factor: None, normalize: None, ..config };
            assert_eq!(read(config.to_hugging_face()).unwrap(), config, "{class:?} without steps");
        }
    }

    #[test]
    fn a_value_that_cannot_be_used_is_named_with_its_field_and_file() {
        for (field, value) in [
            ("crop_size", json!(0)),
            ("crop_size", json!({"shortest_edge": 3})),
            ("size", json!(-3)),
            ("size", json!({"longest_edge": 30})),
            ("size", json!({"height": 3})),
            ("size", json!([])),
            ("size", json!(true)),
            ("resample", json!(8)),
            ("resample", json!("bicubic")),
            ("image_mean", json!([0.5, 0.5])),
            ("image_std", json!([0.5, 0.0, 0.5])),
            ("image_std", json!([0.5, 1e-60, 0.5])),
            ("image_std", json!(-1.0)),
            ("rescale_factor", json!(0)),
            ("rescale_factor", json!("x")),
            ("do_resize", json!("yes")),
            ("do_pad", json!(true)),
            ("image_processor_type", json!(7)),
        ] {
            let mut json = json!({"image_processor_type": "CLIPImageProcessor"});
            json[field] = value.clone();
            let message = read(json).expect_err(&format!("{field} {value}")).to_string();
            assert!(message.starts_with(&format!("folder/preprocessor_config.json: {field}: ")), "{message}");
        }
    }

    #[test]
    fn an_unknown_class_is_an_error_and_a_missing_one_is_the_architectures() {
        let message = read(json!({"image_processor_type": "SamImageProcessor"})).unwrap_err().to_string();
        assert!(message.contains("'SamImageProcessor'") && message.contains("CLIPImageProcessor"), "{message}");
        assert!(read(json!([1])).unwrap_err().to_string().contains("not a JSON object"));
        let config = ImageProcessorConfig::from_hugging_face(&json!({}), Path::new("p"), ProcessorClass::Deit).unwrap();
        assert_eq!(config.crop, Some(ImageSize::square(224)));
    }
}
