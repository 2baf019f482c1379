//! [`Client`]: requests to the hub, with what the hub's answers mean.
//!
//! Redirects are followed here and not by the HTTP library, because the token must go to the hub and to nobody else, and
//! because the facts about a file (its hash, its size) come with the first answer while its bytes come from another host.

use std::io::Read;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body, Timeout};

use super::hub::{HubOptions, hub_error};
use crate::{Error, Result};

const MAX_REDIRECTS: usize = 10;
/// The longest list of a repository's files, in bytes.
const MAX_LISTING: u64 = 64 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// The headers that describe a file; redirects to other hosts, where its bytes are, are not followed.
    Head,
    Get,
}

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Problem {
    /// The hub's own words are in its headers.
    Status { code: u16, reason: Option<String> },
    /// No connection came about.
    Unreachable(String),
    /// The connection broke or stalled.
    Cut(String),
    /// The answer is none that the hub gives.
    Odd(String),
    /// What was received cannot be written here.
    Local(Error),
}

impl Problem {
    /// Whether the same request may succeed the next time.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Status { code, .. } => matches!(code, 408 | 425 | 429 | 500..=599),
            Self::Cut(_) => true,
            Self::Unreachable(_) | Self::Odd(_) | Self::Local(_) => false,
        }
    }
}

/// Requests in the name of one repository.
pub(super) struct Client<'a> {
    pub(super) id: &'a str,
    pub(super) options: &'a HubOptions,
    agent: Agent,
}

impl<'a> Client<'a> {
    pub(super) fn new(id: &'a str, options: &'a HubOptions) -> Self {
        let config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("diptych/", env!("CARGO_PKG_VERSION"), "; rust"))
            .timeout_resolve(Some(options.connect_timeout))
            .timeout_connect(Some(options.connect_timeout))
            .timeout_recv_response(Some(options.stall_timeout))
            .timeout_per_read(Some(options.stall_timeout))
            .timeout_per_write(Some(options.stall_timeout));
        Self { id, options, agent: config.build().into() }
    }

    /// The commit that a revision means, and the names of its files.
    pub(super) fn listing(&self, revision: &str) -> Result<serde_json::Value> {
        let HubOptions { endpoint, .. } = self.options;
        // A branch may have slashes, which would be other segments of the path.
        let url = format!("{endpoint}/api/models/{}/revision/{}", self.id, revision.replace('/', "%2F"));
        let fetch = || {
            let mut body = Vec::new();
            let reader = self.follow(Method::Get, &url, 0)?.1.into_body().into_reader();
            reader.take(MAX_LISTING).read_to_end(&mut body).map_err(|e| Problem::Cut(e.to_string()))?;
            serde_json::from_slice(&body).map_err(|e| Problem::Odd(format!("the list of files is no JSON: {e}")))
        };
        self.retry(fetch).map_err(|problem| self.explain(&problem, None))
    }

    /// The address of a file.
    pub(super) fn url(&self, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.options.endpoint, self.id)
    }

    /// Repeats what failed on the way.
    pub(super) fn retry<T>(
        &self,
        request: impl Fn() -> std::result::Result<T, Problem>,
    ) -> std::result::Result<T, Problem> {
        let mut failures = 0;
        loop {
            match request() {
                Err(problem) if problem.is_transient() && failures < self.options.retries => {
                    failures += 1;
                    tracing::debug!(model = self.id, ?problem, failures, "asking the hub again");
                    self.pause(failures);
                }
                answer => return answer,
            }
        }
    }

    /// Waits before the next request: twice as long each time, but never longer than a stalled server is waited for.
    pub(super) fn pause(&self, failures: usize) {
        let doublings = u32::try_from(failures.clamp(1, 10) - 1).unwrap_or(0);
        std::thread::sleep((FIRST_PAUSE * 2_u32.pow(doublings)).min(self.options.stall_timeout));
    }

    /// Sends the request for the bytes from `start` on; the headers of the hub's own answers, and the last answer.
    pub(super) fn follow(
        &self,
        method: Method,
        url: &str,
        start: u64,
    ) -> std::result::Result<(HeaderMap, Response<Body>), Problem> {
        let mut url = url.to_string();
        let mut described = HeaderMap::new();
        for _ in 0..MAX_REDIRECTS {
            let own = origin(&url).is_some() && origin(&url) == origin(&self.options.endpoint);
            let response = self.send(method, &url, start, own)?;
            let code = response.status().as_u16();
            if own {
                described.extend(response.headers().iter().map(|(name, value)| (name.clone(), value.clone())));
            }
            if !matches!(code, 301 | 302 | 303 | 307 | 308) {
                return match code {
                    200 | 206 => Ok((described, response)),
                    _ => Err(status(&response)),
                };
            }
            let target = text(response.headers(), "location").and_then(|to| join(&url, &to));
            let target = target.ok_or_else(|| Problem::Odd("a redirect leads nowhere".into()))?;
            if url.starts_with("https:") && !target.starts_with("https:") {
                return Err(Problem::Odd("a redirect leads from https to http".into()));
            }
            if method == Method::Head && origin(&target) != origin(&self.options.endpoint) {
                return Ok((described, response));
            }
            url = target;
        }
        Err(Problem::Odd("it redirects without end".into()))
    }

    fn send(&self, method: Method, url: &str, start: u64, own: bool) -> std::result::Result<Response<Body>, Problem> {
        let request = match method {
            Method::Head => self.agent.head(url),
            Method::Get => self.agent.get(url),
        };
        let mut request = request.header("Accept-Encoding", "identity");
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        if let Some(token) = self.options.token.as_ref().filter(|_| own) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        request.call().map_err(|error| match error {
            ureq::Error::Io(e) if e.kind() != std::io::ErrorKind::ConnectionRefused => Problem::Cut(e.to_string()),
            ureq::Error::Timeout(timeout) if !matches!(timeout, Timeout::Connect | Timeout::Resolve) => {
                Problem::Cut(format!("nothing came for {:?}", self.options.stall_timeout))
            }
            ureq::Error::Protocol(e) => Problem::Odd(e.to_string()),
            // The message would show the token.
            ureq::Error::Http(_) => {
                Problem::Odd("the address or the token has characters that HTTP does not allow".into())
            }
            other => Problem::Unreachable(other.to_string()),
        })
    }

    /// What is wrong and what to do, `file` being what was asked for.
    pub(super) fn explain(&self, problem: &Problem, file: Option<&str>) -> Error {
        let HubOptions { endpoint, revision, token, .. } = self.options;
        let id = self.id;
        let access = if token.is_some() { "check that the token in HF_TOKEN gives access" } else { "set HF_TOKEN" };
        let message = match problem {
            Problem::Status { code: 401 | 403, reason: Some(reason) } if reason == "GatedRepo" => {
                format!("the repository is gated: ask for access on {endpoint}/{id}, and {access}")
            }
            Problem::Status { code: 404, reason: Some(reason) } if reason == "RevisionNotFound" => {
                format!("the repository has no revision '{revision}'; see {endpoint}/{id}/tree/main for those it has")
            }
            Problem::Status { code: 404, .. } if file.is_some() => {
                format!(
                    "{endpoint} answers 404: '{}' is not there, though the list of files names it",
                    file.unwrap_or_default()
                )
            }
            Problem::Status { code: code @ (401 | 403 | 404), .. } => format!(
                "{endpoint} answers {code}: the name or the revision '{revision}' is wrong (and no folder is called so), \
                 or the repository is private or gated; accept its terms on its page and {access}"
            ),
            Problem::Status { code: 429, .. } => {
                format!("{endpoint} answers 429: too many requests; wait, or set HF_TOKEN")
            }
            Problem::Status { code, .. } => format!("{endpoint} answers {code}; try again later"),
            Problem::Unreachable(reason) => format!(
                "{endpoint} cannot be reached ({reason}), and the model is not in the cache; check the network, or name a folder"
            ),
            Problem::Cut(reason) => match file {
                Some(file) => format!(
                    "the connection broke while '{file}' was fetched ({reason}); what came is kept, try again and it goes on there"
                ),
                None => format!("{endpoint} did not answer to the end ({reason}); try again"),
            },
            Problem::Odd(reason) => format!("{endpoint} gave an answer that is not the hub's: {reason}"),
            Problem::Local(error) => error.to_string(),
        };
        hub_error(id, message)
    }
}

