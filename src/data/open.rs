//! [`PairDataset::open`]: which reader a path gets.
//!
//! | path | what is read |
//! |---|---|
//! | `.csv`, `.tsv` | a row per caption, columns found by name; tabs or commas |
//! | `.jsonl` | an object per line, one caption or a list |
//! | `.tar`, `shard-{000..012}.tar`, a folder of `.tar` files | WebDataset shards, read in place |
//! | `.parquet`, a brace range or a folder of them | a row per image (feature `parquet`) |
//! | a folder with `metadata.csv`, `captions.csv` or the like | that file |
//! | any other folder | a folder per class, within folders of splits or without |

use std::path::{Path, PathBuf};

use super::builder::{Builder, Sample};
use super::class_folders::{self, entries, has_extension};
use super::pairs::PairDataset;
use super::skipped::Tolerance;
use super::table::{Delimiter, Table};
use super::{braces, jsonl, webdataset};
use crate::zero_shot::Template;
use crate::{Error, Result};

/// What a folder of images may call the file of their captions.
const LISTS: [&str; 6] =
    ["metadata.csv", "metadata.jsonl", "captions.csv", "captions.tsv", "captions.jsonl", "metadata.tsv"];

/// How pairs are read. The default suits what other programs write.
#[derive(Debug, Clone, PartialEq)]
pub struct PairOptions {
    /// What the path is; `None` to see by its name.
    pub format: Option<PairFormat>,
    /// Names of the column or field with the image; the first that is there counts.
    pub image_keys: Vec<String>,
    /// Names of the column or field with the caption.
    pub caption_keys: Vec<String>,
    /// Names of the column or field with the split.
    pub split_keys: Vec<String>,
    /// What becomes of a class's name: one caption a template.
    pub templates: Vec<Template>,
    /// How many rows may be unusable: without an image, without a caption, no JSON, ….
    pub tolerance: Tolerance,
}

/// The forms in which pairs come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairFormat {
    /// A table with a header, separated by commas, or by tabs if the header is.
    Csv,
    /// A table with a header, separated by tabs.
    Tsv,
    /// One JSON object a line.
    JsonLines,
    /// A folder per class.
    ClassFolders,
    /// Tar shards.
    WebDataset,
    /// Parquet files.
    Parquet,
}

impl Default for PairOptions {
    fn default() -> Self {
        let keys = |names: &[&str]| names.iter().map(|name| (*name).to_string()).collect();
        Self {
            format: None,
            image_keys: keys(&["image", "filepath", "file_name", "filename", "image_path", "path", "jpg", "img"]),
            caption_keys: keys(&[
                "caption",
                "captions",
                "title",
                "text",
                "txt",
                "sentence",
                "sentences",
                "description",
            ]),
            split_keys: keys(&["split"]),
            templates: Template::photo(),
            tolerance: Tolerance::default(),
        }
    }
}

impl PairOptions {
    /// Reads `path` with these options; see [`PairDataset::open`].
    ///
    /// # Errors
    /// As [`PairDataset::open`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<PairDataset> {
        let path = path.as_ref();
        if !(0.0..=1.0).contains(&self.tolerance.share) {
            return Err(Error::argument("tolerance", format!("the share is {}, not 0 to 1", self.tolerance.share)));
        }
        if self.templates.is_empty() {
            return Err(Error::argument("templates", "the list is empty; give at least one"));
        }
        let (format, files) = self.find(path)?;
        let folder = match files.first().and_then(|file| file.parent()) {
            _ if format == PairFormat::ClassFolders => path,
            // A file named without its folder lies here.
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let mut builder = Builder::new(path, folder, self);
        for file in &files {
            match format {
                PairFormat::Csv => table(file, Delimiter::Found, &mut builder)?,
                PairFormat::Tsv => table(file, Delimiter::Tab, &mut builder)?,
                PairFormat::JsonLines => jsonl::read(file, &mut builder)?,
                PairFormat::ClassFolders => class_folders::read(file, &mut builder)?,
                PairFormat::WebDataset => webdataset::read(file, &mut builder)?,
                PairFormat::Parquet => parquet(file, &mut builder)?,
            }
        }
        builder.finish()
    }

    /// What is at `path`, and the files that it stands for, in order.
    fn find(&self, path: &Path) -> Result<(PairFormat, Vec<PathBuf>)> {
        if path.is_dir() {
            return self.find_in(path);
        }
        let files = match path.to_str() {
            Some(text) if !path.exists() && text.contains('{') => {
                braces::expand(text)?.into_iter().map(PathBuf::from).collect()
            }
            _ => vec![path.to_path_buf()],
        };
        if let Some(missing) = files.iter().find(|file| !file.is_file()) {
            let message = "there is no such file; give the file or folder that lists images and captions";
            return Err(Error::file(missing, message));
        }
        let format = self.format.or_else(|| by_name(path)).ok_or_else(|| {
            let known = "a .csv, .tsv, .jsonl, .tar or .parquet file, or a folder";
            Error::unsupported(path.display().to_string(), "form of pairs", extension(path), known)
        })?;
        Ok((format, files))
    }

