//! What is asked of a Hub, as a trait, and the Hub itself behind its HTTP routes.
//!
//! Everything above this file (the cache, what is fetched, what is published) knows the trait alone.

use std::io::Read;

use serde_json::Value;
use ureq::http::{HeaderMap, Method, StatusCode};

use crate::digest::Hash;
use crate::error::HubError;
use crate::http::{Answer, Ask, Client};
use crate::name::{Kind, Repo, in_address, in_segment, is_commit, is_safe_path};
use crate::settings::Settings;

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub path: String,
    /// Bytes, where the listing says so.
    pub size: Option<u64>,
    /// What it hashes to, where the listing says so.
    pub hash: Option<Hash>,
}

/// A repository at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The commit, 40 digits.
    pub commit: String,
    /// Its files.
    pub files: Vec<RemoteFile>,
    /// The licence on its card.
    pub license: Option<String>,
    /// Whether it is shown to its owner alone.
    pub private: bool,
}

/// A file on its way.
pub struct Stream {
    /// The first byte that comes: the one asked for, or 0 where the server begins anew.
    pub from: u64,
    /// The bytes.
    pub body: Box<dyn Read>,
}

/// What is asked of a Hub.
pub trait Hub {
    /// The files of a repository at a branch, tag or commit.
    ///
    /// # Errors
    /// No such repository or revision, no access, no answer.
    fn listing(&self, repo: &Repo, revision: &str) -> Result<Listing, HubError>;

    /// Size and hash of a file, for listings that leave them out.
    ///
    /// # Errors
    /// No such file, no access, no answer.
    fn details(&self, repo: &Repo, commit: &str, path: &str) -> Result<RemoteFile, HubError>;

    /// A file's bytes from `from` on.
    ///
    /// # Errors
    /// No such file, another file than the one listed, no access, no answer.
    fn open(
        &self,
        repo: &Repo,
        commit: &str,
        file: &RemoteFile,
        from: u64,
    ) -> Result<Stream, HubError>;
}

/// A Hub behind its address.
pub struct Server<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) client: Client<'a>,
}

impl<'a> Server<'a> {
    /// The Hub of the settings. `say` hears of waiting. Nothing is asked yet.
    pub fn new(settings: &'a Settings, say: &'a dyn Fn(&str)) -> Self {
        Self {
            settings,
            client: Client::new(settings, say),
        }
    }

    /// `https://huggingface.co/datasets/owner/name`.
    pub(crate) fn page(&self, repo: &Repo) -> String {
        format!("{}/{}{}", self.settings.endpoint, repo.prefix(), repo.id())
    }

    /// `https://huggingface.co/api/datasets/owner/name`.
    pub(crate) fn api(&self, repo: &Repo) -> String {
        format!(
            "{}/api/{}/{}",
            self.settings.endpoint,
            repo.kind().plural(),
            repo.id()
        )
    }

    fn address(&self, repo: &Repo, commit: &str, path: &str) -> String {
        format!(
            "{}/resolve/{}/{}",
            self.page(repo),
            in_segment(commit),
            in_address(path)
        )
    }

    fn reading(&self) -> bool {
        self.settings.token_when_reading
    }

    pub(crate) fn senseless(&self, what: impl Into<String>) -> HubError {
        HubError::Answer {
            endpoint: self.settings.endpoint.clone(),
            what: what.into(),
        }
    }

    /// The error of an answer that is none of the good ones.
    pub(crate) fn refusal(
        &self,
        answer: Answer,
        repo: &Repo,
        revision: &str,
        file: Option<&str>,
        token: bool,
    ) -> HubError {
        let (status, code) = (answer.status, text(&answer.first, "x-error-code"));
        let message = text(&answer.first, "x-error-message");
        let token = token && self.settings.token.is_some();
        let name = repo.id().to_owned();
        let not_found = |repo: &Repo| HubError::NotFound {
            kind: match repo.kind() {
                Kind::Model => "model",
                Kind::Dataset => "data set",
            },
            repo: name.clone(),
            token,
        };
        match (status.as_u16(), code.as_deref()) {
            (_, Some("GatedRepo")) => HubError::Gated {
                repo: name,
                page: self.page(repo),
                token,
            },
            (_, Some("RevisionNotFound")) => HubError::Revision {
                repo: name,
                revision: revision.to_owned(),
            },
            (404, Some("EntryNotFound")) if file.is_some() => HubError::Entry {
                repo: name,
                file: file.unwrap_or_default().to_owned(),
            },
            (401, Some("RepoNotFound")) => not_found(repo),
            (401, _) if token => HubError::Token,
            // The Hub does not tell strangers whether a private repository exists.
            (401 | 404, _) => not_found(repo),
            (403, _) => HubError::Forbidden {
                repo: name,
                message: message.unwrap_or_else(|| "it gives no reason".to_owned()),
            },
            (code, _) => {
                let said = message
                    .or_else(|| said(&answer.bytes().unwrap_or_default()))
                    .map_or(String::new(), |said| format!(": {said}"));
                self.senseless(format!("`{code}` for `{}`{said}", file.unwrap_or(&name)))
            }
        }
    }

