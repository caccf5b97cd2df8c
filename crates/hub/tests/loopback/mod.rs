//! A Hub on loopback: the real one's routes for listing, downloading with redirects to a second host, and
//! ranges, with faults on request.
//!
//! Both hosts are threads of the test itself. Every request is logged, so that a test can also say what was
//! not asked.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "shared by tests, each of which uses a part"
)]

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sparsam_hub::digest::Hash;

/// What goes wrong with a file, once or more often.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection ends after so many bytes of an answer.
    Cut(usize),
    /// Nothing comes any more after so many bytes.
    Stall(usize),
    /// Every piece of a few bytes takes a while.
    Slow,
    /// A byte is another.
    Corrupt,
    /// The whole file is sent whatever range was asked for.
    NoRange,
    /// An answer with this status and these headers.
    Status(u16, Vec<(String, String)>),
    /// The file has another ETag than the listing said.
    OtherEtag,
    /// The branch moves to a commit in which the file says this, and the old file is gone.
    Moves(Vec<u8>),
}

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub host: Host,
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// Which of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    Hub,
    Cdn,
}

/// A repository on the server.
#[derive(Debug, Clone, Default)]
pub struct Repository {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Counts commits; the hash is made of it.
    pub commits: u32,
    pub gated: bool,
    pub private: bool,
    /// Whether listings leave sizes and hashes out, as those of older servers do.
    pub terse: bool,
}

impl Repository {
    pub fn commit(&self) -> String {
        format!("{:040x}", 0xabc0_0000u64 + u64::from(self.commits))
    }
}

#[derive(Default)]
pub struct State {
    /// By `models/owner/name`.
    pub repositories: BTreeMap<String, Repository>,
    /// By path of the file or route; taken from the front, one for each request.
    pub faults: HashMap<String, Vec<Fault>>,
    pub log: Vec<Asked>,
    /// Large files that were uploaded, by SHA-256.
    pub large: HashMap<String, Vec<u8>>,
    /// Commits that were made or, where `proposed`, asked for.
    pub commits: Vec<Commit>,
}

/// A commit as it came.
#[derive(Debug, Clone)]
pub struct Commit {
    pub repository: String,
    pub summary: String,
    pub description: String,
    pub paths: Vec<String>,
    pub proposed: bool,
}

/// The token that this Hub accepts.
pub const TOKEN: &str = "hf_loopback_secret";

/// Files kept outside of git.
pub fn is_large(path: &str) -> bool {
    [".safetensors", ".parquet", ".bin", ".png"]
        .iter()
        .any(|end| path.ends_with(end))
}

/// The running server; it ends with the process.
#[derive(Clone)]
pub struct Loopback {
    pub state: Arc<Mutex<State>>,
    pub endpoint: String,
    pub cdn: String,
}

impl Loopback {
    pub fn start() -> Self {
        Self::start_on("127.0.0.1:0")
    }

