//! Decoded images of any channels and bit depth to 8-bit RGB, before the resize or, as open_clip does it, after.
//!
//! Grey is repeated, 16 bits keep the upper 8, and opacity goes as [`Transparency`] says. With
//! [`Transparency::DroppedAfterResize`] the colours are multiplied by the opacity for the resize and divided by the resized
//! opacity afterwards: `out = resize(colour · α) / resize(α)`, all in 8 bits, as Pillow resizes RGBA through RGBa.
//!
//! Reference: Pillow 13, `Image.resize` and `src/libImaging/Convert.c`, `AlphaComposite.c`.

use std::borrow::Cow;

use ::image::{DynamicImage, RgbImage};

use super::config::{ImageSize, Resize, Transparency};
use super::filter::Filter;
use super::layout::Layout;
use super::resize::{Window, resize_window};
use crate::Result;

/// An image of three channels, and what its resize has to know of the file's layout.
pub(crate) struct Rgb<'a> {
    image: Cow<'a, RgbImage>,
    /// The opacity of each pixel, three times, where it takes part in the resize.
    opacity: Option<RgbImage>,
    /// What the file's values are, where images are converted after the resize.
    layout: Layout,
}

impl<'a> Rgb<'a> {
    pub(crate) fn new(image: Cow<'a, DynamicImage>, layout: Layout, transparency: Transparency) -> Self {
        let after = transparency == Transparency::DroppedAfterResize;
        let layout = if after { layout } else { Layout::Keyed };
        let opacity = (layout == Layout::Channels && image.color().has_alpha()).then(|| opacity(&image));
        let image = match image {
            Cow::Borrowed(DynamicImage::ImageRgb8(image)) => Cow::Borrowed(image),
            Cow::Owned(DynamicImage::ImageRgb8(image)) => Cow::Owned(image),
            image => Cow::Owned(to_rgb(&image, transparency)),
        };
        Self { image, opacity, layout }
    }

    pub(crate) fn size(&self) -> ImageSize {
        ImageSize::of(&self.image)
    }

    /// The colour that `fill` becomes around this image.
    pub(crate) fn padding(&self, fill: u8) -> [u8; 3] {
        self.layout.colour(fill)
    }

    /// The image as it is, not resized.
    pub(crate) fn image(&self) -> &RgbImage {
        &self.image
    }

    /// The image as it is, not resized.
    pub(crate) fn into_image(self) -> RgbImage {
        self.image.into_owned()
    }

    /// The part `window` of the image resized to `size`.
    pub(crate) fn resize(&self, resize: Resize, size: ImageSize, window: Window) -> Result<RgbImage> {
        let filter = if matches!(self.layout, Layout::Indices(_)) { Filter::Nearest } else { resize.filter };
        let Some(opacity) = &self.opacity else { return resize_window(&self.image, size, filter, window) };
        if filter == Filter::Nearest {
            return resize_window(&self.image, size, filter, window);
        }
        let mut weighted = self.image.clone().into_owned();
        for (value, &alpha) in weighted.iter_mut().zip(opacity.iter()) {
            *value = times(*value, alpha);
        }
        let mut image = resize_window(&weighted, size, filter, window)?;
        let opacity = resize_window(opacity, size, filter, window)?;
        for (value, &alpha) in image.iter_mut().zip(opacity.iter()) {
            *value = over(*value, alpha);
        }
        Ok(image)
    }
}

fn opacity(image: &DynamicImage) -> RgbImage {
    let image = image.to_rgba16();
    RgbImage::from_fn(image.width(), image.height(), |x, y| ::image::Rgb([(image.get_pixel(x, y).0[3] >> 8) as u8; 3]))
}

/// `value · alpha / 255`, rounded to nearest, as Pillow does it.
fn times(value: u8, alpha: u8) -> u8 {
    let product = u32::from(value) * u32::from(alpha) + 128;
    (((product >> 8) + product) >> 8) as u8
}

/// `255 · value / alpha`, rounded down; without opacity the value stays.
fn over(value: u8, alpha: u8) -> u8 {
    match alpha {
        0 | 255 => value,
        _ => (255 * u32::from(value) / u32::from(alpha)).min(255) as u8,
    }
}

