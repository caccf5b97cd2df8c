//! Files to a repository of the Hub, as one commit.
//!
//! [`Publication::look`] compares what is here with what is there and asks, but changes nothing;
//! [`Publication::send`] creates the repository where there is none, uploads large files to where the Hub
//! says, and makes one commit on top of the one that was looked at: a repository that somebody else has
//! changed meanwhile refuses it. A file that is there already is not sent, and where all are, nothing is
//! done.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use ureq::http::{Method, StatusCode};

use crate::digest::{Hash, Hasher};
use crate::error::HubError;
use crate::http::{Ask, Sent};
use crate::hub::{Hub, Listing, Server};
use crate::name::{Kind, Repo};

/// The branch that is written to.
const BRANCH: &str = "main";
/// What the Hub looks at to decide how a file is kept.
const SAMPLE: usize = 512;
/// Bytes read at once.
const PIECE: usize = 256 << 10;
/// A card longer than this is read by nobody.
const LONGEST_CARD: u64 = 4 << 20;

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// In a file here.
    File(PathBuf),
    /// In memory.
    Bytes(Vec<u8>),
}

/// A file to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its path in the repository.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    content: Content,
    sha256: Hash,
    git: Hash,
    sample: Vec<u8>,
}

impl Item {
    /// A file with its hashes. Of a large one no more than a piece is in memory at once.
    ///
    /// # Errors
    /// A file that cannot be read, or that grows while it is.
    pub fn new(path: &str, content: Content) -> Result<Self, HubError> {
        let (size, mut reader): (u64, Box<dyn Read + '_>) = match &content {
            Content::Bytes(bytes) => (bytes.len() as u64, Box::new(bytes.as_slice())),
            Content::File(file) => {
                let open = File::open(file).map_err(HubError::io("read", file))?;
                let size = open.metadata().map_err(HubError::io("read", file))?.len();
                (size, Box::new(open))
            }
        };
        let failed = |error: io::Error| {
            let named = match &content {
                Content::File(file) => file.clone(),
                Content::Bytes(_) => PathBuf::from(path),
            };
            HubError::io("read", named)(error)
        };
        let mut sha256 = Hasher::new(&Hash::Sha256(String::new()), size);
        let mut git = Hasher::new(&Hash::Git(String::new()), size);
        let mut sample = Vec::new();
        let mut piece = vec![0u8; PIECE];
        let mut seen = 0;
        loop {
            let count = reader.read(&mut piece).map_err(failed)?;
            if count == 0 {
                break;
            }
            let bytes = &piece[..count];
            sha256.update(bytes);
            git.update(bytes);
            sample.extend(bytes.iter().take(SAMPLE - sample.len()));
            seen += count as u64;
        }
        if seen != size {
            return Err(failed(io::Error::other("it changes while it is read")));
        }
        drop(reader);
        Ok(Self {
            path: path.to_owned(),
            size,
            sha256: Hash::Sha256(sha256.finish()),
            git: Hash::Git(git.finish()),
            sample,
            content,
        })
    }

    /// Whether a listed file holds the same bytes.
    fn is(&self, hash: Option<&Hash>) -> bool {
        match hash {
            Some(hash @ Hash::Sha256(_)) => *hash == self.sha256,
            Some(hash @ Hash::Git(_)) => *hash == self.git,
            None => false,
        }
    }

    /// Its bytes where it is a text, and nothing where it is kept as it is: weights and images.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn text(&self) -> Result<Vec<u8>, HubError> {
        let is_text = |path: &str| {
            [".json", ".md", ".jinja", ".txt", ".svg"]
                .iter()
                .any(|ending| path.ends_with(ending))
        };
        if is_text(&self.path) {
            return self.bytes();
        }
        Ok(Vec::new())
    }

    fn bytes(&self) -> Result<Vec<u8>, HubError> {
        match &self.content {
            Content::Bytes(bytes) => Ok(bytes.clone()),
            Content::File(path) => fs::read(path).map_err(HubError::io("read", path)),
        }
    }
}

/// How it is to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manner {
    /// A new repository is shown to its owner alone.
    pub private: bool,
    /// The commit is proposed and not made.
    pub pull_request: bool,
    /// The commit's first line.
    pub summary: String,
    /// Its other lines.
    pub description: String,
}

/// A repository as it stands before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct There {
    listing: Option<Listing>,
    /// Its card, where it has one.
    pub card: Option<Vec<u8>>,
}

impl There {
    /// Whether there is such a repository.
    pub fn exists(&self) -> bool {
        self.listing.is_some()
    }
}

