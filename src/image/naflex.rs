//! Images to sequences of patches of their own proportions, as SigLIP 2's NaFlex checkpoints take them.
//!
//! ```text
//! image ──resize──▶ (h·p, w·p) ──rescale, normalise──▶ h·w patches of p·p·C values ──pad──▶ N patches
//! ```
//!
//! The resize takes the largest scale s at which `⌈s·H/p⌉ · ⌈s·W/p⌉ ≤ N`, found by bisection, so that nearly all of the
//! N patches are used and the proportions stay. Each patch holds its pixels row by row, the channels of a pixel side by
//! side; the patches follow row by row, and rows of zeros fill up the rest, which the mask tells apart.
//!
//! Reference: transformers 5.23, `image_processing_pil_siglip2.py`; Tschannen et al. 2025, "SigLIP 2".

use std::path::Path;

use ::image::RgbImage;
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::config::{ImageProcessorConfig, ImageSize, Normalize, Resize, ResizeTo, Transparency};
use super::decode::{DecodeOptions, ImageInput, decode_rgb};
use super::fields::{Fields, read_folder};
use super::filter::Filter;
use super::hugging_face::HALF_NORMALIZE;
use super::processor::{CHANNELS, Levels, levels};
use super::resize::Window;
use crate::{Error, Result};

/// The class's name in transformers.
const CLASS: &str = "Siglip2ImageProcessor";

/// Most values one image may become: 1 GiB in single precision.
const MAX_VALUES: u64 = 1 << 28;

/// The steps from a decoded image to patches, and their parameters.
///
/// The serialised form is this crate's own; see [`NaflexConfig::from_hugging_face`] for theirs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NaflexConfig {
    /// Side p of a patch in pixels.
    pub patch_size: u32,
    /// Number N of patches that every image is resized to at most, and padded to.
    pub max_num_patches: u32,
    /// The filter of the resize, or none: images keep their size, and what is left of a patch at the border is cut off.
    pub filter: Option<Filter>,
    /// What 8-bit values are multiplied with, 1/255 as a rule, or none: they stay 0 to 255.
    pub rescale_factor: Option<f64>,
    /// The normalisation of the rescaled values, or none.
    pub normalize: Option<Normalize>,
    /// What becomes of transparent pixels.
    pub transparency: Transparency,
}

/// Several images as patches.
#[derive(Debug, Clone)]
pub struct NaflexBatch {
    /// The patches' pixel values, (B,N,p·p·C) f32; zero where the mask is.
    pub patches: Tensor,
    /// 1 where there is a patch, 0 where there is padding, (B,N) u32.
    pub mask: Tensor,
    /// Rows and columns of patches of each image; their product is the number of its patches.
    pub spatial_shapes: Vec<(usize, usize)>,
}

/// Turns images into patches.
///
/// ```
/// use diptych::image::{NaflexConfig, NaflexProcessor, image_crate};
///
/// let processor = NaflexProcessor::new(NaflexConfig::default())?;
/// let photo = image_crate::RgbImage::new(500, 375);
/// let batch = processor.batch(&[photo.into()], &diptych::candle::Device::Cpu)?;
/// assert_eq!(batch.patches.dims(), [1, 256, 16 * 16 * 3]);
/// assert_eq!(batch.spatial_shapes, [(14, 18)]);
/// # Ok::<(), diptych::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct NaflexProcessor {
    config: NaflexConfig,
    decode: DecodeOptions,
    /// What each 8-bit value of each channel becomes.
    levels: Levels,
}

impl Default for NaflexConfig {
    /// 256 patches of 16 × 16 pixels, bilinear, mean and standard deviation 0.5, transparency on white.
    fn default() -> Self {
        Self {
            patch_size: 16,
            max_num_patches: 256,
            filter: Some(Filter::Bilinear),
            rescale_factor: Some(1.0 / 255.0),
            normalize: Some(HALF_NORMALIZE),
            transparency: Transparency::OnWhite,
        }
    }
}

