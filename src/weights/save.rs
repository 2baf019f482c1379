//! Saving so that a crash, a full disk or an error never leaves half of something.
//!
//! A file is written beside its place, flushed to the disk and renamed ([`write_atomic`]); a folder likewise
//! ([`save_folder`]). [`save_safetensors`] writes equal bytes for equal tensors, one tensor after the other.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use candle_core::Tensor;
use serde_json::{Map, Value, json};

use super::entry::Entry;
use super::layout::{Layout, OPEN_CLIP_WEIGHTS, OPTIONAL_FILES, WEIGHTS, WEIGHTS_INDEX};
use crate::{Error, Result};

/// How the names of folders begin in which a save is under way, or was when the program ended.
const STAGING: &str = ".saving-";
/// The files that make a folder a model folder.
const CONFIGS: [&str; 2] = [Layout::HuggingFace.config_file(), Layout::OpenClip.config_file()];

/// Writes the file `path` so that it has either its old or all of its new contents, whatever happens.
///
/// # Errors
/// If `write` fails or the file cannot be written (no such folder, no permission, a full disk); `path` is as it was then.
pub fn write_atomic(path: impl AsRef<Path>, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    // A device or a pipe must not be replaced by a file, nor a folder.
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(Error::file(path, "is there already and is no file; choose another name"));
    }
    let publish = || -> io::Result<()> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".").suffix(".tmp");
        // Temporary files are private by default; a saved model is as readable as any other new file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(parent(path))?;
        let mut buffered = BufWriter::with_capacity(1 << 20, file.as_file_mut());
        write(&mut buffered)?;
        buffered.flush()?;
        drop(buffered);
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        sync_folder(parent(path))
    };
    publish().map_err(|e| unwritable(path, &e))
}

/// Writes tensors of any device as a safetensors file, with `{"format": "pt"}` and `metadata` in its header.
///
/// Equal tensors give equal bytes: wider types come first, and within a type the names are sorted. Besides the tensors
/// themselves at most one of them is held in memory, and that only where it is not contiguous or not on the CPU.
///
/// # Errors
/// If two tensors have the same name, a type is none of safetensors', or the file cannot be written ([`write_atomic`]).
pub fn save_safetensors<S: Into<String>, T: Borrow<Tensor>>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (S, T)>,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let entries = tensors.into_iter().map(|(name, tensor)| (name.into(), Entry::of(tensor.borrow())));
    save_entries(path.as_ref(), entries, metadata)
}

/// As [`save_safetensors`], of tensors and of integers.
pub(super) fn save_entries(
    path: &Path,
    entries: impl IntoIterator<Item = (String, Entry)>,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let mut sorted = BTreeMap::new();
    for (name, entry) in entries {
        if name == "__metadata__" || sorted.contains_key(&name) {
            return Err(Error::file(path, format!("cannot be written: two tensors would be called '{name}'")));
        }
        sorted.insert(name, entry);
    }
    let mut sorted: Vec<(String, Entry)> = sorted.into_iter().collect();
    // Stable, so names stay sorted; wide types first keeps every tensor aligned to its type.
    sorted.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.width()));
    let header = header(path, &sorted, metadata)?;
    write_atomic(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        sorted.iter().try_for_each(|(_, entry)| entry.write(out))
    })
}

/// Saves a model folder: `write` puts its files (`config.json` among them, no subfolders) into the folder that it is given,
/// which then takes the place of `dir`.
///
/// A new `dir` is there completely or not at all. In a model folder that is there already the files are replaced, those of
/// the old model that the new one lacks are removed, and others stay. Where more than one file differs, `config.json` is taken
/// away first and comes last: after a crash `dir` holds the old model, the new one, or no `config.json` and so no model; the
/// next save repairs it.
///
/// # Errors
/// If `dir` is a file, or a folder with other things in it than a model; if `write` fails or makes no `config.json`; if
/// anything cannot be written.
pub fn save_folder(dir: impl AsRef<Path>, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let dir = dir.as_ref();
    let Some(entries) = target_entries(dir)? else {
        return save_new(dir, write);
    };
    let staging = tempfile::Builder::new().prefix(STAGING).tempdir_in(dir).map_err(|e| unwritable(dir, &e))?;
    write(staging.path())?;
    let files = finish(staging.path())?;
    replace(dir, staging.path(), &files, &entries).map_err(|e| unwritable(dir, &e))
}

/// Checks that a model can be saved as `dir`, before the work that makes the model: nothing is in the way, and the folder (or
/// the nearest one above it that exists) can be written to.
///
/// # Errors
/// As [`save_folder`].
pub fn check_save_target(dir: impl AsRef<Path>) -> Result<()> {
    let dir = dir.as_ref();
    target_entries(dir)?;
    let existing = dir.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    tempfile::Builder::new().prefix(STAGING).tempdir_in(existing).map(drop).map_err(|e| unwritable(dir, &e))
}

/// The names in the folder `dir`, or none where it is still to be made.
fn target_entries(dir: &Path) -> Result<Option<Vec<String>>> {
    if !dir.exists() {
        return Ok(None);
    }
    if !dir.is_dir() {
        return Err(Error::file(dir, "is a file, where a folder is to be saved; choose another name"));
    }
    let entries = list(dir)?;
    if !entries.is_empty() && !entries.iter().any(|name| CONFIGS.contains(&name.as_str()) || name.starts_with(STAGING))
    {
        let message =
            "is not overwritten: it is not empty and no model folder (no config.json is in it); choose another folder";
        return Err(Error::file(dir, message));
    }
    Ok(Some(entries))
}

