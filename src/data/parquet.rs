//! Pairs from Parquet files: a column of images (their files' bytes, or paths) and a column of captions (a string or a list of them).
//!
//! Both Hugging Face's form, a group `image` of `bytes` and `path`, and plain columns are read. Captions are read at once; an
//! image's bytes when it is decoded, by passing over the pages before it and decoding its own. Written in small row groups or
//! pages, a file is fast to read in random order.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::schema::types::SchemaDescriptor;

use super::builder::{Builder, Sample, split_of_name};
use super::table::data_error;
use crate::image::{ImageSource, ImageStore};
use crate::{Error, Result};

/// Rows read at a time.
const ROWS: usize = 4096;

/// A file that every read opens anew, so that threads do not share a position.
#[derive(Debug)]
struct Reopened {
    path: PathBuf,
    length: u64,
}

/// The images of one Parquet file.
struct Images {
    path: PathBuf,
    reader: SerializedFileReader<Reopened>,
    /// The leaf column with the bytes.
    column: usize,
    /// The first row of each row group, and the number of all rows.
    starts: Vec<usize>,
}

/// Where the images are.
enum ImageColumn {
    /// Their bytes are in this leaf.
    Bytes(usize),
    /// Their paths are in this leaf.
    Paths(usize),
}

/// Reads all rows of a file.
pub(super) fn read(path: &Path, builder: &mut Builder<'_>) -> Result<()> {
    guarded(|| read_rows(path, builder)).map_err(|message| Error::file(path, message))?
}

fn read_rows(path: &Path, builder: &mut Builder<'_>) -> Result<()> {
    let fail = |e: ParquetError| Error::file(path, format!("cannot be read as a Parquet file: {e}"));
    let length = std::fs::metadata(path).map_err(|e| Error::file(path, format!("cannot be opened: {e}")))?.len();
    let reader = SerializedFileReader::new(Reopened { path: path.to_path_buf(), length }).map_err(fail)?;
    let options = builder.options;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let image = image_column(path, &schema, &options.image_keys)?;
    let caption = leaf(&schema, &options.caption_keys).ok_or_else(|| missing(path, &schema, &options.caption_keys))?;
    let captions = strings(path, &reader, caption)?;
    let splits = leaf(&schema, &options.split_keys).map(|split| strings(path, &reader, split)).transpose()?;
    let named = path.file_name().and_then(|name| split_of_name(name.to_str()?));
    let mut starts = vec![0];
    for group in reader.metadata().row_groups() {
        starts.push(starts.last().copied().unwrap_or(0) + usize::try_from(group.num_rows()).unwrap_or(0));
    }
    let paths = match image {
        ImageColumn::Paths(column) => Some(strings(path, &reader, column)?),
        ImageColumn::Bytes(_) => None,
    };
    let column = match image {
        ImageColumn::Bytes(column) | ImageColumn::Paths(column) => column,
    };
    let store: Arc<dyn ImageStore> = Arc::new(Images { path: path.to_path_buf(), reader, column, starts });
    for (row, captions) in captions.into_iter().enumerate() {
        let text = |found: &Vec<Vec<String>>| found.get(row).and_then(|values| values.first()).cloned();
        let sample = || -> std::result::Result<Sample, String> {
            let captions: Vec<String> =
                captions.iter().map(|caption| caption.trim().to_string()).filter(|c| !c.is_empty()).collect();
            if captions.is_empty() {
                return Err(String::from("the caption is empty"));
            }
            let split = match &splits {
                Some(splits) => Some(text(splits).ok_or("the split is empty")?),
                None => named.map(str::to_string),
            };
            let (image, source) = match &paths {
                Some(paths) => (text(paths).ok_or("the image is empty")?, None),
                None => (store.name(row), Some(ImageSource::Stored(store.clone(), row))),
            };
            Ok(Sample { image, source, captions, split })
        };
        let sample = sample().map_err(|message| data_error(path, None, format!("row {row}: {message}")));
        builder.add(path, None, sample)?;
    }
    Ok(())
}

/// The leaf column under the first of `keys` that the schema has, itself or in a list or group.
fn leaf(schema: &SchemaDescriptor, keys: &[String]) -> Option<usize> {
    let root = |column: usize| schema.column(column).path().parts().first().cloned().unwrap_or_default();
    let is_bytes = |column: usize| schema.column(column).physical_type() == parquet::basic::Type::BYTE_ARRAY;
    keys.iter().find_map(|key| (0..schema.num_columns()).find(|&column| root(column) == *key && is_bytes(column)))
}

