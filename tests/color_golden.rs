//! Changes of colour and resized crops against torchvision 0.26 on Pillow 13; see `tests/python/make_color_golden.py`.

use std::collections::HashMap;
use std::path::Path;

use diptych::candle::{Device, Tensor};
use diptych::image::image_crate::{Rgb, RgbImage, imageops};
use diptych::image::{
    Augment, ColorJitter, ColorStep, CropChoice, Filter, ImageProcessor, ImageProcessorConfig, ImageSize, ResizedCrop,
    resize,
};

fn golden() -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/image/color.safetensors");
    diptych::candle::safetensors::load(path, &Device::Cpu).unwrap()
}

fn rgb(tensor: &Tensor) -> RgbImage {
    let (height, width, _) = tensor.dims3().unwrap();
    RgbImage::from_raw(width as u32, height as u32, tensor.flatten_all().unwrap().to_vec1().unwrap()).unwrap()
}

fn step(name: &str) -> ColorStep {
    let (step, factor) = name.split_once('/').unwrap();
    let factor: f64 = factor.parse().unwrap();
    match step {
        "brightness" => ColorStep::Brightness(factor),
        "contrast" => ColorStep::Contrast(factor),
        "saturation" => ColorStep::Saturation(factor),
        "hue" => ColorStep::Hue(factor),
        "gray" => ColorStep::Gray,
        other => panic!("{other}"),
    }
}

#[test]
fn changes_of_colour_equal_torchvisions_byte_for_byte() {
    let golden = golden();
    let mut seen = 0;
    for (name, expected) in &golden {
        if name == "image" || name.starts_with("crop/") || name.starts_with("all/") {
            continue;
        }
        let mut image = rgb(&golden["image"]);
        step(name).apply(&mut image);
        let expected = rgb(expected);
        let wrong = image.pixels().zip(expected.pixels()).filter(|(a, b)| a != b).count();
        assert_eq!(wrong, 0, "{name}: pixels of {}", image.width() * image.height());
        seen += 1;
    }
    assert_eq!(seen, 23);
}

#[test]
fn every_colour_there_is_changes_as_torchvision_changes_it() {
    for (name, expected) in golden().iter().filter_map(|(name, t)| Some((name.strip_prefix("all/")?.to_string(), t))) {
        let mut image = RgbImage::from_fn(4096, 4096, |x, y| {
            let color = y * 4096 + x;
            Rgb([(color >> 16) as u8, (color >> 8) as u8, color as u8])
        });
        step(&name).apply(&mut image);
        let (words, _) = image.as_raw().as_chunks::<8>();
        let hash = words.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, word| {
            (hash ^ u64::from_le_bytes(*word)).wrapping_mul(0x0100_0000_01b3)
        });
        assert_eq!(hash as i64, expected.flatten_all().unwrap().to_vec1::<i64>().unwrap()[0], "{name}");
    }
}

#[test]
fn a_part_that_is_resized_equals_torchvisions_resized_crop() {
    let golden = golden();
    let mut seen = 0;
    for (name, expected) in golden.iter().filter_map(|(name, t)| Some((name.strip_prefix("crop/")?, t))) {
        let (window, edge) = name.split_once('/').unwrap();
        let [top, left, height, width]: [u32; 4] =
            window.split(',').map(|n| n.parse().unwrap()).collect::<Vec<_>>().try_into().unwrap();
        let part = imageops::crop_imm(&rgb(&golden["image"]), left, top, width, height).to_image();
        let found = resize(&part, ImageSize::square(edge.parse().unwrap()), Filter::Bicubic).unwrap();
        assert!(found == rgb(expected), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 3);
}

fn processor() -> ImageProcessor {
    ImageProcessor::new(ImageProcessorConfig::clip().with_image_size(24).unwrap()).unwrap()
}

#[test]
fn without_augmentation_a_training_image_is_the_evaluated_one() {
    let (processor, image) = (processor(), rgb(&golden()["image"]));
    let expected = processor.preprocess(image.clone()).unwrap();
    // A whole image of the crop's shape, resized, is the same too.
    let square = imageops::crop_imm(&image, 0, 0, 40, 40).to_image();
    let whole = ResizedCrop { area: (1.0, 1.0), aspect: (1.0, 1.0) };
    let still = Some(ColorJitter { probability: 0.0, ..ColorJitter::default() });
    for (image, augment) in [
        (image, Augment { jitter: still, ..Augment::default() }),
        (square, Augment { crop: CropChoice::Resized(whole), ..Augment::default() }),
    ] {
        let expected =
            if image.width() == 40 { processor.preprocess(image.clone()).unwrap() } else { expected.clone() };
        let kept = processor.augmentable(image, &augment).unwrap();
        assert!(processor.augmented(&kept, &augment, &mut Augment::rng(0, 0, 0)).unwrap() == expected, "{augment:?}");
    }
}

#[test]
fn colours_change_after_crop_and_flip_and_before_normalisation() {
    let (processor, image) = (processor(), rgb(&golden()["image"]));
    let augment: Augment = "gray=1".parse().unwrap();
    let kept = processor.augmentable(image.clone(), &augment).unwrap();
    let found = processor.augmented(&kept, &augment, &mut Augment::rng(0, 0, 0)).unwrap();
    let mut gray = processor.resized(image).unwrap();
    ColorStep::Gray.apply(&mut gray);
    let view = diptych::image::View::center(
        ImageSize { height: gray.height(), width: gray.width() },
        ImageSize::square(24),
        processor.config().crop_rounding,
    );
    assert!(found == processor.finish(&gray, &view));
    let all: Augment = "resized-crop=0.3,flip,jitter,gray".parse().unwrap();
    let (kept, other) = (processor.augmentable(gray.clone(), &all).unwrap(), &mut Augment::rng(0, 0, 1));
    let of = |rng: &mut _| processor.augmented(&kept, &all, rng).unwrap();
    assert!(of(&mut Augment::rng(0, 0, 0)) == of(&mut Augment::rng(0, 0, 0)));
    assert!(of(&mut Augment::rng(0, 0, 0)) != processor.augmented(&kept, &all, other).unwrap());
}

#[test]
fn resized_crops_need_an_output_size() {
    let config = ImageProcessorConfig { crop: None, resize: None, ..ImageProcessorConfig::clip() };
    let (processor, augment) = (ImageProcessor::new(config).unwrap(), "resized-crop".parse::<Augment>().unwrap());
    let error = processor.augmented(&RgbImage::new(4, 4), &augment, &mut Augment::rng(0, 0, 0)).unwrap_err();
    assert!(error.to_string().contains("crop"), "{error}");
}