fn save_new(dir: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let parent = parent(dir);
    let fail = |e: io::Error| unwritable(dir, &e);
    std::fs::create_dir_all(parent).map_err(fail)?;
    let prefix = format!(".{name}{STAGING}");
    let staging = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).map_err(fail)?;
    write(staging.path())?;
    finish(staging.path())?;
    std::fs::rename(staging.path(), dir).map_err(fail)?;
    // Nothing is left to clean up under the temporary name.
    let _ = staging.keep();
    sync_folder(parent).map_err(fail)
}

/// Flushes what was written into the staging folder; its file names.
fn finish(staging: &Path) -> Result<Vec<String>> {
    let files = list(staging)?;
    if !files.iter().any(|name| CONFIGS.contains(&name.as_str())) {
        return Err(Error::argument("write", "made no config.json, without which the folder is no model folder"));
    }
    for name in &files {
        let path = staging.join(name);
        if !path.is_file() {
            return Err(Error::argument("write", format!("made '{name}', which is no file; a model folder is flat")));
        }
        let synced = File::options().write(true).open(&path).and_then(|file| file.sync_all());
        synced.map_err(|e| unwritable(&path, &e))?;
    }
    sync_folder(staging).map_err(|e| unwritable(staging, &e))?;
    Ok(files)
}

fn replace(dir: &Path, staging: &Path, files: &[String], old: &[String]) -> io::Result<()> {
    let changed: Vec<&String> = files.iter().filter(|name| differs(&dir.join(name), &staging.join(name))).collect();
    let obsolete: Vec<&String> = old.iter().filter(|name| belongs_to_model(name) && !files.contains(name)).collect();
    // One file is replaced at once; between several the folder must not pass for a model.
    let several = changed.len() + obsolete.len() > 1;
    let is_config = |name: &&&String| CONFIGS.contains(&name.as_str());
    if several {
        for config in CONFIGS.map(|name| dir.join(name)).iter().filter(|config| config.exists()) {
            std::fs::remove_file(config)?;
        }
        sync_folder(dir)?;
    }
    for name in obsolete.iter().filter(|name| dir.join(name).exists()) {
        std::fs::remove_file(dir.join(name))?;
    }
    for name in changed.iter().filter(|name| !is_config(name)) {
        std::fs::rename(staging.join(name), dir.join(name))?;
    }
    sync_folder(dir)?;
    let configs = files.iter().filter(|name| CONFIGS.contains(&name.as_str()));
    for name in configs.filter(|name| several || changed.contains(name)) {
        std::fs::rename(staging.join(name), dir.join(name))?;
        sync_folder(dir)?;
    }
    for left_over in old.iter().filter(|name| name.starts_with(STAGING)) {
        std::fs::remove_dir_all(dir.join(left_over))?;
    }
    Ok(())
}

/// Weights count as different without a look: reading them would take longer than it saves.
fn differs(old: &Path, new: &Path) -> bool {
    let weights = new.extension().is_some_and(|extension| extension == "safetensors");
    weights || !matches!((std::fs::read(old), std::fs::read(new)), (Ok(old), Ok(new)) if old == new)
}

fn belongs_to_model(name: &str) -> bool {
    let shard = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    OPTIONAL_FILES.contains(&name)
        || CONFIGS.contains(&name)
        || [WEIGHTS, WEIGHTS_INDEX, OPEN_CLIP_WEIGHTS].contains(&name)
        || shard.is_some_and(|numbers| numbers.contains("-of-"))
}

fn list(dir: &Path) -> Result<Vec<String>> {
    let names = || -> io::Result<Vec<String>> {
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    let mut names = names().map_err(|e| Error::file(dir, format!("cannot be read: {e}")))?;
    names.sort();
    Ok(names)
}

fn header(path: &Path, entries: &[(String, Entry)], metadata: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut info = Map::from_iter([("format".to_string(), Value::from("pt"))]);
    info.extend(metadata.iter().map(|(key, value)| ((*key).to_string(), Value::from(*value))));
    let mut header = Map::from_iter([("__metadata__".to_string(), Value::Object(info))]);
    let mut start = 0;
    for (name, entry) in entries {
        let dtype = entry.type_name().map_err(|found| {
            let context = format!("{}, tensor '{name}'", path.display());
            Error::unsupported(context, "number type", found, "f32, f16, bf16, f64, i64, i32, i16, u32, u8")
        })?;
        let end = start + entry.dims().iter().product::<usize>() * entry.width();
        let described = json!({ "dtype": dtype, "shape": entry.dims(), "data_offsets": [start, end] });
        header.insert(name.clone(), described);
        start = end;
    }
    let mut bytes = Value::Object(header).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    Ok(bytes)
}

fn unwritable(path: &Path, error: &io::Error) -> Error {
    Error::file(path, format!("cannot be written: {error}"))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a rename in `dir` last through a power cut.
#[cfg(unix)]
pub(crate) fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

// Elsewhere folders cannot be opened; the file system orders renames itself.
#[cfg(not(unix))]
pub(crate) fn sync_folder(_dir: &Path) -> io::Result<()> {
    Ok(())
}
