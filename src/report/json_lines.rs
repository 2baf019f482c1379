//! [`JsonLines`]: a file with one JSON object a line, which never holds half a line for long.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Error, Result};

/// A file that lines are added to. A line is handed to the system whole, so what a reader or a crash finds are whole lines.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: File,
    length: u64,
}

impl JsonLines {
    /// Opens `path`, or makes it. Lines that are there stay, so a run that is resumed goes on in its log; half a line at the end, which
    /// a full disk or a lost machine may leave, is cut off.
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) if it cannot be written, or begins with something that is no JSON object: then it is no log.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let fail = |error: std::io::Error| Error::file(path, format!("cannot be opened: {error}"));
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(Error::file(path, "is there already and is no file; choose another name"));
        }
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(fail)?;
        let mut reader = BufReader::new(&file);
        let (mut length, mut line) = (0, Vec::new());
        while reader.read_until(b'\n', &mut line).map_err(fail)? > 0 {
            let whole = line.last() == Some(&b'\n');
            if length == 0 && !(is_object(&line) || !whole && line[0] == b'{') {
                return Err(Error::file(path, "is there already and holds no JSON lines; choose another name"));
            }
            if whole {
                length += line.len() as u64;
            }
            line.clear();
        }
        file.set_len(length).map_err(fail)?;
        file.seek(SeekFrom::Start(length)).map_err(fail)?;
        Ok(Self { path: path.to_path_buf(), file, length })
    }

    /// Adds one line.
    ///
    /// # Errors
    /// [`File`](crate::ErrorKind::File) if it cannot be written; the file ends with the line before it then.
    pub fn add(&mut self, value: &Value) -> Result<()> {
        let line = format!("{value}\n");
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // Best effort: if even this fails, the next `open` cuts the line off.
            let _ = self.file.set_len(self.length).and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
            return Err(Error::file(&self.path, format!("cannot be written: {error}")));
        }
        self.length += line.len() as u64;
        Ok(())
    }
}

fn is_object(line: &[u8]) -> bool {
    serde_json::from_slice::<Value>(line).is_ok_and(|value| value.is_object())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_log_goes_on_behind_its_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        JsonLines::open(&path).unwrap().add(&json!({"step": 1})).unwrap();
        std::fs::write(&path, b"{\"step\":1}\n{\"step\":2,\"lo").unwrap();
        JsonLines::open(&path).unwrap().add(&json!({"step": 2})).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
        std::fs::write(&path, b"{\"st").unwrap();
        JsonLines::open(&path).unwrap().add(&json!({"step": 3})).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":3}\n");
    }

    #[test]
    fn a_file_that_is_no_log_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("captions.csv");
        for other in ["image,caption\n", "image,caption", "3\n"] {
            std::fs::write(&path, other).unwrap();
            let error = JsonLines::open(&path).unwrap_err().to_string();
            assert!(error.contains("captions.csv") && error.contains("no JSON lines"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), other);
        }
        assert!(JsonLines::open(folder.path()).is_err());
        assert!(JsonLines::open(folder.path().join("none/log.jsonl")).is_err());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_an_error() {
        let error = JsonLines::open("/dev/full").unwrap_err().to_string();
        assert!(error.contains("is no file"), "{error}");
    }
}
