//! The cache of Python's `huggingface_hub`: `models--org--name/` with `refs/<revision>` (a file that holds a commit),
//! `snapshots/<commit>/` (the files, as links) and `.no_exist/<commit>/` (empty files: known to be missing in that commit).

use std::path::{Path, PathBuf};

use super::checkpoint::read_weight_map;
use super::folder::{OPTIONAL_FILES, WEIGHTS, WEIGHTS_INDEX};

/// The place of one repository in the cache.
pub(super) struct CachedRepo {
    dir: PathBuf,
}

impl CachedRepo {
    /// The place of the repository `id`, which must be a valid id.
    pub(super) fn new(cache_dir: &Path, id: &str) -> Self {
        Self { dir: cache_dir.join(format!("models--{}", id.replace('/', "--"))) }
    }

    /// The file that holds the commit of a branch or tag.
    pub(super) fn reference(&self, revision: &str) -> PathBuf {
        self.dir.join("refs").join(revision)
    }

    /// The files of a branch, tag or commit, if any of them are there.
    pub(super) fn snapshot(&self, revision: &str) -> Option<Snapshot> {
        let referred = std::fs::read_to_string(self.reference(revision)).ok();
        let commit = referred.as_deref().map_or(revision, str::trim);
        Some(self.commit(commit)).filter(|snapshot| is_commit(commit) && snapshot.path().is_dir())
    }

    /// The place of the files of a commit.
    pub(super) fn commit(&self, commit: &str) -> Snapshot {
        Snapshot { repo: self.dir.clone(), path: self.dir.join("snapshots").join(commit), commit: commit.to_string() }
    }
}

/// Whether `text` can be the name of a commit: it is used in paths.
pub(super) fn is_commit(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric())
}

/// The files of one commit.
pub(super) struct Snapshot {
    repo: PathBuf,
    path: PathBuf,
    commit: String,
}

impl Snapshot {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn commit(&self) -> &str {
        &self.commit
    }

    pub(super) fn has(&self, file: &str) -> bool {
        self.path.join(file).is_file()
    }

    /// Whether the configuration and all weights are there.
    pub(super) fn is_usable(&self) -> bool {
        self.has("config.json") && (self.has(WEIGHTS) || self.has_shards())
    }

    /// Whether each file beside the weights is there or known to be missing in the repository.
    pub(super) fn knows_optional_files(&self) -> bool {
        OPTIONAL_FILES.iter().all(|file| self.has(file) || self.missing_marker(file).exists())
    }

    pub(super) fn has_only_pickled_weights(&self) -> bool {
        !self.has(WEIGHTS) && !self.has(WEIGHTS_INDEX) && self.has("pytorch_model.bin")
    }

    /// The file whose existence says that `file` is not in the repository.
    pub(super) fn missing_marker(&self, file: &str) -> PathBuf {
        self.repo.join(".no_exist").join(&self.commit).join(file)
    }

    fn has_shards(&self) -> bool {
        let index = self.path.join(WEIGHTS_INDEX);
        index.is_file() && read_weight_map(&index).is_ok_and(|map| map.values().all(|shard| self.has(shard)))
    }
}
