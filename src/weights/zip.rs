//! [`ZipEntries`]: where the files of an uncompressed zip archive lie, for [`super::torch_file`].
//!
//! Only what `torch.save` writes: no compression, no encryption, one disk, sizes beyond 4 GiB by the ZIP64 records. (PKWARE's
//! APPNOTE.TXT, sections 4.3.7 to 4.5.3.) What is not compressed cannot be a bomb; entries must not overlap either.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

type Result<T> = std::result::Result<T, String>;

/// The longest list of files, in bytes, and the most files: a state dict has one for each of its tensors.
const MAX_DIRECTORY: u64 = 32 << 20;
const MAX_ENTRIES: usize = 200_000;
/// The list's end with the longest comment.
const MAX_END: u64 = 22 + 0xffff;

/// The files of an archive.
pub(super) struct ZipEntries {
    /// What the first file is that cannot be read as it lies there, and why.
    problem: Option<String>,
    /// Name → the first byte in the archive, and how many there are.
    places: HashMap<String, (u64, u64)>,
}

impl ZipEntries {
    /// Reads the list of files of an archive that is `length` bytes long.
    pub(super) fn read(file: &mut File, length: u64) -> Result<Self> {
        let (start, size) = directory(file, length)?;
        let bytes = read_at(file, start, size)?;
        let mut rest = &bytes[..];
        let mut entries = Vec::new();
        while rest.starts_with(b"PK\x01\x02") {
            let (entry, after) = Entry::parse(rest).ok_or("the archive's list of files is damaged")?;
            entries.push(entry);
            rest = after;
            if entries.len() > MAX_ENTRIES {
                return Err(format!("the archive has more than {MAX_ENTRIES} files"));
            }
        }
        let problem = entries.iter().find_map(|entry| {
            entry.problem.map(|problem| format!("the archive's file '{}' {problem}", entry.name.escape_debug()))
        });
        entries.sort_by_key(|entry| entry.header);
        let mut places = HashMap::with_capacity(entries.len());
        let mut end = 0;
        for entry in entries {
            if entry.header < end {
                return Err(format!("the archive's file '{}' overlaps another", entry.name.escape_debug()));
            }
            let start = data_start(file, &entry)?;
            end = start.checked_add(entry.size).filter(|&end| end <= length).ok_or_else(|| {
                format!("it is truncated: the archive's file '{}' is not all there", entry.name.escape_debug())
            })?;
            if let Some((name, _)) = places.insert(entry.name.clone(), (start, entry.size)).map(|old| (entry.name, old))
            {
                return Err(format!("the archive has two files '{}'", name.escape_debug()));
            }
        }
        Ok(Self { problem, places })
    }

    /// Checks that all files can be read as they lie there.
    pub(super) fn check(&self) -> Result<()> {
        self.problem.clone().map_or(Ok(()), Err)
    }

    /// The names of all files.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// The first byte of a file and its length, in the archive.
    pub(super) fn find(&self, name: &str) -> Option<(u64, u64)> {
        self.places.get(name).copied()
    }
}

struct Entry {
    name: String,
    /// Where its own header is, which lies before its bytes.
    header: u64,
    /// How many bytes it takes in the archive.
    size: u64,
    problem: Option<&'static str>,
}