    pub fn start_on(address: &str) -> Self {
        let hub = TcpListener::bind(address).expect("a port");
        let cdn = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = |listener: &TcpListener| {
            format!("http://{}", listener.local_addr().expect("an address"))
        };
        let server = Self {
            state: Arc::default(),
            endpoint: url(&hub),
            cdn: url(&cdn),
        };
        for (listener, host) in [(hub, Host::Hub), (cdn, Host::Cdn)] {
            let server = server.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let server = server.clone();
                    std::thread::spawn(move || server.serve(stream, host));
                }
            });
        }
        server
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panicked")
    }

    /// Puts files into a repository as one commit.
    pub fn put(&self, repository: &str, files: &[(&str, &[u8])]) {
        let mut state = self.state();
        let entry = state.repositories.entry(repository.to_owned()).or_default();
        entry.commits += 1;
        for (path, bytes) in files {
            entry.files.insert((*path).to_owned(), bytes.to_vec());
        }
    }

    pub fn with(&self, repository: &str, change: impl FnOnce(&mut Repository)) {
        change(
            self.state()
                .repositories
                .get_mut(repository)
                .expect("it is there"),
        );
    }

    pub fn fault(&self, path: &str, faults: &[Fault]) {
        self.state().faults.insert(path.to_owned(), faults.to_vec());
    }

    /// Requests so far, and forgets them.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().log)
    }

    fn serve(&self, mut stream: TcpStream, host: Host) {
        let _ = stream.set_nodelay(true);
        let Some(asked) = read(&stream, host) else {
            return;
        };
        self.state().log.push(asked.clone());
        let reply = match host {
            Host::Cdn => self.cdn(&asked),
            Host::Hub => self.hub(&asked),
        };
        // A client that has gone is a client that has gone.
        let _ = reply.write(&mut stream, &asked);
    }

    fn next_fault(&self, path: &str) -> Option<Fault> {
        let mut state = self.state();
        let faults = state.faults.get_mut(path)?;
        (!faults.is_empty()).then(|| faults.remove(0))
    }

    fn cdn(&self, asked: &Asked) -> Reply {
        let path = asked.path.split('?').next().unwrap_or_default();
        let digits = path.rsplit('/').next().unwrap_or_default();
        if asked.method == "PUT" {
            if Hash::sha256(&asked.body).digits() != digits {
                return Reply::status(400);
            }
            self.state()
                .large
                .insert(digits.to_owned(), asked.body.clone());
            return Reply::status(200);
        }
        let (path, bytes) = {
            let state = self.state();
            let found = state
                .repositories
                .values()
                .flat_map(|repository| &repository.files);
            let mut found = found.filter(|(_, bytes)| Hash::sha256(bytes).digits() == digits);
            match found.next() {
                Some((path, bytes)) => (path.clone(), bytes.clone()),
                None => return Reply::status(404),
            }
        };
        // Storage behind the Hub has ETags of its own.
        let headers = vec![(
            "ETag".to_owned(),
            "\"d41d8cd98f00b204e9800998ecf8427e\"".to_owned(),
        )];
        self.file(&path, bytes, headers, asked)
    }

    fn file(
        &self,
        path: &str,
        mut bytes: Vec<u8>,
        headers: Vec<(String, String)>,
        asked: &Asked,
    ) -> Reply {
        let fault = if asked.method == "GET" {
            self.next_fault(path)
        } else {
            None
        };
        match &fault {
            Some(Fault::Status(status, headers)) => {
                return Reply {
                    headers: headers.clone(),
                    ..Reply::status(*status)
                };
            }
            Some(Fault::Corrupt) => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
            _ => {}
        }
        let range = asked.header("range").strip_prefix("bytes=").map(|range| {
            let (from, to) = range.split_once('-').expect("a range");
            let from: usize = from.parse().expect("a number");
            let to = to
                .parse::<usize>()
                .map_or(bytes.len(), |to| (to + 1).min(bytes.len()));
            (from, to)
        });
        let mut reply = Reply {
            headers,
            body: bytes,
            fault: fault.clone(),
            ..Reply::status(200)
        };
        if let Some((from, to)) = range
            && !matches!(fault, Some(Fault::NoRange))
        {
            let whole = reply.body.len();
            if from >= whole {
                return Reply::status(416);
            }
            reply.body = reply.body[from..to].to_vec();
            reply.status = 206;
            reply.headers.push((
                "Content-Range".to_owned(),
                format!("bytes {from}-{}/{whole}", to - 1),
            ));
        }
        reply
    }

    fn hub(&self, asked: &Asked) -> Reply {
        let (path, _query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        if let Some(Fault::Status(status, headers)) = self.next_fault(path) {
            return Reply {
                headers,
                ..Reply::status(status)
            };
        }
        let segments: Vec<String> = path
            .trim_start_matches('/')
            .split('/')
            .map(decoded)
            .collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        if asked.method == "POST" {
            return self.written(asked, &segments);
        }
        match segments.as_slice() {
            ["api", kind, owner, name] => {
                self.info(asked, &format!("{kind}/{owner}/{name}"), "main")
            }
            ["api", kind, owner, name, "tree", revision, ..] => {
                self.tree(asked, &format!("{kind}/{owner}/{name}"), revision)
            }
            ["api", kind, owner, name, "revision", revision] => {
                self.info(asked, &format!("{kind}/{owner}/{name}"), revision)
            }
            ["datasets", owner, name, "resolve", revision, rest @ ..] => self.resolve(
                asked,
                &format!("datasets/{owner}/{name}"),
                revision,
                &rest.join("/"),
            ),
            [owner, name, "resolve", revision, rest @ ..] => self.resolve(
                asked,
                &format!("models/{owner}/{name}"),
                revision,
                &rest.join("/"),
            ),
            _ => Reply::status(404),
        }
    }

    /// What changes something, or looks as if it did.
    fn written(&self, asked: &Asked, segments: &[&str]) -> Reply {
        let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
        if let ["api", "validate-yaml"] = segments {
            return checked(body["content"].as_str().unwrap_or_default());
        }
        if asked.header("authorization") != format!("Bearer {TOKEN}") {
            return Reply::status(401);
        }
        match segments {
            ["api", "repos", "create"] => {
                let text = |key: &str| body[key].as_str().unwrap_or_default();
                let kind = if text("type") == "dataset" {
                    "datasets"
                } else {
                    "models"
                };
                let id = format!("{kind}/{}/{}", text("organization"), text("name"));
                let mut state = self.state();
                if state.repositories.contains_key(&id) {
                    return Reply::status(409);
                }
                let mut repository = Repository {
                    private: body["private"] == true,
                    commits: 1,
                    ..Repository::default()
                };
                repository
                    .files
                    .insert(".gitattributes".to_owned(), b"*.safetensors lfs\n".to_vec());
                state.repositories.insert(id, repository);
                Reply::json(&json!({"url": self.endpoint}))
            }
            ["api", kind, owner, name, "preupload", "main"] => {
                if let Err(reply) = self.find(asked, &format!("{kind}/{owner}/{name}"), "main") {
                    return reply;
                }
                let files = body["files"].as_array().expect("files").iter().map(|file| {
                    let path = file["path"].as_str().expect("a path");
                    let mode = if is_large(path) { "lfs" } else { "regular" };
                    json!({"path": path, "uploadMode": mode, "shouldIgnore": false})
                });
                Reply::json(&json!({"files": files.collect::<Vec<_>>()}))
            }
            [_, _, "info", "lfs", "objects", "batch"] => {
                let state = self.state();
                let objects = body["objects"].as_array().expect("objects").iter().map(|object| {
                    let oid = object["oid"].as_str().expect("an oid");
                    let mut place = json!({"oid": oid, "size": object["size"]});
                    if !state.large.contains_key(oid) {
                        let header = json!({"Authorization": format!("Bearer {TOKEN}")});
                        place["actions"] = json!({
                            "upload": {"href": format!("{}/upload/{oid}?signed=yes", self.cdn), "header": {}},
                            "verify": {"href": format!("{}/verify", self.endpoint), "header": header},
                        });
                    }
                    place
                });
                Reply::json(&json!({"transfer": "basic", "objects": objects.collect::<Vec<_>>()}))
            }
            ["verify"] => {
                let oid = body["oid"].as_str().unwrap_or_default();
                let state = self.state();
                let size = state.large.get(oid).map(|bytes| bytes.len() as u64);
                if size.is_some() && size == body["size"].as_u64() {
                    Reply::json(&json!({}))
                } else {
                    Reply::status(404)
                }
            }
            ["api", kind, owner, name, "commit", "main"] => {
                self.commit(asked, &format!("{kind}/{owner}/{name}"))
            }
            _ => Reply::status(404),
        }
    }

    fn commit(&self, asked: &Asked, id: &str) -> Reply {
        let found = match self.find(asked, id, "main") {
            Ok(found) => found,
            Err(reply) => return reply,
        };
        let text = String::from_utf8(asked.body.clone()).expect("UTF-8");
        let mut files = BTreeMap::new();
        let mut made = Commit {
            repository: id.to_owned(),
            summary: String::new(),
            description: String::new(),
            paths: Vec::new(),
            proposed: asked.path.contains("create_pr=1"),
        };
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let value = &line["value"];
            let field = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
            match line["key"].as_str() {
                Some("header") => {
                    (made.summary, made.description) = (field("summary"), field("description"));
                    if value["parentCommit"].is_string() && field("parentCommit") != found.commit()
                    {
                        return Reply::status(412);
                    }
                }
                Some("file") => {
                    assert!(!is_large(&field("path")), "a large file came inline");
                    let bytes = STANDARD.decode(field("content")).expect("base64");
                    files.insert(field("path"), bytes);
                }
                Some("lfsFile") => {
                    let Some(bytes) = self.state().large.get(&field("oid")).cloned() else {
                        return Reply::status(400);
                    };
                    files.insert(field("path"), bytes);
                }
                other => panic!("a commit of {other:?}"),
            }
        }
        made.paths = files.keys().cloned().collect();
        let proposed = made.proposed;
        self.state().commits.push(made);
        let page = format!("{}/{}", self.endpoint, id.trim_start_matches("models/"));
        if proposed {
            let url = format!("{page}/discussions/1");
            return Reply::json(
                &json!({"success": true, "pullRequestUrl": url, "commitUrl": page}),
            );
        }
        self.with(id, |repository| {
            repository.commits += 1;
            repository.files.extend(files);
        });
        let oid = self.state().repositories[id].commit();
        Reply::json(&json!({
            "success": true, "commitOid": oid, "commitUrl": format!("{page}/commit/{oid}"),
        }))
    }

    /// The repository, if this one may see it at this revision.
    fn find(&self, asked: &Asked, id: &str, revision: &str) -> Result<Repository, Reply> {
        let refusal = |status, code: &str| {
            let header = ("X-Error-Code".to_owned(), code.to_owned());
            Reply {
                headers: vec![header],
                ..Reply::status(status)
            }
        };
        let known = match asked.header("authorization") {
            "" => false,
            given if given == format!("Bearer {TOKEN}") => true,
            _ => return Err(Reply::status(401)),
        };
        let missing = || refusal(if known { 404 } else { 401 }, "RepoNotFound");
        let found = self
            .state()
            .repositories
            .get(id)
            .cloned()
            .ok_or_else(missing)?;
        if found.private && !known {
            return Err(missing());
        }
        if found.gated {
            return Err(refusal(if known { 403 } else { 401 }, "GatedRepo"));
        }
        if revision != "main" && revision != found.commit() {
            return Err(refusal(404, "RevisionNotFound"));
        }
        Ok(found)
    }

    fn tree(&self, asked: &Asked, id: &str, revision: &str) -> Reply {
        let found = match self.find(asked, id, revision) {
            Ok(found) => found,
            Err(reply) => return reply,
        };
        let entries = found.files.iter().map(|(path, bytes)| {
            let mut entry = json!({
                "type": "file", "path": path, "size": bytes.len(), "oid": Hash::git(bytes).digits(),
            });
            if is_large(path) {
                entry["lfs"] = json!({
                    "oid": Hash::sha256(bytes).digits(), "size": bytes.len(), "pointerSize": 134,
                });
            }
            entry
        });
        Reply::json(&Value::Array(entries.collect()))
    }

    fn info(&self, asked: &Asked, id: &str, revision: &str) -> Reply {
        let found = match self.find(asked, id, revision) {
            Ok(found) => found,
            Err(reply) => return reply,
        };
        let siblings = found.files.iter().map(|(path, bytes)| {
            if found.terse || !asked.path.contains("blobs=") {
                return json!({"rfilename": path});
            }
            let mut sibling = json!({
                "rfilename": path, "size": bytes.len(), "blobId": Hash::git(bytes).digits(),
            });
            if is_large(path) {
                sibling["lfs"] = json!({
                    "sha256": Hash::sha256(bytes).digits(), "size": bytes.len(), "pointerSize": 134,
                });
            }
            sibling
        });
        let id = id.split_once('/').expect("a kind").1;
        let mut value = json!({
            "id": id, "modelId": id, "sha": found.commit(), "private": found.private, "gated": false,
            "disabled": false, "downloads": 0, "likes": 0, "tags": [],
            "siblings": siblings.collect::<Vec<_>>(),
        });
        if let Some(card) = found.files.get("README.md") {
            let card = String::from_utf8_lossy(card);
            if let Some(license) = card.lines().find_map(|line| line.strip_prefix("license: ")) {
                value["cardData"] = json!({"license": license});
            }
        }
        Reply::json(&value)
    }

    fn resolve(&self, asked: &Asked, id: &str, revision: &str, path: &str) -> Reply {
        let found = match self.find(asked, id, revision) {
            Ok(found) => found,
            Err(reply) => return reply,
        };
        let Some(bytes) = found.files.get(path).cloned() else {
            let header = ("X-Error-Code".to_owned(), "EntryNotFound".to_owned());
            return Reply {
                headers: vec![header],
                ..Reply::status(404)
            };
        };
        let mut headers = vec![("X-Repo-Commit".to_owned(), found.commit())];
        let other = {
            let mut state = self.state();
            let faults = state.faults.get_mut(path);
            match faults.filter(|faults| asked.method == "GET" && !faults.is_empty()) {
                Some(faults) if matches!(faults[0], Fault::OtherEtag | Fault::Moves(_)) => {
                    Some(faults.remove(0))
                }
                _ => None,
            }
        };
        let large = is_large(path);
        let mut tag = if large {
            Hash::sha256(&bytes)
        } else {
            Hash::git(&bytes)
        };
        match other {
            Some(Fault::Moves(new)) => {
                tag = if large {
                    Hash::sha256(&new)
                } else {
                    Hash::git(&new)
                };
                self.with(id, |repository| {
                    repository.commits += 1;
                    repository.files.insert(path.to_owned(), new);
                });
            }
            Some(_) => tag = Hash::sha256(b"another file"),
            None => {}
        }
        let tag = format!("\"{}\"", tag.digits());
        if large {
            headers.push(("X-Linked-Etag".to_owned(), tag));
            headers.push(("X-Linked-Size".to_owned(), bytes.len().to_string()));
            let target = format!("{}/files/{}", self.cdn, Hash::sha256(&bytes).digits());
            headers.push(("Location".to_owned(), target));
            return Reply {
                headers,
                ..Reply::status(302)
            };
        }
        headers.push(("ETag".to_owned(), tag));
        self.file(path, bytes, headers, asked)
    }
}

