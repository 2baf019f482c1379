//! [`TensorFile`]: one safetensors file. Its header is read and checked at once, a tensor's bytes when asked for.
//!
//! Format: 8 bytes little-endian header length, the header (JSON: type, shape and byte range of each tensor), the bytes
//! of all tensors without gaps (<https://github.com/huggingface/safetensors#format>).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};

use crate::{Error, Result};

/// The longest header that the format allows, in bytes.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// How a file starts that Git LFS left in the place of the real one.
const LFS_POINTER: &[u8; 8] = b"version ";

/// An open safetensors file with a valid header.
pub(super) struct TensorFile {
    path: PathBuf,
    file: File,
    data_start: u64,
    metadata: Metadata,
}

impl TensorFile {
    /// Opens the file and checks that its header describes it exactly: every byte range inside of the file, as long as type
    /// and shape say, without overlap or gap.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let fail = |message: String| Error::file(path, message);
        let mut file = File::open(path).map_err(|e| fail(format!("cannot be opened: {e}")))?;
        let length = file.metadata().map_err(|e| fail(format!("cannot be read: {e}")))?.len();
        let mut prefix = [0_u8; 8];
        if length < 8 {
            return Err(fail(format!("is no safetensors file: it is only {length} bytes long")));
        }
        file.read_exact(&mut prefix).map_err(|e| fail(format!("cannot be read: {e}")))?;
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
        Read::by_ref(&mut file)
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
        Ok(Self { path: path.to_path_buf(), file, data_start, metadata })
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, as the file spells them, in no particular order.
    pub(super) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Type, shape and byte range of a tensor.
    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// Fills `bytes` from the offset `offset` of the tensors' bytes on.
    pub(super) fn read_at(&self, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
        read_exact_at(&self.file, &self.path, bytes, self.data_start + offset)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, _path: &Path, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

// A handle has one position for all threads elsewhere, so each read opens its own.
#[cfg(not(unix))]
fn read_exact_at(_file: &File, path: &Path, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}