/// What would be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Whether the repository is to be created.
    pub create: bool,
    /// The files that are sent.
    pub send: Vec<Item>,
    /// The files that are there already.
    pub same: Vec<Item>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The commit, or the pull request where one was asked for.
    pub url: String,
}

/// A repository that is published to.
pub struct Publication<'a> {
    server: &'a Server<'a>,
    repo: &'a Repo,
}

impl<'a> Publication<'a> {
    /// To a repository of a Hub. Nothing is asked yet.
    pub fn new(server: &'a Server<'a>, repo: &'a Repo) -> Self {
        Self { server, repo }
    }

    /// The repository as it stands.
    ///
    /// # Errors
    /// Offline, no access, no answer.
    pub fn look(&self) -> Result<There, HubError> {
        if self.server.settings.offline {
            return Err(HubError::OfflineWrite);
        }
        let listing = match self.server.listing(self.repo, BRANCH) {
            Ok(listing) => listing,
            Err(HubError::NotFound { .. }) => {
                return Ok(There {
                    listing: None,
                    card: None,
                });
            }
            Err(error) => return Err(error),
        };
        let card = listing.files.iter().find(|file| file.path == "README.md");
        let card = card
            .map(|file| {
                let stream = self.server.open(self.repo, &listing.commit, file, 0)?;
                let mut bytes = Vec::new();
                let mut body = stream.body.take(LONGEST_CARD);
                body.read_to_end(&mut bytes)
                    .map_err(|error| HubError::Unreachable {
                        endpoint: self.server.settings.endpoint.clone(),
                        reason: crate::http::io_reason(&error, self.server.settings.patience),
                    })?;
                let whole = file.size.is_none_or(|size| size == bytes.len() as u64);
                let right = file.hash.is_none()
                    || file.hash == Some(Hash::git(&bytes))
                    || file.hash == Some(Hash::sha256(&bytes));
                if whole && right {
                    return Ok(bytes);
                }
                Err(self.server.senseless("the card came damaged"))
            })
            .transpose()?;
        Ok(There {
            listing: Some(listing),
            card,
        })
    }

    /// What would be sent of these files.
    ///
    /// # Errors
    /// A private repository is asked for, and it is public already; a pull request to no repository.
    pub fn propose(
        &self,
        there: &There,
        files: Vec<Item>,
        manner: &Manner,
    ) -> Result<Proposal, HubError> {
        let unsuitable = |what: &str, hint: &str| HubError::Unsuitable {
            repo: self.repo.id().to_owned(),
            what: what.to_owned(),
            hint: hint.to_owned(),
        };
        let Some(listing) = &there.listing else {
            if manner.pull_request {
                return Err(unsuitable(
                    "there is no such repository to propose a change to",
                    "leave `--pull-request` out to create it",
                ));
            }
            return Ok(Proposal {
                create: true,
                send: files,
                same: Vec::new(),
            });
        };
        if manner.private && !listing.private {
            return Err(unsuitable(
                "it is there already, and public",
                "make it private in its settings on the Hub first, or leave `--private` out",
            ));
        }
        let (same, send) = files.into_iter().partition(|item| {
            let listed = listing.files.iter().find(|file| file.path == item.path);
            listed.is_some_and(|listed| item.is(listed.hash.as_ref()))
        });
        Ok(Proposal {
            create: false,
            send,
            same,
        })
    }

    /// Asks the Hub whether it would accept a card.
    ///
    /// # Errors
    /// The card is refused, with the Hub's reasons; no answer.
    pub fn check_card(&self, card: &[u8]) -> Result<(), HubError> {
        let url = format!("{}/api/validate-yaml", self.server.settings.endpoint);
        let kind = match self.repo.kind() {
            Kind::Model => "model",
            Kind::Dataset => "dataset",
        };
        let body = json!({"repoType": kind, "content": String::from_utf8_lossy(card)}).to_string();
        let ask = Ask {
            method: &Method::POST,
            body: Sent::Bytes("application/json", body.as_bytes()),
            ..Ask::get(&url, "the check of the card")
        };
        let answer = self.server.client.send(ask)?;
        let status = answer.status;
        let bytes = answer.bytes().unwrap_or_default();
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let errors = value["errors"].as_array().into_iter().flatten();
        let said: Vec<&str> = errors
            .filter_map(|error| error["message"].as_str().or(error.as_str()))
            .collect();
        if status.is_success() && said.is_empty() {
            return Ok(());
        }
        let what = match (said.is_empty(), value["error"].as_str()) {
            (false, _) => said.join("; "),
            (true, Some(error)) => error.to_owned(),
            (true, None) => {
                let text = String::from_utf8_lossy(&bytes);
                format!("it answers `{}` {}", status.as_u16(), text.trim())
            }
        };
        Err(HubError::Unsuitable {
            repo: self.repo.id().to_owned(),
            what: format!("the Hub refuses the card: {what}"),
            hint: "correct the keys of the recipe the card is made of (`license`, `language`, \
                   `dataset_name`, `tags`), then run `sparsam card` and publish again"
                .to_owned(),
        })
    }