    fn find_in(&self, folder: &Path) -> Result<(PairFormat, Vec<PathBuf>)> {
        let all = entries(folder)?;
        let with = |known: &[&str]| -> Vec<PathBuf> {
            all.iter().filter(|path| has_extension(path, known) && path.is_file()).cloned().collect()
        };
        let (shards, tables) = (with(&["tar"]), with(&["parquet", "pq"]));
        let list = LISTS.iter().map(|name| folder.join(name)).find(|file| file.is_file());
        match (self.format, list) {
            (Some(PairFormat::ClassFolders), _) => Ok((PairFormat::ClassFolders, vec![folder.to_path_buf()])),
            (None | Some(PairFormat::WebDataset), _) if !shards.is_empty() => Ok((PairFormat::WebDataset, shards)),
            (None | Some(PairFormat::Parquet), _) if !tables.is_empty() => Ok((PairFormat::Parquet, tables)),
            (format, Some(list)) => match format.or_else(|| by_name(&list)) {
                Some(format) => Ok((format, vec![list])),
                None => Err(Error::file(&list, "is of no known form")),
            },
            (None, None) => Ok((PairFormat::ClassFolders, vec![folder.to_path_buf()])),
            (Some(format), None) => Err(Error::file(folder, format!("holds nothing that can be read as {format:?}"))),
        }
    }
}

impl PairDataset {
    /// Reads the pairs at `path`: a CSV, TSV or JSONL file, a folder per class, WebDataset shards (one, a brace range such as
    /// `shard-{000..012}.tar`, or a folder of them), or Parquet files; [`PairOptions`] has the details. No image is opened.
    ///
    /// Unusable rows are left out and listed in [`PairDataset::skipped`], up to the options' [`Tolerance`].
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) if something cannot be read; [`Unsupported`](crate::ErrorKind::Unsupported) if the path says no
    /// known form; [`Data`](crate::ErrorKind::Data) with file and line or member if a column is missing, too many rows are unusable,
    /// or an image stands in two splits.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        PairOptions::default().open(path)
    }

    /// Reads `path` as a CSV file, whatever its name, and takes no unusable row.
    ///
    /// # Errors
    /// As [`PairDataset::open`].
    pub fn from_csv(path: impl AsRef<Path>) -> Result<Self> {
        let (format, tolerance) = (Some(PairFormat::Csv), Tolerance::NONE);
        PairOptions { format, tolerance, ..PairOptions::default() }.open(path)
    }
}

fn by_name(path: &Path) -> Option<PairFormat> {
    Some(match extension(path).to_ascii_lowercase().as_str() {
        "csv" => PairFormat::Csv,
        "tsv" | "tab" => PairFormat::Tsv,
        "jsonl" | "ndjson" => PairFormat::JsonLines,
        "tar" => PairFormat::WebDataset,
        "parquet" | "pq" => PairFormat::Parquet,
        _ => return None,
    })
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(std::ffi::OsStr::to_str).unwrap_or_default()
}

/// Reads the rows of a table.
fn table(path: &Path, delimiter: Delimiter, builder: &mut Builder<'_>) -> Result<()> {
    let options = builder.options;
    let mut table = Table::open(path, delimiter)?;
    let image = table.need(&options.image_keys)?;
    let (caption, split) = (table.need(&options.caption_keys)?, table.find(&options.split_keys));
    for row in table.rows() {
        let row = row?;
        let sample = || {
            let value = |column, name| row.value(path, column, name).map(str::to_string);
            Ok(Sample {
                image: value(image, "image")?,
                source: None,
                captions: vec![value(caption, "caption")?],
                split: split.map(|column| value(column, "split")).transpose()?,
            })
        };
        builder.add(path, Some(row.line()), sample())?;
    }
    Ok(())
}

#[cfg(feature = "parquet")]
fn parquet(path: &Path, builder: &mut Builder<'_>) -> Result<()> {
    super::parquet::read(path, builder)
}

#[cfg(not(feature = "parquet"))]
fn parquet(path: &Path, _: &mut Builder<'_>) -> Result<()> {
    let message = "is a Parquet file; build with `--features parquet` to read it";
    Err(super::table::data_error(path, None, message))
}
