//! Images to pixel values: decode, resize, crop, rescale, normalise, stack.
//!
//! `value = (f32(rgb · rescale_factor) − mean) / std`: the product in double precision, the rest in single, as in
//! transformers' PIL-based processors. An 8-bit channel has 256 values, so this is a table of 256 numbers a channel.

use ::image::RgbImage;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::augment::{Flip, View};
use super::config::{ImageProcessorConfig, ImageSize, Normalize};
use super::decode::{DecodeOptions, ImageInput, decode_rgb};
use super::resize::Window;
use crate::{Error, Result};

/// Colour channels of every image: red, green, blue.
pub(super) const CHANNELS: usize = 3;

/// What each 8-bit value of each channel becomes.
pub(super) type Levels = Box<[[f32; 256]; CHANNELS]>;

/// Turns images into the `pixel_values` a tower was trained on.
///
/// ```
/// use diptych::image::{ImageProcessor, ImageProcessorConfig, image_crate};
///
/// let processor = ImageProcessor::new(ImageProcessorConfig::clip())?;
/// let photo = image_crate::RgbImage::new(500, 375);
/// let pixel_values = processor.pixel_values(&[photo.into()], &diptych::candle::Device::Cpu)?;
/// assert_eq!(pixel_values.dims(), [1, 3, 224, 224]);
/// # Ok::<(), diptych::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    pub(super) config: ImageProcessorConfig,
    pub(super) decode: DecodeOptions,
    /// What each 8-bit value of each channel becomes.
    levels: Levels,
}

/// The pixel values of one image, (C,H,W), row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct PixelArray {
    data: Vec<f32>,
    size: ImageSize,
}

impl ImageProcessor {
    /// A processor with the given steps.
    ///
    /// # Errors
    /// If a parameter cannot be used; see [`ImageProcessorConfig::validate`].
    pub fn new(config: ImageProcessorConfig) -> Result<Self> {
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

    /// The steps and their parameters.
    #[must_use]
    pub fn config(&self) -> &ImageProcessorConfig {
        &self.config
    }

    /// How files are decoded.
    #[must_use]
    pub fn decode_options(&self) -> &DecodeOptions {
        &self.decode
    }

    /// The pixel values of one image.
    ///
    /// # Shapes
    /// (C,H,W) with three channels.
    ///
    /// # Errors
    /// If the image cannot be decoded.
    pub fn preprocess(&self, input: impl Into<ImageInput>) -> Result<PixelArray> {
        let input = input.into();
        self.preprocess_named(&input, &input.name(None))
    }

    /// The image after decoding and resizing, before the crop: what a training loader keeps between epochs.
    ///
    /// # Shapes
    /// (H,W,3), 8 bits a channel.
    ///
    /// # Errors
    /// If the image cannot be decoded, or is so long and thin that the resized one exceeds the pixel limit.
    pub fn resized(&self, input: impl Into<ImageInput>) -> Result<RgbImage> {
        let input = input.into();
        let name = input.name(None);
        let image = decode_rgb(&input, &name, &self.decode, self.config.transparency)?;
        let size = self.config.resized_size(image.size()).map_err(|message| Error::image(&name, message))?;
        self.within_limit(size, &name)?;
        match self.config.resize {
            Some(resize) if size != image.size() => image.resize(resize, size, Window::whole(size)),
            _ => Ok(image.into_image()),
        }
    }

    /// The pixel values of a view of a resized image: crop, mirror, rescale, normalise.
    ///
    /// # Shapes
    /// `resized` (H,W,3) → (C,H,W) of the crop's size, or of `resized` where the processor does not crop.
    #[must_use]
    pub fn finish(&self, resized: &RgbImage, view: &View) -> PixelArray {
        self.render(
            resized,
            view,
            self.config.crop.unwrap_or_else(|| ImageSize::of(resized)),
            [self.config.fill; CHANNELS],
        )
    }

    /// The pixel values of several images, prepared in parallel.
    ///
    /// # Shapes
    /// (B,C,H,W), one image a row, in the order of `inputs`.
    ///
    /// # Errors
    /// If there is no image, one cannot be decoded (the error names its file or its index), or two have different sizes,
    /// which happens only where the processor neither crops nor resizes to an exact size.
    pub fn pixel_values(&self, inputs: &[ImageInput], device: &Device) -> Result<Tensor> {
        let named = |(index, input): (usize, &ImageInput)| self.preprocess_named(input, &input.name(Some(index)));
        let arrays = inputs.par_iter().enumerate().map(named).collect::<Vec<_>>();
        // Not collected into a result above: the first image at fault is to be named, not the one that failed first.
        let arrays = arrays.into_iter().collect::<Result<Vec<_>>>()?;
        let name = |index: usize| format!("image {}", inputs[index].name(Some(index)));
        PixelArray::stack_named(&arrays, name, device)
    }

    pub(crate) fn preprocess_named(&self, input: &ImageInput, name: &str) -> Result<PixelArray> {
        let image = decode_rgb(input, name, &self.decode, self.config.transparency)?;
        let size = image.size();
        let resized = self.config.resized_size(size).map_err(|message| Error::image(name, message))?;
        let output = self.config.crop.unwrap_or(resized);
        self.within_limit(output, name)?;
        let view = View::center(resized, output, self.config.crop_rounding);
        let padding = image.padding(self.config.fill);
        match self.config.resize {
            Some(resize) if resized != size => {
                // Only what the crop keeps is computed.
                let window = visible(&view, resized, output);
                let part = image.resize(resize, resized, window)?;
                let (top, left) = (view.top - i64::from(window.top), view.left - i64::from(window.left));
                Ok(self.render(&part, &View { top, left, ..view }, output, padding))
            }
            _ => Ok(self.render(image.image(), &view, output, padding)),
        }
    }

    fn within_limit(&self, size: ImageSize, name: &str) -> Result<()> {
        if size.pixels() <= self.decode.max_pixels {
            return Ok(());
        }
        let most = self.decode.max_pixels;
        let message = format!("it would be resized to {size} pixels, more than the limit of {most} (`max_pixels`)");
        Err(Error::image(name, message))
    }

    /// The window of size `size` that `view` places on `image`, through the table of levels; outside the image is `padding`.
    pub(super) fn render(&self, image: &RgbImage, view: &View, size: ImageSize, padding: [u8; CHANNELS]) -> PixelArray {
        let (height, width) = (size.height as usize, size.width as usize);
        let mut data = vec![0.0; CHANNELS * height * width];
        let stride = image.width() as usize * CHANNELS;
        // The window's columns that lie on the image, and the image's first column among them.
        let columns = overlap(view.left, size.width, image.width());
        let first = (columns.start as i64).saturating_add(view.left).max(0) as usize * CHANNELS;
        let rows = overlap(view.top, size.height, image.height());
        for (channel, plane) in data.chunks_exact_mut((height * width).max(1)).enumerate() {
            let levels = &self.levels[channel];
            let outside = levels[usize::from(padding[channel])];
            for (y, out) in plane.chunks_exact_mut(width.max(1)).enumerate() {
                if !rows.contains(&y) || columns.is_empty() {
                    out.fill(outside);
                    continue;
                }
                let row = (y as i64 + view.top) as usize * stride;
                let pixels = image.as_raw()[row + first..row + stride].chunks_exact(CHANNELS);
                out[..columns.start].fill(outside);
                out[columns.end..].fill(outside);
                for (out, pixel) in out[columns.clone()].iter_mut().zip(pixels) {
                    *out = levels[usize::from(pixel[channel])];
                }
                if view.flip == Flip::Horizontal {
                    out.reverse();
                }
            }
        }
        PixelArray { data, size }
    }
}

impl PixelArray {
    /// The values, channel by channel, row by row.
    #[must_use]
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Height and width in pixels.
    #[must_use]
    pub fn size(&self) -> ImageSize {
        self.size
    }

