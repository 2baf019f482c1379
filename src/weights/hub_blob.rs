//! One file of the hub on its way into the cache: resumed, checked, and then there at once.
//!
//! As in Python's `huggingface_hub` (`file_download.py`): the bytes lie in `blobs/<hash>`, the snapshot has a link to them
//! (or the file itself where links cannot be made), and who writes holds `.locks/<repository>/<hash>.lock`. Until a file is
//! complete and its hash is the hub's, it is called `blobs/<hash>.incomplete`.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::hub::Download;
use super::hub_cache::{CachedRepo, Snapshot};
use super::hub_http::{Client, Method, Problem, text};
use crate::{Error, Result};

/// How many bytes are received at a time.
const PIECE: usize = 1 << 17;
/// After this many bytes a connection that broke counts as a new failure.
const GOOD_RUN: u64 = 1 << 20;

/// Makes sure that the snapshot has the file.
pub(super) fn fetch_file(client: &Client, repo: &CachedRepo, snapshot: &Snapshot, file: &str) -> Result<()> {
    if snapshot.has(file) {
        return Ok(());
    }
    let url = client.url(snapshot.commit(), file);
    let explain = |problem: Problem| client.explain(&problem, Some(file));
    let facts = client.retry(|| Facts::ask(client, &url)).map_err(explain)?;
    if facts.commit.as_ref().is_some_and(|commit| commit != snapshot.commit()) {
        let problem = format!("'{file}' comes from another commit than '{}'", snapshot.commit());
        return Err(explain(Problem::Odd(problem)));
    }
    let blob = repo.blob(&facts.etag);
    make_parent(&blob)?;
    let _lock = lock(client, &repo.lock(&facts.etag), &blob, file)?;
    if !is_whole(&blob, facts.size) {
        let incomplete = repo.incomplete(&facts.etag);
        Transfer { client, file, url: &url, facts: &facts }.run(&incomplete)?;
        std::fs::rename(&incomplete, &blob).map_err(|e| unwritable(&blob, &e))?;
    }
    link(&blob, &snapshot.path().join(file), file, symlink)
}

/// Makes the folder of a file.
pub(super) fn make_parent(file: &Path) -> Result<()> {
    let parent = file.parent().unwrap_or(file);
    std::fs::create_dir_all(parent).map_err(|e| Error::file(parent, format!("cannot be made: {e}")))
}

/// What the hub says about a file.
struct Facts {
    /// The SHA-256 of a large file, git's SHA-1 of a small one.
    etag: String,
    size: Option<u64>,
    commit: Option<String>,
}

