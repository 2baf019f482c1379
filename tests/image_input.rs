//! Files that are no images, damaged ones, and ones that are too large: each is one error that names the file.

use std::path::{Path, PathBuf};

use diptych::image::{
    DecodeOptions, ImageInput, ImageProcessor, ImageProcessorConfig, NaflexConfig, NaflexProcessor, ProcessorClass,
    decode,
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/image").join(name)
}

fn message(input: impl Into<ImageInput>) -> String {
    let processor = ImageProcessor::new(ImageProcessorConfig::clip()).unwrap();
    processor.preprocess(input).expect_err("this is no usable image").to_string()
}

/// A PNG header that states a size, with no pixels behind it.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = std::fs::read(golden("rgb.png")).unwrap();
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = bytes[12..29].iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    });
    bytes[29..33].copy_from_slice(&(!crc).to_be_bytes());
    bytes
}

#[test]
fn what_is_no_image_file_is_said_so_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("notes.jpg");
    std::fs::write(&text, "this is a text, whatever its name says").unwrap();
    let reads = "is not an image this crate reads (JPEG, PNG, WebP, GIF, BMP)";
    assert!(message(&text).contains("notes.jpg") && message(&text).contains(reads), "{}", message(&text));
    assert!(message(b"II*\0 a TIFF file".to_vec()).contains(reads));
    assert!(message(folder.path()).contains("it is a folder"));
    assert!(message("no/such/file.png").contains("image no/such/file.png: "));
    let empty = folder.path().join("empty.png");
    std::fs::write(&empty, []).unwrap();
    assert!(message(&empty).contains("empty.png: it is empty"), "{}", message(&empty));
}

#[cfg(unix)]
#[test]
fn a_path_need_not_be_text_and_a_device_is_not_read() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9.png"));
    assert!(message(&path).starts_with("image "));
    std::fs::copy(golden("rgb.png"), &path).unwrap();
    assert!(decode(&path.into(), &DecodeOptions::default()).is_ok());
    assert!(message("/dev/zero").contains("pipe or device"));
}

#[test]
fn a_truncated_file_of_any_format_is_an_error() {
    for file in ["rgb.png", "baseline.jpg", "progressive.jpg", "lossless.webp", "lossy.webp", "still.gif", "rgb.bmp"] {
        let bytes = std::fs::read(golden(file)).unwrap();
        for part in [1, 4, 10, bytes.len() / 4, bytes.len() / 2, bytes.len() * 3 / 4] {
            let message = message(&bytes[..part]);
            assert!(message.starts_with(&format!("image given as {part} bytes: ")), "{file} to {part}: {message}");
        }
    }
}

#[test]
fn a_stated_size_over_the_limit_is_refused_before_memory_is_taken() {
    assert!(message(png_header(2_000_000_000, 2_000_000_000)).contains("max_pixels"));
    assert!(message(png_header(20_000, 20_000)).contains("20000×20000"));
    // A size within the limit is no lie that could be found out before decoding.
    assert!(!message(png_header(60, 40)).contains("max_pixels"));
    assert!(message(png_header(0, 10)).starts_with("image "));
    let small = DecodeOptions { max_pixels: 29 * 38 - 1, ..DecodeOptions::default() };
    let error = decode(&golden("rgb.png").into(), &small).unwrap_err().to_string();
    assert!(error.contains("rgb.png") && error.contains("1101"), "{error}");
    let enough = DecodeOptions { max_pixels: 29 * 38, ..small };
    assert!(decode(&golden("rgb.png").into(), &enough).is_ok());
}

#[test]
fn an_image_without_pixels_is_an_error() {
    assert!(message(diptych::image::image_crate::DynamicImage::new_rgb8(0, 5)).contains("no pixels"));
}

#[test]
fn damaged_files_neither_panic_nor_hang() {
    let options = DecodeOptions { max_pixels: 1 << 20, ..DecodeOptions::default() };
    let mut state = 7_u64;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for entry in std::fs::read_dir(golden("")).unwrap() {
        let path = entry.unwrap().path();
        if !["png", "jpg", "webp", "gif", "bmp"]
            .iter()
            .any(|extension| path.extension().is_some_and(|e| e == *extension))
        {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        for _ in 0..40 {
            let mut damaged = bytes.clone();
            for _ in 0..=draw(4) {
                let at = draw(damaged.len());
                damaged[at] = draw(256) as u8;
            }
            let result = decode(&damaged.into(), &options);
            assert!(result.map_or(true, |image| image.width() > 0 && image.height() > 0), "{}", path.display());
        }
    }
}

#[test]
fn one_bad_image_in_a_batch_is_named() {
    let processor = ImageProcessor::new(ImageProcessorConfig::clip()).unwrap();
    let inputs: [ImageInput; 3] = [golden("rgb.png").into(), vec![1, 2, 3].into(), "missing.png".into()];
    let error = processor.pixel_values(&inputs, &diptych::candle::Device::Cpu).unwrap_err().to_string();
    assert!(error.starts_with("image at index 1: "), "{error}");
}

#[test]
fn a_processor_of_another_kind_is_named_with_those_that_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let write = |class: &str| {
        let json = format!(r#"{{"image_processor_type": "{class}"}}"#);
        std::fs::write(folder.path().join("preprocessor_config.json"), json).unwrap();
    };
    let error = || ImageProcessorConfig::from_folder(folder.path(), ProcessorClass::Clip).unwrap_err().to_string();
    write("EfficientNetImageProcessor");
    assert!(error().contains("'EfficientNetImageProcessor'") && error().contains("BeitImageProcessor"), "{}", error());
    assert!(NaflexConfig::from_folder(folder.path()).unwrap_err().to_string().contains("Siglip2ImageProcessor"));
    write("Siglip2ImageProcessorFast");
    assert!(error().contains("NaflexConfig"), "{}", error());
    assert_eq!(NaflexConfig::from_folder(folder.path()).unwrap().max_num_patches, 256);
}

#[test]
fn a_bad_image_in_a_batch_of_patches_is_named() {
    let processor = NaflexProcessor::new(NaflexConfig::default()).unwrap();
    let inputs: [ImageInput; 2] = [golden("rgb.png").into(), vec![1, 2, 3].into()];
    let error = processor.batch(&inputs, &diptych::candle::Device::Cpu).unwrap_err().to_string();
    assert!(error.starts_with("image at index 1: "), "{error}");
}

#[test]
fn a_folder_without_a_processor_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let error = ImageProcessorConfig::from_folder(folder.path(), ProcessorClass::Clip).unwrap_err().to_string();
    assert!(error.contains("preprocessor_config.json"), "{error}");
    std::fs::copy(golden("vit.json"), folder.path().join("preprocessor_config.json")).unwrap();
    std::fs::write(folder.path().join("processor_config.json"), r#"{"processor_class": "CLIPProcessor"}"#).unwrap();
    let flat = ImageProcessorConfig::from_folder(folder.path(), ProcessorClass::Clip).unwrap();
    let clip = std::fs::read_to_string(golden("clip.json")).unwrap();
    let nested = format!(r#"{{"image_processor": {clip}}}"#);
    std::fs::write(folder.path().join("processor_config.json"), nested).unwrap();
    assert_ne!(ImageProcessorConfig::from_folder(folder.path(), ProcessorClass::Clip).unwrap(), flat);
    std::fs::write(folder.path().join("processor_config.json"), "{").unwrap();
    assert!(
        ImageProcessorConfig::from_folder(folder.path(), ProcessorClass::Clip)
            .unwrap_err()
            .to_string()
            .contains("not JSON")
    );
}
