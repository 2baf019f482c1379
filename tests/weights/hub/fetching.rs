//! Fetching from a hub: what is fetched, in what order of trust, and what happens when the way is bad.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use diptych::candle::{DType, Device};
use diptych::weights::{Checkpoint, Folder, Progress};

use super::server::{Content, Fault, Server, content, sha256};
use super::*;
use crate::{f32s, write};

/// The bytes of a checkpoint with one tensor of `len` numbers.
fn weights_of(len: usize) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w");
    let numbers: Vec<f32> = (0..len).map(|i| i as f32 + 1.0).collect();
    write(&path, &[("a", safetensors::Dtype::F32, &[len], f32s(&numbers))]);
    std::fs::read(path).unwrap()
}

fn weights() -> Vec<u8> {
    weights_of(1)
}

/// A model of 400 kB of weights.
fn model(faults: &[Fault]) -> (Content, Vec<u8>) {
    let weights = weights_of(100_000);
    let content = content(&[("config.json", b"{\"model_type\": \"clip\"}"), ("model.safetensors", &weights)]);
    (Content { faults: faults.to_vec(), ..content }, weights)
}

/// The options of a server with a cache, patient for half a second.
fn hasty(server: &Server, cache: &Path) -> HubOptions {
    let mut options = server.options(cache);
    options.stall_timeout = Duration::from_millis(500);
    options.connect_timeout = Duration::from_secs(2);
    options
}

fn blob(cache: &Path, name: &str) -> PathBuf {
    cache.join("models--org--name/blobs").join(name)
}

#[test]
fn a_model_is_fetched_once_with_what_it_has_and_then_lies_in_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(content(&[
        ("config.json", b"{\"a\": 1}"),
        ("tokenizer.json", b"{}"),
        ("modules.json", b"[]"),
        ("1_Pooling/config.json", b"{\"word_embedding_dimension\": 8}"),
        ("model.safetensors", &weights()),
        ("pytorch_model.bin", b"unwanted"),
        ("onnx/model.onnx", b"unwanted"),
        ("tf_model.h5", b"unwanted"),
        ("README.md", b"unwanted"),
    ]));
    let options = server.options(cache.path());
    let folder = resolve("org/name", &options).unwrap();
    assert_eq!(folder.config().unwrap()["a"], 1);
    assert_eq!(
        server.fetched(),
        ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "model.safetensors"]
    );
    assert!(folder.file("1_Pooling/config.json").is_some());
    let checkpoint = Checkpoint::open(&folder).unwrap();
    assert_eq!(checkpoint.read("a", DType::F32, &Device::Cpu).unwrap().to_vec1::<f32>().unwrap(), [1.0]);
    // The places are those of Python's library.
    assert_eq!(std::fs::read(blob(cache.path(), &sha256(&weights()))).unwrap(), weights());
    assert_eq!(std::fs::read_to_string(cache.path().join("models--org--name/refs/main")).unwrap(), COMMIT);

    let requests = server.log().len();
    assert_eq!(resolve("org/name", &options).unwrap(), folder);
    assert_eq!(server.log().len(), requests, "the second time nothing is asked");
    assert_eq!(resolve("org/name", &offline(cache.path())).unwrap(), folder);
}

#[test]
fn of_two_layouts_only_one_is_fetched() {
    let both: &[(&str, &[u8])] = &[
        ("config.json", b"{\"model_type\": \"clip\"}"),
        ("model.safetensors", &weights()),
        ("open_clip_config.json", b"{}"),
        ("open_clip_model.safetensors", &weights()),
        ("open_clip_pytorch_model.bin", b"unwanted"),
    ];
    let fetch = |files: &[(&str, &[u8])], layout: Option<Layout>| {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(content(files));
        let mut options = server.options(cache.path());
        options.layout = layout;
        let folder = resolve("org/name", &options).unwrap();
        let layout = folder.layout().unwrap();
        (layout, server.fetched().pop().unwrap())
    };
    assert_eq!(fetch(both, None), (Layout::HuggingFace, "model.safetensors".into()));
    assert_eq!(fetch(both, Some(Layout::OpenClip)), (Layout::OpenClip, "open_clip_model.safetensors".into()));
    // timm's `config.json` is another program's, and its weights are the image tower alone.
    let mut timm = both.to_vec();
    timm[0].1 = b"{\"architecture\": \"vit\"}";
    assert_eq!(fetch(&timm, None), (Layout::OpenClip, "open_clip_model.safetensors".into()));
}

