//! Changes of colour, equal to Pillow's (and so to torchvision's on PIL images) byte for byte.
//!
//! | step | `out` for a pixel `in` and a factor `f` |
//! |---|---|
//! | brightness | `f · in` |
//! | contrast | `m + f · (in − m)`, `m` the mean of the grey image, rounded |
//! | saturation | `g + f · (in − g)`, `g` the pixel's grey |
//! | hue | the hue turned by `f` of a full circle, in 256 steps |
//! | grey | `g = (19595 R + 38470 G + 7471 B + 2¹⁵) / 2¹⁶`, in all three channels |
//!
//! Results are cut to 0–255 and rounded down, in single precision.
//!
//! Reference: torchvision 0.26, `transforms/_functional_pil.py`; Pillow 13, `ImageEnhance.py`, `src/libImaging/Blend.c`, `Convert.c`.

use ::image::RgbImage;
use rand::Rng;

use crate::random::{below, between};

/// A change of all colours of an image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ColorStep {
    /// Brightness times a factor; 1 changes nothing, 0 gives black.
    Brightness(f64),
    /// Contrast times a factor; 1 changes nothing, 0 gives one grey.
    Contrast(f64),
    /// Saturation times a factor; 1 changes nothing, 0 gives grey.
    Saturation(f64),
    /// The hue turned by a part of the full circle, −0.5 to 0.5. Even 0 rounds colours, for it passes through HSV in 8 bits.
    Hue(f64),
    /// No colour.
    Gray,
}

/// Random changes of brightness, contrast, saturation and hue, in random order.
///
/// A factor is drawn from `1 − strength` (0 at least) to `1 + strength`, the turn of the hue from `−hue` to `hue` of a circle; a
/// strength of 0 leaves its step out.
///
/// Source: torchvision 0.26, `ColorJitter`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ColorJitter {
    /// The strength for brightness.
    pub brightness: f64,
    /// The strength for contrast.
    pub contrast: f64,
    /// The strength for saturation.
    pub saturation: f64,
    /// The largest turn of the hue, 0.5 at most.
    pub hue: f64,
    /// How often anything is changed.
    pub probability: f64,
}

impl Default for ColorJitter {
    /// Strengths 0.4, 0.4, 0.4 and 0.1 for four images in five: MoCo v2 (Chen et al. 2020), `main_moco.py`.
    fn default() -> Self {
        Self { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1, probability: 0.8 }
    }
}

impl ColorJitter {
    /// Draws the changes, in their order; none as often as the probability says.
    pub(super) fn draw(&self, rng: &mut impl Rng) -> Vec<ColorStep> {
        if between(rng, 0.0, 1.0) >= self.probability {
            return Vec::new();
        }
        let mut factor = |strength: f64| between(rng, (1.0 - strength).max(0.0), 1.0 + strength);
        let all = [
            (self.brightness, ColorStep::Brightness(factor(self.brightness))),
            (self.contrast, ColorStep::Contrast(factor(self.contrast))),
            (self.saturation, ColorStep::Saturation(factor(self.saturation))),
            (self.hue, ColorStep::Hue(between(rng, -self.hue, self.hue))),
        ];
        let wanted = all.into_iter().filter(|&(strength, _)| strength != 0.0);
        let mut steps: Vec<ColorStep> = wanted.map(|(_, step)| step).collect();
        for last in (1..steps.len()).rev() {
            steps.swap(last, below(rng, last + 1));
        }
        steps
    }
}

impl ColorStep {
    /// Changes `image` in place.
    pub fn apply(self, image: &mut RgbImage) {
        match self {
            Self::Brightness(factor) => {
                let table: [u8; 256] = std::array::from_fn(|value| blend(0, value as u8, factor as f32));
                image.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
            }
            Self::Contrast(factor) => {
                let mean = mean_gray(image);
                let table: [u8; 256] = std::array::from_fn(|value| blend(mean, value as u8, factor as f32));
                image.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
            }
            Self::Saturation(factor) => {
                for pixel in image.pixels_mut() {
                    let gray = gray(pixel.0);
                    pixel.0 = pixel.0.map(|value| blend(gray, value, factor as f32));
                }
            }
            Self::Hue(turn) => {
                // Rounded towards 0, then modulo 256.
                let steps = ((turn * 255.0) as i32).rem_euclid(256) as u8;
                for pixel in image.pixels_mut() {
                    let [hue, saturation, value] = to_hsv(pixel.0);
                    pixel.0 = from_hsv([hue.wrapping_add(steps), saturation, value]);
                }
            }
            Self::Gray => image.pixels_mut().for_each(|pixel| pixel.0 = [gray(pixel.0); 3]),
        }
    }
}

