//! Resized images and pixel values against Pillow 13 and transformers 5.23; see `tests/python/make_image_golden.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use diptych::candle::{Device, Tensor};
use diptych::image::image_crate::RgbImage;
use diptych::image::{
    DecodeOptions, Filter, ImageInput, ImageProcessor, ImageProcessorConfig, ImageSize, Orientation, ProcessorClass,
    Transparency, resize,
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/image").join(name)
}

fn tensors(name: &str) -> HashMap<String, Tensor> {
    diptych::candle::safetensors::load(golden(name), &Device::Cpu).unwrap()
}

fn config(name: &str) -> ImageProcessorConfig {
    let path = golden(&format!("{name}.json"));
    let json = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    ImageProcessorConfig::from_hugging_face(&json, &path, ProcessorClass::Clip).unwrap()
}

fn processor(name: &str) -> ImageProcessor {
    ImageProcessor::new(config(name)).unwrap()
}

fn rgb(tensor: &Tensor) -> RgbImage {
    let (height, width, _) = tensor.dims3().unwrap();
    RgbImage::from_raw(width as u32, height as u32, tensor.flatten_all().unwrap().to_vec1().unwrap()).unwrap()
}

/// The largest difference between a file's pixel values and the reference's.
fn difference(name: &str, file: &str, expected: &Tensor) -> f32 {
    let array = processor(name).preprocess(golden(file)).unwrap();
    let (channels, height, width) = expected.dims3().unwrap();
    assert_eq!(
        (3, array.size()),
        (channels, ImageSize { height: height as u32, width: width as u32 }),
        "{name}/{file}"
    );
    let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    array.data().iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_filter_gives_the_bytes_of_pillow() {
    let tensors = tensors("resize.safetensors");
    let mut compared = 0;
    for (key, expected) in &tensors {
        let [source, filter, _] = key.split('/').collect::<Vec<_>>()[..] else { continue };
        let filter: Filter = serde_json::from_value(filter.into()).unwrap();
        let expected = rgb(expected);
        let size = ImageSize { height: expected.height(), width: expected.width() };
        assert_eq!(resize(&rgb(&tensors[source]), size, filter).unwrap(), expected, "{key}");
        compared += 1;
    }
    assert_eq!(compared, 8 * (6 + 5 + 2 + 2));
}

#[test]
fn lossless_files_give_the_pixel_values_of_the_reference() {
    let mut compared = 0;
    for (key, expected) in tensors("pixels.safetensors") {
        let (name, file) = key.split_once('/').unwrap();
        if file.ends_with(".jpg") || file == "lossy.webp" {
            continue;
        }
        let difference = difference(name, file, &expected);
        assert!(difference <= 1e-6, "{key}: {difference}");
        compared += 1;
    }
    assert_eq!(compared, 29 + 8 * 7);
}

#[test]
fn lossy_files_differ_by_four_levels_at_most() {
    let mut compared = 0;
    for (key, expected) in tensors("pixels.safetensors") {
        let (name, file) = key.split_once('/').unwrap();
        if !(file.ends_with(".jpg") || file == "lossy.webp") {
            continue;
        }
        let std = config(name).normalize.unwrap().std.into_iter().fold(0.0, f64::max) as f32;
        let levels = difference(name, file, &expected) * 255.0 * std;
        assert!(levels <= 4.0, "{key}: {levels} levels");
        compared += 1;
    }
    assert_eq!(compared, 14);
}

#[test]
fn sixteen_bit_grey_keeps_its_upper_bits() {
    let array = processor("clip").preprocess(golden("grey16.png")).unwrap();
    let colour = processor("clip").preprocess(golden("rgb16.png")).unwrap();
    // The grey file holds the colour file's red channel.
    let plane = array.data().len() / 3;
    assert_eq!(array.data()[..plane], colour.data()[..plane]);
}

#[test]
fn the_orientation_of_the_camera_is_applied_unless_asked_otherwise() {
    let upright = processor("edges");
    let as_stored = DecodeOptions { orientation: Orientation::AsStored, ..DecodeOptions::default() };
    let stored = processor("edges").with_decode_options(as_stored);
    assert_eq!(upright.preprocess(golden("exif6.jpg")).unwrap().size(), ImageSize { height: 16, width: 11 });
    assert_eq!(stored.preprocess(golden("exif6.jpg")).unwrap().size(), ImageSize { height: 11, width: 16 });
    let first = stored.preprocess(golden("exif1.jpg")).unwrap();
    for orientation in 2..=8 {
        assert_eq!(stored.preprocess(golden(&format!("exif{orientation}.jpg"))).unwrap(), first);
    }
}

#[test]
fn a_processor_without_rgb_conversion_drops_transparency() {
    let opaque = processor("vit").preprocess(golden("rgb.png")).unwrap();
    assert_eq!(config("vit").transparency, Transparency::Dropped);
    assert_eq!(processor("vit").preprocess(golden("rgba.png")).unwrap(), opaque);
    let on_white = processor("siglip").preprocess(golden("rgba.png")).unwrap();
    assert_ne!(on_white, processor("siglip").preprocess(golden("rgb.png")).unwrap());
}

#[test]
fn paths_bytes_and_decoded_images_give_the_same_batch() {
    let processor = processor("clip");
    let path = golden("rgba.png");
    let bytes = std::fs::read(&path).unwrap();
    let decoded = diptych::image::decode(&bytes.as_slice().into(), &DecodeOptions::default()).unwrap();
    let inputs: [ImageInput; 4] = [path.as_path().into(), bytes.into(), decoded.into(), golden("rgb.png").into()];
    let batch = processor.pixel_values(&inputs, &Device::Cpu).unwrap();
    assert_eq!(batch.dims(), [4, 3, 12, 12]);
    let rows = batch.flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
    assert!(rows[0] == rows[1] && rows[1] == rows[2] && rows[2] != rows[3]);
    assert_eq!(rows[0], processor.preprocess(path).unwrap().data());
}

#[test]
fn configurations_survive_the_way_through_hugging_face_and_our_own_form() {
    for name in ["clip", "clip_pad", "dinov2", "vit", "deit", "siglip", "blip", "edges", "raw"] {
        let config = config(name);
        let theirs = config.to_hugging_face();
        assert_eq!(
            ImageProcessorConfig::from_hugging_face(&theirs, Path::new(""), ProcessorClass::Clip).unwrap(),
            config,
            "{name}"
        );
        let ours = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ImageProcessorConfig>(&ours).unwrap(), config, "{name}");
    }
}
