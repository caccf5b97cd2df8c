//! Names on the Hub: `owner/name`, a kind, a revision.
//!
//! Names become parts of addresses and of paths in the cache, so what is not a name is refused here, once.

use std::fmt::{self, Write as _};

use crate::error::HubError;

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A model or an adapter.
    Model,
    /// Data.
    Dataset,
}

impl Kind {
    /// `models` or `datasets`, as the Hub's routes and the cache spell it.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }
}

/// A repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repo {
    kind: Kind,
    id: String,
}

impl Repo {
    /// A repository by its name, `owner/name`.
    ///
    /// # Errors
    /// A name that no repository can have.
    pub fn new(kind: Kind, id: &str) -> Result<Self, HubError> {
        if is_name(id) {
            return Ok(Self {
                kind,
                id: id.to_owned(),
            });
        }
        Err(HubError::Name {
            name: id.to_owned(),
        })
    }

    /// What it holds.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// `owner/name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The part of its address that stands between the endpoint and the rest: nothing for models.
    pub(crate) fn prefix(&self) -> &'static str {
        match self.kind {
            Kind::Model => "",
            Kind::Dataset => "datasets/",
        }
    }

    /// Its folder in the cache, as Python's `huggingface_hub` names it.
    pub(crate) fn folder(&self) -> String {
        format!("{}--{}", self.kind.plural(), self.id.replace('/', "--"))
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}

/// Whether a text reads like `owner/name` as the Hub allows it: two parts of letters, digits, `-`, `_`
/// and `.`, at most 96 characters each, neither `--` nor `..` in them, no `-` or `.` at their ends.
pub fn is_name(text: &str) -> bool {
    let allowed = |part: &str| {
        (1..=96).contains(&part.len())
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("--")
            && !part.contains("..")
            && !part.to_ascii_lowercase().ends_with(".git")
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    text.split_once('/')
        .is_some_and(|(owner, name)| allowed(owner) && allowed(name))
}

/// Whether it is the whole hash of a commit.
pub(crate) fn is_commit(text: &str) -> bool {
    is_hexadecimal(text, 40)
}

pub(crate) fn is_hexadecimal(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Refuses a revision that would leave its place in the cache.
pub(crate) fn check_revision(revision: &str) -> Result<(), HubError> {
    let good = is_safe_path(revision)
        && revision
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"~^:?*[\\".contains(&b));
    if good {
        return Ok(());
    }
    Err(HubError::RevisionName {
        revision: revision.to_owned(),
    })
}

/// Whether a path of the Hub stays below the folder it is put into, on any system.
pub(crate) fn is_safe_path(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', ':', '\0'])
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

/// A path as it stands in an address; `/` stays.
pub(crate) fn in_address(path: &str) -> String {
    path.split('/')
        .map(in_segment)
        .collect::<Vec<_>>()
        .join("/")
}

/// One segment of an address.
pub(crate) fn in_segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_the_hub_accepts() {
        for name in ["Qwen/Qwen2.5-0.5B-Instruct", "a/b", "a_b/c.d"] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "",
            "gpt2",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "a/.b",
            "a/b--c",
            "a/b.git",
            "a/b c",
            "a/b?",
            "runs/it's",
        ] {
            assert!(!is_name(name), "{name}");
        }
        let repo = Repo::new(Kind::Dataset, "org/city-trees").unwrap();
        assert_eq!(repo.folder(), "datasets--org--city-trees");
    }

    #[test]
    fn paths_and_revisions_stay_below_their_folder() {
        assert!(is_safe_path("data/train-00000-of-00001.parquet"));
        for path in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a//b",
            "C:\\x",
            "a\\..\\b",
            ".",
        ] {
            assert!(!is_safe_path(path), "{path}");
        }
        for revision in ["main", "v1.0", "refs/pr/1"] {
            check_revision(revision).unwrap();
        }
        for revision in ["", "../main", "a b", "/main", "main~1"] {
            assert!(check_revision(revision).is_err(), "{revision}");
        }
    }

    #[test]
    fn addresses_are_escaped() {
        assert_eq!(in_segment("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(in_address("a b/ü.json"), "a%20b/%C3%BC.json");
    }
}