#[test]
fn shards_are_fetched_by_their_index_and_a_hostile_index_is_refused() {
    let index = |shard: &str| format!(r#"{{"weight_map": {{"a": "{shard}", "b": "model-2.safetensors"}}}}"#);
    let fetch = |index: &str| {
        let cache = tempfile::tempdir().unwrap();
        let files: &[(&str, &[u8])] = &[
            ("config.json", b"{}"),
            ("model.safetensors.index.json", index.as_bytes()),
            ("model-1.safetensors", &weights_of(1)),
            ("model-2.safetensors", &weights_of(2)),
            ("model-3.safetensors", &weights_of(3)),
        ];
        let server = Server::start(content(files));
        resolve("org/name", &server.options(cache.path())).map(|_| server.fetched()).map_err(|e| e.to_string())
    };
    let expected = ["config.json", "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"];
    assert_eq!(fetch(&index("model-1.safetensors")).unwrap(), expected);
    let message = fetch(&index("../../../x.safetensors")).unwrap_err();
    assert!(message.contains("is not the name of a .safetensors file"), "{message}");
    let message = fetch(&index("model-9.safetensors")).unwrap_err();
    assert!(message.contains("names the file 'model-9.safetensors'"), "{message}");
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
    assert_eq!(server.fetched(), ["preprocessor_config.json"], "what is there is not fetched again");
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
    let server = Server::start(Content { token: Some("secret"), ..model(&[]).0 });
    let mut options = server.options(cache.path());
    let message = error("org/name", &options);
    assert!(message.contains("answers 401") && message.ends_with("set HF_TOKEN"), "{message}");
    options.token = Some("hf_other".into());
    let message = error("org/name", &options);
    assert!(
        message.contains("check that the token in HF_TOKEN gives access") && !message.contains("hf_other"),
        "{message}"
    );
    options.token = Some("hf_line\nbreak".into());
    let message = error("org/name", &options);
    assert!(message.contains("characters that HTTP does not allow") && !message.contains("hf_line"), "{message}");
    options.token = Some("secret".into());
    let message = error("org/unknown", &options);
    assert!(message.contains("answers 404") && message.contains("no folder is called so"), "{message}");
    assert!(resolve("org/name", &options).is_ok());
}

#[test]
fn gated_repositories_and_unknown_revisions_are_told_apart() {
    let cache = tempfile::tempdir().unwrap();
    let refuse = |status, reason| {
        let server = Server::start(Content { refusal: Some((status, reason)), ..model(&[]).0 });
        error("org/name", &server.options(cache.path()))
    };
    let message = refuse(403, "GatedRepo");
    assert!(message.contains("is gated: ask for access on http://") && message.ends_with("set HF_TOKEN"), "{message}");
    assert!(refuse(401, "GatedRepo").contains("is gated"));
    assert!(refuse(404, "RevisionNotFound").contains("has no revision 'main'"));
    assert!(refuse(404, "RepoNotFound").contains("the name or the revision 'main' is wrong"));
}

#[test]
fn the_token_goes_to_the_hub_and_to_nobody_else() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(Content { token: Some("secret"), ..model(&[]).0 });
    let mut options = server.options(cache.path());
    options.token = Some("secret".into());
    resolve("org/name", &options).unwrap();
    let log = server.log();
    assert!(log.iter().any(|request| request.elsewhere));
    for request in log {
        assert_eq!(request.header("authorization").is_some(), !request.elsewhere, "{request:?}");
    }
}