    /// Stacks arrays of one size.
    ///
    /// # Shapes
    /// (B,C,H,W), in the order of `arrays`.
    ///
    /// # Errors
    /// If there are none, or two have different sizes.
    pub fn stack(arrays: &[Self], device: &Device) -> Result<Tensor> {
        Self::stack_named(arrays, |index| format!("image at index {index}"), device)
    }

    pub(crate) fn stack_named(arrays: &[Self], name: impl Fn(usize) -> String, device: &Device) -> Result<Tensor> {
        let Some(size) = arrays.first().map(Self::size) else {
            return Err(Error::argument("inputs", "there is no image; give at least one"));
        };
        if let Some(other) = arrays.iter().position(|array| array.size != size) {
            let (first, second, found) = (name(0), name(other), arrays[other].size);
            let message = format!(
                "{first} gives {size} pixels, but {second} gives {found}, and a batch has one size; \
                 set `crop` or an exact `resize` in the processor's configuration, or prepare the images one by one"
            );
            return Err(Error::argument("inputs", message));
        }
        let mut data = Vec::with_capacity(arrays.len() * arrays[0].data.len());
        arrays.iter().for_each(|array| data.extend_from_slice(&array.data));
        let shape = (arrays.len(), CHANNELS, size.height as usize, size.width as usize);
        Ok(Tensor::from_vec(data, shape, device)?)
    }
}

/// What each 8-bit value of each channel becomes.
pub(super) fn levels(rescale_factor: Option<f64>, normalize: Option<Normalize>) -> Levels {
    Box::new(std::array::from_fn(|channel| {
        std::array::from_fn(|value| {
            let value = (value as f64 * rescale_factor.unwrap_or(1.0)) as f32;
            match normalize {
                Some(normalize) => (value - normalize.mean[channel] as f32) / normalize.std[channel] as f32,
                None => value,
            }
        })
    }))
}

/// The indices of a window of `length` pixels starting at `start` that lie on an axis of `limit` pixels.
fn overlap(start: i64, length: u32, limit: u32) -> std::ops::Range<usize> {
    let length = i64::from(length);
    let first = start.saturating_neg().clamp(0, length);
    let end = i64::from(limit).saturating_sub(start).clamp(first, length);
    first as usize..end as usize
}

/// The part of an image of size `image` that a view of size `size` shows.
pub(super) fn visible(view: &View, image: ImageSize, size: ImageSize) -> Window {
    let along = |start: i64, length: u32, limit: u32| {
        let range = overlap(start, length, limit);
        ((start + range.start as i64) as u32, range.len() as u32)
    };
    let (top, height) = along(view.top, size.height, image.height);
    let (left, width) = along(view.left, size.width, image.width);
    Window { top, left, height, width }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{CropRounding, Filter, Resize, ResizeTo};

    fn plain(resize: Option<ResizeTo>, crop: Option<ImageSize>) -> ImageProcessor {
        let resize = resize.map(|to| Resize { to, filter: Filter::Bicubic });
        let config = ImageProcessorConfig {
            resize,
            crop,
            rescale_factor: None,
            normalize: None,
            ..ImageProcessorConfig::clip()
        };
        ImageProcessor::new(config).unwrap()
    }

    fn ramp(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| ::image::Rgb([x as u8 + 1, y as u8 + 1, 9]))
    }

