//! Checkpoints of a run: folders `step-00000120` that are there completely or not at all.
//!
//! A checkpoint holds `weights.safetensors` (the trainable parameters), `optimizer.safetensors`, `ema.safetensors` where there
//! are averages, `best.safetensors` where the best weights are to be left, and `manifest.json` with the step, the recipe, and each file's length and hash. It is written under another
//! name, every file and the folder are flushed to the disk, then the folder is renamed and the folder around it flushed. A
//! folder whose manifest or hashes do not fit is passed over when a run goes on.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::watch::Seen;
use crate::weights::{save_safetensors, sync_folder, write_atomic};
use crate::{Error, Result};

const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const EMA: &str = "ema.safetensors";
const BEST: &str = "best.safetensors";
const MANIFEST: &str = "manifest.json";
const VERSION: u32 = 1;
const STAGING: &str = ".writing-";

/// Where and how often a run is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointConfig {
    /// The folder of the checkpoints; made if it is not there.
    pub folder: PathBuf,
    /// Steps between two of them; one is written at the end of the run too.
    pub every: usize,
    /// How many are kept, the newest; at least one.
    pub keep: usize,
    /// Whether the run goes on from the newest complete one, if there is any.
    pub resume: bool,
}

impl CheckpointConfig {
    /// Every 500 steps, the last two kept, starting anew.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), every: 500, keep: 2, resume: false }
    }
}

/// Where a run stands, beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Place {
    /// Optimiser steps taken.
    pub(super) step: usize,
    /// The bits of the sum of this epoch's losses: a decimal number would lose the last of them.
    pub(super) loss_bits: u64,
    /// The training images that could not be read so far, and why.
    #[serde(default)]
    pub(super) broken: Vec<(usize, String)>,
    /// The recipe, which must be the same when the run goes on.
    pub(super) recipe: String,
    /// What tells the training data from others, which must be the same too.
    #[serde(default)]
    pub(super) data: Option<String>,
    /// What the evaluations found that decide when the run stops.
    #[serde(default)]
    pub(super) seen: Seen,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    version: u32,
    #[serde(flatten)]
    place: Place,
    files: BTreeMap<String, Digest>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Digest {
    bytes: u64,
    hash: String,
}

/// A run's tensors.
#[derive(Default)]
pub(super) struct Tensors {
    pub(super) weights: HashMap<String, Tensor>,
    pub(super) optimizer: HashMap<String, Tensor>,
    pub(super) ema: HashMap<String, Tensor>,
    /// The trainable parameters at the best evaluation, where they are to be left.
    pub(super) best: HashMap<String, Tensor>,
}

/// Writes a checkpoint and removes all but the newest ones.
pub(super) fn save(config: &CheckpointConfig, place: &Place, tensors: &Tensors) -> Result<()> {
    let folder = &config.folder;
    let fail = |e: std::io::Error| Error::file(folder, format!("no checkpoint can be written: {e}"));
    std::fs::create_dir_all(folder).map_err(fail)?;
    let staging = tempfile::Builder::new().prefix(STAGING).tempdir_in(folder).map_err(fail)?;
    let mut files = BTreeMap::new();
    let Tensors { weights, optimizer, ema, best } = tensors;
    for (name, tensors) in [(WEIGHTS, weights), (OPTIMIZER, optimizer), (EMA, ema), (BEST, best)] {
        if !tensors.is_empty() {
            let path = staging.path().join(name);
            save_safetensors(&path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &[])?;
            files.insert(name.to_string(), digest(&path).map_err(fail)?);
        }
    }
    let manifest = Manifest { version: VERSION, place: place.clone(), files };
    let text = serde_json::to_string_pretty(&manifest).map_err(|e| Error::file(folder, e))?;
    write_atomic(staging.path().join(MANIFEST), |out| out.write_all(text.as_bytes()))?;
    sync_folder(staging.path()).map_err(fail)?;
    let target = folder.join(format!("step-{:08}", place.step));
    if target.exists() {
        remove(&target).map_err(fail)?;
    }
    std::fs::rename(staging.path(), &target).map_err(fail)?;
    // Nothing is left to clean up under the temporary name.
    let _ = staging.keep();
    sync_folder(folder).map_err(fail)?;
    prune(folder, config.keep.max(1)).map_err(fail)
}

/// The newest complete checkpoint, if there is any; `passed_over` is told of newer ones that cannot be read.
pub(super) fn newest(
    folder: &Path,
    mut passed_over: impl FnMut(PathBuf, Error),
) -> Result<Option<(PathBuf, Place, Tensors)>> {
    for path in list(folder)?.into_iter().rev() {
        match read(&path) {
            Ok((place, tensors)) => return Ok(Some((path, place, tensors))),
            Err(error) => passed_over(path, error),
        }
    }
    Ok(None)
}