fn image_column(path: &Path, schema: &SchemaDescriptor, keys: &[String]) -> Result<ImageColumn> {
    let first = leaf(schema, keys).ok_or_else(|| missing(path, schema, keys))?;
    let root = schema.column(first).path().parts().first().cloned();
    let own = |column: usize| schema.column(column).path().parts().first().cloned() == root;
    let named = |name: &str| {
        let last = |column: usize| schema.column(column).path().parts().last().cloned();
        (0..schema.num_columns()).find(|&column| own(column) && last(column).as_deref() == Some(name))
    };
    let column = named("bytes").unwrap_or(first);
    if schema.column(column).max_rep_level() > 0 {
        return Err(data_error(path, None, "has a list of images in a row; one image a row is needed"));
    }
    let is_text = schema.column(column).logical_type_ref().is_some_and(|t| *t == parquet::basic::LogicalType::String)
        || schema.column(column).converted_type() == parquet::basic::ConvertedType::UTF8;
    Ok(if is_text { ImageColumn::Paths(column) } else { ImageColumn::Bytes(column) })
}

fn missing(path: &Path, schema: &SchemaDescriptor, keys: &[String]) -> Error {
    let found: Vec<&str> = schema.root_schema().get_fields().iter().map(|field| field.name()).collect();
    let message = format!(
        "has no column '{}' of strings or bytes; found: {}. Name the columns of images and captions",
        keys.join("' or '"),
        found.join(", ")
    );
    data_error(path, None, message)
}

/// The strings of each row of a leaf column: one at most, or those of its list.
fn strings(path: &Path, reader: &SerializedFileReader<Reopened>, column: usize) -> Result<Vec<Vec<String>>> {
    let fail = |e: ParquetError| Error::file(path, format!("cannot be read as a Parquet file: {e}"));
    let full = reader.metadata().file_metadata().schema_descr().column(column).max_def_level();
    let mut rows: Vec<Vec<String>> = Vec::new();
    for group in 0..reader.num_row_groups() {
        let mut column = byte_column(reader, group, column).map_err(fail)?;
        loop {
            let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
            let read = column.read_records(ROWS, Some(&mut defined), Some(&mut repeated), &mut values);
            let (records, _, levels) = read.map_err(fail)?;
            if records == 0 {
                break;
            }
            let mut values = values.into_iter();
            for level in 0..levels {
                // Columns without levels leave these lists empty: every row has one value.
                if repeated.get(level).is_none_or(|&repeated| repeated == 0) {
                    rows.push(Vec::new());
                }
                if defined.get(level).is_none_or(|&defined| defined == full)
                    && let Some(value) = values.next()
                {
                    let number = rows.len().saturating_sub(1);
                    let text = String::from_utf8(value.data().to_vec());
                    let text = text.map_err(|_| data_error(path, None, format!("row {number} is not UTF-8 text")))?;
                    rows.last_mut().into_iter().for_each(|row| row.push(text.clone()));
                }
            }
        }
    }
    Ok(rows)
}

type ByteColumn = ColumnReaderImpl<ByteArrayType>;

fn byte_column(
    reader: &SerializedFileReader<Reopened>,
    group: usize,
    column: usize,
) -> std::result::Result<ByteColumn, ParquetError> {
    match reader.get_row_group(group)?.get_column_reader(column)? {
        ColumnReader::ByteArrayColumnReader(column) => Ok(column),
        _ => Err(ParquetError::General("the column holds neither strings nor bytes".to_string())),
    }
}

/// A damaged file may make the reader panic.
fn guarded<T>(job: impl FnOnce() -> T) -> std::result::Result<T, &'static str> {
    catch_unwind(AssertUnwindSafe(job)).map_err(|_| "it is damaged (the reader gave up on it)")
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Images({}, {:?} rows)", self.path.display(), self.starts.last())
    }
}

impl ImageStore for Images {
    fn name(&self, index: usize) -> String {
        format!("{}, row {index}", self.path.display())
    }

    fn read(&self, index: usize, most: u64) -> std::result::Result<Vec<u8>, String> {
        // The last group that starts at or before the row; empty groups start where the next one does.
        let group = self.starts.partition_point(|&start| start <= index).saturating_sub(1);
        let value = || -> std::result::Result<Option<ByteArray>, ParquetError> {
            let mut column = byte_column(&self.reader, group, self.column)?;
            column.skip_records(index - self.starts[group])?;
            let (mut values, mut defined) = (Vec::new(), Vec::new());
            column.read_records(1, Some(&mut defined), None, &mut values)?;
            Ok(values.pop())
        };
        let value = guarded(value)?.map_err(|error| format!("it cannot be read from the Parquet file: {error}"))?;
        let bytes = value.ok_or("the row has no image")?.data().to_vec();
        if bytes.len() as u64 > most {
            let length = bytes.len();
            return Err(format!("it has {length} bytes, more than an image within the pixel limit needs"));
        }
        Ok(bytes)
    }
}

impl Length for Reopened {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Reopened {
    type T = BufReader<File>;

    fn get_read(&self, start: u64) -> std::result::Result<Self::T, ParquetError> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(start))?;
        Ok(BufReader::new(file))
    }

    fn get_bytes(&self, start: u64, length: usize) -> std::result::Result<Bytes, ParquetError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} reach beyond the end of the file")));
        }
        let mut bytes = vec![0; length];
        self.get_read(start)?.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}
