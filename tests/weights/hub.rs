//! Ids and folders: the cache's layout, what is said where nothing is found, and fetching from a server on this machine.

use std::path::Path;

use diptych::weights::{HubOptions, Layout, resolve};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn offline(cache: &Path) -> HubOptions {
    let mut options = HubOptions::default();
    options.cache_dir = Some(cache.to_path_buf());
    options.offline = true;
    options
}

/// A cache as Python leaves it, with the files `files` of `org/name`.
fn cache(files: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("models--org--name");
    let snapshot = repo.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repo.join("refs/refs/pr")).unwrap();
    std::fs::write(repo.join("refs/main"), COMMIT).unwrap();
    std::fs::write(repo.join("refs/refs/pr/1"), format!("{COMMIT}\n")).unwrap();
    for file in files {
        std::fs::write(snapshot.join(file), "{}").unwrap();
    }
    dir
}

fn error(id_or_dir: &str, options: &HubOptions) -> String {
    resolve(id_or_dir, options).unwrap_err().to_string()
}

#[test]
fn a_cached_model_is_found_by_branch_by_reference_and_by_commit_without_a_network() {
    let cache = cache(&["config.json", "model.safetensors"]);
    for revision in ["main", "refs/pr/1", COMMIT] {
        let mut options = offline(cache.path());
        options.revision = revision.into();
        let folder = resolve("org/name", &options).unwrap();
        assert!(folder.path().ends_with(format!("snapshots/{COMMIT}")), "{revision}: {}", folder.path().display());
    }
}

#[test]
fn open_clips_prefix_of_an_id_is_understood_and_its_layout_counts_as_a_model() {
    let cache = cache(&["open_clip_config.json", "open_clip_model.safetensors"]);
    let folder = resolve("hf-hub:org/name", &offline(cache.path())).unwrap();
    assert_eq!(folder.layout().unwrap(), Layout::OpenClip);
    let mut options = offline(cache.path());
    options.layout = Some(Layout::HuggingFace);
    assert!(error("org/name", &options).contains("config.json is missing"));
}

#[cfg(unix)]
#[test]
fn a_cache_of_links_as_python_makes_it_is_read_without_a_network() {
    let cache = cache(&[]);
    let repo = cache.path().join("models--org--name");
    std::fs::create_dir(repo.join("blobs")).unwrap();
    for (i, file) in
        ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"].iter().enumerate()
    {
        std::fs::write(repo.join("blobs").join(i.to_string()), "{}").unwrap();
        let link = repo.join("snapshots").join(COMMIT).join(file);
        std::os::unix::fs::symlink(format!("../../blobs/{i}"), link).unwrap();
    }
    let mut options = offline(cache.path());
    // Nobody listens there; and a model that has everything does not ask.
    (options.offline, options.endpoint) = (false, "http://127.0.0.1:9".into());
    let folder = resolve("org/name", &options).unwrap();
    assert_eq!(folder.config().unwrap(), serde_json::json!({}));
}

#[test]
fn an_existing_folder_wins_over_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(resolve(dir.path(), &offline(dir.path())).unwrap().path(), dir.path());
}

#[test]
fn sharded_models_count_as_cached_only_with_all_their_shards() {
    let cache = cache(&["config.json", "model-1.safetensors"]);
    let snapshot = cache.path().join("models--org--name/snapshots").join(COMMIT);
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    std::fs::write(snapshot.join("model.safetensors.index.json"), index).unwrap();
    let options = offline(cache.path());
    let message = error("org/name", &options);
    assert!(message.contains("is incomplete") && message.contains("names the file 'model-2.safetensors'"), "{message}");
    std::fs::write(snapshot.join("model-2.safetensors"), "").unwrap();
    assert_eq!(resolve("org/name", &options).unwrap().path(), snapshot);
}

#[test]
fn what_is_not_in_the_cache_says_so_and_what_to_do() {
    let cache = cache(&["config.json", "pytorch_model.bin"]);
    let mut options = offline(cache.path());
    let message = error("org/other", &options);
    assert!(message.starts_with("org/other: revision 'main' is not in the cache"), "{message}");
    assert!(message.contains("HF_HUB_OFFLINE") && message.contains("fetch it once online"), "{message}");
    #[cfg(not(feature = "pickle"))]
    {
        let message = error("org/name", &options);
        assert!(message.contains("only pickle weights (pytorch_model.bin)"), "{message}");
    }
    options.revision = "../../etc".into();
    assert!(error("org/name", &options).contains("is no branch, tag or commit"));
    options.revision = "main".into();
    std::fs::write(cache.path().join("models--org--name/refs/main"), "../../..").unwrap();
    assert!(error("org/name", &options).contains("is not in the cache"));
    options.cache_dir = None;
    assert!(error("org/name", &options).contains("set HF_HOME"));
}

#[test]
fn a_mistyped_path_is_a_missing_folder_and_never_a_request() {
    let mut options = HubOptions::default();
    // Nobody listens there: a request would give another error.
    options.endpoint = "http://127.0.0.1:9".into();
    options.cache_dir = Some("/nonexistent".into());
    for path in ["./towers/minilm", "/data/no/such", "~/models/clip", "a/b/c", "clip\\vit", "clip/model.safetensors"] {
        let message = error(path, &options);
        assert!(message.contains(path) && message.contains("the folder does not exist"), "{message}");
    }
    for text in ["", "my model", "a--b/c"] {
        let message = error(text, &options);
        assert!(message.contains("neither an existing folder nor the id"), "{message}");
    }
}

#[cfg(not(feature = "hub"))]
#[test]
fn without_the_feature_the_error_names_it() {
    let cache = cache(&[]);
    let mut options = offline(cache.path());
    options.offline = false;
    assert!(error("org/name", &options).contains("build with the feature `hub`"));
}

#[cfg(feature = "hub")]
mod fetching;
#[cfg(feature = "hub")]
mod server;
