//! [`resolve`]: a folder, or the id of a repository on the Hugging Face hub, becomes a [`Folder`].
//!
//! The cache is that of Python's `huggingface_hub` and shared with it. What is in the cache is used without a network.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::folder::Folder;
use super::hub_cache::{CachedRepo, Snapshot};
use super::layout::Layout;
use crate::{Error, ErrorKind, Result};

const ENDPOINT: &str = "https://huggingface.co";
/// Names that end like this are files somebody mistyped, not repositories.
const FILE_ENDINGS: [&str; 9] = [".json", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".gguf", ".zip"];

/// How models are looked up on the hub and in its cache.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HubOptions {
    /// The branch, tag or commit.
    pub revision: String,
    /// Whether to use nothing but the cache.
    pub offline: bool,
    /// The folder of the cache, which holds `models--…` folders. Without one only folders can be resolved.
    pub cache_dir: Option<PathBuf>,
    /// The access token for private and gated repositories.
    pub token: Option<String>,
    /// The address of the hub.
    pub endpoint: String,
    /// Whose files to fetch from a repository that holds both layouts; without one as [`Folder::layout`] says.
    pub layout: Option<Layout>,
    /// How long a connection may take to come about (10 seconds).
    pub connect_timeout: Duration,
    /// How long the server may send nothing at all (30 seconds).
    pub stall_timeout: Duration,
    /// How often a request that failed on the way is repeated before giving up (5 times). A download goes on where it
    /// stopped, and counts anew after each MiB.
    pub retries: usize,
    /// What is told how far each download is; nothing by default. The library itself never prints.
    pub progress: Option<Progress>,
}

/// How far the fetching of one file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Download<'a> {
    /// The repository's id.
    pub id: &'a str,
    /// The file's name in the repository.
    pub file: &'a str,
    /// How many bytes of it are there. Starts above 0 where an earlier download was cut off.
    pub done: u64,
    /// How many bytes it has, where the hub says so.
    pub total: Option<u64>,
}

/// A function that is told how far a download is: at its start, after each piece, and at its end.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(&Download<'_>) + Send + Sync>);

impl Progress {
    /// Tells `report`.
    pub fn new(report: impl Fn(&Download<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(report))
    }

    #[cfg(feature = "hub")]
    pub(super) fn report(&self, download: &Download<'_>) {
        (self.0)(download);
    }
}

/// Equal if it is the same function.
impl PartialEq for Progress {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Progress {}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

impl HubOptions {
    /// The options that the environment gives, by the variables that Python's `huggingface_hub` reads: `HF_HUB_OFFLINE`,
    /// `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH` (else the file `token` of `HF_HOME`) and
    /// `HF_ENDPOINT`. The revision is `main`.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As [`HubOptions::from_env`], with the variables that `variable` returns in place of the environment's.
    #[must_use]
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty());
        let home = set("HOME").or_else(|| set("USERPROFILE")).map(PathBuf::from);
        let expand = |path: String| match (&home, path.strip_prefix("~/")) {
            (Some(home), Some(rest)) => home.join(rest),
            _ => PathBuf::from(path),
        };
        let user_cache = set("XDG_CACHE_HOME").map(expand).or_else(|| home.as_ref().map(|home| home.join(".cache")));
        let hf_home = set("HF_HOME").map(expand).or_else(|| user_cache.map(|cache| cache.join("huggingface")));
        let token_file = set("HF_TOKEN_PATH").map(expand).or_else(|| hf_home.as_ref().map(|home| home.join("token")));
        let stored_token = || Some(std::fs::read_to_string(token_file?).ok()?.trim().to_string());
        let truthy = |value: String| matches!(value.to_uppercase().as_str(), "1" | "TRUE" | "YES" | "ON");
        Self {
            revision: "main".into(),
            offline: set("HF_HUB_OFFLINE").is_some_and(truthy),
            cache_dir: set("HF_HUB_CACHE").map(expand).or_else(|| hf_home.as_ref().map(|home| home.join("hub"))),
            token: set("HF_TOKEN").or_else(stored_token).filter(|token| !token.is_empty()),
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()).trim_end_matches('/').into(),
            layout: None,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            retries: 5,
            progress: None,
        }
    }
}

/// The public hub, without a token and without a cache folder.
impl Default for HubOptions {
    fn default() -> Self {
        Self::from_variables(|_| None)
    }
}

