//! Ids and folders: the cache's layout, what is said where nothing is found, and fetching from a server on this machine.

use std::path::Path;

use diptych::weights::{HubOptions, resolve};
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
    assert!(error("org/name", &options).contains("is incomplete"));
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
    let message = error("org/name", &options);
    assert!(message.contains("only pickle weights (pytorch_model.bin)"), "{message}");
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
mod fetching {
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    use diptych::candle::{DType, Device};
    use diptych::weights::Checkpoint;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::{f32s, write};

    /// The bytes of a checkpoint with one tensor.
    fn weights() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        write(&path, &[("a", safetensors::Dtype::F32, &[1], f32s(&[1.0]))]);
        std::fs::read(path).unwrap()
    }

    /// A hub with one repository, `org/name`, that demands a token where it is told one.
    struct Server {
        endpoint: String,
        requests: Arc<Mutex<Vec<String>>>,
    }

    #[derive(Clone, Default)]
    struct Content {
        files: BTreeMap<String, Vec<u8>>,
        token: Option<&'static str>,
        /// What the hub says is the SHA-256 of the weights, where it is not.
        wrong_hash: Option<String>,
    }

    impl Server {
        fn start(content: Content) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let requests: Arc<Mutex<Vec<String>>> = Arc::default();
            let (log, own) = (requests.clone(), endpoint.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let _ = answer(&stream, &content, &own, &log);
                }
            });
            Self { endpoint, requests }
        }

        fn options(&self, cache: &Path) -> HubOptions {
            let mut options = offline(cache);
            options.offline = false;
            options.endpoint = self.endpoint.clone();
            options
        }

        fn requests(&self) -> usize {
            self.requests.lock().unwrap().len()
        }
    }

    fn answer(mut stream: &TcpStream, content: &Content, own: &str, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next().unwrap_or(Ok(String::new()))?;
        let headers: Vec<String> = lines.map_while(|l| l.ok().filter(|l| !l.is_empty())).collect();
        let header = |name: &str| {
            let find = |line: &String| {
                line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|x| x.1.to_string())
            };
            headers.iter().find_map(find)
        };
        log.lock().unwrap().push(first.clone());
        let path = first.split(' ').nth(1).unwrap_or_default();
        let token = content.token.map(|token| format!("Bearer {token}"));
        if token.is_some() && header("authorization") != token {
            return write!(stream, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        if path == "/api/models/org/name/revision/main" || path == format!("/api/models/org/name/revision/{COMMIT}") {
            let siblings: Vec<String> = content.files.keys().map(|f| format!(r#"{{"rfilename":"{f}"}}"#)).collect();
            let body = format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, siblings.join(","));
            return write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
        let resolved = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
        let file = resolved.or_else(|| path.strip_prefix("/cdn/"));
        let Some((file, bytes)) = file.and_then(|file| Some((file, content.files.get(file)?))) else {
            return write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        };
        let hash: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        let large = file.ends_with(".safetensors");
        let etag = if large { content.wrong_hash.clone().unwrap_or(hash) } else { hash[..40].to_string() };
        let common = format!(
            "ETag: \"{etag}\"\r\nX-Linked-Etag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close\r\n"
        );
        // Large files lie elsewhere, as on the hub.
        if large && resolved.is_some() {
            let location = format!("Location: {own}/cdn/{file}\r\nContent-Length: 0\r\n");
            return write!(stream, "HTTP/1.1 302 Found\r\n{common}{location}\r\n");
        }
        let range = header("range").unwrap_or_else(|| "bytes=0-".into());
        let (start, end) = range.trim_start_matches("bytes=").split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end = end.parse().map_or(bytes.len(), |end: usize| end + 1);
        let place =
            format!("Content-Range: bytes {start}-{}/{}\r\nContent-Length: {}\r\n", end - 1, bytes.len(), end - start);
        write!(stream, "HTTP/1.1 206 Partial Content\r\n{common}{place}\r\n")?;
        stream.write_all(&bytes[start..end])
    }

    fn content(files: &[(&str, &[u8])]) -> Content {
        let files = files.iter().map(|(name, bytes)| ((*name).to_string(), bytes.to_vec())).collect();
        Content { files, ..Content::default() }
    }

    #[test]
    fn a_model_is_fetched_once_with_what_it_has_and_then_lies_in_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(content(&[
            ("config.json", b"{\"a\": 1}"),
            ("tokenizer.json", b"{}"),
            ("model.safetensors", &weights()),
            ("pytorch_model.bin", b"unwanted"),
        ]));
        let options = server.options(cache.path());
        let folder = resolve("org/name", &options).unwrap();
        assert_eq!(folder.config().unwrap()["a"], 1);
        assert!(folder.file("tokenizer.json").is_some());
        assert_eq!(folder.file("pytorch_model.bin"), None);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        assert_eq!(checkpoint.read("a", DType::F32, &Device::Cpu).unwrap().to_vec1::<f32>().unwrap(), [1.0]);

        let requests = server.requests();
        assert_eq!(resolve("org/name", &options).unwrap(), folder);
        assert_eq!(server.requests(), requests, "the second time nothing is asked");
        assert_eq!(resolve("org/name", &offline(cache.path())).unwrap(), folder);
    }

    #[test]
    fn shards_are_fetched_by_their_index_and_a_hostile_index_is_refused() {
        let index = |shard: &str| format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#);
        let good = index("model-00001-of-00001.safetensors");
        let files: &[(&str, &[u8])] = &[
            ("config.json", b"{}"),
            ("model.safetensors.index.json", good.as_bytes()),
            ("model-00001-of-00001.safetensors", &weights()),
        ];
        let cache = tempfile::tempdir().unwrap();
        let folder = resolve("org/name", &Server::start(content(files)).options(cache.path())).unwrap();
        assert_eq!(Checkpoint::open(&folder).unwrap().len(), 1);

        let bad = index("../../../x.safetensors");
        let files: &[(&str, &[u8])] = &[("config.json", b"{}"), ("model.safetensors.index.json", bad.as_bytes())];
        let cache = tempfile::tempdir().unwrap();
        let message = error("org/name", &Server::start(content(files)).options(cache.path()));
        assert!(message.contains("is not the name of a .safetensors file"), "{message}");
    }

    #[test]
    fn a_snapshot_that_lacks_files_is_completed() {
        let cache = cache(&["config.json", "model.safetensors"]);
        let server = Server::start(content(&[
            ("config.json", b"{}"),
            ("model.safetensors", b"{}"),
            ("preprocessor_config.json", b"{}"),
        ]));
        let folder = resolve("org/name", &server.options(cache.path())).unwrap();
        assert!(folder.file("preprocessor_config.json").is_some());
        let log = server.requests.lock().unwrap().join("\n");
        assert!(!log.contains("model.safetensors"), "what is there is not fetched again: {log}");
    }

    #[test]
    fn a_cached_model_is_used_where_the_hub_cannot_be_reached() {
        let cache = cache(&["config.json", "model.safetensors"]);
        let mut options = offline(cache.path());
        options.offline = false;
        options.endpoint = "http://127.0.0.1:9".into();
        assert!(resolve("org/name", &options).is_ok());
        let message = error("org/other", &options);
        assert!(message.contains("http://127.0.0.1:9 cannot be reached"), "{message}");
    }

    #[test]
    fn private_and_unknown_repositories_say_to_set_the_token() {
        let cache = tempfile::tempdir().unwrap();
        let files: &[(&str, &[u8])] = &[("config.json", b"{}"), ("model.safetensors", &weights())];
        let server = Server::start(Content { token: Some("secret"), ..content(files) });
        let mut options = server.options(cache.path());
        let message = error("org/name", &options);
        assert!(message.contains("answers 401") && message.ends_with("set HF_TOKEN"), "{message}");
        options.token = Some("hf_other".into());
        let message = error("org/name", &options);
        assert!(
            message.contains("check that the token in HF_TOKEN gives access") && !message.contains("hf_other"),
            "{message}"
        );
        options.token = Some("secret".into());
        let message = error("org/unknown", &options);
        assert!(message.contains("answers 404") && message.contains("no folder is called so"), "{message}");
        assert!(resolve("org/name", &options).is_ok());
    }

    #[test]
    fn damaged_weights_are_removed_and_pickled_ones_not_fetched() {
        let cache = tempfile::tempdir().unwrap();
        let files: &[(&str, &[u8])] = &[("config.json", b"{}"), ("model.safetensors", &weights())];
        let server = Server::start(Content { wrong_hash: Some("0".repeat(64)), ..content(files) });
        let message = error("org/name", &server.options(cache.path()));
        assert!(message.contains("was damaged on the way"), "{message}");
        assert!(error("org/name", &offline(cache.path())).contains("not in the cache"));

        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(content(&[("config.json", b"{}"), ("pytorch_model.bin", b"x")]));
        let message = error("org/name", &server.options(cache.path()));
        assert!(message.contains("only pickle weights (pytorch_model.bin)"), "{message}");
        assert_eq!(server.requests(), 1);
    }

    #[test]
    fn an_answer_that_is_not_the_hubs_is_an_error_and_no_panic() {
        let cache = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut options = offline(cache.path());
        options.offline = false;
        options.endpoint = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = BufReader::new(&stream).lines().map_while(|l| l.ok().filter(|l| !l.is_empty())).count();
                let _ =
                    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\n<html></html>");
            }
        });
        let message = error("org/name", &options);
        assert!(message.starts_with("org/name: http://127.0.0.1"), "{message}");
    }
}
