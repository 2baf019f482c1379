//! Pairs from WebDataset shards: tar files whose members `KEY.jpg` and `KEY.txt` (or `KEY.json`) make a sample.
//!
//! A shard is scanned once, header by header; captions are kept, of images only the place and length. An image is read from its
//! place when it is decoded, and nothing is ever unpacked.
//!
//! Source: webdataset's `tariterators.py` (a key ends at the first dot of the member's file name), open_clip's
//! `training/data.py` (which extensions are images and captions).

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::builder::{Builder, Sample, captions, split_of_name, string};
use super::table::data_error;
use crate::image::{ImageSource, ImageStore};
use crate::{Error, Result};

/// The extensions of images; the first that a sample has counts.
const IMAGES: [&str; 4] = ["jpg", "png", "jpeg", "webp"];
/// A longer member is no caption.
const LONGEST_CAPTION: u64 = 16 << 20;

/// The images of one tar file.
struct Shard {
    path: PathBuf,
    members: Vec<Member>,
}

/// Where a member's contents are.
struct Member {
    name: Box<str>,
    offset: u64,
    length: u64,
}

/// What a shard has under one key.
#[derive(Default)]
struct Parts {
    /// The image, and the rank of its extension.
    image: Option<(usize, Member)>,
    text: Option<Vec<u8>>,
    json: Option<Vec<u8>>,
}

/// Reads all samples of a shard.
pub(super) fn read(path: &Path, builder: &mut Builder<'_>) -> Result<()> {
    let samples = scan(path)?;
    if samples.is_empty() {
        return Err(data_error(path, None, "has no member KEY.jpg, KEY.txt or the like; a WebDataset shard is needed"));
    }
    let split = path.file_name().and_then(|name| split_of_name(name.to_str()?));
    let mut found = Vec::with_capacity(samples.len());
    let mut members = Vec::with_capacity(samples.len());
    for (key, parts) in samples {
        let sample = sample(builder, &key, parts).map(|(captions, member, own_split)| {
            members.push(member);
            (members.len() - 1, captions, own_split)
        });
        found.push(sample.map_err(|message| data_error(path, None, format!("sample '{key}' {message}"))));
    }
    let store: Arc<dyn ImageStore> = Arc::new(Shard { path: path.to_path_buf(), members });
    for sample in found {
        let sample = sample.map(|(index, captions, own_split)| Sample {
            image: store.name(index),
            source: Some(ImageSource::Stored(store.clone(), index)),
            captions,
            split: own_split.or(split.map(str::to_string)),
        });
        builder.add(path, None, sample)?;
    }
    Ok(())
}

/// Captions, image and split of a sample.
type Complete = (Vec<String>, Member, Option<String>);

fn sample(builder: &Builder<'_>, key: &str, parts: Parts) -> std::result::Result<Complete, String> {
    let options = builder.options;
    let fields = match &parts.json {
        Some(json) => match serde_json::from_slice(json) {
            Ok(Value::Object(fields)) => Some(fields),
            Ok(_) => return Err(format!("has '{key}.json', which is no JSON object")),
            Err(error) => return Err(format!("has '{key}.json', which is no JSON object: {error}")),
        },
        None => None,
    };
    let captions = match (&parts.text, &fields) {
        (Some(text), _) => {
            let text = std::str::from_utf8(text).map_err(|_| format!("has '{key}.txt', which is not UTF-8 text"))?;
            if text.trim().is_empty() {
                return Err(String::from("has an empty caption"));
            }
            vec![text.trim().to_string()]
        }
        (None, Some(fields)) => captions(fields, &options.caption_keys)?,
        (None, None) => return Err(String::from("has no caption: a member .txt or .json is needed")),
    };
    let split = string("split", fields.as_ref().unwrap_or(&Map::new()), &options.split_keys)?;
    let (_, member) = parts.image.ok_or("has no image: a member .jpg, .jpeg, .png or .webp is needed")?;
    Ok((captions, member, split))
}