/// Never shows the token.
impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubOptions")
            .field("revision", &self.revision)
            .field("offline", &self.offline)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("endpoint", &self.endpoint)
            .field("layout", &self.layout)
            .field("connect_timeout", &self.connect_timeout)
            .field("stall_timeout", &self.stall_timeout)
            .field("retries", &self.retries)
            .field("progress", &self.progress)
            .finish()
    }
}

/// The folder of the model `id_or_dir`: that folder if it exists, else the repository of that id, from the cache if its
/// configuration and weights are there, else from the hub. An id may have open_clip's prefix `hf-hub:`.
///
/// # Errors
/// If `id_or_dir` is neither an existing folder nor an id; if the repository is not in the cache and cannot be fetched
/// (offline, no such repository, private or gated, no network, built without the feature `hub`), or has no weights that this
/// build reads.
pub fn resolve(id_or_dir: impl AsRef<Path>, options: &HubOptions) -> Result<Folder> {
    let path = id_or_dir.as_ref();
    // The error of a path that does not exist, or is a file, is the folder's.
    let id = match path.to_str().map(|text| text.strip_prefix("hf-hub:").unwrap_or(text)) {
        Some(text) if !path.exists() && !looks_like_path(text) => text,
        _ => return Folder::open(path),
    };
    if !is_id(id) {
        let message = "is neither an existing folder nor the id of a repository on the hub ('organisation/name')";
        return Err(Error::file(path, message));
    }
    let (repo, cache_dir) = cached_repo(id, options)?;
    let cached = repo.snapshot(&options.revision);
    let state = cached.as_ref().map(|snapshot| snapshot.check(options.layout));
    match (&cached, state) {
        (Some(snapshot), Some(Ok(folder))) => {
            if options.offline || !cfg!(feature = "hub") || snapshot.knows_optional_files() {
                return Ok(folder);
            }
            // The files beside the weights were not asked for when they were fetched. It may do without them.
            let options = HubOptions { layout: Some(folder.layout()?), ..options.clone() };
            Ok(fetch(id, &options, &repo, snapshot.commit()).unwrap_or_else(|error| {
                tracing::warn!(model = id, %error, "using the cached files; others could not be looked for");
                folder
            }))
        }
        (_, incomplete) if options.offline => {
            let found = match incomplete {
                Some(Err(error)) => format!("the cached copy is incomplete: {error}"),
                _ => format!("revision '{}' is not in the cache {}", options.revision, cache_dir.display()),
            };
            let advice = "the hub is not asked because HF_HUB_OFFLINE (or the option offline) is set; fetch it once online, \
                          or name a folder that exists";
            Err(hub_error(id, format!("{found}; {advice}")))
        }
        _ => fetch(id, options, &repo, &options.revision),
    }
}

/// The folder of the first of the repositories `ids` whose tokenizer is in the cache, else of the first one, whose tokenizer's
/// files alone are fetched. Names of folders are no ids here.
///
/// # Errors
/// If none is an id, none is in the cache, and the first cannot be fetched or has no tokenizer.
pub(crate) fn resolve_tokenizer(ids: &[&str], options: &HubOptions) -> Result<Folder> {
    for id in ids {
        if !is_id(id) {
            return Err(Error::file(id, "is not the id of a repository on the hub ('organisation/name')"));
        }
        let snapshot = cached_repo(id, options)?.0.snapshot(&options.revision);
        if let Some(snapshot) = snapshot.filter(Snapshot::has_tokenizer) {
            return Folder::open(snapshot.path());
        }
    }
    let Some(id) = ids.first() else { return Err(Error::argument("ids", "the list is empty")) };
    let (repo, cache_dir) = cached_repo(id, options)?;
    if options.offline {
        let message = format!(
            "its tokenizer is not in the cache {}, and the hub is not asked because HF_HUB_OFFLINE (or the option offline) is set",
            cache_dir.display()
        );
        return Err(hub_error(id, message));
    }
    fetch_tokenizer(id, options, &repo, &options.revision)
}

/// The place of a repository in the cache, and the cache.
fn cached_repo<'a>(id: &str, options: &'a HubOptions) -> Result<(CachedRepo, &'a Path)> {
    if !is_revision(&options.revision) {
        return Err(Error::argument("revision", format!("'{}' is no branch, tag or commit", options.revision)));
    }
    let no_cache = || hub_error(id, "there is no folder for the cache; set HF_HOME, or cache_dir in the options");
    let cache_dir = options.cache_dir.as_deref().ok_or_else(no_cache)?;
    Ok((CachedRepo::new(cache_dir, id), cache_dir))
}