impl Facts {
    fn ask(client: &Client, url: &str) -> std::result::Result<Self, Problem> {
        let (headers, response) = client.follow(Method::Head, url, 0)?;
        let number = |name: &str| text(&headers, name).and_then(|value| value.trim().parse().ok());
        let length = || if response.status().is_redirection() { None } else { number("content-length") };
        let etag = text(&headers, "x-linked-etag").or_else(|| text(&headers, "etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_string());
        // It becomes the name of a file.
        let plain = |etag: &String| {
            (1..=128).contains(&etag.len()) && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let etag = etag.filter(plain).ok_or_else(|| Problem::Odd("it gives no hash (ETag) of a file".into()))?;
        Ok(Self { etag, size: number("x-linked-size").or_else(length), commit: text(&headers, "x-repo-commit") })
    }
}

struct Transfer<'a> {
    client: &'a Client<'a>,
    file: &'a str,
    url: &'a str,
    facts: &'a Facts,
}

impl Transfer<'_> {
    /// Receives the file, or what is missing of it, and checks it.
    fn run(&self, incomplete: &Path) -> Result<()> {
        let fail = |e: io::Error| unwritable(incomplete, &e);
        tracing::info!(model = self.client.id, file = self.file, "fetching from the hub");
        let mut out =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(incomplete).map_err(fail)?;
        let mut resumed = out.metadata().map_err(fail)?.len() > 0;
        loop {
            self.receive_all(&mut out).map_err(|problem| self.client.explain(&problem, Some(self.file)))?;
            out.sync_all().map_err(fail)?;
            if matches(&mut out, &self.facts.etag).map_err(fail)? {
                return Ok(());
            }
            out.set_len(0).map_err(fail)?;
            // What was there before may have been another file's beginning.
            if !std::mem::take(&mut resumed) {
                let _ = std::fs::remove_file(incomplete);
                let hash = if self.facts.etag.len() == 64 { "SHA-256" } else { "SHA-1" };
                let message = format!(
                    "'{}' was damaged on the way (its {hash} is not the hub's); it was removed; try again",
                    self.file
                );
                return Err(super::hub::hub_error(self.client.id, message));
            }
        }
    }

    fn receive_all(&self, out: &mut File) -> std::result::Result<(), Problem> {
        let local = |e: io::Error| Problem::Local(Error::argument("cache_dir", format!("cannot be written to: {e}")));
        let mut failures = 0;
        loop {
            let start = out.seek(SeekFrom::End(0)).map_err(local)?;
            self.report(start);
            match self.facts.size {
                Some(size) if start == size => return Ok(()),
                Some(size) if start > size => {
                    out.set_len(0).map_err(local)?;
                    continue;
                }
                _ => {}
            }
            match self.receive(out, start) {
                Ok(()) => return Ok(()),
                Err(problem) => {
                    let transient = problem.is_transient()
                        || matches!(problem, Problem::Unreachable(_) | Problem::Status { code: 403 | 416, .. });
                    if out.metadata().map_err(local)?.len() >= start + GOOD_RUN {
                        failures = 0;
                    }
                    failures += 1;
                    if !transient || failures > self.client.options.retries {
                        return Err(problem);
                    }
                    tracing::debug!(file = self.file, ?problem, failures, "going on with the download");
                    self.client.pause(failures);
                }
            }
        }
    }

    /// Receives the bytes from `start` on, as far as the connection holds.
    fn receive(&self, out: &mut File, start: u64) -> std::result::Result<(), Problem> {
        let local = |e: io::Error| Problem::Local(Error::argument("cache_dir", format!("cannot be written to: {e}")));
        let (_, response) = match self.client.follow(Method::Get, self.url, start) {
            Err(problem @ Problem::Status { code: 416, .. }) => {
                out.set_len(0).map_err(local)?;
                return Err(problem);
            }
            answer => answer?,
        };
        let mut done = start;
        if start > 0 {
            let range = text(response.headers(), "content-range");
            let goes_on = range.is_some_and(|range| range.starts_with(&format!("bytes {start}-")));
            if response.status().as_u16() != 206 || !goes_on {
                // The server sends everything from the start.
                out.set_len(0).and_then(|()| out.rewind()).map_err(local)?;
                done = 0;
            }
        }
        let mut reader = response.into_body().into_reader();
        let mut piece = vec![0; PIECE];
        loop {
            let count = match reader.read(&mut piece) {
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Problem::Cut(e.to_string())),
            };
            if count == 0 {
                break;
            }
            done += count as u64;
            if self.facts.size.is_some_and(|size| done > size) {
                out.set_len(0).map_err(local)?;
                return Err(Problem::Odd(format!("'{}' is longer than it says", self.file)));
            }
            out.write_all(&piece[..count]).map_err(local)?;
            self.report(done);
        }
        match self.facts.size {
            Some(size) if done < size => Err(Problem::Cut(format!("{done} of {size} bytes came"))),
            _ => Ok(()),
        }
    }

    fn report(&self, done: u64) {
        if let Some(progress) = &self.client.options.progress {
            progress.report(&Download { id: self.client.id, file: self.file, done, total: self.facts.size });
        }
    }
}

/// Whether the hash of the file is `etag`. Names that are no hash (of a mirror, say) say nothing.
fn matches(file: &mut File, etag: &str) -> io::Result<bool> {
    let length = file.metadata()?.len();
    file.rewind()?;
    let hex = |digest: &[u8]| digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if !etag.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(true);
    }
    match etag.len() {
        64 => {
            let mut hash = Sha256::new();
            io::copy(file, &mut hash)?;
            Ok(hex(&hash.finalize()) == etag.to_ascii_lowercase())
        }
        40 => {
            // Git hashes a header with the file; some mirrors do not.
            let (mut git, mut plain) = (Sha1::new(), Sha1::new());
            git.update(format!("blob {length}\0"));
            let mut piece = vec![0; PIECE];
            loop {
                let count = file.read(&mut piece)?;
                if count == 0 {
                    break;
                }
                git.update(&piece[..count]);
                plain.update(&piece[..count]);
            }
            let etag = etag.to_ascii_lowercase();
            Ok(hex(&git.finalize()) == etag || hex(&plain.finalize()) == etag)
        }
        _ => Ok(true),
    }
}

