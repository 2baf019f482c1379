//! Pairs from JSON Lines: one object a line, `{"image": "1.jpg", "caption": "a cat", "split": "train"}`.
//!
//! The captions may be a string or a list. Blank lines are passed over; a line that is no such object is a bad sample.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Map, Value};

use super::builder::{Builder, Sample, captions, missing, string};
use super::table::data_error;
use crate::{Error, Result};

/// A longer line is no line of captions.
const MOST_BYTES: u64 = 64 << 20;

/// Reads all lines of `path`.
pub(super) fn read(path: &Path, builder: &mut Builder<'_>) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::file(path, format!("cannot be opened: {e}")))?;
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let mut limited = std::io::Read::take(&mut reader, MOST_BYTES);
        let count = limited.read_until(b'\n', &mut bytes);
        let count = count.map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
        if count == 0 {
            break;
        }
        if count as u64 == MOST_BYTES {
            return Err(data_error(path, Some(line), "is longer than 64 MiB; one JSON object a line is needed"));
        }
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").filter(|_| line == 1).unwrap_or(&bytes).trim_ascii();
        if text.is_empty() {
            continue;
        }
        let sample = sample(text, builder).map_err(|message| data_error(path, Some(line), message));
        builder.add(path, Some(line), sample)?;
    }
    Ok(())
}

fn sample(text: &[u8], builder: &Builder<'_>) -> std::result::Result<Sample, String> {
    let value: Value = serde_json::from_slice(text).map_err(|e| format!("is no JSON object: {e}"))?;
    let Value::Object(fields) = value else { return Err(String::from("is no JSON object, {\"image\": …}")) };
    let fields: &Map<String, Value> = &fields;
    let options = builder.options;
    let image = string("image", fields, &options.image_keys)?;
    Ok(Sample {
        image: image.ok_or_else(|| missing("image", fields, &options.image_keys))?,
        source: None,
        captions: captions(fields, &options.caption_keys)?,
        split: string("split", fields, &options.split_keys)?,
    })
}