    #[test]
    fn what_the_crop_does_not_keep_is_not_computed_but_nothing_changes() {
        for (width, height) in [(40, 29), (29, 40), (7, 30), (33, 5), (16, 16)] {
            let image = ramp(width, height);
            let crop = ImageSize { height: 12, width: 21 };
            let processor = plain(Some(ResizeTo::ShortestEdge(16)), Some(crop));
            let resized = processor.resized(image.clone()).unwrap();
            let whole = processor.finish(&resized, &View::center(ImageSize::of(&resized), crop, CropRounding::Down));
            assert_eq!(processor.preprocess(image).unwrap(), whole, "{width}×{height}");
        }
    }

    #[test]
    fn a_view_over_the_border_is_black_there_and_a_flip_mirrors_the_window() {
        let processor = plain(None, Some(ImageSize { height: 1, width: 4 }));
        let image = ramp(3, 2);
        let red = |top, left, flip| processor.finish(&image, &View { top, left, flip }).data()[..4].to_vec();
        assert_eq!(red(0, -1, Flip::None), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(red(1, 1, Flip::None), [2.0, 3.0, 0.0, 0.0]);
        assert_eq!(red(1, 1, Flip::Horizontal), [0.0, 0.0, 3.0, 2.0]);
        for away in [i64::MIN, -4, 3, i64::MAX] {
            assert_eq!(red(0, away, Flip::None), [0.0; 4]);
            assert_eq!(red(away, 0, Flip::None), [0.0; 4]);
        }
    }

    #[test]
    fn values_are_rescaled_then_normalised() {
        let mut config = ImageProcessorConfig::clip();
        config.normalize = Some(Normalize { mean: [0.5, 0.25, 0.0], std: [0.5, 0.25, 2.0] });
        let array = ImageProcessor::new(config).unwrap().preprocess(RgbImage::from_pixel(1, 1, ::image::Rgb([255; 3])));
        let array = array.unwrap();
        let at = |channel: usize| array.data()[channel * 224 * 224];
        assert_eq!([at(0), at(1), at(2)], [1.0, 3.0, 0.5]);
    }

    #[test]
    fn images_of_two_sizes_do_not_make_a_batch() {
        let processor = plain(None, None);
        let inputs = [ramp(3, 4).into(), ramp(3, 4).into(), ramp(5, 4).into()];
        let message = processor.pixel_values(&inputs, &Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("4×3") && message.contains("4×5") && message.contains("at index 2"), "{message}");
        let tensor = processor.pixel_values(&inputs[..2], &Device::Cpu).unwrap();
        assert_eq!(tensor.dims(), [2, 3, 4, 3]);
        assert!(processor.pixel_values(&[], &Device::Cpu).unwrap_err().to_string().contains("at least one"));
    }

    #[test]
    fn a_thin_image_is_no_bomb() {
        let processor = plain(Some(ResizeTo::ShortestEdge(224)), Some(ImageSize::square(224)));
        let thin = RgbImage::new(1, 2_000_000);
        assert_eq!(processor.preprocess(thin.clone()).unwrap().size(), ImageSize::square(224));
        assert!(processor.resized(thin).unwrap_err().to_string().contains("max_pixels"));
        let squeezed = plain(Some(ResizeTo::EdgeRange { shortest: 224, longest: 224 }), None);
        assert!(
            squeezed.preprocess(RgbImage::new(1, 2_000_000)).unwrap_err().to_string().contains("too long and thin")
        );
    }
}