/// An answer.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub fault: Option<Fault>,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            fault: None,
        }
    }

    pub fn json(value: &Value) -> Self {
        let kind = ("Content-Type".to_owned(), "application/json".to_owned());
        Self {
            headers: vec![kind],
            body: value.to_string().into_bytes(),
            ..Self::status(200)
        }
    }

    fn write(&self, stream: &mut TcpStream, asked: &Asked) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Answer\r\nConnection: close\r\n", self.status);
        let mut header = |name: &str, value: &str| {
            head.extend([name, ": ", value, "\r\n"]);
        };
        header("Content-Length", &self.body.len().to_string());
        for (name, value) in &self.headers {
            header(name, value);
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        if asked.method == "HEAD" {
            return Ok(());
        }
        match self.fault {
            Some(Fault::Cut(after)) => stream.write_all(&self.body[..after.min(self.body.len())]),
            Some(Fault::Stall(after)) => {
                stream.write_all(&self.body[..after.min(self.body.len())])?;
                std::thread::sleep(Duration::from_secs(3));
                Ok(())
            }
            Some(Fault::Slow) => {
                for piece in self.body.chunks(self.body.len() / 8 + 1) {
                    stream.write_all(piece)?;
                    std::thread::sleep(Duration::from_millis(50));
                }
                Ok(())
            }
            _ => stream.write_all(&self.body),
        }
    }
}

