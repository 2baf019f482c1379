//! Training images: what is kept of an image between epochs, and its random view in one of them.
//!
//! The order is torchvision's: crop, flip, jitter, grey, blur, all on 8 bits, then the processor's rescaling and normalisation.

use ::image::RgbImage;
use rand::Rng;

use super::augment::{Augment, CropChoice, ResizedCrop, View};
use super::config::{ImageProcessorConfig, ImageSize};
use super::decode::{ImageInput, decode_rgb};
use super::filter::Filter;
use super::processor::{CHANNELS, ImageProcessor, PixelArray, visible};
use super::resize::{Window, resize};
use crate::random::{below, between};
use crate::{Error, Result};

impl ImageProcessor {
    /// What [`ImageProcessor::augmented`] starts from, the same in every epoch: the resized image, or for resized crops the image as it
    /// was decoded.
    ///
    /// # Shapes
    /// (H,W,3), 8 bits a channel.
    ///
    /// # Errors
    /// As [`ImageProcessor::resized`].
    pub fn augmentable(&self, input: impl Into<ImageInput>, augment: &Augment) -> Result<RgbImage> {
        match augment.crop {
            CropChoice::Center | CropChoice::Random => self.resized(input),
            CropChoice::Resized(_) => {
                let input = input.into();
                let image = decode_rgb(&input, &input.name(None), &self.decode, self.config.transparency)?;
                Ok(image.into_image())
            }
        }
    }

    /// The pixel values of a random view of an image from [`ImageProcessor::augmentable`], all random numbers from `rng`
    /// (see [`Augment::rng`]).
    ///
    /// # Shapes
    /// `image` (H,W,3) → (C,H,W) of the crop's size, or of `image` where the processor does not crop.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) if random crops are wanted, but the processor has no size to crop or resize to.
    pub fn augmented(&self, image: &RgbImage, augment: &Augment, rng: &mut impl Rng) -> Result<PixelArray> {
        let padding = [self.config.fill; CHANNELS];
        let resized;
        let (image, view, size) = match augment.crop {
            CropChoice::Center | CropChoice::Random => {
                let whole = ImageSize::of(image);
                (image, augment.view(whole, &self.config, rng)?, self.config.crop.unwrap_or(whole))
            }
            CropChoice::Resized(crop) => {
                let size = self.config.output_size().ok_or_else(|| {
                    let message =
                        "resized crops need a processor with one output size: give its configuration a `crop`";
                    Error::argument("augment", message)
                })?;
                let Window { top, left, height, width } = crop.draw(ImageSize::of(image), rng);
                let part = ::image::imageops::crop_imm(image, left, top, width, height).to_image();
                resized = resize(&part, size, self.config.resize.map_or(Filter::Bicubic, |resize| resize.filter))?;
                (
                    &resized,
                    augment.view(size, &ImageProcessorConfig { crop: Some(size), ..self.config.clone() }, rng)?,
                    size,
                )
            }
        };
        let (colors, blur) = (augment.colors(rng), augment.blur(size, rng));
        if colors.is_empty() && blur.is_none() {
            return Ok(self.render(image, &view, size, padding));
        }
        let mut shown = cut(image, &view, size, padding);
        colors.into_iter().for_each(|step| step.apply(&mut shown));
        if let Some(sigma) = blur {
            shown = ::image::imageops::blur(&shown, sigma);
        }
        let whole = View { top: 0, left: 0, flip: view.flip };
        Ok(self.render(&shown, &whole, size, padding))
    }
}

