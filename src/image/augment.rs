//! Random crops and flips for training, as a function of (seed, epoch, index) alone.
//!
//! An augmentation only chooses a [`View`] of the resized image: which window, and whether mirrored. So the resized image
//! can be kept and used again every epoch.

use std::str::FromStr;

use rand::Rng;

use super::config::{CropRounding, ImageProcessorConfig, ImageSize};
use crate::{Error, Result};

/// The augmentations to apply; none by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Augment {
    /// Where the crop lies.
    pub crop: CropChoice,
    /// Whether images are mirrored.
    pub flip: FlipChoice,
}

/// Where the crop of a training image lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CropChoice {
    /// In the centre, as in evaluation.
    #[default]
    Center,
    /// Anywhere in the resized image, every place with the same probability.
    Random,
}

/// Whether training images are mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlipChoice {
    /// Never.
    #[default]
    Never,
    /// Left and right are swapped with probability one half.
    RandomHorizontal,
}

/// A window of a resized image. Where it reaches over the image's border it has the processor's `fill`, black as a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The window's first row, in rows of the image.
    pub top: i64,
    /// The window's first column, in columns of the image.
    pub left: i64,
    /// Whether the window is mirrored.
    pub flip: Flip,
}

/// Whether an image is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Flip {
    /// As it is.
    #[default]
    None,
    /// Left and right swapped.
    Horizontal,
}

impl View {
    /// The centre crop of size `crop` from an image of size `image`.
    ///
    /// Source: `center_crop` of transformers 5.23, and of torchvision 0.26, which pads first.
    #[must_use]
    pub fn center(image: ImageSize, crop: ImageSize, rounding: CropRounding) -> Self {
        let offset = |image: u32, crop: u32| {
            let room = i64::from(image) - i64::from(crop);
            match rounding {
                CropRounding::Down => room.div_euclid(2),
                CropRounding::HalfToEven if room < 0 => room / 2,
                CropRounding::HalfToEven => room / 2 + i64::from(room % 4 == 3),
            }
        };
        Self { top: offset(image.height, crop.height), left: offset(image.width, crop.width), flip: Flip::None }
    }
}

impl Augment {
    /// The random numbers for one image in one epoch: the same for the same three numbers, in whatever order images are
    /// prepared and on however many threads.
    #[must_use]
    pub fn rng(seed: u64, epoch: u64, index: u64) -> impl Rng + use<> {
        crate::random::stream(seed, &format!("augment/{epoch}/{index}"))
    }

    /// Draws the view of an image of size `image` that has the size of the crop in `config`, or of the image if none.
    ///
    /// An axis along which the image is not larger than the crop is centred.
    ///
    /// # Errors
    /// If random crops are wanted, but the processor crops nothing.
    pub fn view(&self, image: ImageSize, config: &ImageProcessorConfig, rng: &mut impl Rng) -> Result<View> {
        if self.crop == CropChoice::Random && config.crop.is_none() {
            let message =
                "random crops need a processor that crops: give its configuration a `crop` smaller than its `resize`";
            return Err(Error::argument("augment", message));
        }
        let crop = config.crop.unwrap_or(image);
        let mut view = View::center(image, crop, config.crop_rounding);
        if self.crop == CropChoice::Random {
            let mut draw = |centre: i64, image: u32, crop: u32| match image.checked_sub(crop) {
                Some(room) => i64::from(rng.random_range(0..=room)),
                None => centre,
            };
            view.top = draw(view.top, image.height, crop.height);
            view.left = draw(view.left, image.width, crop.width);
        }
        if self.flip == FlipChoice::RandomHorizontal && rng.random_bool(0.5) {
            view.flip = Flip::Horizontal;
        }
        Ok(view)
    }
}

impl FromStr for Augment {
    type Err = Error;

    /// Reads a list such as `crop,flip`; the empty text is no augmentation.
    fn from_str(list: &str) -> Result<Self> {
        let mut augment = Self::default();
        for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name {
                "crop" => augment.crop = CropChoice::Random,
                "flip" => augment.flip = FlipChoice::RandomHorizontal,
                other => return Err(Error::unsupported("augment", "augmentation", other, "crop, flip")),
            }
        }
        Ok(augment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: ImageSize = ImageSize { height: 20, width: 31 };

    fn config(crop: Option<ImageSize>) -> ImageProcessorConfig {
        ImageProcessorConfig { crop, ..ImageProcessorConfig::clip() }
    }

    fn cropping() -> ImageProcessorConfig {
        config(Some(ImageSize::square(16)))
    }

    #[test]
    fn a_view_depends_on_seed_epoch_and_index_alone() {
        let augment: Augment = "crop, flip".parse().unwrap();
        let view =
            |seed, epoch, index| augment.view(IMAGE, &cropping(), &mut Augment::rng(seed, epoch, index)).unwrap();
        assert_eq!(view(1, 2, 3), view(1, 2, 3));
        let views = (0..50).map(|index| view(0, 0, index)).collect::<Vec<_>>();
        let others = (0..50).map(|index| view(0, 1, index)).collect::<Vec<_>>();
        assert_ne!(views, others);
        for wanted in [Flip::None, Flip::Horizontal] {
            assert!(views.iter().filter(|view| view.flip == wanted).count() > 10);
        }
    }

    #[test]
    fn random_crops_reach_every_place_and_stay_inside() {
        let augment = Augment { crop: CropChoice::Random, ..Augment::default() };
        let mut places = std::collections::BTreeSet::new();
        for index in 0..2000 {
            let view = augment.view(IMAGE, &cropping(), &mut Augment::rng(0, 0, index)).unwrap();
            assert_eq!(view.flip, Flip::None);
            places.insert((view.top, view.left));
        }
        assert_eq!(places.len(), 5 * 16);
        assert_eq!((places.first(), places.last()), (Some(&(0, 0)), Some(&(4, 15))));
    }

    #[test]
    fn an_image_smaller_than_the_crop_is_centred() {
        let augment = Augment { crop: CropChoice::Random, ..Augment::default() };
        let size = ImageSize { height: 5, width: 16 };
        let view = augment.view(size, &cropping(), &mut Augment::rng(0, 0, 0)).unwrap();
        assert_eq!((view.top, view.left), (-6, 0));
    }

    #[test]
    fn half_a_pixel_goes_up_and_left_or_to_the_even_offset() {
        let top = |image: u32, rounding| View::center(ImageSize::square(image), ImageSize::square(10), rounding).top;
        for (image, down, half_to_even) in [
            (10, 0, 0),
            (11, 0, 0),
            (12, 1, 1),
            (13, 1, 2),
            (15, 2, 2),
            (17, 3, 4),
            (9, -1, 0),
            (7, -2, -1),
            (6, -2, -2),
        ] {
            assert_eq!(top(image, CropRounding::Down), down, "{image}");
            assert_eq!(top(image, CropRounding::HalfToEven), half_to_even, "{image}");
        }
    }

    #[test]
    fn unusable_augmentations_are_errors() {
        assert!("crop,blur".parse::<Augment>().unwrap_err().to_string().contains("'blur'"));
        assert_eq!("".parse::<Augment>().unwrap(), Augment::default());
        let augment: Augment = "crop".parse().unwrap();
        assert!(augment.view(IMAGE, &config(None), &mut Augment::rng(0, 0, 0)).is_err());
    }
}