    /// Sends what was proposed, as one commit. `None` where nothing had to be sent.
    ///
    /// # Errors
    /// No token, no access, no answer, a repository that was changed meanwhile. Before the commit
    /// nothing is visible but a new, empty repository.
    pub fn send(
        &self,
        there: &There,
        proposal: &Proposal,
        manner: &Manner,
    ) -> Result<Option<Published>, HubError> {
        if self.server.settings.token.is_none() {
            return Err(HubError::NoToken);
        }
        if proposal.send.is_empty() {
            return Ok(None);
        }
        if proposal.create {
            self.create(manner.private)?;
        }
        let large = self.which_are_large(&proposal.send)?;
        let (large, small): (Vec<_>, Vec<_>) = proposal
            .send
            .iter()
            .zip(large)
            .partition(|(_, large)| *large);
        let large: Vec<&Item> = large.into_iter().map(|(item, _)| item).collect();
        let small: Vec<&Item> = small.into_iter().map(|(item, _)| item).collect();
        if !large.is_empty() {
            self.upload(&large)?;
        }
        let parent = there
            .listing
            .as_ref()
            .map(|listing| listing.commit.as_str());
        self.commit(&large, &small, parent, manner).map(Some)
    }

    fn create(&self, private: bool) -> Result<(), HubError> {
        let url = format!("{}/api/repos/create", self.server.settings.endpoint);
        let (owner, name) = self.repo.id().split_once('/').unwrap_or_default();
        let mut body = json!({"name": name, "organization": owner, "private": private});
        if self.repo.kind() == Kind::Dataset {
            body["type"] = "dataset".into();
        }
        match self.post(&url, &body, "the new repository") {
            // Somebody was faster; the commit will say so where it matters.
            Err(HubError::Conflict { .. }) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Which files the Hub keeps outside of git.
    fn which_are_large(&self, items: &[Item]) -> Result<Vec<bool>, HubError> {
        let url = format!("{}/preupload/{BRANCH}", self.server.api(self.repo));
        let files: Vec<Value> = items
            .iter()
            .map(|item| {
                json!({
                    "path": item.path,
                    "size": item.size,
                    "sample": STANDARD.encode(&item.sample),
                })
            })
            .collect();
        let answer = self.post(&url, &json!({"files": files}), "how files are kept")?;
        let modes = answer["files"].as_array().into_iter().flatten();
        let modes: Vec<&Value> = modes.collect();
        let mode = |item: &Item| {
            let found = modes
                .iter()
                .find(|mode| mode["path"] == item.path.as_str())?;
            found["uploadMode"].as_str().map(|mode| mode == "lfs")
        };
        items
            .iter()
            .map(|item| {
                mode(item).ok_or_else(|| {
                    let what = format!("it does not say how `{}` is to be kept", item.path);
                    self.server.senseless(what)
                })
            })
            .collect()
    }

    /// Brings large files to where the Hub says, as Git LFS does; those that are there already stay.
    fn upload(&self, items: &[&Item]) -> Result<(), HubError> {
        const LFS: &str = "application/vnd.git-lfs+json";
        let url = format!("{}.git/info/lfs/objects/batch", self.server.page(self.repo));
        let objects: Vec<Value> = items
            .iter()
            .map(|item| json!({"oid": item.sha256.digits(), "size": item.size}))
            .collect();
        let body = json!({
            "operation": "upload",
            "transfers": ["basic"],
            "objects": objects,
            "hash_algo": "sha256",
            "ref": {"name": BRANCH},
        });
        let text = body.to_string();
        let accept = [("Accept".to_owned(), LFS.to_owned())];
        let ask = Ask {
            method: &Method::POST,
            token: true,
            body: Sent::Bytes(LFS, text.as_bytes()),
            headers: &accept,
            ..Ask::get(&url, "where large files go")
        };
        let answer = self.server.json(ask, self.repo, BRANCH)?;
        let objects = answer["objects"].as_array();
        let objects = objects.ok_or_else(|| self.server.senseless("no place for large files"))?;
        for item in items {
            let found = objects
                .iter()
                .find(|one| one["oid"] == item.sha256.digits());
            let found = found.ok_or_else(|| {
                let what = format!("it names no place for `{}`", item.path);
                self.server.senseless(what)
            })?;
            if let Some(message) = found["error"]["message"].as_str() {
                let what = format!("it does not take `{}`: {message}", item.path);
                return Err(self.server.senseless(what));
            }
            let actions = &found["actions"];
            let Some(href) = actions["upload"]["href"].as_str() else {
                continue; // It is there.
            };
            self.put(href, &actions["upload"]["header"], item)?;
            if let Some(href) = actions["verify"]["href"].as_str() {
                let body = json!({"oid": item.sha256.digits(), "size": item.size});
                let text = body.to_string();
                let headers = headers(&actions["verify"]["header"]);
                let ask = Ask {
                    method: &Method::POST,
                    // The token, where the Hub gives nothing else to show.
                    token: !headers.iter().any(|(name, _)| is_authorization(name)),
                    body: Sent::Bytes(LFS, text.as_bytes()),
                    headers: &headers,
                    ..Ask::get(href, "the check of a large file")
                };
                let answer = self.server.client.send(ask)?;
                if !answer.status.is_success() {
                    return Err(self.server.refusal(answer, self.repo, BRANCH, None, true));
                }
            }
        }
        Ok(())
    }

    fn put(&self, href: &str, given: &Value, item: &Item) -> Result<(), HubError> {
        let headers = headers(given);
        let bytes;
        let body = match &item.content {
            Content::File(path) => Sent::File(path, item.size),
            Content::Bytes(content) => {
                bytes = content.clone();
                Sent::Bytes("application/octet-stream", &bytes)
            }
        };
        let what = format!("`{}`", item.path);
        let ask = Ask {
            method: &Method::PUT,
            body,
            headers: &headers,
            ..Ask::get(href, &what)
        };
        let answer = self.server.client.send(ask)?;
        if answer.status.is_success() {
            return Ok(());
        }
        let what = format!(
            "`{}` for the upload of `{}`",
            answer.status.as_u16(),
            item.path
        );
        Err(self.server.senseless(what))
    }

    fn commit(
        &self,
        large: &[&Item],
        small: &[&Item],
        parent: Option<&str>,
        manner: &Manner,
    ) -> Result<Published, HubError> {
        let mut header = json!({
            "summary": manner.summary,
            "description": manner.description,
        });
        if let Some(parent) = parent {
            header["parentCommit"] = parent.into();
        }
        let mut lines = vec![json!({"key": "header", "value": header})];
        for item in small {
            lines.push(json!({"key": "file", "value": {
                "path": item.path,
                "encoding": "base64",
                "content": STANDARD.encode(item.bytes()?),
            }}));
        }
        for item in large {
            lines.push(json!({"key": "lfsFile", "value": {
                "path": item.path,
                "algo": "sha256",
                "oid": item.sha256.digits(),
                "size": item.size,
            }}));
        }
        let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
        let body = lines.join("\n") + "\n";
        let mut url = format!("{}/commit/{BRANCH}", self.server.api(self.repo));
        if manner.pull_request {
            url.push_str("?create_pr=1");
        }
        let answer = self.write(&url, "application/x-ndjson", body.as_bytes(), "the commit")?;
        let text = |key: &str| answer[key].as_str().map(str::to_owned);
        let url = text("pullRequestUrl").or_else(|| text("commitUrl"));
        Ok(Published {
            url: url.unwrap_or_else(|| self.server.page(self.repo)),
        })
    }

    fn post(&self, url: &str, body: &Value, what: &str) -> Result<Value, HubError> {
        self.write(url, "application/json", body.to_string().as_bytes(), what)
    }

    fn write(&self, url: &str, kind: &str, body: &[u8], what: &str) -> Result<Value, HubError> {
        let ask = Ask {
            method: &Method::POST,
            token: true,
            once: true,
            body: Sent::Bytes(kind, body),
            ..Ask::get(url, what)
        };
        let answer = self.server.client.send(ask)?;
        match answer.status {
            StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => {
                return Err(HubError::Conflict {
                    repo: self.repo.id().to_owned(),
                });
            }
            status if !status.is_success() => {
                return Err(self.server.refusal(answer, self.repo, BRANCH, None, true));
            }
            _ => {}
        }
        let bytes = answer.bytes().unwrap_or_default();
        Ok(serde_json::from_slice(&bytes).unwrap_or_default())
    }
}

fn headers(given: &Value) -> Vec<(String, String)> {
    let given = given.as_object().into_iter().flatten();
    given
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}

fn is_authorization(name: &str) -> bool {
    name.eq_ignore_ascii_case("authorization")
}