/// The members of a shard by key, in the order in which keys first appear.
fn scan(path: &Path) -> Result<Vec<(String, Parts)>> {
    let fail = |e: std::io::Error| Error::file(path, format!("cannot be read as a tar file: {e}"));
    let mut file = File::open(path).map_err(|e| Error::file(path, format!("cannot be opened: {e}")))?;
    let size = file.metadata().map_err(fail)?.len();
    let mut start = [0; 2];
    if file.read(&mut start).map_err(fail)? == 2 && start == [0x1f, 0x8b] {
        return Err(Error::file(
            path,
            "is compressed, so images cannot be found in it by their place; gunzip it first",
        ));
    }
    file.rewind().map_err(fail)?;
    let mut archive = tar::Archive::new(file);
    let (mut samples, mut place) = (Vec::<(String, Parts)>::new(), HashMap::new());
    for entry in archive.entries_with_seek().map_err(fail)? {
        let mut entry = entry.map_err(fail)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let bytes = entry.path_bytes().into_owned();
        let Ok(name) = std::str::from_utf8(&bytes) else {
            return Err(data_error(path, None, format!("member {bytes:?} has a name that is not UTF-8 text")));
        };
        let member = Member { name: name.into(), offset: entry.raw_file_position(), length: entry.size() };
        if member.offset.checked_add(member.length).is_none_or(|end| end > size) {
            return Err(data_error(path, None, format!("is cut off within member '{name}'; get the file again")));
        }
        let Some((key, extension)) = key(name) else { continue };
        let rank = IMAGES.iter().position(|known| *known == extension);
        if rank.is_none() && extension != "txt" && extension != "json" {
            continue;
        }
        let index = *place.entry(key.to_string()).or_insert_with(|| {
            samples.push((key.to_string(), Parts::default()));
            samples.len() - 1
        });
        let parts = &mut samples[index].1;
        match rank {
            Some(rank) if parts.image.as_ref().is_none_or(|(before, _)| rank < *before) => {
                parts.image = Some((rank, member));
            }
            Some(_) => {}
            None if member.length > LONGEST_CAPTION => {
                return Err(data_error(path, None, format!("member '{name}' has more than 16 MiB of caption")));
            }
            None => {
                let mut contents = Vec::new();
                entry.read_to_end(&mut contents).map_err(fail)?;
                *(if extension == "txt" { &mut parts.text } else { &mut parts.json }) = Some(contents);
            }
        }
    }
    Ok(samples)
}

/// A member's key, its path up to the first dot of the file name, and its extension, what follows the dot, in small letters.
fn key(member: &str) -> Option<(&str, String)> {
    let file = member.rfind('/').map_or(0, |slash| slash + 1);
    let dot = file + member[file..].find('.').filter(|&dot| dot > 0)?;
    Some((&member[..dot], member[dot + 1..].to_ascii_lowercase()))
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shard({}, {} images)", self.path.display(), self.members.len())
    }
}

impl ImageStore for Shard {
    fn name(&self, index: usize) -> String {
        let member = self.members.get(index).map_or("no such member", |member| &member.name);
        format!("{}/{member}", self.path.display())
    }

    fn read(&self, index: usize, most: u64) -> std::result::Result<Vec<u8>, String> {
        let Member { offset, length, .. } = *self.members.get(index).ok_or("there is no such member")?;
        if length > most {
            return Err(format!("it has {length} bytes, more than an image within the pixel limit needs"));
        }
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = vec![0; length as usize];
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|error| format!("it cannot be read from the shard: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_ends_at_the_first_dot_of_the_file_name() {
        assert_eq!(key("a.b/000.jpg"), Some(("a.b/000", String::from("jpg"))));
        assert_eq!(key("000.seg.PNG"), Some(("000", String::from("seg.png"))));
        assert_eq!(key("./x/.DS_Store"), None);
        assert_eq!(key("x/README"), None);
    }
}
