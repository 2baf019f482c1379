//! Processors as Hugging Face writes them: `preprocessor_config.json`, and the `image_processor` object of transformers
//! 5's `processor_config.json`.
//!
//! A field that is missing or null takes the default of the processor class the file names, as in transformers 5.23
//! (`image_processing_pil_*.py`).

use std::path::Path;

use serde_json::{Value, json};

use super::config::{CropRounding, ImageProcessorConfig, ImageSize, Normalize, Resize, ResizeTo, Transparency};
use super::fields::{Fields, read_folder};
use super::filter::Filter;
use super::naflex::NaflexConfig;
use crate::{Error, Result};

pub(super) const CLIP_NORMALIZE: Normalize =
    Normalize { mean: [0.48145466, 0.4578275, 0.40821073], std: [0.26862954, 0.26130258, 0.27577711] };
pub(super) const HALF_NORMALIZE: Normalize = Normalize { mean: [0.5; 3], std: [0.5; 3] };

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
    /// `BeitImageProcessor`.
    Beit,
}

impl ProcessorClass {
    const ALL: [Self; 8] =
        [Self::Clip, Self::ChineseClip, Self::Vit, Self::Deit, Self::Bit, Self::Siglip, Self::Blip, Self::Beit];

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
            Self::Beit => "BeitImageProcessor",
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
            Self::Siglip | Self::Beit => (square(224), Filter::Bicubic),
            Self::Blip => (square(384), Filter::Bicubic),
        };
        let crops = matches!(self, Self::Clip | Self::ChineseClip | Self::Deit | Self::Bit);
        let imagenet_standard = matches!(self, Self::Vit | Self::Deit | Self::Siglip | Self::Beit);
        ImageProcessorConfig {
            resize: Some(Resize { to, filter }),
            crop: crops.then(|| ImageSize::square(224)),
            rescale_factor: Some(1.0 / 255.0),
            normalize: Some(if imagenet_standard { HALF_NORMALIZE } else { CLIP_NORMALIZE }),
            transparency: match self {
                Self::Vit | Self::Deit | Self::Beit => Transparency::Dropped,
                _ => Transparency::OnWhite,
            },
            crop_rounding: CropRounding::Down,
            fill: 0,
        }
    }

    /// What a whole-number `size` means: a square, or the shorter edge (`default_to_square`).
    fn whole_size_is_a_square(self) -> bool {
        matches!(self, Self::Vit | Self::Deit | Self::Beit | Self::Blip)
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
        let (path, json) = read_folder(folder.as_ref())?;
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
        let Some(name) = fields.class_name()? else { return fields.config(class) };
        let class = ProcessorClass::from_name(name).ok_or_else(|| {
            if NaflexConfig::is_class(name) {
                let message = "this processor makes patches of an image's own proportions (NaFlex), not an image of one \
                               size; read it as a `NaflexConfig`";
                return fields.error("image_processor_type", message);
            }
            let context = path.display().to_string();
            Error::unsupported(context, "image processor", name, ProcessorClass::supported())
        })?;
        fields.config(class)
    }

    /// A `preprocessor_config.json` from which transformers makes the same processor.
    ///
    /// What transformers cannot do and only some images show is written in fields of this crate's own, `crop_rounding` and
    /// `transparency`, which transformers does not look at: there, a crop that cannot be centred lies one pixel beside that
    /// of [`CropRounding::HalfToEven`], and transparent images are laid on white before the resize in place of
    /// [`Transparency::DroppedAfterResize`].
    ///
    /// # Errors
    /// If every image would look different: a resize within or over a size, or padding with another colour than black.
    pub fn to_hugging_face(&self) -> Result<Value> {
        let unsupported = |what, found: String, supported| {
            Err(Error::unsupported("preprocessor_config.json", what, found, supported))
        };
        if let Some(to @ (ResizeTo::Within(size) | ResizeTo::Covering(size))) = self.resize.map(|resize| resize.to) {
            let way = if matches!(to, ResizeTo::Within(_)) { "within" } else { "covering" };
            return unsupported("resize", format!("{way} {size}"), "an exact size, the shortest edge");
        }
        if self.crop.is_some() && self.fill != 0 {
            return unsupported("padding colour", self.fill.to_string(), "0");
        }
        let class = match (self.transparency, self.crop) {
            (Transparency::Dropped, None) => ProcessorClass::Vit,
            _ => ProcessorClass::Clip,
        };
        let edges = |size: ImageSize| json!({"height": size.height, "width": size.width});
        let mut json = json!({
            "image_processor_type": class.name(),
            "do_convert_rgb": self.transparency != Transparency::Dropped,
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
                ResizeTo::Within(_) | ResizeTo::Covering(_) => Value::Null,
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
        if self.crop_rounding != CropRounding::default() {
            json["crop_rounding"] = json!(self.crop_rounding);
        }
        if self.transparency == Transparency::DroppedAfterResize {
            json["transparency"] = json!(self.transparency);
        }
        Ok(json)
    }
}

impl Fields<'_> {
    fn config(&self, class: ProcessorClass) -> Result<ImageProcessorConfig> {
        let default = class.config();
        let config = ImageProcessorConfig {
            resize: self.resize(class, default.resize)?,
            crop: self.crop(class, default.crop)?,
            crop_rounding: self.choice("crop_rounding")?.unwrap_or_default(),
            rescale_factor: self.rescale_factor()?,
            normalize: self.normalize(default.normalize.unwrap_or(HALF_NORMALIZE))?,
            fill: 0,
            transparency: match (self.choice("transparency")?, self.flag("do_convert_rgb")?) {
                (Some(ours), _) => ours,
                (None, Some(true)) => Transparency::OnWhite,
                (None, Some(false)) => Transparency::Dropped,
                (None, None) => default.transparency,
            },
        };
        // Images of one size need no padding.
        if self.flag("do_pad")? == Some(true) && (config.output_size().is_none() || self.get("pad_size").is_some()) {
            let message = "padding is not supported; images get one size by a crop or an exact resize";
            return Err(self.error("do_pad", message));
        }
        config.problem().map_or(Ok(config), |(field, message)| Err(self.error(field, message)))
    }

    fn resize(&self, class: ProcessorClass, default: Option<Resize>) -> Result<Option<Resize>> {
        let filter = self.filter(default.map_or(Filter::Bilinear, |resize| resize.filter))?;
        let square = self.flag("default_to_square")?.unwrap_or(class.whole_size_is_a_square());
        let to = match self.get("size") {
            None => default.map(|resize| resize.to),
            Some(size) if size.is_number() => Some(match (self.length("size", size)?, square) {
                (edge, true) => ResizeTo::Exact(ImageSize::square(edge)),
                (edge, false) => ResizeTo::ShortestEdge(edge),
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

    fn crop(&self, class: ProcessorClass, default: Option<ImageSize>) -> Result<Option<ImageSize>> {
        let size = match self.get("crop_size") {
            // BEiT does not crop unless asked to, but has a size for it.
            None if class == ProcessorClass::Beit => Some(ImageSize::square(224)),
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
        for class in ["ViTImageProcessor", "DeiTImageProcessorPil", "BlipImageProcessor", "BeitFeatureExtractor"] {
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
            assert_eq!(read(config.to_hugging_face().unwrap()).unwrap(), config, "{class:?}");
            config = ImageProcessorConfig { resize: None, crop: None, rescale_factor: None, normalize: None, ..config };
            assert_eq!(read(config.to_hugging_face().unwrap()).unwrap(), config, "{class:?} without steps");
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
            json["do_center_crop"] = (field != "do_pad").into();
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