#[test]
fn a_cut_connection_is_taken_up_where_it_broke() {
    let cache = tempfile::tempdir().unwrap();
    let (content, weights) = model(&[Fault::Cut(150_000), Fault::Status(503), Fault::Cut(100_000)]);
    let server = Server::start(content);
    let folder = resolve("org/name", &server.options(cache.path())).unwrap();
    assert_eq!(std::fs::read(folder.file("model.safetensors").unwrap()).unwrap(), weights);
    let log = server.log();
    let starts: Vec<Option<&str>> =
        log.iter().filter(|request| request.elsewhere).map(|request| request.header("range")).collect();
    assert_eq!(starts, [None, Some("bytes=150000-"), Some("bytes=150000-"), Some("bytes=250000-")]);
}

#[test]
fn a_stalled_connection_is_given_up_and_taken_up_again() {
    let cache = tempfile::tempdir().unwrap();
    let (content, weights) = model(&[Fault::Stall(150_000)]);
    let server = Server::start(content);
    let start = Instant::now();
    let folder = resolve("org/name", &hasty(&server, cache.path())).unwrap();
    assert_eq!(std::fs::read(folder.file("model.safetensors").unwrap()).unwrap(), weights);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[test]
fn a_server_that_answers_badly_for_a_while_is_asked_again() {
    let cache = tempfile::tempdir().unwrap();
    let list_faults = vec![Fault::Status(503), Fault::Cut(3), Fault::Status(429)];
    let server = Server::start(Content { list_faults, ..model(&[]).0 });
    resolve("org/name", &server.options(cache.path())).unwrap();

    let server = Server::start(Content { list_faults: vec![Fault::Status(500); 3], ..model(&[]).0 });
    let mut options = server.options(tempfile::tempdir().unwrap().path());
    options.retries = 2;
    assert!(error("org/name", &options).contains("answers 500; try again later"));
}

#[test]
fn what_came_before_giving_up_is_kept_for_the_next_time() {
    let cache = tempfile::tempdir().unwrap();
    let (content, weights) = model(&[Fault::Cut(100_000), Fault::Cut(50_000)]);
    let server = Server::start(content);
    let mut options = server.options(cache.path());
    options.retries = 1;
    let message = error("org/name", &options);
    assert!(message.contains("'model.safetensors'") && message.contains("what came is kept"), "{message}");
    assert!(error("org/name", &offline(cache.path())).contains("not in the cache"));
    let seen = Arc::new(Mutex::new(Vec::<(u64, Option<u64>)>::new()));
    let log = seen.clone();
    options.progress = Some(Progress::new(move |download| {
        if download.file == "model.safetensors" {
            log.lock().unwrap().push((download.done, download.total));
        }
    }));
    resolve("org/name", &options).unwrap();
    let seen = seen.lock().unwrap();
    let total = weights.len() as u64;
    assert_eq!((seen[0], seen[seen.len() - 1]), ((150_000, Some(total)), (total, Some(total))));
    assert!(seen.is_sorted());
}

#[test]
fn what_is_left_of_an_earlier_download_is_used_if_it_fits_and_dropped_if_not() {
    let (content, weights) = model(&[]);
    let longer = [&weights[..], b"more"].concat();
    type Case<'a> = (&'a [u8], Fault, &'a [Option<&'a str>]);
    let cases: [Case; 5] = [
        (&weights[..1000], Fault::None, &[Some("bytes=1000-")]),
        (&weights[..1000], Fault::WholeFile, &[Some("bytes=1000-")]),
        (&weights, Fault::None, &[]),
        (&[7; 1000], Fault::None, &[Some("bytes=1000-"), None]),
        (&longer, Fault::None, &[None]),
    ];
    for (left, fault, ranges) in cases {
        let cache = tempfile::tempdir().unwrap();
        let path = blob(cache.path(), &format!("{}.incomplete", sha256(&weights)));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, left).unwrap();
        let server = Server::start(Content { faults: vec![fault], ..content.clone() });
        let folder = resolve("org/name", &server.options(cache.path())).unwrap();
        assert_eq!(std::fs::read(folder.file("model.safetensors").unwrap()).unwrap(), weights);
        assert!(!path.exists());
        let log = server.log();
        let found: Vec<_> = log.iter().filter(|r| r.elsewhere).map(|r| r.header("range")).collect();
        assert_eq!(found, ranges, "{} {fault:?}", left.len());
    }
}