fn is_whole(blob: &Path, size: Option<u64>) -> bool {
    std::fs::metadata(blob).is_ok_and(|found| found.is_file() && size.is_none_or(|size| found.len() == size))
}

/// Waits until no other program fetches the same file, as long as that one makes progress.
fn lock(client: &Client, path: &Path, blob: &Path, file: &str) -> Result<Option<File>> {
    make_parent(path)?;
    let lock =
        OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(|e| unwritable(path, &e))?;
    let (mut seen, mut since) = (0, Instant::now());
    let patience = client.options.stall_timeout + client.options.connect_timeout;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => {}
            // File systems without locks: two writers would be found out by the hash.
            Err(TryLockError::Error(error)) => {
                tracing::debug!(%error, path = %path.display(), "the cache cannot be locked");
                return Ok(None);
            }
        }
        let now = received(blob);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        if since.elapsed() > patience {
            let message = format!(
                "another program is fetching '{file}' and makes no progress (it holds {}); end it or wait for it, and try again",
                path.display()
            );
            return Err(super::hub::hub_error(client.id, message));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How many bytes of a file are there, whatever the program that fetches it calls it until it is complete.
fn received(blob: &Path) -> u64 {
    let name = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let entries = blob.parent().and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&name));
    ours.filter_map(|entry| entry.metadata().ok()).map(|found| found.len()).sum()
}

/// Makes `pointer`, the place of `file` in the snapshot, a link to the blob, or the blob itself where `symlink` fails.
fn link(blob: &Path, pointer: &Path, file: &str, symlink: impl Fn(&Path, &Path) -> io::Result<()>) -> Result<()> {
    make_parent(pointer)?;
    let fail = |e: io::Error| unwritable(pointer, &e);
    let mut relative: PathBuf = ["..", ".."].iter().collect();
    relative.extend(file.matches('/').map(|_| ".."));
    relative.extend(["blobs".as_ref(), blob.file_name().unwrap_or_default()]);
    let folder = pointer.parent().unwrap_or(pointer);
    let staging = tempfile::Builder::new().prefix(".link-").tempdir_in(folder).map_err(fail)?;
    // A link into a folder deeper by one would lead elsewhere, but it is never followed there.
    let staged = staging.path().join("link");
    let publish = match symlink(&relative, &staged) {
        Ok(()) => std::fs::rename(&staged, pointer),
        Err(_) => std::fs::rename(blob, pointer),
    };
    publish.map_err(fail)
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_target: &Path, _link: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn unwritable(path: &Path, error: &io::Error) -> Error {
    Error::file(path, format!("cannot be written: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_links_cannot_be_made_the_file_itself_lies_in_the_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let blob = dir.path().join("blobs/abc");
        let pointer = dir.path().join("snapshots/1/1_Pooling/config.json");
        make_parent(&blob).unwrap();
        std::fs::write(&blob, "x").unwrap();
        link(&blob, &pointer, "1_Pooling/config.json", |_, _| Err(io::ErrorKind::Unsupported.into())).unwrap();
        assert_eq!(std::fs::read_to_string(&pointer).unwrap(), "x");
        assert!(!blob.exists());
        assert_eq!(std::fs::read_dir(pointer.parent().unwrap()).unwrap().count(), 1, "nothing else is left there");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_relative_so_that_a_cache_can_be_moved() {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("repo");
        let blob = repo.join("blobs/abc");
        make_parent(&blob).unwrap();
        std::fs::write(&blob, "x").unwrap();
        for file in ["config.json", "1_Pooling/config.json"] {
            link(&blob, &repo.join("snapshots/1").join(file), file, symlink).unwrap();
        }
        std::fs::rename(&repo, dir.path().join("moved")).unwrap();
        for file in ["config.json", "1_Pooling/config.json"] {
            let moved = dir.path().join("moved/snapshots/1").join(file);
            assert_eq!(std::fs::read_to_string(&moved).unwrap(), "x", "{file}");
        }
    }

    #[test]
    fn hashes_are_those_of_the_hub() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello\n").unwrap();
        // git hash-object, sha1sum, sha256sum
        for right in [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "f572d396fae9206628714fb2ce00f72e94f2258f",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
            "d41d8cd9-2",
        ] {
            assert!(matches(&mut file, right).unwrap(), "{right}");
        }
        assert!(!matches(&mut file, &"0".repeat(40)).unwrap() && !matches(&mut file, &"0".repeat(64)).unwrap());
    }
}
