//! The resampling filters of Pillow, as functions of the distance from their centre in pixels.
//!
//! Reference: Pillow 13, `src/libImaging/Resample.c`.

use serde::{Deserialize, Serialize};

/// The resampling filters of Pillow (`PIL.Image.Resampling`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// The pixel under the centre; Pillow's 0.
    Nearest,
    /// Truncated sinc over six pixels; Pillow's 1.
    Lanczos,
    /// Linear over two pixels; Pillow's 2.
    Bilinear,
    /// Cubic convolution with a = −0.5 over four pixels; Pillow's 3.
    Bicubic,
    /// The mean over the pixel's area; Pillow's 4.
    Box,
    /// Hamming-windowed sinc over two pixels; Pillow's 5.
    Hamming,
    /// Magic Kernel Sharp 2013 over five pixels; Pillow's 6.
    Mks2013,
    /// Magic Kernel Sharp 2021 over nine pixels; Pillow's 7.
    Mks2021,
}

impl Filter {
    pub(crate) const ALL: [Self; 8] = [
        Self::Nearest,
        Self::Lanczos,
        Self::Bilinear,
        Self::Bicubic,
        Self::Box,
        Self::Hamming,
        Self::Mks2013,
        Self::Mks2021,
    ];

    /// The filter with the given number in Pillow, as `resample` in a `preprocessor_config.json` has it.
    #[must_use]
    pub fn from_pillow(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|filter| u64::from(filter.pillow()) == number)
    }

    /// The filter's number in Pillow.
    #[must_use]
    pub fn pillow(self) -> u8 {
        match self {
            Self::Nearest => 0,
            Self::Lanczos => 1,
            Self::Bilinear => 2,
            Self::Bicubic => 3,
            Self::Box => 4,
            Self::Hamming => 5,
            Self::Mks2013 => 6,
            Self::Mks2021 => 7,
        }
    }

    /// Half the filter's width in pixels, before it is stretched.
    pub(crate) fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Mks2013 => 2.5,
            Self::Lanczos => 3.0,
            Self::Mks2021 => 4.5,
        }
    }

    /// The filter's weight at distance `x`, in pixels, from its centre.
    pub(crate) fn weight(self, x: f64) -> f64 {
        let distance = x.abs();
        match self {
            // The interval is half open, so that a pixel on the border of two outputs counts once.
            Self::Nearest | Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - distance).max(0.0),
            Self::Hamming if distance >= 1.0 => 0.0,
            // Pillow writes the window's constants in single precision, and the difference reaches the bytes.
            Self::Hamming => {
                sinc(distance) * (f64::from(0.54_f32) + f64::from(0.46_f32) * (distance * std::f64::consts::PI).cos())
            }
            Self::Bicubic => cubic(distance),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
            Self::Mks2013 => magic_2013(distance),
            Self::Mks2021 => magic_2021(distance),
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let angle = x * std::f64::consts::PI;
    angle.sin() / angle
}

/// Keys' cubic convolution kernel with a = −0.5.
fn cubic(distance: f64) -> f64 {
    const A: f64 = -0.5;
    if distance < 1.0 {
        ((A + 2.0) * distance - (A + 3.0)) * distance * distance + 1.0
    } else if distance < 2.0 {
        (((distance - 5.0) * distance + 8.0) * distance - 4.0) * A
    } else {
        0.0
    }
}

/// Costella's Magic Kernel Sharp of 2013 (<https://johncostella.com/magic/>).
fn magic_2013(distance: f64) -> f64 {
    let square = distance * distance;
    match distance {
        ..=0.5 => 17.0 / 16.0 - 7.0 / 4.0 * square,
        ..=1.5 => square - 11.0 / 4.0 * distance + 7.0 / 4.0,
        ..=2.5 => -1.0 / 8.0 * square + 5.0 / 8.0 * distance - 25.0 / 32.0,
        _ => 0.0,
    }
}

/// Costella's Magic Kernel Sharp of 2021 (<https://johncostella.com/magic/>).
fn magic_2021(distance: f64) -> f64 {
    let square = distance * distance;
    match distance {
        ..=0.5 => 577.0 / 576.0 - 239.0 / 144.0 * square,
        ..=1.5 => (140.0 * square - 379.0 * distance + 239.0) / 144.0,
        ..=2.5 => -(24.0 * square - 113.0 * distance + 130.0) / 144.0,
        ..=3.5 => (4.0 * square - 27.0 * distance + 45.0) / 144.0,
        ..=4.5 => -(4.0 * square - 36.0 * distance + 81.0) / 1152.0,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pillow_numbers_go_both_ways() {
        for number in 0..8 {
            assert_eq!(Filter::from_pillow(number).map(|f| u64::from(f.pillow())), Some(number));
        }
        assert_eq!(Filter::from_pillow(8), None);
    }

    #[test]
    fn every_filter_ends_at_its_support() {
        for filter in Filter::ALL {
            assert!(filter.weight(filter.support() + 1e-9) == 0.0, "{filter:?}");
            assert!(filter.weight(filter.support() - 1e-3) != 0.0, "{filter:?}");
        }
    }
}
