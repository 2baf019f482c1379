//! The cache of Python's `huggingface_hub`: `models--org--name/` with `refs/<revision>` (a file that holds a commit),
//! `blobs/<hash>` (the bytes), `snapshots/<commit>/` (the files, as links to blobs) and `.no_exist/<commit>/` (empty files: known to be missing in that commit).

use std::path::{Path, PathBuf};

use super::folder::Folder;
use super::layout::{Layout, VOCABULARIES};
use crate::Result;

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

    /// The bytes of a file, named by their hash, which must be a plain name.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(etag)
    }

    /// The bytes of a file while they are being fetched.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// The file that is locked by who fetches it.
    pub(super) fn lock(&self, etag: &str) -> PathBuf {
        let (cache, name) = (self.dir.parent().unwrap_or(&self.dir), self.dir.file_name().unwrap_or_default());
        cache.join(".locks").join(name).join(format!("{etag}.lock"))
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

    /// The folder, if the configuration and all weights of the layout are there, or of the one that the files suggest.
    pub(super) fn check(&self, layout: Option<Layout>) -> Result<Folder> {
        let folder = Folder::open(&self.path)?;
        folder.check(layout.map_or_else(|| folder.layout(), Ok)?)?;
        Ok(folder)
    }

    /// Whether a vocabulary is there, whole.
    pub(super) fn has_tokenizer(&self) -> bool {
        VOCABULARIES.iter().any(|file| self.has(file) && (*file != "vocab.json" || self.has("merges.txt")))
    }

    /// Whether it is known of a tokenizer, of an image processor and of a sentence encoder's pooling that they are there, or
    /// missing in the repository: what a model needs that has them.
    pub(super) fn knows_optional_files(&self) -> bool {
        let known = |file: &str| self.has(file) || self.missing_marker(file).exists();
        (VOCABULARIES.iter().any(|file| self.has(file)) || known("tokenizer.json"))
            && (["processor_config.json", "open_clip_config.json"].iter().any(|file| self.has(file))
                || known("preprocessor_config.json"))
            && (!self.has("modules.json") || known("1_Pooling/config.json"))
    }

    /// The file whose existence says that `file` is not in the repository.
    pub(super) fn missing_marker(&self, file: &str) -> PathBuf {
        self.repo.join(".no_exist").join(&self.commit).join(file)
    }
}
