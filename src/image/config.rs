//! What a processor does to an image before a tower sees it: resize, crop, rescale, normalise.
//!
//! `pixel_values = (crop(resize(rgb)) · rescale_factor − mean) / std`, each step optional.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::filter::Filter;
use crate::{Error, Result};

/// Longest edge that a resize or a crop may ask for: one image of it still fits into memory.
const MAX_EDGE: u32 = 16_384;

/// The steps from a decoded image to pixel values, and their parameters.
///
/// The serialised form is this crate's own; see [`ImageProcessorConfig::from_hugging_face`] for theirs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageProcessorConfig {
    /// The resize, or none: images keep their size.
    pub resize: Option<Resize>,
    /// The size of the centre crop in pixels, or none: nothing is cropped. A smaller image is padded with `fill`.
    pub crop: Option<ImageSize>,
    /// Where the crop lies if it cannot lie exactly in the centre.
    #[serde(default)]
    pub crop_rounding: CropRounding,
    /// The 8-bit value of all channels that surrounds an image smaller than the crop: 0, black, as a rule.
    #[serde(default)]
    pub fill: u8,
    /// What 8-bit values are multiplied with, 1/255 as a rule, or none: they stay 0 to 255.
    pub rescale_factor: Option<f64>,
    /// The normalisation of the rescaled values, or none.
    pub normalize: Option<Normalize>,
    /// What becomes of transparent pixels.
    pub transparency: Transparency,
}

/// A height and a width in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSize {
    /// Rows of pixels.
    pub height: u32,
    /// Columns of pixels.
    pub width: u32,
}

/// A resize: to which size, by which filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// The size to reach.
    pub to: ResizeTo,
    /// The resampling filter.
    pub filter: Filter,
}

/// Which size a resize reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ResizeTo {
    /// Exactly this height and width, whatever becomes of the proportions.
    Exact(ImageSize),
    /// The shorter edge gets this many pixels; the proportions stay.
    ShortestEdge(u32),
    /// The shorter edge gets `shortest` pixels, fewer if the longer one would exceed `longest`; the proportions stay.
    EdgeRange {
        /// Pixels of the shorter edge.
        shortest: u32,
        /// Most pixels of the longer edge.
        longest: u32,
    },
    /// The largest size in the image's proportions that fits into this one.
    Within(ImageSize),
    /// The smallest size in the image's proportions that covers this one.
    Covering(ImageSize),
}

/// Where a centre crop lies if the image has an odd number of pixels more, or fewer, than the crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CropRounding {
    /// Half a pixel towards the top and left, as transformers rounds: the offset is ⌊(image − crop) / 2⌋.
    #[default]
    Down,
    /// To the even one of the two offsets, and half a pixel towards the top and left where the image is the smaller one,
    /// as torchvision rounds.
    HalfToEven,
}

/// Mean and standard deviation of each channel (red, green, blue), in units of the rescaled values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalize {
    /// Subtracted from the values.
    pub mean: [f64; 3],
    /// Divides the differences.
    pub std: [f64; 3],
}

/// What becomes of transparent pixels: a tower sees three channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transparency {
    /// The image is laid on white, as the processors with `do_convert_rgb` do since transformers 5.
    OnWhite,
    /// The alpha channel is dropped; the colours stay as stored.
    Dropped,
    /// The image is resized with its alpha channel, which is then dropped, as open_clip does: colours count by their opacity.
    /// Palettes and one-bit images are resized by [`Filter::Nearest`], whatever the filter, because Pillow does so.
    DroppedAfterResize,
}

impl ImageSize {
    /// A square of `edge` × `edge` pixels.
    #[must_use]
    pub fn square(edge: u32) -> Self {
        Self { height: edge, width: edge }
    }

    pub(crate) fn of(image: &::image::RgbImage) -> Self {
        Self { height: image.height(), width: image.width() }
    }

    pub(crate) fn pixels(self) -> u64 {
        u64::from(self.height) * u64::from(self.width)
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{}", self.height, self.width)
    }
}

impl ImageProcessorConfig {
    /// The configuration of OpenAI's CLIP for inputs of 224 × 224 pixels.
    #[must_use]
    pub fn clip() -> Self {
        super::hugging_face::ProcessorClass::Clip.config()
    }

    /// The size of every output (H,W), if it does not depend on the image.
    #[must_use]
    pub fn output_size(&self) -> Option<ImageSize> {
        match (self.crop, self.resize.map(|resize| resize.to)) {
            (Some(size), _) | (None, Some(ResizeTo::Exact(size))) => Some(size),
            _ => None,
        }
    }

