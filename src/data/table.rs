//! A CSV file with a header, read row by row with errors that name file, line and column.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::{Error, ErrorKind, Result};

/// An opened CSV file whose header has been read.
pub(super) struct Table {
    path: PathBuf,
    header: Vec<String>,
    reader: csv::Reader<File>,
}

/// One row, and the line it starts on.
pub(super) struct Row {
    record: csv::StringRecord,
    line: u64,
}

impl Table {
    /// Opens the file and reads its header.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::file(path, format!("cannot be opened: {e}")))?;
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(file);
        let header = reader.headers().map_err(|e| csv_error(path, &e))?.iter().map(str::to_string).collect();
        Ok(Self { path: path.to_path_buf(), header, reader })
    }

    /// Where the first of `names` that is in the header stands.
    pub(super) fn find(&self, names: &[&str]) -> Option<usize> {
        names.iter().find_map(|name| self.header.iter().position(|column| column == name))
    }

    /// Like [`Table::find`], but a missing column is an error that lists the columns found.
    pub(super) fn need(&self, names: &[&str]) -> Result<usize> {
        self.find(names).ok_or_else(|| {
            let message = format!(
                "the header has no column '{}'; found: {}. The first line must name the columns, separated by commas",
                names.join("' or '"),
                self.header.join(", ")
            );
            data_error(&self.path, Some(1), message)
        })
    }

    /// The rows in the order of the file.
    pub(super) fn rows(&mut self) -> impl Iterator<Item = Result<Row>> {
        let Self { path, reader, .. } = self;
        reader.records().map(|record| {
            let record = record.map_err(|e| csv_error(path, &e))?;
            let line = record.position().map_or(0, csv::Position::line);
            Ok(Row { record, line })
        })
    }
}

impl Row {
    /// The value in `column`, called `name`; an empty one is an error.
    pub(super) fn value(&self, path: &Path, column: usize, name: &str) -> Result<&str> {
        match self.record.get(column) {
            Some(value) if value.contains('\n') => {
                let message = format!("the {name} goes on over several lines; a closing quote is missing");
                Err(data_error(path, Some(self.line), message))
            }
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(data_error(path, Some(self.line), format!("the {name} is empty"))),
        }
    }

    /// The line of the file on which the row starts, counted from 1.
    pub(super) fn line(&self) -> u64 {
        self.line
    }
}

/// The error for a data set's file.
pub(super) fn data_error(path: &Path, line: Option<u64>, message: impl Into<String>) -> Error {
    ErrorKind::Data { path: path.to_path_buf(), line, message: message.into() }.into()
}

/// The error for a split that is not there, or for a file without splits.
pub(super) fn no_split(path: &Path, name: &str, present: &[String]) -> Error {
    let message = if present.is_empty() {
        format!("has no column 'split', so there is no split '{name}'; add the column, or use all rows")
    } else {
        format!("has no split '{name}'; present: {}", present.join(", "))
    };
    data_error(path, None, message)
}

fn csv_error(path: &Path, error: &csv::Error) -> Error {
    let line = error.position().map(csv::Position::line);
    match error.kind() {
        csv::ErrorKind::Io(e) => Error::file(path, format!("cannot be read: {e}")),
        csv::ErrorKind::Utf8 { .. } => data_error(path, line, "is not UTF-8 text; a CSV file is needed"),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            let message =
                format!("has {len} fields, the header has {expected_len}; put a value with commas in \"quotes\"");
            data_error(path, line, message)
        }
        _ => data_error(path, line, error.to_string()),
    }
}