/// The checkpoints in a folder, complete or not, oldest first.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let fail = |e: std::io::Error| Error::file(folder, format!("cannot be read: {e}"));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_prefix("step-")?.parse::<u64>().ok());
        found.extend(number.map(|number| (number, path)));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn read(path: &Path) -> Result<(Place, Tensors)> {
    let manifest = path.join(MANIFEST);
    let text = std::fs::read(&manifest).map_err(|e| Error::file(&manifest, e))?;
    let Manifest { version, place, files } = serde_json::from_slice(&text).map_err(|e| Error::file(&manifest, e))?;
    if version != VERSION {
        return Err(Error::unsupported(manifest.display().to_string(), "version", version.to_string(), "1"));
    }
    let load = |name: &str| -> Result<HashMap<String, Tensor>> {
        let Some(expected) = files.get(name) else { return Ok(HashMap::new()) };
        let file = path.join(name);
        let found = digest(&file).map_err(|e| Error::file(&file, e))?;
        if found != *expected {
            return Err(Error::file(&file, "is not what the manifest says: it is damaged or incomplete"));
        }
        Ok(candle_core::safetensors::load(&file, &Device::Cpu)?)
    };
    let (weights, optimizer, ema, best) = (load(WEIGHTS)?, load(OPTIMIZER)?, load(EMA)?, load(BEST)?);
    let tensors = Tensors { weights, optimizer, ema, best };
    Ok((place, tensors))
}

fn prune(folder: &Path, keep: usize) -> std::io::Result<()> {
    let all = list(folder).unwrap_or_default();
    all[..all.len().saturating_sub(keep)].iter().try_for_each(|old| remove(old))?;
    // What runs that were killed had begun to write.
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(STAGING) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// The manifest goes first: what is left when this is cut short is no checkpoint.
fn remove(path: &Path) -> std::io::Result<()> {
    let manifest = path.join(MANIFEST);
    if manifest.exists() {
        std::fs::remove_file(manifest)?;
    }
    std::fs::remove_dir_all(path)
}

/// Length and FNV-1a hash over words of eight bytes: it finds damage, not malice.
fn digest(path: &Path) -> std::io::Result<Digest> {
    let mut file = std::fs::File::open(path)?;
    let (mut hash, mut bytes, mut block) = (0xcbf2_9ce4_8422_2325_u64, 0u64, vec![0u8; 1 << 20]);
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match file.read(&mut block[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            return Ok(Digest { bytes, hash: format!("{hash:016x}") });
        }
        bytes += filled as u64;
        block[filled..filled.next_multiple_of(8)].fill(0);
        let (words, _) = block[..filled.next_multiple_of(8)].as_chunks::<8>();
        hash = words
            .iter()
            .fold(hash, |hash, word| (hash ^ u64::from_le_bytes(*word)).wrapping_mul(0x0100_0000_01b3).rotate_left(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(step: usize) -> Place {
        Place {
            step,
            loss_bits: 0.1f64.to_bits(),
            broken: vec![(3, String::from("is empty"))],
            recipe: String::from("r"),
            data: None,
            seen: Seen::default(),
        }
    }

    fn tensors(value: f32) -> Tensors {
        let one = |name: &str| HashMap::from([(name.to_string(), Tensor::new(&[value, 2.0], &Device::Cpu).unwrap())]);
        Tensors { weights: one("w"), optimizer: one("first/w"), ema: HashMap::new(), best: HashMap::new() }
    }

    #[test]
    fn the_newest_complete_checkpoint_is_found_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let config = CheckpointConfig { keep: 2, ..CheckpointConfig::new(folder.path().join("run")) };
        let newest = |folder: &Path| super::newest(folder, |_, _| {});
        assert!(newest(&config.folder).unwrap().is_none());
        for step in [5, 10, 15] {
            save(&config, &place(step), &tensors(step as f32)).unwrap();
        }
        assert_eq!(list(&config.folder).unwrap().len(), 2);
        // A byte changes, a file is cut, a manifest is missing: each time the one before counts.
        let last = config.folder.join("step-00000015");
        let weights = last.join(WEIGHTS);
        let mut bytes = std::fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&weights, &bytes).unwrap();
        let mut passed_over = Vec::new();
        let (_, found, read) = super::newest(&config.folder, |path, _| passed_over.push(path)).unwrap().unwrap();
        assert!(passed_over.iter().eq([&last]), "{passed_over:?}");
        assert_eq!((found, read.weights["w"].to_vec1::<f32>().unwrap()), (place(10), vec![10.0, 2.0]));
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&weights, &bytes).unwrap();
        assert_eq!(newest(&config.folder).unwrap().unwrap().1.step, 15);
        std::fs::write(&weights, &bytes[..bytes.len() - 4]).unwrap();
        assert_eq!(newest(&config.folder).unwrap().unwrap().1.step, 10);
        std::fs::write(&weights, &bytes).unwrap();
        std::fs::remove_file(last.join(MANIFEST)).unwrap();
        assert_eq!(newest(&config.folder).unwrap().unwrap().1.step, 10);
        // Left-overs of a dead run go with the next save, which may replace a broken folder of the same step.
        std::fs::create_dir(config.folder.join(".writing-x")).unwrap();
        save(&config, &place(15), &tensors(1.0)).unwrap();
        assert!(!config.folder.join(".writing-x").exists());
        assert_eq!(newest(&config.folder).unwrap().unwrap().1.step, 15);
    }

    #[test]
    fn a_place_of_an_older_version_does_not_say_of_what_data_it_is() {
        let text = r#"{"step": 1, "loss_bits": 0, "recipe": "r"}"#;
        assert_eq!(serde_json::from_str::<Place>(text).unwrap().data, None);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = CheckpointConfig::new(file.path().join("run"));
        assert!(save(&config, &place(1), &tensors(1.0)).unwrap_err().to_string().contains("checkpoint"));
    }
}