impl NaflexConfig {
    /// Reads the processor of a model folder: `processor_config.json` if that describes one, else
    /// `preprocessor_config.json`.
    ///
    /// # Errors
    /// If there is neither file, or what there is cannot be used; see [`NaflexConfig::from_hugging_face`].
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let (path, json) = read_folder(folder.as_ref())?;
        Self::from_hugging_face(&json, &path)
    }

    /// Reads the contents of a `preprocessor_config.json` or of transformers 5's `processor_config.json`; `path` is where
    /// they come from, and errors name it.
    ///
    /// A file that does not say `do_convert_rgb` gets [`Transparency::Dropped`]: transformers fails on transparent images then.
    ///
    /// # Errors
    /// If the file names another processor class than `Siglip2ImageProcessor`, or a field's value cannot be used.
    pub fn from_hugging_face(json: &Value, path: &Path) -> Result<Self> {
        let fields = Fields::new(json, path)?;
        if let Some(name) = fields.class_name()?.filter(|name| !Self::is_class(name)) {
            return Err(Error::unsupported(path.display().to_string(), "NaFlex image processor", name, CLASS));
        }
        let default = Self::default();
        let count = |field: &str, default: u32| match fields.get(field) {
            Some(value) => fields.length(field, value),
            None => Ok(default),
        };
        let filter = fields.filter(Filter::Bilinear)?;
        let config = Self {
            patch_size: count("patch_size", default.patch_size)?,
            max_num_patches: count("max_num_patches", default.max_num_patches)?,
            filter: fields.flag("do_resize")?.unwrap_or(true).then_some(filter),
            rescale_factor: fields.rescale_factor()?,
            normalize: fields.normalize(HALF_NORMALIZE)?,
            transparency: match fields.flag("do_convert_rgb")? {
                Some(true) => Transparency::OnWhite,
                Some(false) | None => Transparency::Dropped,
            },
        };
        config.problem().map_or(Ok(config), |(field, message)| Err(fields.error(field, message)))
    }

    /// A `preprocessor_config.json` from which transformers makes the same processor.
    #[must_use]
    pub fn to_hugging_face(&self) -> Value {
        let mut json = json!({
            "image_processor_type": CLASS,
            "do_convert_rgb": self.transparency != Transparency::Dropped,
            "do_resize": self.filter.is_some(),
            "do_rescale": self.rescale_factor.is_some(),
            "do_normalize": self.normalize.is_some(),
            "patch_size": self.patch_size,
            "max_num_patches": self.max_num_patches,
        });
        if let Some(filter) = self.filter {
            json["resample"] = filter.pillow().into();
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

    /// The processor of the largest squares that have no more patches than this one makes, alike in all else.
    #[must_use]
    pub fn squares(&self) -> ImageProcessorConfig {
        let side = self.max_num_patches.isqrt().saturating_mul(self.patch_size);
        let filter = self.filter.unwrap_or(Filter::Bilinear);
        ImageProcessorConfig {
            resize: Some(Resize { to: ResizeTo::Exact(ImageSize::square(side)), filter }),
            crop: None,
            rescale_factor: self.rescale_factor,
            normalize: self.normalize,
            transparency: self.transparency,
            ..ImageProcessorConfig::clip()
        }
    }

    /// Whether `name` is the NaFlex processor's class in transformers, or a variant of it.
    pub(crate) fn is_class(name: &str) -> bool {
        name.trim_end_matches("Fast").trim_end_matches("Pil").replace("FeatureExtractor", "ImageProcessor") == CLASS
    }

    /// Checks that every number can be computed with.
    ///
    /// # Errors
    /// If a size is 0 or too large, a factor or standard deviation is not positive, or a number is not finite.
    pub fn validate(&self) -> Result<()> {
        self.problem().map_or(Ok(()), |(field, message)| Err(Error::argument(field, message)))
    }

    /// The size to which an image of `size` is resized: a multiple of the patch size along both axes.
    ///
    /// Source: transformers 5.23, `get_image_size_for_max_num_patches`.
    fn resized_size(&self, size: ImageSize) -> ImageSize {
        const PRECISION: f64 = 1e-5;
        let patches =
            |scale: f64, length: u32| (f64::from(length) * scale / f64::from(self.patch_size)).ceil().max(1.0);
        let (mut low, mut high) = (PRECISION / 10.0, 100.0);
        while high - low >= PRECISION {
            let scale = (low + high) / 2.0;
            if patches(scale, size.height) * patches(scale, size.width) <= f64::from(self.max_num_patches) {
                low = scale;
            } else {
                high = scale;
            }
        }
        let edge = |length: u32| (patches(low, length) as u32).saturating_mul(self.patch_size);
        ImageSize { height: edge(size.height), width: edge(size.width) }
    }

    /// The first field that cannot be used, by its Hugging Face name, and why.
    fn problem(&self) -> Option<(&'static str, String)> {
        for (field, value) in [("patch_size", self.patch_size), ("max_num_patches", self.max_num_patches)] {
            if value == 0 {
                return Some((field, "0 is not possible; give at least 1".to_owned()));
            }
        }
        let (patch, most) = (u64::from(self.patch_size), u64::from(self.max_num_patches));
        let values = patch.saturating_mul(patch).saturating_mul(most).saturating_mul(CHANNELS as u64);
        if values > MAX_VALUES {
            let message =
                format!("{most} patches of {patch}×{patch} pixels are more than {MAX_VALUES} values an image");
            return Some(("max_num_patches", message));
        }
        // The rest is as in the processors of one size.
        let rest = super::ImageProcessorConfig {
            rescale_factor: self.rescale_factor,
            normalize: self.normalize,
            ..super::ImageProcessorConfig::clip()
        };
        rest.problem()
    }
}

impl NaflexProcessor {
    /// A processor with the given steps.
    ///
    /// # Errors
    /// If a parameter cannot be used; see [`NaflexConfig::validate`].
    pub fn new(config: NaflexConfig) -> Result<Self> {
        config.validate()?;
        let levels = levels(config.rescale_factor, config.normalize);
        Ok(Self { config, decode: DecodeOptions::default(), levels })
    }

    /// The same processor with other options for decoding.
    #[must_use]
    pub fn with_decode_options(mut self, decode: DecodeOptions) -> Self {
        self.decode = decode;
        self
    }

    /// The same processor for another number of patches: more show finer details and cost more time.
    ///
    /// # Errors
    /// If it is 0, or needs too much memory.
    pub fn with_max_num_patches(mut self, max_num_patches: u32) -> Result<Self> {
        self.config.max_num_patches = max_num_patches;
        self.config.validate()?;
        Ok(self)
    }

    /// The steps and their parameters.
    #[must_use]
    pub fn config(&self) -> &NaflexConfig {
        &self.config
    }

    /// The patches of several images, prepared in parallel.
    ///
    /// # Shapes
    /// `patches` (B,N,p·p·C), `mask` (B,N): one image a row, in the order of `inputs`.
    ///
    /// # Errors
    /// If there is no image, one cannot be decoded (the error names its file or its index), or, where images are not
    /// resized, one has no whole patch or more than `max_num_patches`.
    pub fn batch(&self, inputs: &[ImageInput], device: &Device) -> Result<NaflexBatch> {
        if inputs.is_empty() {
            return Err(Error::argument("inputs", "there is no image; give at least one"));
        }
        let images = inputs.par_iter().enumerate().map(|(index, input)| self.resized(input, &input.name(Some(index))));
        // Not collected into a result above: the first image at fault is to be named, not the one that failed first.
        let images = images.collect::<Vec<_>>().into_iter().collect::<Result<Vec<_>>>()?;
        self.stack(&images, device)
    }

    /// The patches of images that [`NaflexProcessor::resized`] made.
    pub(crate) fn stack(&self, images: &[RgbImage], device: &Device) -> Result<NaflexBatch> {
        let patch_size = self.config.patch_size as usize;
        let (rows, width) = (self.config.max_num_patches as usize, patch_size * patch_size * CHANNELS);
        let mut patches = vec![0.0; images.len() * rows * width];
        patches.par_chunks_exact_mut(rows * width).zip(images).for_each(|(out, image)| self.cut(image, out));
        let shape = |image: &RgbImage| (image.height() as usize / patch_size, image.width() as usize / patch_size);
        let spatial_shapes = images.iter().map(shape).collect::<Vec<_>>();
        let mask = spatial_shapes.iter().flat_map(|(h, w)| (0..rows).map(move |row| u32::from(row < h * w)));
        Ok(NaflexBatch {
            mask: Tensor::from_vec(mask.collect::<Vec<_>>(), (images.len(), rows), device)?,
            patches: Tensor::from_vec(patches, (images.len(), rows, width), device)?,
            spatial_shapes,
        })
    }

    /// One image, resized to whole patches.
    pub(crate) fn resized(&self, input: &ImageInput, name: &str) -> Result<RgbImage> {
        let image = decode_rgb(input, name, &self.decode, self.config.transparency)?;
        if let Some(filter) = self.config.filter {
            let size = self.config.resized_size(image.size());
            self.check(size, name)?;
            if size == image.size() {
                return Ok(image.into_image());
            }
            return image.resize(Resize { to: ResizeTo::Exact(size), filter }, size, Window::whole(size));
        }
        self.check(image.size(), name)?;
        Ok(image.into_image())
    }

    /// Checks that an image of `size` has a whole patch, and not more than the limit.
    fn check(&self, size: ImageSize, name: &str) -> Result<()> {
        let patch = self.config.patch_size;
        let patches = u64::from(size.height / patch) * u64::from(size.width / patch);
        if (1..=u64::from(self.config.max_num_patches)).contains(&patches) {
            return Ok(());
        }
        let most = self.config.max_num_patches;
        let message = format!(
            "its {size} pixels have {patches} patches of {patch}×{patch}, and 1 to {most} are possible (`max_num_patches`)"
        );
        Err(Error::image(name, message))
    }

    /// Writes the patches of `image` to the first rows of `out`, through the table of levels.
    fn cut(&self, image: &RgbImage, out: &mut [f32]) {
        let patch = self.config.patch_size as usize;
        let line = patch * CHANNELS;
        let columns = image.width() as usize / patch;
        let stride = image.width() as usize * CHANNELS;
        for (index, out) in out.chunks_exact_mut(patch * line).enumerate() {
            let (top, left) = (index / columns * patch, index % columns * line);
            if top + patch > image.height() as usize {
                return;
            }
            for (y, out) in out.chunks_exact_mut(line).enumerate() {
                let start = (top + y) * stride + left;
                for (i, (out, &value)) in out.iter_mut().zip(&image.as_raw()[start..start + line]).enumerate() {
                    *out = self.levels[i % CHANNELS][usize::from(value)];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: Value) -> Result<NaflexConfig> {
        NaflexConfig::from_hugging_face(&json, Path::new("folder/preprocessor_config.json"))
    }

    #[test]
    fn what_is_written_is_read_again() {
        let default = NaflexConfig::default();
        let bare = NaflexConfig { filter: None, rescale_factor: None, normalize: None, ..default.clone() };
        for config in [default, bare] {
            assert_eq!(read(config.to_hugging_face()).unwrap(), config);
            let ours = serde_json::to_value(&config).unwrap();
            assert_eq!(serde_json::from_value::<NaflexConfig>(ours).unwrap(), config);
        }
    }

    #[test]
    fn a_value_that_cannot_be_used_is_named_with_its_field_and_file() {
        for (field, value) in [
            ("patch_size", json!(0)),
            ("max_num_patches", json!(-1)),
            ("max_num_patches", json!(1_000_000_000)),
            ("resample", json!(9)),
            ("image_std", json!(0)),
        ] {
            let message = read(json!({ field: value })).expect_err(field).to_string();
            assert!(message.starts_with(&format!("folder/preprocessor_config.json: {field}: ")), "{message}");
        }
        let message = read(json!({"image_processor_type": "CLIPImageProcessor"})).unwrap_err().to_string();
        assert!(message.contains("'CLIPImageProcessor'") && message.contains(CLASS), "{message}");
    }

    #[test]
    fn any_size_becomes_whole_patches_within_the_limit() {
        let config = NaflexConfig::default();
        for (height, width) in
            [(1, 1), (1, 500), (4000, 3000), (16, 16), (1, 2_000_000), (u32::MAX, 1), (u32::MAX, u32::MAX)]
        {
            let size = config.resized_size(ImageSize { height, width });
            assert_eq!((size.height % 16, size.width % 16), (0, 0));
            let patches = size.pixels() / 256;
            assert!(patches > 0 && (patches <= 256 || height.max(width) > 10_000_000), "{height}×{width}: {patches}");
        }
    }

    #[test]
    fn images_that_are_not_resized_must_have_whole_patches_within_the_limit() {
        let config = NaflexConfig { patch_size: 2, max_num_patches: 4, filter: None, ..NaflexConfig::default() };
        let processor = NaflexProcessor::new(config).unwrap();
        let batch = |width, height| processor.batch(&[RgbImage::new(width, height).into()], &Device::Cpu);
        assert_eq!(batch(5, 4).unwrap().spatial_shapes, [(2, 2)]);
        for (width, height) in [(1, 4), (6, 4)] {
            assert!(batch(width, height).unwrap_err().to_string().contains("max_num_patches"));
        }
        assert!(processor.batch(&[], &Device::Cpu).unwrap_err().to_string().contains("at least one"));
        assert!(processor.with_max_num_patches(0).is_err());
    }
}