    /// Asks for JSON.
    pub(crate) fn json(&self, ask: Ask, repo: &Repo, revision: &str) -> Result<Value, HubError> {
        let token = ask.token;
        let answer = self.client.send(ask)?;
        if !answer.status.is_success() {
            return Err(self.refusal(answer, repo, revision, None, token));
        }
        let bytes = answer.bytes().map_err(|error| HubError::Unreachable {
            endpoint: self.settings.endpoint.clone(),
            reason: crate::http::io_reason(&error, self.settings.patience),
        })?;
        serde_json::from_slice(&bytes)
            .map_err(|error| self.senseless(format!("{} is not JSON: {error}", ask.what)))
    }
}

impl Hub for Server<'_> {
    fn listing(&self, repo: &Repo, revision: &str) -> Result<Listing, HubError> {
        let url = format!(
            "{}/revision/{}?blobs=true",
            self.api(repo),
            in_segment(revision)
        );
        let what = format!("the files of `{repo}`");
        let ask = Ask {
            token: self.reading(),
            ..Ask::get(&url, &what)
        };
        let value = self.json(ask, repo, revision)?;
        let commit = value["sha"].as_str().filter(|sha| is_commit(sha));
        let commit =
            commit.ok_or_else(|| self.senseless(format!("{what} come without a commit")))?;
        let siblings = value["siblings"].as_array();
        let siblings = siblings.ok_or_else(|| self.senseless(format!("{what} are not listed")))?;
        let files = siblings.iter().map(|sibling| {
            let path = sibling["rfilename"].as_str().unwrap_or_default();
            if !is_safe_path(path) {
                return Err(self.senseless(format!("`{path}` is no path in a repository")));
            }
            let digits = |value: &Value| value.as_str().and_then(Hash::parse);
            let hash = match &sibling["lfs"] {
                Value::Object(lfs) => lfs.get("sha256").and_then(digits),
                _ => digits(&sibling["blobId"]),
            };
            Ok(RemoteFile {
                path: path.to_owned(),
                size: sibling["size"].as_u64(),
                hash,
            })
        });
        Ok(Listing {
            commit: commit.to_owned(),
            files: files.collect::<Result<_, _>>()?,
            license: license(&value["cardData"]),
            private: value["private"].as_bool().unwrap_or(false),
        })
    }

    fn details(&self, repo: &Repo, commit: &str, path: &str) -> Result<RemoteFile, HubError> {
        let url = self.address(repo, commit, path);
        let what = format!("`{path}`");
        let ask = Ask {
            method: &Method::HEAD,
            token: self.reading(),
            ..Ask::get(&url, &what)
        };
        let answer = self.client.send(ask)?;
        if !answer.status.is_success() {
            return Err(self.refusal(answer, repo, commit, Some(path), ask.token));
        }
        let size = text(&answer.first, "x-linked-size")
            .or_else(|| text(&answer.headers, "content-length"))
            .and_then(|size| size.parse().ok());
        Ok(RemoteFile {
            path: path.to_owned(),
            size,
            hash: etag(&answer.first),
        })
    }

    fn open(
        &self,
        repo: &Repo,
        commit: &str,
        file: &RemoteFile,
        from: u64,
    ) -> Result<Stream, HubError> {
        let url = self.address(repo, commit, &file.path);
        let what = format!("`{}`", file.path);
        let ask = Ask {
            token: self.reading(),
            from,
            ..Ask::get(&url, &what)
        };
        let answer = self.client.send(ask)?;
        if let (Some(now), Some(listed)) = (etag(&answer.first), &file.hash)
            && now != *listed
        {
            return Err(HubError::Changed {
                repo: repo.id().to_owned(),
                file: file.path.clone(),
            });
        }
        let from = match answer.status {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => {
                let start = text(&answer.headers, "content-range").and_then(|range| {
                    range
                        .strip_prefix("bytes ")?
                        .split('-')
                        .next()?
                        .parse()
                        .ok()
                });
                match start {
                    Some(start) if start == from => start,
                    _ => return Err(self.senseless(format!("{what} begins where it should not"))),
                }
            }
            // More is here than there is to be had: what is here is wrong.
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(HubError::Changed {
                    repo: repo.id().to_owned(),
                    file: file.path.clone(),
                });
            }
            _ => return Err(self.refusal(answer, repo, commit, Some(&file.path), ask.token)),
        };
        Ok(Stream {
            from,
            body: Box::new(answer.body.into_reader()),
        })
    }
}

/// The hash in the headers of a file: that of the large file behind a pointer, or else the file's own.
fn etag(headers: &HeaderMap) -> Option<Hash> {
    let tag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"))?;
    Hash::parse(tag.trim_start_matches("W/").trim_matches('"'))
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// What an error's body says.
fn said(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let text = value["error"].as_str().or(value["message"].as_str())?;
    Some(text.trim_end_matches('.').to_owned())
}

/// The licence of a card's front matter, with its own name where it is none of the Hub's.
fn license(card: &Value) -> Option<String> {
    let license = match &card["license"] {
        Value::String(license) => license.clone(),
        Value::Array(licenses) => {
            let names: Vec<&str> = licenses.iter().filter_map(Value::as_str).collect();
            names.join(", ")
        }
        _ => return None,
    };
    match card["license_name"].as_str() {
        Some(name) if license == "other" => Some(name.to_owned()),
        _ => Some(license).filter(|license| !license.is_empty()),
    }
}