    /// The same processor for inputs of `edge` × `edge` pixels.
    ///
    /// The crop becomes `edge`, and the resize before it is scaled by the same factor: 256 and 224 become 128 and 112 for
    /// `edge` 112. Without a crop, the resize itself becomes `edge`.
    ///
    /// # Errors
    /// If `edge` is 0, or the processor neither resizes nor crops and so has no size to change.
    pub fn with_image_size(&self, edge: u32) -> Result<Self> {
        if edge == 0 {
            return Err(Error::argument("edge", "an input size of 0 pixels has no pixels; give at least 1"));
        }
        if self.resize.is_none() && self.crop.is_none() {
            let message = "this processor neither resizes nor crops, so it has no input size; set `resize` or `crop`";
            return Err(Error::argument("edge", message));
        }
        self.validate()?;
        let mut config = self.clone();
        config.crop = self.crop.map(|_| ImageSize::square(edge));
        if let Some(resize) = &mut config.resize {
            resize.to = resize.to.scaled(edge, self.crop);
        }
        Ok(config)
    }

    /// The size to which an image of `size` is resized, before the crop.
    ///
    /// # Errors
    /// If the longer edge's limit leaves nothing of the shorter edge.
    pub(crate) fn resized_size(&self, size: ImageSize) -> std::result::Result<ImageSize, String> {
        let resized = self.resize.map_or(size, |resize| resize.to.apply(size));
        if resized.pixels() == 0 {
            return Err(format!("{size} pixels cannot be resized to {resized}: the image is too long and thin"));
        }
        Ok(resized)
    }

    /// Checks that every number can be computed with.
    ///
    /// # Errors
    /// If a size is 0, a factor or standard deviation is not positive, or a number is not finite; the error names the field.
    pub fn validate(&self) -> Result<()> {
        self.problem().map_or(Ok(()), |(field, message)| Err(Error::argument(field, message)))
    }

    /// The first field that cannot be used, by its Hugging Face name, and why.
    pub(crate) fn problem(&self) -> Option<(&'static str, String)> {
        let check = |edges: [u32; 2]| {
            let wrong = edges.into_iter().find(|edge| !(1..=MAX_EDGE).contains(edge))?;
            Some(format!("an edge of {wrong} pixels; 1 to {MAX_EDGE} are possible"))
        };
        let size = match self.resize.map(|resize| resize.to) {
            Some(ResizeTo::Exact(size) | ResizeTo::Within(size) | ResizeTo::Covering(size)) => {
                check([size.height, size.width])
            }
            Some(ResizeTo::ShortestEdge(edge)) => check([edge, edge]),
            Some(ResizeTo::EdgeRange { shortest, longest }) => check([shortest, longest]),
            None => None,
        };
        if let Some(message) = size {
            return Some(("size", message));
        }
        if let Some(message) = self.crop.and_then(|crop| check([crop.height, crop.width])) {
            return Some(("crop_size", message));
        }
        if let Some(factor) = self.rescale_factor.filter(|factor| !(factor.is_finite() && *factor > 0.0)) {
            return Some(("rescale_factor", format!("{factor} is not a positive number")));
        }
        let normalize = self.normalize?;
        if let Some(mean) = normalize.mean.iter().find(|mean| !mean.is_finite()) {
            return Some(("image_mean", format!("{mean} is not a number")));
        }
        // The division is done in single precision, where a tiny deviation becomes zero.
        let unusable = |std: &&f64| !(std.is_finite() && (**std as f32) > 0.0);
        let std = normalize.std.iter().find(unusable)?;
        Some(("image_std", format!("{std} is not a positive number, and the values are divided by it")))
    }
}

impl ResizeTo {
    /// The size that an image of `size` gets.
    ///
    /// Source: transformers 5.23, `get_resize_output_image_size` and `get_size_with_aspect_ratio`; open_clip 3.3,
    /// `ResizeKeepRatio`.
    fn apply(self, size: ImageSize) -> ImageSize {
        match self {
            Self::Exact(exact) => exact,
            Self::ShortestEdge(edge) => with_short_edge(size, edge, f64::from(edge)),
            Self::EdgeRange { shortest, longest } => {
                let (short, long) = (size.height.min(size.width), size.height.max(size.width));
                let (short, long, longest) = (f64::from(short), f64::from(long), f64::from(longest));
                if long / short * f64::from(shortest) <= longest {
                    return with_short_edge(size, shortest, f64::from(shortest));
                }
                let exact = longest * short / long;
                let rounded = exact.round_ties_even() as u32;
                if f64::from(rounded) == short {
                    return size;
                }
                with_short_edge(size, rounded, exact)
            }
            Self::Within(target) => in_proportion(size, target, f64::max),
            Self::Covering(target) => in_proportion(size, target, f64::min),
        }
    }

