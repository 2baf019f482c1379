//! A CSV or TSV file with a header, read row by row with errors that name file, line and column.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use crate::{Error, ErrorKind, Result};

/// The bytes in which the end of the header is looked for.
const LONGEST_HEADER: u64 = 64 << 10;

/// What stands between two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delimiter {
    /// A tab.
    Tab,
    /// A tab where the header has tabs and no comma, else a comma: many tab-separated files are called `.csv`.
    Found,
}

/// An opened CSV file whose header has been read.
pub(super) struct Table {
    path: PathBuf,
    header: Vec<String>,
    reader: csv::Reader<WholeLines>,
}

/// A file whose last line ends like the others, so that the number of lines read is that of the row's line.
type WholeLines = std::io::Chain<File, &'static [u8]>;

/// One row, and the line it starts on.
pub(super) struct Row {
    record: csv::ByteRecord,
    line: u64,
    /// How many values the header has.
    columns: usize,
}

impl Table {
    /// Opens the file and reads its header.
    pub(super) fn open(path: &Path, delimiter: Delimiter) -> Result<Self> {
        let fail = |e: std::io::Error| Error::file(path, format!("cannot be opened: {e}"));
        let mut file = File::open(path).map_err(fail)?;
        let mut start = Vec::new();
        (&mut file).take(LONGEST_HEADER).read_to_end(&mut start).map_err(fail)?;
        file.rewind().map_err(fail)?;
        let header = start.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let tab = delimiter == Delimiter::Tab || header.contains(&b'\t') && !header.contains(&b',');
        let mut builder = csv::ReaderBuilder::new();
        builder.trim(csv::Trim::All).delimiter(if tab { b'\t' } else { b',' }).flexible(true);
        // A row that ended at the first half of "\r\n" would leave the other half, and the count of lines, to the next; what is left of
        // "\r" is trimmed.
        if start.contains(&b'\n') {
            builder.terminator(csv::Terminator::Any(b'\n'));
        }
        let mut reader = builder.from_reader(file.chain(&b"\n"[..]));
        let header = reader.headers().map_err(|e| csv_error(path, &e))?.iter().map(str::to_string).collect();
        Ok(Self { path: path.to_path_buf(), header, reader })
    }

    /// Where the first of `names` that is in the header stands.
    pub(super) fn find<S: AsRef<str>>(&self, names: &[S]) -> Option<usize> {
        names.iter().find_map(|name| self.header.iter().position(|column| column == name.as_ref()))
    }

    /// Like [`Table::find`], but a missing column is an error that lists the columns found.
    pub(super) fn need<S: AsRef<str>>(&self, names: &[S]) -> Result<usize> {
        self.find(names).ok_or_else(|| {
            let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
            let message = format!(
                "the header has no column '{}'; found: {}. The first line must name the columns, separated by commas or tabs",
                names.join("' or '"),
                self.header.join(", ")
            );
            data_error(&self.path, Some(1), message)
        })
    }

    /// The rows in the order of the file; an error ends the table.
    pub(super) fn rows(&mut self) -> impl Iterator<Item = Result<Row>> {
        let Self { path, reader, header } = self;
        std::iter::from_fn(move || next_row(path, reader, header.len()).transpose())
    }
}

/// The next row that is not blank, of a header with `columns` values.
fn next_row(path: &Path, reader: &mut csv::Reader<WholeLines>, columns: usize) -> Result<Option<Row>> {
    let mut record = csv::ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(|e| csv_error(path, &e))? {
        // A quote that is never closed takes other rows with it, so this is no bad row like others.
        if record.iter().any(|value| value.contains(&b'\n')) {
            let message = "a value goes on over several lines; a closing quote is missing";
            return Err(data_error(path, record.position().map(csv::Position::line), message));
        }
        if record.iter().any(|value| !value.is_empty()) || record.len() > 1 {
            // The reader stands behind the row, and blank lines before it are counted.
            let line = reader.position().line().saturating_sub(1).max(1);
            return Ok(Some(Row { record, line, columns }));
        }
    }
    Ok(None)
}

impl Row {
    /// The value in `column`, called `name`; an empty one is an error, and so is a row of more or fewer values than the header's.
    pub(super) fn value(&self, path: &Path, column: usize, name: &str) -> Result<&str> {
        let fail = |message: String| Err(data_error(path, Some(self.line), message));
        if self.record.len() != self.columns {
            let (found, expected) = (self.record.len(), self.columns);
            let message = "put a value with commas or tabs in \"quotes\"";
            return fail(format!("has {found} fields, the header has {expected}; {message}"));
        }
        match self.record.get(column).map(std::str::from_utf8) {
            Some(Ok(value)) if !value.is_empty() => Ok(value),
            Some(Err(_)) => fail(format!("the {name} is not UTF-8 text")),
            _ => fail(format!("the {name} is empty")),
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
        format!("has no column 'split' or the like, so there is no split '{name}'; add it, or use all rows")
    } else {
        format!("has no split '{name}'; present: {}", present.join(", "))
    };
    data_error(path, None, message)
}

fn csv_error(path: &Path, error: &csv::Error) -> Error {
    let line = error.position().map(csv::Position::line);
    match error.kind() {
        csv::ErrorKind::Io(e) => Error::file(path, format!("cannot be read: {e}")),
        csv::ErrorKind::Utf8 { .. } => data_error(path, line, "is not UTF-8 text"),
        _ => data_error(path, line, error.to_string()),
    }
}
