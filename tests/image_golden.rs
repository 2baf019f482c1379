//! Resized images and pixel values against Pillow 13 and transformers 5.23; see `tests/python/make_image_golden.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use diptych::candle::{DType, Device, Tensor};
use diptych::image::image_crate::RgbImage;
use diptych::image::{
    CropRounding, DecodeOptions, Filter, ImageInput, ImageProcessor, ImageProcessorConfig, ImageSize, NaflexConfig,
    NaflexProcessor, Orientation, PixelArray, ProcessorClass, Resize, ResizeTo, Transparency, resize,
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

fn json(name: &str) -> Vec<serde_json::Value> {
    serde_json::from_str(&std::fs::read_to_string(golden(name)).unwrap()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn dims(array: &PixelArray) -> [usize; 3] {
    [3, array.size().height as usize, array.size().width as usize]
}

fn open_clip(index: usize) -> ImageProcessorConfig {
    let path = golden("open_clip.json");
    ImageProcessorConfig::from_open_clip(&json("open_clip.json")[index], None, &path).unwrap()
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
        assert!(difference == 0.0, "{key}: {difference}");
        compared += 1;
    }
    assert_eq!(compared, 29 + 10 * 7);
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
    assert_eq!(batch.dims(), [4, 3, 8, 8]);
    let rows = batch.flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
    assert!(rows[0] == rows[1] && rows[1] == rows[2] && rows[2] != rows[3]);
    assert_eq!(rows[0], processor.preprocess(path).unwrap().data());
}

#[test]
fn configurations_survive_the_way_through_hugging_face_and_our_own_form() {
    for name in ["clip", "clip_pad", "dinov2", "vit", "deit", "siglip", "blip", "beit", "chinese_clip", "edges", "raw"]
    {
        let config = config(name);
        let theirs = config.to_hugging_face().unwrap();
        assert_eq!(
            ImageProcessorConfig::from_hugging_face(&theirs, Path::new(""), ProcessorClass::Clip).unwrap(),
            config,
            "{name}"
        );
        let ours = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ImageProcessorConfig>(&ours).unwrap(), config, "{name}");
    }
}

#[test]
fn every_spelling_of_a_configuration_gives_the_pixel_values_of_the_reference() {
    let expected = tensors("spellings.safetensors");
    let path = golden("spellings.json");
    for (index, entry) in json("spellings.json").iter().enumerate() {
        let class = ProcessorClass::from_name(entry["class"].as_str().unwrap()).unwrap();
        let config = ImageProcessorConfig::from_hugging_face(&entry["config"], &path, class).unwrap();
        let array = ImageProcessor::new(config).unwrap().preprocess(golden("rgb.png")).unwrap();
        let expected = &expected[&index.to_string()];
        assert_eq!(dims(&array), expected.dims(), "{entry}");
        assert_eq!(array.data(), values(expected), "{entry}");
    }
}

#[test]
fn the_processor_of_open_clip_gives_its_bytes_for_every_lossless_file() {
    let mut compared = [0; 5];
    for (key, expected) in tensors("open_clip.safetensors") {
        let Some((index, file)) = key.split_once('/') else { continue };
        let config =
            ImageProcessorConfig { rescale_factor: None, normalize: None, ..open_clip(index.parse().unwrap()) };
        let array = ImageProcessor::new(config).unwrap().preprocess(golden(file)).unwrap();
        let expected = expected.permute((2, 0, 1)).unwrap();
        assert_eq!(dims(&array), expected.dims(), "{key}");
        let difference = array.data().iter().zip(values(&expected)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let lossy = file.ends_with(".jpg") || file == "lossy.webp";
        assert!(difference <= if lossy { 4.0 } else { 0.0 }, "{key}: {difference} levels");
        compared[index.parse::<usize>().unwrap()] += 1;
    }
    assert_eq!(compared, [43, 41, 7, 7, 5]);
}

#[test]
fn the_processor_of_open_clip_gives_its_values_bit_by_bit() {
    for (key, expected) in tensors("open_clip.safetensors").iter().filter(|(key, _)| !key.contains('/')) {
        let array = ImageProcessor::new(open_clip(key.parse().unwrap())).unwrap().preprocess(golden("rgb.png"));
        assert_eq!(array.unwrap().data(), values(expected), "{key}");
    }
}

#[test]
fn an_image_too_thin_for_open_clip_is_an_error_as_it_is_there() {
    let message = ImageProcessor::new(open_clip(1)).unwrap().preprocess(golden("row.png")).unwrap_err().to_string();
    assert!(message.contains("row.png") && message.contains("too long and thin"), "{message}");
}

#[test]
fn patches_of_any_proportion_are_those_of_the_reference() {
    let expected = tensors("naflex.safetensors");
    let configs = json("naflex.json");
    let mut compared = 0;
    for (key, shape) in &expected {
        let Some(key) = key.strip_suffix("/shape") else { continue };
        let (index, file) = key.split_once('/').unwrap();
        let config =
            NaflexConfig::from_hugging_face(&configs[index.parse::<usize>().unwrap()], &golden("naflex.json")).unwrap();
        let rows = config.max_num_patches as usize;
        let batch = NaflexProcessor::new(config).unwrap().batch(&[golden(file).into()], &Device::Cpu).unwrap();
        assert_eq!(batch.patches.dims()[1..], *expected[key].dims(), "{key}");
        assert_eq!(values(&batch.patches), values(&expected[key]), "{key}");
        let [height, width] = shape.to_vec1::<i64>().unwrap()[..] else { panic!("{key}") };
        assert_eq!(batch.spatial_shapes, [(height as usize, width as usize)], "{key}");
        let patches = (height * width) as usize;
        let mask = (0..rows).map(|row| u32::from(row < patches)).collect::<Vec<_>>();
        assert_eq!(batch.mask.to_vec2::<u32>().unwrap(), [mask], "{key}");
        compared += 1;
    }
    assert_eq!(compared, 15);
}

#[test]
fn a_batch_of_patches_holds_each_image_as_it_is_alone() {
    let config = NaflexConfig { patch_size: 3, max_num_patches: 10, ..NaflexConfig::default() };
    let processor = NaflexProcessor::new(config).unwrap();
    let inputs = ["rgb.png", "tall.png", "one.png"].map(|file| ImageInput::from(golden(file)));
    let batch = processor.batch(&inputs, &Device::Cpu).unwrap();
    for (index, input) in inputs.iter().enumerate() {
        let alone = processor.batch(std::slice::from_ref(input), &Device::Cpu).unwrap();
        assert_eq!(values(&batch.patches.get(index).unwrap()), values(&alone.patches));
        assert_eq!(batch.mask.get(index).unwrap().to_vec1::<u32>().unwrap(), alone.mask.to_vec2::<u32>().unwrap()[0]);
        assert_eq!(batch.spatial_shapes[index], alone.spatial_shapes[0]);
    }
    let more = processor.with_max_num_patches(40).unwrap().batch(&inputs, &Device::Cpu).unwrap();
    assert_eq!(more.patches.dims(), [3, 40, 27]);
}

#[test]
fn what_the_other_layout_cannot_say_survives_or_is_an_error() {
    let squash = open_clip(3);
    let written = squash.to_hugging_face().unwrap();
    let read = ImageProcessorConfig::from_hugging_face(&written, Path::new(""), ProcessorClass::Clip).unwrap();
    assert_eq!((read.transparency, read.crop_rounding), (Transparency::DroppedAfterResize, CropRounding::HalfToEven));
    assert_eq!(read, ImageProcessorConfig { fill: 0, ..squash });
    for (index, way) in [(1, "within 9×8"), (2, "covering 7×10")] {
        let message = open_clip(index).to_hugging_face().unwrap_err().to_string();
        assert!(message.contains(way) && message.contains("shortest edge"), "{message}");
    }
    for (name, works) in [("clip", false), ("siglip", true), ("edges", false), ("vit", true)] {
        let config = config(name);
        let filter = if name == "siglip" { Filter::Bicubic } else { Filter::Bilinear };
        assert_eq!(config.to_open_clip().is_ok(), works, "{name}");
        if works {
            let to = config.resize.unwrap().to;
            let written = config.to_open_clip().unwrap();
            let read = ImageProcessorConfig::from_open_clip(&written, None, Path::new("")).unwrap();
            assert_eq!(read.resize, Some(Resize { to, filter }));
            assert!(matches!(to, ResizeTo::Exact(_)));
        }
    }
}
