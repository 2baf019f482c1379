//! Random crops, flips, colours and blur for training, as a function of (seed, epoch, index) alone.
//!
//! ```text
//! kept image (H,W,3) u8 ─ crop or resized crop ─ flip ─ jitter ─ grey ─ blur ─▶ u8 ─ rescale, normalise ─▶ pixel values (C,H,W) f32
//! ```
//!
//! What stands before the draws (decoding, and the resize unless crops are resized) is the same in every epoch, so it can be kept.

use std::str::FromStr;

use rand::Rng;

use super::color::{ColorJitter, ColorStep};
use super::config::{CropRounding, ImageProcessorConfig, ImageSize};
use crate::random::between;
use crate::{Error, Result};

/// The augmentations to apply; none by default.
///
/// ```
/// use diptych::image::Augment;
///
/// let augment: Augment = "resized-crop=0.5,flip,jitter,gray=0.1".parse()?;
/// assert_eq!(augment.gray, 0.1);
/// # Ok::<(), diptych::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Augment {
    /// Where the crop lies.
    pub crop: CropChoice,
    /// Whether images are mirrored.
    pub flip: FlipChoice,
    /// Random colours.
    pub jitter: Option<ColorJitter>,
    /// The probability of a grey image.
    pub gray: f64,
    /// Random blur.
    pub blur: Option<Blur>,
}

/// A Gaussian blur of random width.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Blur {
    /// How often an image is blurred.
    pub probability: f64,
    /// The smallest and largest standard deviation, in shares of the shorter side: an input of 64 pixels and one of 224 lose the
    /// same details.
    pub sigma: (f64, f64),
}

impl Default for Blur {
    /// Every second image, by up to 0.02 of its side: from nothing to what is left of an image of 32 pixels. (MoCo v2,
    /// `main_moco.py`, blurs every second by up to 2 of 224 pixels, 0.009.)
    fn default() -> Self {
        Self { probability: 0.5, sigma: (0.0005, 0.02) }
    }
}

/// Where the crop of a training image lies.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum CropChoice {
    /// In the centre, as in evaluation.
    #[default]
    Center,
    /// Anywhere in the resized image, every place with the same probability.
    Random,
    /// A part of random size, shape and place of the image as it was decoded, resized to the crop's size.
    Resized(ResizedCrop),
}

/// A part of random size and shape.
///
/// Source: torchvision 0.26, `RandomResizedCrop`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResizedCrop {
    /// The smallest and largest share of the image's area.
    pub area: (f64, f64),
    /// The smallest and largest ratio of width to height.
    pub aspect: (f64, f64),
}

impl Default for ResizedCrop {
    /// At least 0.9 of the area, sides 3:4 to 4:3: what open_clip 3.3 trains with.
    fn default() -> Self {
        Self { area: (0.9, 1.0), aspect: (3.0 / 4.0, 4.0 / 3.0) }
    }
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

/// How often an image loses its colours where nothing else is said: MoCo v2, `main_moco.py`.
const GRAY: f64 = 0.2;

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
    /// An axis along which the image is not larger than the crop is centred, and so is a resized crop, whose part is drawn elsewhere.
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

    /// Draws the changes of colour, in their order.
    pub(super) fn colors(&self, rng: &mut impl Rng) -> Vec<ColorStep> {
        let mut steps = self.jitter.map(|jitter| jitter.draw(rng)).unwrap_or_default();
        if self.gray > 0.0 && between(rng, 0.0, 1.0) < self.gray {
            steps.push(ColorStep::Gray);
        }
        steps
    }

    /// Draws the blur's standard deviation in pixels of an image of size `image`, if it is blurred at all.
    pub(super) fn blur(&self, image: ImageSize, rng: &mut impl Rng) -> Option<f32> {
        let Blur { probability, sigma: (low, high) } = self.blur?;
        let side = f64::from(image.height.min(image.width));
        (between(rng, 0.0, 1.0) < probability).then(|| (between(rng, low, high) * side) as f32)
    }

    /// The same parts of images, mirrored alike, with their own colours and details.
    #[must_use]
    pub fn windows(self) -> Self {
        Self { crop: self.crop, flip: self.flip, ..Self::default() }
    }

    /// Checks that every number is in its range.
    ///
    /// # Errors
    /// [`Argument`](crate::ErrorKind::Argument) that names the number.
    pub fn validate(&self) -> Result<()> {
        let within = |name: &str, value: f64, low: f64, high: f64| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(Error::argument("augment", format!("{name} is {value}; it must be from {low} to {high}")))
        };
        within("the probability of grey", self.gray, 0.0, 1.0)?;
        if let Some(jitter) = self.jitter {
            within("the probability of jitter", jitter.probability, 0.0, 1.0)?;
            within("the strength of brightness", jitter.brightness, 0.0, f64::MAX)?;
            within("the strength of contrast", jitter.contrast, 0.0, f64::MAX)?;
            within("the strength of saturation", jitter.saturation, 0.0, f64::MAX)?;
            within("the turn of the hue", jitter.hue, 0.0, 0.5)?;
        }
        if let Some(blur) = self.blur {
            within("the probability of blur", blur.probability, 0.0, 1.0)?;
            within("the largest width of blur", blur.sigma.1, f64::MIN_POSITIVE, 1.0)?;
            within("the smallest width of blur", blur.sigma.0, f64::MIN_POSITIVE, blur.sigma.1)?;
        }
        if let CropChoice::Resized(crop) = self.crop {
            within("the largest share of a resized crop", crop.area.1, f64::MIN_POSITIVE, 1.0)?;
            within("the smallest share of a resized crop", crop.area.0, f64::MIN_POSITIVE, crop.area.1)?;
            within("the largest aspect of a resized crop", crop.aspect.1, f64::MIN_POSITIVE, f64::MAX)?;
            within("the smallest aspect of a resized crop", crop.aspect.0, f64::MIN_POSITIVE, crop.aspect.1)?;
        }
        Ok(())
    }
}

