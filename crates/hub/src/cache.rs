//! The cache, laid out as Python's `huggingface_hub` lays it out, so that both find the same files.
//!
//! ```text
//! models--owner--name/
//!   blobs/HASH                     the bytes, named by what they hash to
//!   blobs/HASH.incomplete          a download that goes on where it stopped
//!   snapshots/COMMIT/PATH          a link to the blob
//!   refs/main                      the commit a branch stood at
//! .locks/models--owner--name/HASH.lock
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::digest::Hash;
use crate::error::HubError;
use crate::name::{Repo, is_commit, is_safe_path};

/// The part of the cache that belongs to one repository.
#[derive(Debug, Clone)]
pub(crate) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(crate) fn new(cache: &Path, repo: &Repo) -> Self {
        Self {
            root: cache.join(repo.folder()),
            locks: cache.join(".locks").join(repo.folder()),
        }
    }

    pub(crate) fn blob(&self, hash: &Hash) -> PathBuf {
        self.root.join("blobs").join(hash.digits())
    }

    pub(crate) fn incomplete(&self, hash: &Hash) -> PathBuf {
        let name = format!("{}.incomplete", hash.digits());
        self.root.join("blobs").join(name)
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The commit that a revision stood at when it was last asked for.
    pub(crate) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub(crate) fn remember(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_commit(revision) || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        create_parent(&path)?;
        let beside = path.with_file_name(format!(".writing-{}", std::process::id()));
        fs::write(&beside, commit).map_err(HubError::io("write", &beside))?;
        fs::rename(&beside, &path).map_err(HubError::io("write", &path))
    }

    /// Waits until nobody else writes this blob, Python included. On a file system without locks two
    /// downloads at once are the user's own affair.
    pub(crate) fn lock(&self, hash: &Hash) -> Result<File, HubError> {
        let path = self.locks.join(format!("{}.lock", hash.digits()));
        create_parent(&path)?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(HubError::io("write", &path))?;
        let _ = file.lock();
        Ok(file)
    }

    /// Gives a blob its name in a snapshot.
    pub(crate) fn point(&self, commit: &str, path: &str, hash: &Hash) -> Result<(), HubError> {
        debug_assert!(is_safe_path(path), "checked when it was listed");
        let pointer = self.snapshot(commit).join(path);
        let blob = self.blob(hash);
        if same_file(&pointer, &blob) {
            return Ok(());
        }
        create_parent(&pointer)?;
        let name = format!(".writing-{}", std::process::id());
        let beside = pointer.with_file_name(name);
        let _ = fs::remove_file(&beside);
        link(&beside, &blob, path, hash).map_err(HubError::io("write", &pointer))?;
        fs::rename(&beside, &pointer).map_err(HubError::io("write", &pointer))
    }

    /// The files of a snapshot that are there, by their paths.
    pub(crate) fn files(&self, commit: &str) -> Vec<String> {
        let root = self.snapshot(commit);
        let mut found = Vec::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(root.join(&folder)) else {
                continue;
            };
            for entry in entries.flatten() {
                let Ok(name) = entry.file_name().into_string() else {
                    continue;
                };
                let path = match folder.as_str() {
                    "" => name,
                    folder => format!("{folder}/{name}"),
                };
                // Through the link: one that leads nowhere is no file.
                match fs::metadata(entry.path()) {
                    Ok(metadata) if metadata.is_dir() => folders.push(path),
                    Ok(_) => found.push(path),
                    Err(_) => {}
                }
            }
        }
        found.sort();
        found
    }
}

fn same_file(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    real(one).is_some_and(|one| real(other) == Some(one))
}

/// A relative link, so that the cache can be moved.
#[cfg(unix)]
fn link(beside: &Path, _blob: &Path, path: &str, hash: &Hash) -> std::io::Result<()> {
    let up = "../".repeat(path.matches('/').count() + 2);
    std::os::unix::fs::symlink(format!("{up}blobs/{}", hash.digits()), beside)
}

/// Where links need special rights, the file itself.
#[cfg(not(unix))]
fn link(beside: &Path, blob: &Path, _path: &str, _hash: &Hash) -> std::io::Result<()> {
    fs::hard_link(blob, beside).or_else(|_| fs::copy(blob, beside).map(|_| ()))
}

pub(crate) fn create_parent(path: &Path) -> Result<(), HubError> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    fs::create_dir_all(parent).map_err(HubError::io("create", parent))
}