    /// The resize for inputs of `edge` pixels, where `crop` was the input size so far.
    fn scaled(self, edge: u32, crop: Option<ImageSize>) -> Self {
        let scale = |length: u32, crop: u32| {
            let scaled = (f64::from(length) * f64::from(edge) / f64::from(crop)).round();
            (scaled as u32).max(1)
        };
        let short_crop = crop.map(|crop| crop.height.min(crop.width));
        let both = |size: ImageSize| match crop {
            None => ImageSize::square(edge),
            Some(crop) => ImageSize { height: scale(size.height, crop.height), width: scale(size.width, crop.width) },
        };
        match (self, crop) {
            (Self::Exact(size), _) => Self::Exact(both(size)),
            (Self::Within(size), _) => Self::Within(both(size)),
            (Self::Covering(size), _) => Self::Covering(both(size)),
            (Self::ShortestEdge(length), _) => Self::ShortestEdge(short_crop.map_or(edge, |crop| scale(length, crop))),
            (Self::EdgeRange { shortest, longest }, _) => Self::EdgeRange {
                shortest: scale(shortest, short_crop.unwrap_or(shortest)),
                longest: scale(longest, short_crop.unwrap_or(shortest)),
            },
        }
    }
}

/// `size` reduced by the ratio to `target` that `choose` takes from those of height and width, rounded to the nearest pixel.
fn in_proportion(size: ImageSize, target: ImageSize, choose: fn(f64, f64) -> f64) -> ImageSize {
    let (height, width) = (f64::from(size.height), f64::from(size.width));
    let ratio = choose(height / f64::from(target.height), width / f64::from(target.width));
    let scaled = |length: f64| (length / ratio).round_ties_even() as u32;
    ImageSize { height: scaled(height), width: scaled(width) }
}

/// `size` with `edge` pixels on its shorter edge; the longer one is in proportion to `exact`, rounded down.
fn with_short_edge(size: ImageSize, edge: u32, exact: f64) -> ImageSize {
    let longer = |long: u32, short: u32| (exact * f64::from(long) / f64::from(short)) as u32;
    if size.width <= size.height {
        ImageSize { height: longer(size.height, size.width), width: edge }
    } else {
        ImageSize { height: edge, width: longer(size.width, size.height) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(height: u32, width: u32) -> ImageSize {
        ImageSize { height, width }
    }

    #[test]
    fn the_longer_edge_is_rounded_down() {
        assert_eq!(ResizeTo::ShortestEdge(224).apply(size(375, 500)), size(224, 298));
        assert_eq!(ResizeTo::ShortestEdge(224).apply(size(500, 333)), size(336, 224));
        assert_eq!(ResizeTo::ShortestEdge(16).apply(size(1, 7)), size(16, 112));
    }

    #[test]
    fn a_limit_on_the_longer_edge_shortens_the_shorter_one() {
        let to = ResizeTo::EdgeRange { shortest: 100, longest: 150 };
        assert_eq!(to.apply(size(300, 400)), size(100, 133));
        assert_eq!(to.apply(size(200, 400)), size(75, 150));
        assert_eq!(to.apply(size(400, 3)), size(150, 1));
    }

    #[test]
    fn a_size_in_proportion_lies_within_or_covers_its_target() {
        let target = size(20, 30);
        assert_eq!(ResizeTo::Within(target).apply(size(100, 100)), size(20, 20));
        assert_eq!(ResizeTo::Covering(target).apply(size(100, 100)), size(30, 30));
        assert_eq!(ResizeTo::Within(target).apply(size(7, 200)), size(1, 30));
        // Half a pixel goes to the even number: 2.5 to 2.
        assert_eq!(ResizeTo::Within(size(10, 10)).apply(size(1, 4)), size(2, 10));
        let mut config = ImageProcessorConfig::clip();
        config.resize = Some(Resize { to: ResizeTo::Within(target), filter: Filter::Bicubic });
        assert!(config.resized_size(size(1, 500)).unwrap_err().contains("too long and thin"));
    }

    #[test]
    fn a_smaller_input_size_scales_the_resize_with_the_crop() {
        let mut config = ImageProcessorConfig::clip();
        config.resize = Some(Resize { to: ResizeTo::ShortestEdge(256), filter: Filter::Bicubic });
        let small = config.with_image_size(112).unwrap();
        assert_eq!(small.resize.unwrap().to, ResizeTo::ShortestEdge(128));
        assert_eq!(small.crop, Some(size(112, 112)));
        config.crop = None;
        config.resize = Some(Resize { to: ResizeTo::Exact(size(224, 224)), filter: Filter::Bicubic });
        assert_eq!(config.with_image_size(96).unwrap().output_size(), Some(size(96, 96)));
        config.resize = None;
        assert!(config.with_image_size(96).is_err());
        assert!(ImageProcessorConfig::clip().with_image_size(0).is_err());
    }

    #[test]
    fn our_own_form_survives_the_round_trip_and_denies_unknown_fields() {
        let config = ImageProcessorConfig::clip();
        let json = serde_json::to_value(&config).unwrap();
        assert_eq!(serde_json::from_value::<ImageProcessorConfig>(json.clone()).unwrap(), config);
        let mut unknown = json;
        unknown["croop"] = 3.into();
        assert!(serde_json::from_value::<ImageProcessorConfig>(unknown).unwrap_err().to_string().contains("croop"));
    }
}