#[test]
fn two_at_once_fetch_a_file_once() {
    let cache = tempfile::tempdir().unwrap();
    let (content, weights) = model(&[Fault::Stall(100_000)]);
    let server = Server::start(content);
    let options = hasty(&server, cache.path());
    let folders: Vec<Folder> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| resolve("org/name", &options).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(folders.iter().all(|f| std::fs::read(f.file("model.safetensors").unwrap()).unwrap() == weights));
    assert_eq!(server.fetched().iter().filter(|file| *file == "model.safetensors").count(), 2);
}

#[test]
fn who_holds_a_lock_and_does_nothing_is_named_after_a_while() {
    let cache = tempfile::tempdir().unwrap();
    let (content, weights) = model(&[]);
    let server = Server::start(content);
    let lock = cache.path().join(".locks/models--org--name").join(format!("{}.lock", sha256(&weights)));
    std::fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let held = File::create(&lock).unwrap();
    held.lock().unwrap();
    let message = error("org/name", &hasty(&server, cache.path()));
    assert!(
        message.contains("another program is fetching 'model.safetensors'") && message.contains(".lock"),
        "{message}"
    );
    drop(held);
    resolve("org/name", &hasty(&server, cache.path())).unwrap();
}

#[test]
fn damaged_files_are_removed_and_never_in_the_cache() {
    for (file, hash, name) in
        [("model.safetensors", "0".repeat(64), "SHA-256"), ("config.json", "0".repeat(40), "SHA-1")]
    {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(Content { wrong_hash: Some((file, hash.clone())), ..model(&[]).0 });
        let message = error("org/name", &server.options(cache.path()));
        assert!(message.contains(&format!("'{file}' was damaged on the way (its {name}")), "{message}");
        assert!(error("org/name", &offline(cache.path())).contains("not in the cache"));
        assert!(!blob(cache.path(), &hash).exists() && !blob(cache.path(), &format!("{hash}.incomplete")).exists());
    }
    // A name for the file that would lead out of the cache.
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(Content { wrong_hash: Some(("config.json", "../../x".into())), ..model(&[]).0 });
    assert!(error("org/name", &server.options(cache.path())).contains("gives no hash"));
}

#[cfg(not(feature = "pickle"))]
#[test]
fn pickled_weights_are_not_fetched() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(content(&[("config.json", b"{}"), ("pytorch_model.bin", b"x")]));
    let message = error("org/name", &server.options(cache.path()));
    assert!(message.contains("only pickle weights (pytorch_model.bin)"), "{message}");
    assert_eq!(server.fetched(), ["config.json"]);
}

#[cfg(feature = "pickle")]
#[test]
fn pickled_weights_are_fetched_where_there_are_no_others() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(content(&[("config.json", b"{}"), ("pytorch_model.bin", b"x")]));
    resolve("org/name", &server.options(cache.path())).unwrap();
    assert_eq!(server.fetched(), ["config.json", "pytorch_model.bin"]);
}

#[test]
fn a_repository_that_is_no_model_says_so() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(content(&[("README.md", b"{}")]));
    let message = error("org/name", &server.options(cache.path()));
    assert!(message.contains("has no config.json and no open_clip_config.json"), "{message}");
    let server = Server::start(content(&[("config.json", b"{}")]));
    let message = error("org/name", &server.options(cache.path()));
    assert!(message.contains("has no weights: neither model.safetensors nor"), "{message}");
}

#[test]
fn an_answer_that_is_not_the_hubs_is_an_error_and_no_panic() {
    for answer in [
        "200 OK\r\nContent-Length: 13\r\n\r\n<html></html>",
        "302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n",
    ] {
        let cache = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut options = offline(cache.path());
        options.offline = false;
        options.endpoint = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = BufReader::new(&stream).lines().map_while(|l| l.ok().filter(|l| !l.is_empty())).count();
                let _ = write!(stream, "HTTP/1.1 {}", answer.replacen("\r\n", "\r\nConnection: close\r\n", 1));
            }
        });
        let message = error("org/name", &options);
        assert!(message.starts_with("org/name: http://127.0.0.1"), "{message}");
    }
}
