//! Pairs from a folder per class: `train/sea_horse/1.jpg`, or `sea_horse/1.jpg` without splits.
//!
//! The class's name in words (`sea_horse` → "sea horse") goes through each template to become a caption. Names are taken in
//! the order of their bytes, so the data set is the same on every machine.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::builder::{Builder, Sample, split_of_name};
use super::labels::in_words;
use super::table::data_error;
use crate::{Error, Result};

/// The extensions of images.
const IMAGES: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];
/// How deep folders may lie in a class's folder.
const DEEPEST: usize = 8;

/// Reads the classes of `root`, or of the splits in it.
pub(super) fn read(root: &Path, builder: &mut Builder<'_>) -> Result<()> {
    let folders = subfolders(root)?;
    let mut splits = Vec::new();
    for folder in &folders {
        // A class may be called train: a split's folder holds folders and no images.
        if let Some(split) = whole_split(folder)
            && !subfolders(folder)?.is_empty()
            && !entries(folder)?.iter().any(|path| has_extension(path, &IMAGES))
        {
            splits.push((folder, split));
        }
    }
    if splits.is_empty() {
        return classes(root, root, None, builder);
    }
    if splits.len() != folders.len() {
        let other = folders.iter().find(|folder| splits.iter().all(|(split, _)| split != folder));
        let other = other.map(|folder| folder.display().to_string()).unwrap_or_default();
        let message = format!("has folders of splits and '{other}', which is none; move it away, or into a split");
        return Err(data_error(root, None, message));
    }
    splits.into_iter().try_for_each(|(folder, split)| classes(root, folder, Some(split), builder))
}

/// The split that a folder's whole name is: of `test`, not of `test_tubes`.
fn whole_split(folder: &Path) -> Option<&'static str> {
    let name = name(folder)?;
    split_of_name(name).filter(|_| name.bytes().all(|byte| byte.is_ascii_alphabetic()))
}

fn classes(root: &Path, folder: &Path, split: Option<&str>, builder: &mut Builder<'_>) -> Result<()> {
    for class in subfolders(folder)? {
        let Some(label) = name(&class).map(in_words) else {
            return Err(data_error(&class, None, "has a name that is no Unicode text; rename it"));
        };
        let captions: Vec<String> = builder.options.templates.iter().map(|t| t.prompt(&label)).collect();
        for file in images(&class, 0)? {
            let relative = file.strip_prefix(root).unwrap_or(&file).to_str();
            let sample = relative.ok_or_else(|| data_error(&file, None, "has a name that is no Unicode text"));
            let sample = sample.map(|image| Sample {
                image: image.to_string(),
                source: None,
                captions: captions.clone(),
                split: split.map(str::to_string),
            });
            builder.add(root, None, sample)?;
        }
    }
    Ok(())
}

/// The images in a folder and the folders in it.
fn images(folder: &Path, depth: usize) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in entries(folder)? {
        if path.is_dir() && depth < DEEPEST {
            found.extend(images(&path, depth + 1)?);
        } else if has_extension(&path, &IMAGES) && path.is_file() {
            found.push(path);
        }
    }
    Ok(found)
}

fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|path| path.is_dir()).collect())
}

/// What is in a folder, sorted, without hidden files.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e: std::io::Error| Error::file(folder, format!("cannot be read: {e}"));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        found.push(entry.map_err(fail)?.path());
    }
    found.retain(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")));
    found.sort_unstable();
    Ok(found)
}

/// Whether the path ends in one of `extensions`, in whatever case.
pub(super) fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    extensions.iter().any(|known| known.eq_ignore_ascii_case(extension))
}

fn name(folder: &Path) -> Option<&str> {
    folder.file_name().and_then(OsStr::to_str)
}
