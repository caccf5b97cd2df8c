//! One request and its answer: redirects, waiting where the Hub asks for it, new attempts where trying
//! again makes sense.
//!
//! Redirects are followed here and not by the client below, for two reasons: the first answer's headers
//! say what the file is, and the token must not travel to another host.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use ureq::http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use ureq::{Agent, Body, SendBody};

use crate::error::HubError;
use crate::settings::Settings;

/// Longer than this nobody waits before a screen.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// What was sent is worked on for a while before there is an answer.
const COMMIT: Duration = Duration::from_secs(120);
/// As many redirects as browsers follow.
const REDIRECTS: usize = 10;
/// An answer that is no file, such as a listing, is not read beyond this.
const LONGEST_ANSWER: u64 = 64 << 20;

/// An answer with its body still to come.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// Headers of the endpoint itself, from before any redirect to another host.
    pub(crate) first: HeaderMap,
    /// Headers of what stands at the end of the redirects.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
}

impl Answer {
    /// The whole body.
    pub(crate) fn bytes(self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut reader = self.body.into_reader().take(LONGEST_ANSWER + 1);
        reader.read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LONGEST_ANSWER {
            return Err(io::Error::other("the answer has no end"));
        }
        Ok(bytes)
    }
}

/// A body on its way to the Hub.
#[derive(Clone, Copy)]
pub(crate) enum Sent<'a> {
    Nothing,
    /// A type and the bytes.
    Bytes(&'a str, &'a [u8]),
    /// A file of so many bytes.
    File(&'a Path, u64),
}

/// What is asked.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a Method,
    pub(crate) url: &'a str,
    /// Whether the token goes along.
    pub(crate) token: bool,
    /// The first byte wanted.
    pub(crate) from: u64,
    /// What is sent.
    pub(crate) body: Sent<'a>,
    /// Whether it must not be asked a second time where it may have been done already.
    pub(crate) once: bool,
    /// Further headers.
    pub(crate) headers: &'a [(String, String)],
    /// What it is, for messages.
    pub(crate) what: &'a str,
}

impl<'a> Ask<'a> {
    pub(crate) fn get(url: &'a str, what: &'a str) -> Self {
        Self {
            method: &Method::GET,
            url,
            token: false,
            from: 0,
            body: Sent::Nothing,
            once: false,
            headers: &[],
            what,
        }
    }
}

/// Sends requests.
pub(crate) struct Client<'a> {
    agent: Agent,
    settings: &'a Settings,
    say: &'a dyn Fn(&str),
}

impl<'a> Client<'a> {
    pub(crate) fn new(settings: &'a Settings, say: &'a dyn Fn(&str)) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(settings.patience))
            .timeout_connect(Some(settings.patience))
            .timeout_recv_response(Some(settings.patience))
            .timeout_per_read(Some(settings.patience))
            .timeout_per_write(Some(settings.patience))
            .user_agent(concat!("sparsam/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: config.new_agent(),
            settings,
            say,
        }
    }

    /// Asks until there is an answer that is neither `429` nor the server's own fault.
    pub(crate) fn send(&self, ask: Ask) -> Result<Answer, HubError> {
        let mut attempt = 1;
        loop {
            let last = attempt >= self.settings.attempts;
            let error = match self.once(ask) {
                Ok(answer) if answer.status == StatusCode::TOO_MANY_REQUESTS => {
                    let wanted = retry_after(&answer.headers);
                    let wait = wanted.unwrap_or_else(|| self.pause(attempt));
                    if last || wait > LONGEST_WAIT {
                        return Err(HubError::TooMany {
                            seconds: wanted.map(|wait| wait.as_secs()),
                        });
                    }
                    self.wait(wait, "the Hub has had too many requests from here");
                    attempt += 1;
                    continue;
                }
                Ok(answer) if answer.status.is_server_error() => {
                    let error = HubError::Server {
                        status: answer.status.as_u16(),
                        what: ask.what.to_owned(),
                        attempts: attempt,
                    };
                    let wait = retry_after(&answer.headers).filter(|wait| *wait <= LONGEST_WAIT);
                    if !last && let Some(wait) = wait {
                        self.wait(wait, &error.to_string());
                        attempt += 1;
                        continue;
                    }
                    error
                }
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let again = !ask.once
                && matches!(
                    error,
                    HubError::Server { .. } | HubError::Unreachable { .. }
                );
            if last || !again {
                return Err(error);
            }
            std::thread::sleep(self.pause(attempt));
            attempt += 1;
        }
    }

    /// The pause before another attempt; it doubles with each one.
    pub(crate) fn pause(&self, attempt: u32) -> Duration {
        self.settings.pause * 2u32.saturating_pow(attempt.saturating_sub(1).min(6))
    }

    fn wait(&self, wait: Duration, why: &str) {
        if wait >= Duration::from_secs(1) {
            (self.say)(&format!("{why}; waiting {} s", wait.as_secs()));
        }
        std::thread::sleep(wait);
    }

    fn once(&self, ask: Ask) -> Result<Answer, HubError> {
        let mut url = ask.url.to_owned();
        let mut first = None;
        for _ in 0..=REDIRECTS {
            let answer = self.request(ask, &url)?;
            let (parts, body) = answer.into_parts();
            let (status, headers) = (parts.status, parts.headers);
            let first_headers = first.get_or_insert_with(|| headers.clone());
            let target = headers.get(header::LOCATION).filter(|_| {
                matches!(
                    status,
                    StatusCode::MOVED_PERMANENTLY
                        | StatusCode::FOUND
                        | StatusCode::SEE_OTHER
                        | StatusCode::TEMPORARY_REDIRECT
                        | StatusCode::PERMANENT_REDIRECT
                )
            });
            let Some(target) = target else {
                return Ok(Answer {
                    status,
                    first: first_headers.clone(),
                    headers,
                    body,
                });
            };
            let target = target.to_str().unwrap_or_default();
            let next = resolve(&url, target).ok_or_else(|| HubError::Answer {
                endpoint: self.settings.endpoint.clone(),
                what: format!("it redirects to `{target}`, which is no address"),
            })?;
            // A repository that was renamed: the endpoint's next answer is the one that counts.
            if origin(&next) == origin(&self.settings.endpoint) {
                first = None;
            }
            url = next;
        }
        Err(HubError::Answer {
            endpoint: self.settings.endpoint.clone(),
            what: format!("it redirects more than {REDIRECTS} times"),
        })
    }

    fn request(&self, ask: Ask, url: &str) -> Result<ureq::http::Response<Body>, HubError> {
        let mut request = Request::builder().method(ask.method).uri(url);
        if ask.token
            && origin(url) == origin(&self.settings.endpoint)
            && let Some(token) = &self.settings.token
        {
            request = request.header(header::AUTHORIZATION, token.header());
        }
        if ask.from > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", ask.from));
        }
        for (name, value) in ask.headers {
            request = request.header(name, value);
        }
        let (length, mut reader): (u64, Box<dyn Read + '_>) = match ask.body {
            Sent::Nothing => (0, Box::new(io::empty())),
            Sent::Bytes(kind, bytes) => {
                request = request.header(header::CONTENT_TYPE, kind);
                (bytes.len() as u64, Box::new(bytes))
            }
            Sent::File(path, length) => {
                let file = File::open(path).map_err(HubError::io("read", path))?;
                (length, Box::new(file.take(length)))
            }
        };
        let answer = if matches!(ask.body, Sent::Nothing) {
            let request = request.body(()).map_err(ureq::Error::from);
            request.and_then(|request| self.agent.run(request))
        } else {
            let request = request
                .header(header::CONTENT_LENGTH, length)
                .body(SendBody::from_reader(&mut reader))
                .map_err(ureq::Error::from);
            request.and_then(|request| {
                let patient = self.agent.configure_request(request);
                let patient =
                    patient.timeout_recv_response(Some(self.settings.patience.max(COMMIT)));
                self.agent.run(patient.build())
            })
        };
        answer.map_err(|error| HubError::Unreachable {
            endpoint: origin(url).unwrap_or(url).to_owned(),
            reason: reason(&error, self.settings.patience),
        })
    }
}

