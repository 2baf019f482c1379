//! A hub on this machine: one repository, `org/name`, whose large files lie on another host, as on the real one.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diptych::weights::HubOptions;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{COMMIT, offline};

/// What goes wrong with one answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// Nothing.
    None,
    /// The connection is cut after this many bytes of the body.
    Cut(usize),
    /// Nothing more comes after this many bytes, for ten seconds.
    Stall(usize),
    /// Another status.
    Status(u16),
    /// The whole file comes, whatever part was asked for.
    WholeFile,
}

#[derive(Clone, Default)]
pub(super) struct Content {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) token: Option<&'static str>,
    /// What the hub says is the hash of this file, where it is not.
    pub(super) wrong_hash: Option<(&'static str, String)>,
    /// A status and the hub's word for it, for every request.
    pub(super) refusal: Option<(u16, &'static str)>,
    /// Of the answers that list the repository's files, one after the other.
    pub(super) list_faults: Vec<Fault>,
    /// Of the answers with a large file's bytes, one after the other.
    pub(super) faults: Vec<Fault>,
}

pub(super) fn content(files: &[(&str, &[u8])]) -> Content {
    let files = files.iter().map(|(name, bytes)| ((*name).to_string(), bytes.to_vec())).collect();
    Content { files, ..Content::default() }
}

/// What was asked for.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: Vec<String>,
    /// Whether the other host was asked.
    pub(super) elsewhere: bool,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let split = self.headers.iter().filter_map(|line| line.split_once(": "));
        split.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

pub(super) struct Server {
    pub(super) endpoint: String,
    log: Arc<Mutex<Vec<Request>>>,
}

struct Shared {
    content: Content,
    storage: String,
    list_faults: Mutex<VecDeque<Fault>>,
    faults: Mutex<VecDeque<Fault>>,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(super) fn start(content: Content) -> Self {
        let [hub, storage] = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let (endpoint, log) = (address(&hub), Arc::default());
        let shared = Arc::new(Shared {
            storage: address(&storage),
            list_faults: Mutex::new(content.list_faults.clone().into()),
            faults: Mutex::new(content.faults.clone().into()),
            log: Arc::clone(&log),
            content,
        });
        for (listener, elsewhere) in [(hub, false), (storage, true)] {
            let shared = shared.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let shared = shared.clone();
                    std::thread::spawn(move || drop(answer(&stream, &shared, elsewhere)));
                }
            });
        }
        Self { endpoint, log }
    }

    pub(super) fn options(&self, cache: &Path) -> HubOptions {
        let mut options = offline(cache);
        options.offline = false;
        options.endpoint = self.endpoint.clone();
        options
    }

    pub(super) fn log(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// The names of the files whose bytes were asked for.
    pub(super) fn fetched(&self) -> Vec<String> {
        let files =
            self.log().into_iter().filter(|request| request.method == "GET" && !request.path.starts_with("/api/"));
        // A redirect and what it leads to are one.
        let files = files.filter(|request| request.elsewhere || !is_large(&request.path));
        files.map(|request| request.path.trim_start_matches(&resolve_path("")).replace("/storage/", "")).collect()
    }
}

fn is_large(path: &str) -> bool {
    [".safetensors", ".bin"].iter().any(|ending| path.ends_with(ending))
}

fn resolve_path(file: &str) -> String {
    format!("/org/name/resolve/{COMMIT}/{file}")
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn answer(mut stream: &TcpStream, shared: &Shared, elsewhere: bool) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let headers = lines.map_while(|line| line.ok().filter(|line| !line.is_empty())).collect();
    let mut words = first.split(' ').map(str::to_string);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let request = Request { method, path: path.clone(), headers, elsewhere };
    shared.log.lock().unwrap().push(request.clone());
    let mut empty = |status: &str, headers: &str| {
        write!(stream, "HTTP/1.1 {status}\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n")
    };
    let content = &shared.content;
    if let Some((status, reason)) = content.refusal {
        return empty(&format!("{status} No"), &format!("X-Error-Code: {reason}\r\n"));
    }
    let token = content.token.map(|token| format!("Bearer {token}"));
    if token.is_some() && !elsewhere && request.header("authorization") != token.as_deref() {
        return empty("401 Unauthorized", "");
    }
    if path == "/api/models/org/name/revision/main" || path == format!("/api/models/org/name/revision/{COMMIT}") {
        let siblings: Vec<String> = content.files.keys().map(|f| format!(r#"{{"rfilename":"{f}"}}"#)).collect();
        let body = format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, siblings.join(","));
        let fault = shared.list_faults.lock().unwrap().pop_front().unwrap_or(Fault::None);
        return send(stream, &request, body.as_bytes(), "", fault);
    }
    let file = path.strip_prefix(&resolve_path("")).or_else(|| path.strip_prefix("/storage/")).unwrap_or_default();
    let Some(bytes) = content.files.get(file) else { return empty("404 Not Found", "") };
    let large = is_large(file);
    let git = || hex(&Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()));
    let hash = if large { sha256(bytes) } else { git() };
    let hash = content.wrong_hash.as_ref().filter(|(name, _)| *name == file).map_or(hash, |(_, wrong)| wrong.clone());
    if elsewhere {
        let fault = shared.faults.lock().unwrap().pop_front().unwrap_or(Fault::None);
        return send(stream, &request, bytes, "ETag: \"other\"\r\n", fault);
    }
    if large {
        let facts =
            format!("X-Linked-ETag: \"{hash}\"\r\nX-Linked-Size: {}\r\nX-Repo-Commit: {COMMIT}\r\n", bytes.len());
        return empty("302 Found", &format!("ETag: \"no\"\r\n{facts}Location: {}/storage/{file}\r\n", shared.storage));
    }
    send(stream, &request, bytes, &format!("ETag: W/\"{hash}\"\r\nX-Repo-Commit: {COMMIT}\r\n"), Fault::None)
}

fn send(mut stream: &TcpStream, request: &Request, bytes: &[u8], headers: &str, fault: Fault) -> std::io::Result<()> {
    let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let start = range.filter(|_| !matches!(fault, Fault::WholeFile)).unwrap_or(0_usize);
    let (status, range) = match start {
        0 => ("200 OK", String::new()),
        _ => ("206 Partial Content", format!("Content-Range: bytes {start}-{}/{}\r\n", bytes.len() - 1, bytes.len())),
    };
    let status = if let Fault::Status(code) = fault { format!("{code} No") } else { status.to_string() };
    let body = if let Fault::Status(_) = fault { &[][..] } else { &bytes[start..] };
    let length = format!("Content-Length: {}\r\n", body.len());
    write!(stream, "HTTP/1.1 {status}\r\n{headers}{range}{length}Connection: close\r\n\r\n")?;
    if request.method == "HEAD" {
        return Ok(());
    }
    match fault {
        Fault::Cut(after) => stream.write_all(&body[..after.min(body.len())]),
        Fault::Stall(after) => {
            stream.write_all(&body[..after.min(body.len())])?;
            std::thread::sleep(Duration::from_secs(10));
            Ok(())
        }
        _ => stream.write_all(body),
    }
}
