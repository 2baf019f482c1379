//! [`EventFile`]: scalars in the files that TensorBoard reads.
//!
//! ```text
//! file   = record*                                    (tensorflow/core/lib/io/record_writer.h)
//! record = length u64 · mask(crc(length)) u32 · data · mask(crc(data)) u32        all little-endian
//! mask   = rotate right by 15, plus 0xa282ead8        (tensorflow/core/lib/hash/crc32c.h); crc is CRC-32C
//! data   = Event { 1: wall_time double, 2: step int64, 3: file_version string, 5: summary }   (event.proto)
//! summary = Summary { 1: Value* }, Value { 1: tag string, 2: simple_value float }             (summary.proto)
//! ```

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

/// The first event of every file.
const VERSION: &str = "brain.Event:2";

/// A file of events in a folder that TensorBoard is pointed at. Records are handed to the system whole.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Makes a new file in `folder`, and the folder where there is none. Files of earlier runs stay; TensorBoard shows a folder's
    /// files as one run.
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) if folder or file cannot be made or written.
    pub fn create(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(|error| Error::file(folder, format!("cannot be made: {error}")))?;
        let seconds = now() as u64;
        let mut number = 0;
        let (path, file) = loop {
            // Not the usual host name and process id: they are nobody's business.
            let path = folder.join(format!("events.out.tfevents.{seconds:010}.diptych.{number}"));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => break (path, file),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(Error::file(&path, format!("cannot be made: {error}"))),
            }
        };
        let mut events = Self { path, file };
        events.write(&event(now(), 0, &Payload::Version))?;
        Ok(events)
    }

    /// Adds one event with these values at `step`.
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) if it cannot be written.
    pub fn add(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        self.write(&event(now(), step as u64, &Payload::Scalars(values)))
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        let failed = |error| Error::file(&self.path, format!("cannot be written: {error}"));
        self.file.write_all(&record(data)).map_err(failed)
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

enum Payload<'a> {
    Version,
    Scalars(&'a [(&'a str, f64)]),
}

/// The bytes of an `Event`.
fn event(wall_time: f64, step: u64, payload: &Payload<'_>) -> Vec<u8> {
    let mut out = vec![tag(1, 1)];
    out.extend(wall_time.to_le_bytes());
    if step > 0 {
        out.push(tag(2, 0));
        varint(&mut out, step);
    }
    match payload {
        Payload::Version => delimited(&mut out, 3, VERSION.as_bytes()),
        Payload::Scalars(values) => {
            let mut summary = Vec::new();
            for (name, number) in *values {
                let mut value = Vec::new();
                delimited(&mut value, 1, name.as_bytes());
                value.push(tag(2, 5));
                value.extend((*number as f32).to_le_bytes());
                delimited(&mut summary, 1, &value);
            }
            delimited(&mut out, 5, &summary);
        }
    }
    out
}

/// A field's number and how its value is written: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
const fn tag(field: u8, wire: u8) -> u8 {
    field << 3 | wire
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn delimited(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(tag(field, 2));
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
    out
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli; RFC 3720, appendix B.4), bit by bit: records are short.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc: u32, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_record_has_the_bytes_that_tensorboard_writes() {
        // tensorboard 2.21: RecordWriter(file).write(Event(wall_time=1.5, file_version="brain.Event:2").SerializeToString())
        let version = record(&event(1.5, 0, &Payload::Version));
        assert_eq!(hex(&version), RECORD_OF_VERSION);
        // Event(wall_time=2, step=300, summary=Summary(value=[Value(tag="train/loss", simple_value=0.25)]))
        let loss = record(&event(2.0, 300, &Payload::Scalars(&[("train/loss", 0.25)])));
        assert_eq!(hex(&loss), RECORD_OF_LOSS);
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    const RECORD_OF_VERSION: &str = "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c";
    const RECORD_OF_LOSS: &str =
        "2100000000000000017becf609000000000000004010ac022a130a110a0a747261696e2f6c6f7373150000803ee89dc1a5";

    #[test]
    fn files_of_the_same_second_have_their_own_names() {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<EventFile> = (0..3).map(|_| EventFile::create(folder.path().join("runs")).unwrap()).collect();
        assert!(files[0].path() != files[1].path() && files[1].path() != files[2].path());
        std::fs::write(folder.path().join("file"), b"").unwrap();
        assert!(EventFile::create(folder.path().join("file")).is_err());
    }
}