/// The header `name` as text.
pub(super) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_string)
}

fn status(response: &Response<Body>) -> Problem {
    Problem::Status { code: response.status().as_u16(), reason: text(response.headers(), "x-error-code") }
}

/// Scheme, host and port: who gets to see what is sent there.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let authority = uri.authority()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = authority.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    // Anything before an @ is no part of the host, and no hub has it.
    (!authority.as_str().contains('@')).then(|| (scheme, authority.host().to_ascii_lowercase(), port))
}

/// Where a redirect from `url` leads.
fn join(url: &str, location: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    if location.starts_with("http://") || location.starts_with("https://") {
        Some(location.to_string())
    } else if location.starts_with("//") {
        Some(format!("{scheme}:{location}"))
    } else if location.starts_with('/') {
        Some(format!("{scheme}://{}{location}", rest.split('/').next()?))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_for_one_scheme_host_and_port() {
        let hub = origin("https://huggingface.co");
        assert_eq!(hub, origin("https://HuggingFace.co:443/a/b?c"));
        for other in [
            "http://huggingface.co/a",
            "https://huggingface.co:444/a",
            "https://huggingface.co.evil.com/a",
            "https://cdn.huggingface.co/a",
            "https://huggingface.co@evil.com/a",
            "https://evil.com/huggingface.co",
        ] {
            assert_ne!(hub, origin(other), "{other}");
        }
        // Two addresses that are none are not the same one either.
        assert_eq!(origin("https://user@huggingface.co/a"), None);
        assert_eq!(origin("nothing"), None);
    }

    #[test]
    fn redirects_are_taken_from_where_they_stand() {
        let join = |location: &str| join("https://h:1/a/b", location);
        assert_eq!(join("/c?d").as_deref(), Some("https://h:1/c?d"));
        assert_eq!(join("//cdn/c").as_deref(), Some("https://cdn/c"));
        assert_eq!(join("https://cdn/c").as_deref(), Some("https://cdn/c"));
        assert_eq!(join("file:///etc/passwd"), None);
        assert_eq!(join("c"), None);
    }
}