/// The Hub's check of a card, as far as these tests need it.
fn checked(content: &str) -> Reply {
    let wrong = if !content.starts_with("---\n") {
        Some("Invalid metadata: it does not begin the file")
    } else if content.contains("\nlicense: no-such-licence\n") {
        Some("\"license\" must be one of [apache-2.0, mit, …]")
    } else {
        None
    };
    let errors: Vec<Value> = wrong
        .iter()
        .map(|message| json!({"message": message}))
        .collect();
    let status = if errors.is_empty() { 200 } else { 400 };
    Reply {
        status,
        ..Reply::json(&json!({"errors": errors, "warnings": []}))
    }
}

fn read(stream: &TcpStream, host: Host) -> Option<Asked> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = Vec::new();
    if let Some(length) = headers.get("content-length") {
        body.resize(length.parse().ok()?, 0);
        reader.read_exact(&mut body).ok()?;
    } else if headers
        .get("transfer-encoding")
        .is_some_and(|value| value.contains("chunked"))
    {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).ok()?;
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            let mut piece = vec![0; size + 2];
            reader.read_exact(&mut piece).ok()?;
            if size == 0 {
                break;
            }
            body.extend_from_slice(&piece[..size]);
        }
    }
    Some(Asked {
        host,
        method,
        path,
        headers,
        body,
    })
}

fn decoded(segment: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = segment.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' && after.len() >= 2 {
            let digits = std::str::from_utf8(&after[..2]).expect("ASCII");
            bytes.push(u8::from_str_radix(digits, 16).expect("two digits"));
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}