impl Entry {
    /// The first entry of the list, and what comes after it; `None` where the list ends too early.
    fn parse(list: &[u8]) -> Option<(Self, &[u8])> {
        let (flags, method) = (u16_at(list, 8)?, u16_at(list, 10)?);
        let (compressed, size) = (u32_at(list, 20)?, u32_at(list, 24)?);
        let [name, extra, comment] = [28, 30, 32].map(|at| u16_at(list, at).map(usize::from));
        let (name_end, header) = (46 + name?, u32_at(list, 42)?);
        let extra_end = name_end + extra?;
        let after = list.get(extra_end + comment?..)?;
        let name = String::from_utf8_lossy(list.get(46..name_end)?).into_owned();
        // Sizes that do not fit in 32 bits are in a field of their own, in this order, each only where it is needed.
        let mut wide = wide_fields(list.get(name_end..extra_end)?);
        let mut widen = |narrow: u32| if narrow == u32::MAX { wide.next() } else { Some(u64::from(narrow)) };
        let (size, compressed, header) = (widen(size)?, widen(compressed)?, widen(header)?);
        let problem = match (method, flags & 1) {
            (0, 0) if size == compressed => None,
            (_, 1) => Some("is encrypted"),
            _ => Some("is compressed, which torch.save never does"),
        };
        Some((Self { name, header, size: compressed, problem }, after))
    }
}

/// The numbers in the ZIP64 field among the extra fields.
fn wide_fields(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut found: &[u8] = &[];
    while let (Some(kind), Some(size)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let Some((field, rest)) = extra.get(4..).and_then(|rest| rest.split_at_checked(usize::from(size))) else {
            break;
        };
        if kind == 1 {
            found = field;
            break;
        }
        extra = rest;
    }
    found.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Where the list of files is and how long it is, by the record at the archive's end.
fn directory(file: &mut File, length: u64) -> Result<(u64, u64)> {
    let damaged = || "it is truncated or no zip archive: the list of its files is missing".to_string();
    let tail_start = length.saturating_sub(MAX_END);
    let tail = read_at(file, tail_start, length - tail_start)?;
    let end = tail.windows(4).rposition(|window| window == b"PK\x05\x06").ok_or_else(damaged)?;
    let comment = u16_at(&tail, end + 20).map(usize::from);
    if comment.is_none_or(|comment| end + 22 + comment != tail.len()) {
        return Err(damaged());
    }
    let (size, start) = u32_at(&tail, end + 12).zip(u32_at(&tail, end + 16)).ok_or_else(damaged)?;
    let (mut size, mut start) = (u64::from(size), u64::from(start));
    if size == u64::from(u32::MAX) || start == u64::from(u32::MAX) {
        let locator = end.checked_sub(20).and_then(|at| tail.get(at..end)).filter(|l| l.starts_with(b"PK\x06\x07"));
        let record = locator.and_then(|locator| u64_at(locator, 8)).ok_or_else(damaged)?;
        let record = read_at(file, record, 56)?;
        if !record.starts_with(b"PK\x06\x06") {
            return Err(damaged());
        }
        (size, start) = u64_at(&record, 40).zip(u64_at(&record, 48)).ok_or_else(damaged)?;
    }
    match start.checked_add(size) {
        Some(end) if end <= length && size <= MAX_DIRECTORY => Ok((start, size)),
        _ => Err(damaged()),
    }
}

/// Where the bytes of a file begin: after its own header, whose length only itself says.
fn data_start(file: &mut File, entry: &Entry) -> Result<u64> {
    let header = read_at(file, entry.header, 30)?;
    let lengths = u16_at(&header, 26).zip(u16_at(&header, 28)).filter(|_| header.starts_with(b"PK\x03\x04"));
    let start = lengths.and_then(|(name, extra)| entry.header.checked_add(30 + u64::from(name) + u64::from(extra)));
    start.ok_or_else(|| format!("the archive's file '{}' has no header", entry.name.escape_debug()))
}

fn read_at(file: &mut File, start: u64, size: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = file.seek(SeekFrom::Start(start)).and_then(|_| Read::by_ref(file).take(size).read_to_end(&mut bytes));
    match read {
        Ok(count) if count as u64 == size => Ok(bytes),
        Ok(_) => Err("it is truncated".into()),
        Err(e) => Err(format!("cannot be read: {e}")),
    }
}

fn array_at<const WIDTH: usize>(bytes: &[u8], at: usize) -> Option<[u8; WIDTH]> {
    bytes.get(at..at.checked_add(WIDTH)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}