impl ResizedCrop {
    /// Draws the part of an image of size `image` that a resized crop shows: up to ten tries to fit a drawn shape into the image,
    /// then the largest centred part of an allowed shape.
    fn draw(&self, image: ImageSize, rng: &mut impl Rng) -> Window {
        let (height, width) = (f64::from(image.height), f64::from(image.width));
        let (low, high) = self.aspect;
        for _ in 0..10 {
            let area = height * width * between(rng, self.area.0, self.area.1);
            let aspect = between(rng, low.ln(), high.ln()).exp();
            let (w, h) = ((area * aspect).sqrt().round_ties_even(), (area / aspect).sqrt().round_ties_even());
            if (1.0..=width).contains(&w) && (1.0..=height).contains(&h) {
                let (w, h) = (w as u32, h as u32);
                let top = below(rng, (image.height - h) as usize + 1) as u32;
                let left = below(rng, (image.width - w) as usize + 1) as u32;
                return Window { top, left, height: h, width: w };
            }
        }
        let least = |length: f64, limit: u32| (length.round_ties_even() as u32).clamp(1, limit);
        let (h, w) = match width / height {
            narrow if narrow < low => (least(width / low, image.height), image.width),
            wide if wide > high => (image.height, least(height * high, image.width)),
            _ => (image.height, image.width),
        };
        Window { top: (image.height - h) / 2, left: (image.width - w) / 2, height: h, width: w }
    }
}

/// The window of size `size` that `view` places on `image`, not mirrored; outside the image is `padding`.
fn cut(image: &RgbImage, view: &View, size: ImageSize, padding: [u8; CHANNELS]) -> RgbImage {
    let mut out = RgbImage::from_pixel(size.width, size.height, ::image::Rgb(padding));
    let window = visible(view, ImageSize::of(image), size);
    let (top, left) = (i64::from(window.top) - view.top, i64::from(window.left) - view.left);
    let part = ::image::imageops::crop_imm(image, window.left, window.top, window.width, window.height);
    ::image::imageops::replace(&mut out, &*part, left, top);
    out
}

#[cfg(test)]
mod tests {
    use super::super::augment::Blur;
    use super::*;

    #[test]
    fn resized_crops_have_the_area_and_shape_asked_for_and_lie_inside() {
        let (image, crop) =
            (ImageSize { height: 300, width: 400 }, ResizedCrop { area: (0.2, 0.5), aspect: (0.5, 2.0) });
        let mut corners = std::collections::BTreeSet::new();
        for index in 0..500 {
            let part = crop.draw(image, &mut Augment::rng(0, 0, index));
            let (height, width) = (f64::from(part.height), f64::from(part.width));
            assert!(part.top + part.height <= 300 && part.left + part.width <= 400);
            assert!((0.19..0.51).contains(&(height * width / 120_000.0)), "{part:?}");
            assert!((0.49..2.02).contains(&(width / height)), "{part:?}");
            corners.insert((part.top / 60, part.left / 60));
        }
        assert!(corners.len() > 12, "{corners:?}");
        // No part of such a shape fits: the centre.
        let thin = ImageSize { height: 1000, width: 10 };
        let part = ResizedCrop::default().draw(thin, &mut Augment::rng(0, 0, 0));
        assert_eq!((part.top, part.left, part.height, part.width), (493, 0, 13, 10));
    }

    #[test]
    fn blur_takes_details_and_leaves_the_mean() {
        let board = RgbImage::from_fn(64, 64, |x, y| ::image::Rgb([if (x / 2 + y / 2) % 2 == 0 { 255 } else { 0 }; 3]));
        let processor = ImageProcessor::new(ImageProcessorConfig::clip().with_image_size(64).unwrap()).unwrap();
        let contrast = |blur| {
            let augment = Augment { blur, ..Augment::default() };
            let pixels = processor.augmented(&board, &augment, &mut Augment::rng(0, 0, 1)).unwrap();
            let values = pixels.data();
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            (mean, values.iter().map(|v| (v - mean).abs()).sum::<f32>() / values.len() as f32)
        };
        let ((sharp_mean, sharp), (mean, blurred)) =
            (contrast(None), contrast(Some(Blur { probability: 1.0, sigma: (0.02, 0.02) })));
        assert!(blurred < 0.8 * sharp && (mean - sharp_mean).abs() < 0.02, "{sharp} {blurred} {sharp_mean} {mean}");
    }
}
