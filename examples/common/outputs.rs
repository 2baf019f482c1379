//! What programs write: looked at before the work begins, so that hours are not lost, nor somebody's files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::Outcome;

/// The bytes in which a file is known by how it begins.
const START: u64 = 1 << 10;
/// The longest header that a safetensors file may have.
const LONGEST_HEADER: u64 = 100_000_000;

/// Fails where the folder that `option` names could not be made.
pub fn check_folder(option: &str, folder: &Path) -> Outcome<()> {
    let exists = |folder: &&Path| folder.as_os_str().is_empty() || folder.is_dir();
    match folder.ancestors().find(exists) {
        Some(start) => check_inside(option, start),
        None => Err(format!("{option}: {} is no folder", folder.display()).into()),
    }
}

/// Fails where the file that `option` names could not be written, or where one is there that is not `ours`: no file of the kind that
/// this program writes under that option, which `kind` names.
pub fn check_file(option: &str, file: &Path, kind: &str, ours: impl Fn(&Path) -> bool) -> Outcome<()> {
    let folder = file.parent().unwrap_or(Path::new(""));
    if !folder.as_os_str().is_empty() && !folder.is_dir() {
        return Err(format!("{option}: {} is no folder; make it, or choose another", folder.display()).into());
    }
    check_inside(option, folder)?;
    let Ok(found) = std::fs::metadata(file) else { return Ok(()) };
    // An empty file, as mktemp makes it, holds nothing to lose.
    if found.is_file() && (found.len() == 0 || ours(file)) {
        return Ok(());
    }
    Err(format!("{option}: {} is there already and is no {kind}; choose another name, or remove it", file.display())
        .into())
}

fn check_inside(option: &str, folder: &Path) -> Outcome<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let written = tempfile::tempfile_in(folder).map(drop);
    written.map_err(|error| format!("{option}: nothing can be written in {}: {error}", folder.display()).into())
}

/// Whether the file is a report of a run.
pub fn is_report(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(START).read_to_end(&mut start));
    read.is_ok() && String::from_utf8_lossy(&start).contains("name=\"generator\" content=\"diptych\"")
}

/// Whether the file is a safetensors file with no other tensors than `names`.
pub fn holds_only(path: &Path, names: &[&str]) -> bool {
    let header = || -> Option<serde_json::Map<String, serde_json::Value>> {
        let (mut file, mut length, mut header) = (File::open(path).ok()?, [0; 8], Vec::new());
        file.read_exact(&mut length).ok()?;
        file.take(u64::from_le_bytes(length).min(LONGEST_HEADER)).read_to_end(&mut header).ok()?;
        serde_json::from_slice(&header).ok()
    };
    header().is_some_and(|found| found.keys().all(|name| name == "__metadata__" || names.contains(&name.as_str())))
}
