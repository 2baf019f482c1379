//! Fetching a model's files from the hub into the cache, by `hf-hub`.
//!
//! All files come from the one commit that the revision means at the start, and the revision is noted in the cache when all
//! of them are there: a fetch that was cut off is no model, and goes on where it stopped.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use sha2::{Digest, Sha256};

use super::checkpoint::{pickle_only, read_weight_map};
use super::folder::{Folder, OPTIONAL_FILES, WEIGHTS, WEIGHTS_INDEX};
use super::hub::{HubOptions, hub_error};
use super::hub_cache::{CachedRepo, Snapshot, is_commit};
use super::save::write_atomic;
use crate::{Error, Result};

const RETRIES: usize = 3;

/// Fetches the files that are not in the cache yet; the snapshot's folder.
pub(super) fn fetch(id: &str, options: &HubOptions, repo: &CachedRepo, revision: &str) -> Result<Folder> {
    let hub = Hub { id, options };
    let listing = hub.call(|| hub.repo(revision)?.info())?;
    if !is_commit(&listing.sha) {
        return Err(hub_error(
            id,
            format!("{} answers with the commit '{}', which is none", options.endpoint, listing.sha),
        ));
    }
    let files: BTreeSet<String> = listing.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
    let snapshot = repo.commit(&listing.sha);
    let pinned = hub.call(|| hub.repo(&listing.sha))?;
    if !files.contains("config.json") {
        return Err(hub_error(id, "the repository has no config.json, so it is no model that can be loaded"));
    }
    let weights = weights_of(id, &files)?;
    hub.get(&pinned, &snapshot, "config.json")?;
    for file in OPTIONAL_FILES {
        if files.contains(file) {
            hub.get(&pinned, &snapshot, file)?;
        } else {
            note_missing(&snapshot.missing_marker(file))?;
        }
    }
    hub.get(&pinned, &snapshot, weights)?;
    if weights == WEIGHTS_INDEX {
        let shards: BTreeSet<String> = read_weight_map(&snapshot.path().join(weights))?.into_values().collect();
        for shard in &shards {
            hub.get(&pinned, &snapshot, shard)?;
        }
    }
    if revision != listing.sha {
        let reference = repo.reference(revision);
        make_parent(&reference)?;
        write_atomic(&reference, |out| out.write_all(listing.sha.as_bytes()))?;
    }
    Folder::open(snapshot.path())
}

/// The file of the weights, or their index.
fn weights_of(id: &str, files: &BTreeSet<String>) -> Result<&'static str> {
    if let Some(weights) = [WEIGHTS, WEIGHTS_INDEX].into_iter().find(|name| files.contains(*name)) {
        return Ok(weights);
    }
    let pickled =
        files.iter().find(|name| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|ending| name.ends_with(ending)));
    Err(hub_error(
        id,
        pickled.map_or_else(
            || format!("the repository has neither {WEIGHTS} nor {WEIGHTS_INDEX}"),
            |name| pickle_only(name),
        ),
    ))
}

fn note_missing(marker: &Path) -> Result<()> {
    make_parent(marker)?;
    write_atomic(marker, |_| Ok(()))
}

fn make_parent(file: &Path) -> Result<()> {
    let parent = file.parent().unwrap_or(file);
    std::fs::create_dir_all(parent).map_err(|e| Error::file(parent, format!("cannot be made: {e}")))
}

struct Hub<'a> {
    id: &'a str,
    options: &'a HubOptions,
}

impl Hub<'_> {
    /// The repository at a revision. `hf-hub` would look for token and cache by rules of its own.
    fn repo(&self, revision: &str) -> std::result::Result<ApiRepo, ApiError> {
        let cache_dir = self.options.cache_dir.clone().unwrap_or_default();
        let api = ApiBuilder::from_cache(Cache::new(cache_dir))
            .with_endpoint(self.options.endpoint.clone())
            .with_token(self.options.token.clone())
            .with_retries(RETRIES)
            .with_progress(false)
            .build()?;
        Ok(api.repo(Repo::with_revision(self.id.to_string(), RepoType::Model, revision.to_string())))
    }

    fn get(&self, repo: &ApiRepo, snapshot: &Snapshot, file: &str) -> Result<()> {
        if snapshot.has(file) {
            return Ok(());
        }
        tracing::info!(model = self.id, file, "fetching from the hub");
        let path = self.call(|| repo.download(file))?;
        verify(&path)?;
        if snapshot.has(file) {
            return Ok(());
        }
        Err(hub_error(self.id, format!("'{file}' came from another commit than '{}'; try again", snapshot.commit())))
    }

    /// `hf-hub` asserts where a server answers oddly; that must not end the program.
    fn call<T>(&self, request: impl FnOnce() -> std::result::Result<T, ApiError>) -> Result<T> {
        match catch_unwind(AssertUnwindSafe(request)) {
            Ok(answer) => answer.map_err(|error| self.explain(&error)),
            Err(_) => {
                Err(hub_error(self.id, format!("{} gave an answer that is not the hub's", self.options.endpoint)))
            }
        }
    }

    fn explain(&self, error: &ApiError) -> Error {
        let HubOptions { endpoint, revision, token, .. } = self.options;
        let message = match error {
            ApiError::TooManyRetries(last) => return self.explain(last),
            ApiError::RequestError(request) => match **request {
                ureq::Error::StatusCode(code @ (401 | 403 | 404)) => format!(
                    "{endpoint} answers {code}: the name or the revision '{revision}' is wrong (and no folder is called so), \
                     or the repository is private or gated; accept its terms on its page and {}",
                    if token.is_some() { "check that the token in HF_TOKEN gives access" } else { "set HF_TOKEN" }
                ),
                ureq::Error::StatusCode(429) => {
                    format!("{endpoint} answers 429: too many requests; wait, or set HF_TOKEN")
                }
                ureq::Error::StatusCode(code) => format!("{endpoint} answers {code}; try again later"),
                ref other => format!(
                    "{endpoint} cannot be reached ({other}), and the model is not in the cache; check the network, or name a folder"
                ),
            },
            ApiError::LockAcquisition(lock) => {
                format!("another program is fetching it (it holds {}); wait for it and try again", lock.display())
            }
            ApiError::IoError(e) => format!("cannot be written to the cache: {e}"),
            other => format!("{endpoint} gave an answer that is not the hub's: {other}"),
        };
        hub_error(self.id, message)
    }
}

/// Compares a large file with its SHA-256, which the hub makes its name in the cache. A damaged one is removed.
fn verify(path: &Path) -> Result<()> {
    let unreadable = |e: std::io::Error| Error::file(path, format!("cannot be read: {e}"));
    let blob = path.canonicalize().map_err(unreadable)?;
    let name = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.len() != 64 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut hash = Sha256::new();
    std::io::copy(&mut std::fs::File::open(&blob).map_err(unreadable)?, &mut hash).map_err(unreadable)?;
    let found = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if found == name.to_lowercase() {
        return Ok(());
    }
    // The link first: without it the file counts as absent.
    let removed = std::fs::remove_file(path).and_then(|()| std::fs::remove_file(&blob));
    let advice = if removed.is_ok() { "it was removed; try again" } else { "remove it and try again" };
    Err(Error::file(path, format!("was damaged on the way (its SHA-256 is not the hub's); {advice}")))
}
