//! Image files, bytes and decoded images to 8-bit RGB.
//!
//! JPEG, PNG, WebP, GIF (its first frame) and BMP. The size that the header states is checked against
//! [`DecodeOptions::max_pixels`] before memory is taken for it; a truncated file is an error, and so is a panic inside a
//! decoder. What becomes of transparency is the processor's choice, see [`Transparency`].

use std::borrow::Cow;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits, RgbImage};

use super::config::Transparency;
use super::layout::Layout;
use super::rgb::Rgb;
use super::source::{ImageSource, ImageStore};
use crate::{Error, Result};

/// Where an image comes from: anything that converts into this is accepted where an image is wanted.
#[derive(Debug, Clone)]
pub enum ImageInput {
    /// A file.
    Path(PathBuf),
    /// The contents of a file.
    Bytes(Vec<u8>),
    /// An image that is decoded already; its orientation is taken as it is.
    Decoded(DynamicImage),
    /// The image at an index of a store, read when it is decoded.
    Stored(Arc<dyn ImageStore>, usize),
}

/// How files are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Most pixels an image may have; a file that states more is an error before anything is allocated.
    pub max_pixels: u64,
    /// Whether the camera's orientation is applied.
    pub orientation: Orientation,
}

/// What becomes of the orientation that a camera notes in the EXIF data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Orientation {
    /// The image is turned upright.
    #[default]
    Exif,
    /// The pixels stay as they are stored.
    AsStored,
}

impl Default for DecodeOptions {
    /// Pillow's limit (it refuses more pixels as a decompression bomb), upright images.
    fn default() -> Self {
        Self { max_pixels: 178_956_970, orientation: Orientation::Exif }
    }
}

impl ImageInput {
    /// What errors call this image: its path, if it has one, and its place where it is one of many.
    pub(crate) fn name(&self, index: Option<usize>) -> String {
        match (self, index) {
            (Self::Path(path), None) => path.display().to_string(),
            (Self::Path(path), Some(index)) => format!("{} (at index {index})", path.display()),
            (Self::Stored(store, at), None) => store.name(*at),
            (Self::Stored(store, at), Some(index)) => format!("{} (at index {index})", store.name(*at)),
            (_, Some(index)) => format!("at index {index}"),
            (Self::Bytes(bytes), None) => format!("given as {} bytes", bytes.len()),
            (Self::Decoded(_), None) => "given as decoded pixels".to_owned(),
        }
    }
}

impl From<&str> for ImageInput {
    fn from(path: &str) -> Self {
        Self::Path(path.into())
    }
}

impl From<String> for ImageInput {
    fn from(path: String) -> Self {
        Self::Path(path.into())
    }
}

impl From<&String> for ImageInput {
    fn from(path: &String) -> Self {
        Self::Path(path.into())
    }
}

impl From<&Path> for ImageInput {
    fn from(path: &Path) -> Self {
        Self::Path(path.into())
    }
}

impl From<PathBuf> for ImageInput {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<&PathBuf> for ImageInput {
    fn from(path: &PathBuf) -> Self {
        Self::Path(path.clone())
    }
}

impl From<Vec<u8>> for ImageInput {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<&[u8]> for ImageInput {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

impl From<DynamicImage> for ImageInput {
    fn from(image: DynamicImage) -> Self {
        Self::Decoded(image)
    }
}

impl From<RgbImage> for ImageInput {
    fn from(image: RgbImage) -> Self {
        Self::Decoded(image.into())
    }
}

impl From<&ImageSource> for ImageInput {
    fn from(source: &ImageSource) -> Self {
        match source {
            ImageSource::File(path) => Self::Path(path.clone()),
            ImageSource::Stored(store, index) => Self::Stored(store.clone(), *index),
        }
    }
}

impl From<&ImageInput> for ImageInput {
    fn from(input: &ImageInput) -> Self {
        input.clone()
    }
}

/// Decodes `input` with its own channels and bit depth; the orientation is applied as `options` say.
///
/// # Errors
/// If the file cannot be read, is no image of a known format, is truncated or damaged, or states more than
/// `options.max_pixels` pixels. The error names the file.
pub fn decode(input: &ImageInput, options: &DecodeOptions) -> Result<DynamicImage> {
    decode_named(input, &input.name(None), options).map(|(image, _)| image.into_owned())
}

/// Decodes `input` to 8-bit RGB; errors call it `name`.
pub(crate) fn decode_rgb<'a>(
    input: &'a ImageInput,
    name: &str,
    options: &DecodeOptions,
    transparency: Transparency,
) -> Result<Rgb<'a>> {
    let (image, layout) = decode_named(input, name, options)?;
    Ok(Rgb::new(image, layout, transparency))
}

fn decode_named<'a>(
    input: &'a ImageInput,
    name: &str,
    options: &DecodeOptions,
) -> Result<(Cow<'a, DynamicImage>, Layout)> {
    let decode =
        |bytes: &[u8]| decode_bytes(bytes, name, options).map(|image| (Cow::Owned(image), Layout::of_file(bytes)));
    let (image, layout) = match input {
        ImageInput::Path(path) => decode(&read(path, name, options)?)?,
        ImageInput::Bytes(bytes) => decode(bytes)?,
        ImageInput::Stored(store, index) => {
            let bytes = store.read(*index, most_bytes(options)).map_err(|message| Error::image(name, message))?;
            decode(&bytes)?
        }
        ImageInput::Decoded(image) => (Cow::Borrowed(image), Layout::Channels),
    };
    if image.width() == 0 || image.height() == 0 {
        return Err(Error::image(name, "it has no pixels"));
    }
    Ok((image, layout))
}