impl FromStr for Augment {
    type Err = Error;

    /// Reads a list such as `resized-crop,flip,jitter,gray,blur`; the empty text is no augmentation. `resized-crop=0.5` sets the
    /// smallest share of the area, `jitter=0.5`, `gray=0.1` (0.2 without a number) and `blur=0.3` the probability.
    fn from_str(list: &str) -> Result<Self> {
        let mut augment = Self::default();
        for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (name, number) = match item.split_once('=') {
                Some((name, number)) => (name.trim(), Some(number.trim())),
                None => (item, None),
            };
            let number = number.map(|text| {
                let message = || format!("'{item}': '{text}' is no number; write for example {name}=0.5");
                text.parse::<f64>().map_err(|_| Error::argument("augment", message()))
            });
            if name.ends_with("crop") && augment.crop != CropChoice::Center {
                let message = format!("'{list}' has two crops; choose crop or resized-crop");
                return Err(Error::argument("augment", message));
            }
            match (name, number.transpose()?) {
                ("crop", None) => augment.crop = CropChoice::Random,
                ("resized-crop", share) => {
                    let ResizedCrop { area, aspect } = ResizedCrop::default();
                    let area = (share.unwrap_or(area.0), area.1);
                    augment.crop = CropChoice::Resized(ResizedCrop { area, aspect });
                }
                ("flip", None) => augment.flip = FlipChoice::RandomHorizontal,
                ("jitter", probability) => {
                    let jitter = ColorJitter::default();
                    let probability = probability.unwrap_or(jitter.probability);
                    augment.jitter = Some(ColorJitter { probability, ..jitter });
                }
                ("gray" | "grey", probability) => augment.gray = probability.unwrap_or(GRAY),
                ("blur", probability) => {
                    let blur = Blur::default();
                    augment.blur = Some(Blur { probability: probability.unwrap_or(blur.probability), ..blur });
                }
                ("crop" | "flip", Some(_)) => {
                    return Err(Error::argument("augment", format!("'{item}': {name} takes no number")));
                }
                _ => {
                    let known = "crop, resized-crop, flip, jitter, gray, blur";
                    return Err(Error::unsupported("augment", "augmentation", name, known));
                }
            }
        }
        augment.validate()?;
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
        for (list, named) in [
            ("gray=2", "2"),
            ("jitter=x", "'x'"),
            ("flip=0.5", "no number"),
            ("resized-crop=0", "share"),
            ("crop,resized-crop", "two crops"),
            ("blur=-1", "blur"),
        ] {
            let error = list.parse::<Augment>().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        let jitter = Some(ColorJitter { hue: 0.7, ..ColorJitter::default() });
        assert!(Augment { jitter, ..Augment::default() }.validate().unwrap_err().to_string().contains("hue"));
        let nan = Augment { gray: f64::NAN, ..Augment::default() };
        assert!(nan.validate().is_err());
        assert!("crop,rotate".parse::<Augment>().unwrap_err().to_string().contains("'rotate'"));
        assert_eq!("".parse::<Augment>().unwrap(), Augment::default());
        let augment: Augment = "crop".parse().unwrap();
        assert!(augment.view(IMAGE, &config(None), &mut Augment::rng(0, 0, 0)).is_err());
    }

    #[test]
    fn colours_change_as_often_and_as_much_as_asked_for_in_every_order() {
        let augment: Augment = "jitter,gray=0.25".parse().unwrap();
        let (mut jittered, mut grey, mut orders) = (0, 0, std::collections::BTreeSet::new());
        for index in 0..2000 {
            let steps = augment.colors(&mut Augment::rng(0, 0, index));
            let changes: Vec<_> = steps.iter().filter(|&&step| step != ColorStep::Gray).collect();
            grey += steps.len() - changes.len();
            if changes.is_empty() {
                continue;
            }
            jittered += 1;
            orders.insert(changes.iter().map(|step| format!("{step:?}")[..2].to_string()).collect::<Vec<_>>());
            for step in changes {
                match *step {
                    ColorStep::Hue(turn) => assert!(turn.abs() <= 0.1),
                    ColorStep::Brightness(f) | ColorStep::Contrast(f) | ColorStep::Saturation(f) => {
                        assert!((0.6..1.4).contains(&f), "{f}");
                    }
                    ColorStep::Gray => {}
                }
            }
        }
        // 1600 ± 18 and 500 ± 19; five standard deviations.
        assert!((1510..1690).contains(&jittered) && (405..595).contains(&grey), "{jittered} {grey}");
        assert_eq!(orders.len(), 24);
        let size = ImageSize { height: 100, width: 300 };
        let blurred: Augment = "blur=0.25".parse().unwrap();
        let widths: Vec<f32> =
            (0..2000).filter_map(|index| blurred.blur(size, &mut Augment::rng(0, 0, index))).collect();
        assert!((405..595).contains(&widths.len()), "{}", widths.len());
        assert!(widths.iter().all(|width| (0.05..2.0).contains(width)));
        let hue = Some(ColorJitter { brightness: 0.0, contrast: 0.0, saturation: 0.0, hue: 0.1, probability: 1.0 });
        let steps = Augment { jitter: hue, ..Augment::default() }.colors(&mut Augment::rng(0, 0, 0));
        assert!(matches!(steps[..], [ColorStep::Hue(_)]), "{steps:?}");
    }
}