/// `from + factor · (to − from)`, cut to 8 bits and rounded down.
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let (from, to) = (f32::from(from), f32::from(to));
    // A cast from a float cuts to the integer's range.
    (from + factor * (to - from)) as u8
}

fn gray([red, green, blue]: [u8; 3]) -> u8 {
    ((u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000) >> 16) as u8
}

/// The mean of the grey image, rounded to nearest; 0 for an image without pixels.
fn mean_gray(image: &RgbImage) -> u8 {
    let count = u64::from(image.width()) * u64::from(image.height());
    let sum: u64 = image.pixels().map(|pixel| u64::from(gray(pixel.0))).sum();
    if count == 0 { 0 } else { (sum as f64 / count as f64 + 0.5) as u8 }
}

/// Hue, saturation and value, 8 bits each.
fn to_hsv(pixel: [u8; 3]) -> [u8; 3] {
    let [red, green, blue] = pixel;
    let (most, least) = (red.max(green).max(blue), red.min(green).min(blue));
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most - least);
    let below = |value: u8| f32::from(most - value) / range;
    let (r, g, b) = (below(red), below(green), below(blue));
    let hue = if red == most {
        b - g
    } else if green == most {
        (2.0 + f64::from(r) - f64::from(b)) as f32
    } else {
        (4.0 + f64::from(g) - f64::from(r)) as f32
    };
    let hue = ((f64::from(hue) / 6.0 + 1.0) % 1.0) as f32;
    let saturation = range / f32::from(most);
    [(f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, most]
}

fn from_hsv([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let strength = f64::from((f64::from(saturation) / 255.0) as f32);
    let sextant = (f64::from(hue) * 6.0 / 255.0).floor();
    let within = f64::from((f64::from(hue) * 6.0 / 255.0 - f64::from(sextant as f32)) as f32);
    let times = |factor: f64| f64::from((f64::from(value) * factor) as f32).round() as u8;
    let (p, q) = (times(1.0 - strength), times(1.0 - strength * within));
    let t = times(1.0 - strength * (1.0 - within));
    match sextant as u8 % 6 {
        0 => [value, t, p],
        1 => [q, value, p],
        2 => [p, value, t],
        3 => [p, q, value],
        4 => [t, p, value],
        _ => [value, p, q],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(step: ColorStep, pixel: [u8; 3]) -> [u8; 3] {
        let mut image = RgbImage::from_pixel(3, 2, ::image::Rgb(pixel));
        step.apply(&mut image);
        image.get_pixel(1, 1).0
    }

    #[test]
    fn a_factor_of_one_changes_nothing_and_of_zero_leaves_one_colour() {
        let pixel = [200, 13, 77];
        for step in [ColorStep::Brightness, ColorStep::Contrast, ColorStep::Saturation] {
            assert_eq!(changed(step(1.0), pixel), pixel);
        }
        assert_eq!(changed(ColorStep::Brightness(0.0), pixel), [0; 3]);
        assert_eq!(changed(ColorStep::Contrast(0.0), pixel), [76; 3]);
        assert_eq!(changed(ColorStep::Saturation(0.0), pixel), changed(ColorStep::Gray, pixel));
    }

    #[test]
    fn values_are_cut_and_hues_wrap_around() {
        assert_eq!(changed(ColorStep::Brightness(9.0), [200, 0, 60]), [255, 0, 255]);
        assert_eq!(changed(ColorStep::Contrast(50.0), [200, 0, 60]), [255, 0, 0]);
        let red = [255, 0, 0];
        assert_eq!(changed(ColorStep::Hue(0.5), red)[0], 0);
        assert_eq!(changed(ColorStep::Hue(0.5), changed(ColorStep::Hue(-0.5), red))[0], 255);
        assert_eq!(changed(ColorStep::Hue(0.3), [90; 3]), [90; 3]);
    }

    #[test]
    fn an_image_without_pixels_is_left_alone() {
        let mut image = RgbImage::new(0, 5);
        ColorStep::Contrast(0.5).apply(&mut image);
        ColorStep::Gray.apply(&mut image);
    }
}