/// Eight bits and three channels: grey is repeated, 16 bits keep the upper 8 (as Pillow reads 16-bit colour).
fn to_rgb(image: &DynamicImage, transparency: Transparency) -> RgbImage {
    let (width, height) = (image.width(), image.height());
    let high = |value: u16| (value >> 8) as u8;
    let flat = |colour: [u8; 3], alpha: u8| {
        ::image::Rgb(match transparency {
            Transparency::OnWhite => colour.map(|value| on_white(value, alpha)),
            Transparency::Dropped | Transparency::DroppedAfterResize => colour,
        })
    };
    let build = |pixel: &dyn Fn(u32, u32) -> ::image::Rgb<u8>| RgbImage::from_fn(width, height, pixel);
    match image {
        DynamicImage::ImageRgb8(image) => image.clone(),
        DynamicImage::ImageLuma8(image) => build(&|x, y| ::image::Rgb([image.get_pixel(x, y).0[0]; 3])),
        DynamicImage::ImageLumaA8(image) => build(&|x, y| {
            let [grey, alpha] = image.get_pixel(x, y).0;
            flat([grey; 3], alpha)
        }),
        DynamicImage::ImageLuma16(image) => build(&|x, y| ::image::Rgb([high(image.get_pixel(x, y).0[0]); 3])),
        DynamicImage::ImageLumaA16(image) => build(&|x, y| {
            let [grey, alpha] = image.get_pixel(x, y).0.map(high);
            flat([grey; 3], alpha)
        }),
        DynamicImage::ImageRgb16(image) => build(&|x, y| ::image::Rgb(image.get_pixel(x, y).0.map(high))),
        DynamicImage::ImageRgba16(image) => build(&|x, y| {
            let [r, g, b, alpha] = image.get_pixel(x, y).0.map(high);
            flat([r, g, b], alpha)
        }),
        other => {
            let image = other.to_rgba8();
            build(&|x, y| {
                let [r, g, b, alpha] = image.get_pixel(x, y).0;
                flat([r, g, b], alpha)
            })
        }
    }
}

/// `value` with opacity `alpha` over white, in the fixed-point arithmetic of Pillow's `alpha_composite`.
fn on_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    // 7 bits below the point, then a division by 255 that rounds to nearest.
    let sum = (value * alpha + 255 * (255 - alpha) + 128) << 7;
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_opacity_keeps_the_colour_and_none_gives_white() {
        for value in 0..=255 {
            assert_eq!(on_white(value, 255), value);
            assert_eq!(on_white(value, 0), 255);
        }
        assert_eq!(on_white(0, 128), 127);
    }

    #[test]
    fn sixteen_bits_keep_the_upper_eight() {
        let grey = ::image::ImageBuffer::from_pixel(1, 1, ::image::Luma([0x12ff_u16]));
        assert_eq!(to_rgb(&grey.into(), Transparency::OnWhite).get_pixel(0, 0).0, [0x12; 3]);
    }

    #[test]
    fn transparency_is_laid_on_white_or_dropped() {
        let image = DynamicImage::from(::image::RgbaImage::from_pixel(1, 1, ::image::Rgba([10, 20, 30, 0])));
        assert_eq!(to_rgb(&image, Transparency::OnWhite).get_pixel(0, 0).0, [255; 3]);
        assert_eq!(to_rgb(&image, Transparency::Dropped).get_pixel(0, 0).0, [10, 20, 30]);
    }

    #[test]
    fn a_transparent_pixel_gives_none_of_its_colour_to_the_resize() {
        let mut image = ::image::RgbaImage::from_pixel(4, 1, ::image::Rgba([200, 100, 50, 255]));
        image.put_pixel(3, 0, ::image::Rgba([0, 255, 0, 0]));
        let resize = Resize { to: crate::image::ResizeTo::ShortestEdge(1), filter: Filter::Box };
        let size = ImageSize { height: 1, width: 2 };
        let resized = |transparency| {
            let rgb = Rgb::new(Cow::Owned(image.clone().into()), Layout::Channels, transparency);
            rgb.resize(resize, size, Window::whole(size)).unwrap().get_pixel(1, 0).0
        };
        assert_eq!(resized(Transparency::Dropped), [100, 178, 25]);
        assert_eq!(resized(Transparency::DroppedAfterResize), [199, 99, 49]);
    }

    #[test]
    fn indices_are_resized_by_the_nearest_pixel_alone() {
        let image = RgbImage::from_fn(4, 1, |x, _| ::image::Rgb([(x * 80) as u8; 3]));
        let resize = Resize { to: crate::image::ResizeTo::ShortestEdge(1), filter: Filter::Bilinear };
        let size = ImageSize { height: 1, width: 2 };
        let rgb = |layout: Layout| Rgb::new(Cow::Owned(image.clone().into()), layout, Transparency::DroppedAfterResize);
        let resized =
            |layout: Layout| rgb(layout).resize(resize, size, Window::whole(size)).unwrap().get_pixel(0, 0).0[0];
        assert_eq!(resized(Layout::Indices(Vec::new())), 80);
        assert_ne!(resized(Layout::Channels), 80);
    }
}
