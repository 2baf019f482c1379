//! [`TensorFile`]: one file of tensors. Its header is read and checked at once, a tensor's bytes when asked for.
//!
//! safetensors: 8 bytes little-endian header length, the header (JSON: type, shape and byte range of each tensor), the bytes
//! of all tensors without gaps (<https://github.com/huggingface/safetensors#format>). Files that `torch.save` wrote are
//! recognised by how they begin, and read in a build with the feature `pickle`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use candle_core::DType;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::decode::{Values, is_float, read_floats};
use crate::{Error, Result};

/// The longest header that the format allows, in bytes.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// How a file starts that Git LFS left in the place of the real one.
const LFS_POINTER: &[u8; 8] = b"version ";

/// How a file starts that `torch.save` wrote: a zip archive.
const ZIP: &[u8] = b"PK\x03\x04";
/// How a file starts that `torch.save` wrote before PyTorch 1.6: pickle protocol 2 and a number of ten bytes.
const LEGACY_PICKLE: &[u8] = b"\x80\x02\x8a\x0a";

/// An open file of tensors with a valid header.
pub(super) struct TensorFile {
    path: PathBuf,
    file: File,
    length: u64,
    tensors: BTreeMap<String, Stored>,
}

/// Where and how a file holds one tensor.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// The first byte, counted from the start of the file.
    pub(super) start: u64,
    /// How many elements lie between neighbours along each axis, where that is not row-major order without gaps.
    pub(super) strides: Option<Vec<usize>>,
}

impl Stored {
    /// The `index`-th of `count` equal parts along the first axis, which `count` divides.
    pub(super) fn part(&self, index: usize, count: usize) -> Self {
        let mut part = self.clone();
        let Some(rows) = part.shape.first_mut() else { return part };
        *rows /= count;
        let row = self.strides.as_ref().map_or_else(|| self.shape[1..].iter().product(), |strides| strides[0]);
        part.start += (index * *rows * row * self.dtype.bitsize() / 8) as u64;
        part
    }
}

impl TensorFile {
    /// Opens the file and checks that its header describes it exactly: every byte range inside of the file, as long as type
    /// and shape say, and in a safetensors file without overlap or gap.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let fail = |message: String| Error::file(path, message);
        let unreadable = |e: std::io::Error| fail(format!("cannot be read: {e}"));
        let mut file = File::open(path).map_err(|e| fail(format!("cannot be opened: {e}")))?;
        let length = file.metadata().map_err(unreadable)?.len();
        if length < 8 {
            return Err(fail(format!("is no safetensors file: it is only {length} bytes long")));
        }
        let mut prefix = [0_u8; 8];
        file.read_exact(&mut prefix).map_err(unreadable)?;
        let tensors = if prefix.starts_with(ZIP) || prefix.starts_with(LEGACY_PICKLE) {
            file.rewind().map_err(unreadable)?;
            torch_tensors(path, &mut file, length)?
        } else {
            safetensors_tensors(path, &mut file, length, prefix)?
        };
        Ok(Self { path: path.to_path_buf(), file, length, tensors })
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How many bytes the file is long.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The names of all tensors, as the file spells them.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Type, shape and place of a tensor.
    pub(super) fn info(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    /// Whether [`TensorFile::floats`] can read a tensor: floats in row-major order.
    pub(super) fn has_floats(stored: &Stored) -> bool {
        stored.strides.is_none() && is_float(stored.dtype)
    }

    /// Fills `out` with the floats of a tensor from the `first` on, which must be in it.
    pub(super) fn floats(&self, stored: &Stored, first: usize, out: &mut [f32]) -> std::io::Result<()> {
        let read = |bytes: &mut [u8], offset: u64| read_exact_at(&self.file, &self.path, bytes, offset);
        read_floats(&read, stored.start + (first * stored.dtype.bitsize() / 8) as u64, stored.dtype, out)
    }

    /// The integers of a tensor of type I8.
    pub(super) fn integers(&self, stored: &Stored) -> std::io::Result<Vec<i8>> {
        let bytes = Stored { dtype: Dtype::U8, ..stored.clone() };
        match self.values(&bytes, DType::U8)? {
            Some(Values::U8(bytes)) => Ok(bytes.into_iter().map(u8::cast_signed).collect()),
            _ => Ok(Vec::new()),
        }
    }

    /// The elements of a tensor in row-major order, or `None` for a number type without a conversion.
    pub(super) fn values(&self, stored: &Stored, wanted: DType) -> std::io::Result<Option<Values>> {
        let read = |bytes: &mut [u8], offset: u64| read_exact_at(&self.file, &self.path, bytes, offset);
        // The header was checked: the product is that of a byte range inside of the file.
        let count = stored.shape.iter().product();
        let Some(strides) = &stored.strides else {
            return Values::read(&read, stored.start, count, stored.dtype, wanted);
        };
        let span = stored.shape.iter().zip(strides).map(|(&size, &stride)| (size - 1) * stride).sum::<usize>() + 1;
        let values = Values::read(&read, stored.start, span, stored.dtype, wanted)?;
        Ok(values.map(|values| values.gather(&stored.shape, strides)))
    }
}

#[cfg(feature = "pickle")]
use super::torch_file::torch_tensors;

#[cfg(not(feature = "pickle"))]
fn torch_tensors(path: &Path, _file: &mut File, _length: u64) -> Result<BTreeMap<String, Stored>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Err(Error::file(path, format!("holds {}", super::layout::pickle_only(&name))))
}

fn safetensors_tensors(path: &Path, file: &mut File, length: u64, prefix: [u8; 8]) -> Result<BTreeMap<String, Stored>> {
    let fail = |message: String| Error::file(path, message);
    if &prefix == LFS_POINTER {
        return Err(fail("is a Git LFS pointer, not the weights; run `git lfs pull` in its folder".into()));
    }
    let header_length = u64::from_le_bytes(prefix);
    if header_length > MAX_HEADER_BYTES || header_length > length - 8 {
        return Err(fail(format!(
            "is no safetensors file or is damaged: it says that its header is {header_length} bytes long, the file has {length}"
        )));
    }
    let mut header = Vec::new();
    Read::by_ref(file)
        .take(header_length)
        .read_to_end(&mut header)
        .map_err(|e| fail(format!("cannot be read: {e}")))?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|e| fail(format!("is no safetensors file or is damaged: its header is invalid: {e}")))?;
    let data_start = 8 + header_length;
    let expected = data_start.checked_add(metadata.data_len() as u64);
    if expected != Some(length) {
        let reason =
            if expected.is_some_and(|e| e < length) { "has bytes that no tensor owns" } else { "is truncated" };
        return Err(fail(format!(
            "{reason}: it is {length} bytes long, its header describes {}; copy or download it again",
            expected.map_or_else(|| "more than can be".to_string(), |e| e.to_string())
        )));
    }
    let stored = metadata.tensors().into_iter().map(|(name, info)| {
        let start = data_start + info.data_offsets.0 as u64;
        (name, Stored { dtype: info.dtype, shape: info.shape.clone(), start, strides: None })
    });
    Ok(stored.collect())
}

#[cfg(unix)]
fn read_exact_at(file: &File, _path: &Path, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

// A handle has one position for all threads elsewhere, so each read opens its own.
#[cfg(not(unix))]
fn read_exact_at(_file: &File, path: &Path, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    use std::io::SeekFrom;
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}