#[cfg(feature = "hub")]
use super::hub_fetch::{fetch, fetch_tokenizer};

#[cfg(not(feature = "hub"))]
use fetch as fetch_tokenizer;

#[cfg(not(feature = "hub"))]
fn fetch(id: &str, options: &HubOptions, _repo: &CachedRepo, _revision: &str) -> Result<Folder> {
    let cache = options.cache_dir.as_deref().unwrap_or(Path::new("")).display();
    let message =
        format!("is no existing folder and not in the cache {cache}; to fetch it, build with the feature `hub`");
    Err(hub_error(id, message))
}

pub(super) fn hub_error(id: &str, message: impl Into<String>) -> Error {
    ErrorKind::Hub { id: id.to_string(), message: message.into() }.into()
}

/// What nobody means as an id: it gets the error of a missing folder, and no request leaves the machine.
fn looks_like_path(text: &str) -> bool {
    text.starts_with(['.', '/', '~'])
        || text.ends_with('/')
        || text.contains('\\')
        || text.matches('/').count() > 1
        || FILE_ENDINGS.iter().any(|ending| text.to_lowercase().ends_with(ending))
}

/// The hub's own rule: letters, digits, `-`, `_` and `.`, at most 96 of them, with neither `--` nor `..` nor a `-` or `.` at an end.
fn is_id(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && !part.contains("--")
            && !part.contains("..")
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
    };
    text.len() <= 96 && text.split('/').count() <= 2 && text.split('/').all(part)
}

/// A revision becomes a path in the cache, so it must not lead out of it.
fn is_revision(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    text.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        for id in ["bert-base-uncased", "openai/clip-vit-base-patch32", "a/b.c_d"] {
            assert!(is_id(id) && !looks_like_path(id), "{id}");
        }
        for path in ["./a", "../a", "/a/b", "~/a", "a/b/c", "a\\b", "a/b/", "model.safetensors", "dir/Config.JSON"] {
            assert!(looks_like_path(path), "{path}");
        }
        for neither in ["", "a b", "a--b", "a..b", "-a", "a/", "/", "ä/b", "a/b?c", "a/b#c", &"a".repeat(97)] {
            assert!(!is_id(neither), "{neither}");
        }
    }

    #[test]
    fn revisions_stay_inside_of_the_cache() {
        for good in ["main", "refs/pr/1", "v1.0", "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"] {
            assert!(is_revision(good), "{good}");
        }
        for bad in ["", "..", "a/../b", "/a", "a//b", "a\\b", "a b", "a?b"] {
            assert!(!is_revision(bad), "{bad}");
        }
    }

    #[test]
    fn the_environment_is_read_as_in_python() {
        let options = |variables: &[(&str, &str)]| {
            let find =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_string());
            HubOptions::from_variables(find)
        };
        let cache = |variables: &[(&str, &str)]| options(variables).cache_dir;
        let home = ("HOME", "/home/u");
        assert_eq!(cache(&[home]), Some("/home/u/.cache/huggingface/hub".into()));
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/x")]), Some("/x/huggingface/hub".into()));
        assert_eq!(cache(&[home, ("HF_HOME", "~/hf")]), Some("/home/u/hf/hub".into()));
        assert_eq!(cache(&[home, ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]), Some("/c".into()));
        assert_eq!(cache(&[]), None);
        assert!(options(&[("HF_HUB_OFFLINE", "1")]).offline && options(&[("HF_HUB_OFFLINE", "true")]).offline);
        assert!(!options(&[("HF_HUB_OFFLINE", "0")]).offline && !options(&[]).offline);
        assert_eq!(options(&[("HF_ENDPOINT", "http://h:1/")]).endpoint, "http://h:1");
        let secret = options(&[("HF_TOKEN", " hf_secret\n")]);
        assert_eq!(secret.token.as_deref(), Some("hf_secret"));
        assert!(!format!("{secret:?}").contains("secret"));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "hf_stored\n").unwrap();
        assert_eq!(options(&[("HF_HOME", dir.path().to_str().unwrap())]).token.as_deref(), Some("hf_stored"));
    }
}