/// What went wrong in plain words.
fn reason(error: &ureq::Error, patience: Duration) -> String {
    match error {
        ureq::Error::HostNotFound => "there is no such host, or no network".to_owned(),
        ureq::Error::Timeout(_) => format!("no answer within {} s", patience.as_secs_f64()),
        ureq::Error::Io(error) => io_reason(error, patience),
        error => error.to_string(),
    }
}

/// What an interrupted transfer says in plain words.
pub(crate) fn io_reason(error: &io::Error, patience: Duration) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "nobody answers there".to_owned(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            format!("nothing came for {} s", patience.as_secs_f64())
        }
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => "the connection was cut".to_owned(),
        _ => {
            let text = error.to_string();
            if text.contains("timeout") {
                return format!("nothing came for {} s", patience.as_secs_f64());
            }
            text.split(" (os error").next().unwrap_or(&text).to_owned()
        }
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    // A date is allowed too; without one the usual pause is made.
    text.trim().parse().ok().map(Duration::from_secs)
}

/// Scheme and host with its port.
fn origin(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    Some(&url[..scheme.len() + 3 + host.len()])
}

/// An address relative to another one.
fn resolve(from: &str, target: &str) -> Option<String> {
    let url = if target.contains("://") {
        target.to_owned()
    } else if let Some(rest) = target.strip_prefix("//") {
        format!("{}://{rest}", from.split_once("://")?.0)
    } else if target.starts_with('/') {
        format!("{}{target}", origin(from)?)
    } else {
        let path = from.split(['?', '#']).next()?;
        format!("{}/{target}", path.rsplit_once('/')?.0)
    };
    let parsed: Uri = url.parse().ok()?;
    let known = matches!(parsed.scheme_str(), Some("http" | "https"));
    // What came encrypted does not go on in the clear.
    let weaker = from.starts_with("https://") && parsed.scheme_str() == Some("http");
    (known && !weaker && parsed.host().is_some()).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_and_never_weaken() {
        let from = "https://hub.example/a/b/resolve/main/x?y";
        for (target, wanted) in [
            ("/c/d", Some("https://hub.example/c/d")),
            ("z", Some("https://hub.example/a/b/resolve/main/z")),
            ("https://cdn.example/x", Some("https://cdn.example/x")),
            ("//cdn.example/x", Some("https://cdn.example/x")),
            ("http://cdn.example/x", None),
            ("file:///etc/passwd", None),
        ] {
            assert_eq!(resolve(from, target).as_deref(), wanted, "{target}");
        }
        assert_eq!(origin("http://127.0.0.1:80/x"), Some("http://127.0.0.1:80"));
    }
}