/// No format needs more for a pixel than four 16-bit channels; the rest leaves room for metadata.
fn most_bytes(options: &DecodeOptions) -> u64 {
    options.max_pixels.saturating_mul(8).saturating_add(64 << 20)
}

fn read(path: &Path, name: &str, options: &DecodeOptions) -> Result<Vec<u8>> {
    let metadata = std::fs::metadata(path).map_err(|error| Error::image(name, error))?;
    // A pipe or device might never end.
    if !metadata.is_file() {
        let what = if metadata.is_dir() { "a folder" } else { "a pipe or device" };
        return Err(Error::image(name, format!("it is {what}, not an image file")));
    }
    if metadata.len() > most_bytes(options) {
        let size = metadata.len();
        return Err(Error::image(
            name,
            format!("the file has {size} bytes, more than an image within the pixel limit needs"),
        ));
    }
    std::fs::read(path).map_err(|error| Error::image(name, error))
}

fn decode_bytes(bytes: &[u8], name: &str, options: &DecodeOptions) -> Result<DynamicImage> {
    catch_unwind(AssertUnwindSafe(|| decode_unguarded(bytes, options)))
        .unwrap_or_else(|_| Err("it is damaged (the decoder gave up on it)".to_owned()))
        .map_err(|message| Error::image(name, message))
}

fn decode_unguarded(bytes: &[u8], options: &DecodeOptions) -> std::result::Result<DynamicImage, String> {
    if bytes.is_empty() {
        return Err("it is empty".to_owned());
    }
    let unknown = || "it is not an image this crate reads (JPEG, PNG, WebP, GIF, BMP)".to_owned();
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|_| unknown())?;
    if reader.format() == Some(::image::ImageFormat::Jpeg) && jpeg_is_truncated(bytes) {
        return Err("the file is truncated".to_owned());
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(options.max_pixels.saturating_mul(8));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|error| match error {
        ImageError::Unsupported(_) => unknown(),
        error => describe(&error),
    })?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > options.max_pixels {
        let most = options.max_pixels;
        return Err(format!("its {height}×{width} pixels are more than the limit of {most} (`max_pixels`)"));
    }
    let orientation = match options.orientation {
        Orientation::AsStored => ::image::metadata::Orientation::NoTransforms,
        // Unreadable EXIF data is no reason to refuse readable pixels.
        Orientation::Exif => decoder.orientation().unwrap_or(::image::metadata::Orientation::NoTransforms),
    };
    let mut image = DynamicImage::from_decoder(decoder).map_err(|error| describe(&error))?;
    image.apply_orientation(orientation);
    Ok(image)
}

fn describe(error: &ImageError) -> String {
    match error {
        ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the file is truncated".to_owned()
        }
        ImageError::Limits(_) => "decoding it needs more memory than `max_pixels` allows".to_owned(),
        error => format!("it cannot be decoded: {error}"),
    }
}

/// Whether a JPEG file ends before its end-of-image marker. The decoder itself fills the missing part with grey.
fn jpeg_is_truncated(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&byte) = bytes.get(at) {
        let marker = bytes.get(at + 1).copied();
        at += match (byte, marker) {
            (0xff, Some(0xd9)) => return false,
            // Inside compressed data: an escaped 255, a restart, or fill bytes.
            (0xff, Some(0x00 | 0x01 | 0xd0..=0xd8)) => 2,
            (0xff, Some(0xff)) => 1,
            // Any other marker starts a segment that states its length.
            (0xff, Some(_)) => match bytes.get(at + 2..at + 4) {
                Some(length) => 2 + usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => return true,
            },
            _ => 1,
        };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_thumbnail_inside_a_segment_is_not_the_end_of_the_image() {
        let whole = [0xff, 0xd8, 0xff, 0xe1, 0, 4, 0xff, 0xd9, 0xff, 0xda, 0, 2, 1, 0xff, 0, 2, 0xff, 0xd9];
        assert!(!jpeg_is_truncated(&whole));
        for end in 0..whole.len() {
            assert!(jpeg_is_truncated(&whole[..end]), "cut at {end}");
        }
    }
}
