//! What can go wrong around an adapter, said so that its owner can mend it.

use std::path::{Path, PathBuf};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong around an adapter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {verb} `{}`: {source}", path.display())]
    Io {
        /// `read` or `write`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file does not hold what its name promises.
    #[error("`{}` {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A setting of the adapter cannot be honoured.
    #[error("adapter setting `{key}` {what}")]
    Config {
        /// The setting.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// A setting in an adapter's own file cannot be honoured.
    #[error("`{}`: setting `{key}` {what}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The setting.
        key: String,
        /// What is wrong with it.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// A tensor of an adapter's file has a name that PEFT would not apply.
    #[error("`{}` holds a tensor `{name}`, {what}", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong with its name.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// A tensor does not fit the base model.
    #[error("adapter tensor `{name}` {what}")]
    Weight {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// A format cannot hold what is to be written in it.
    #[error("{what}")]
    Format {
        /// Which, and what.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// Training cannot go on.
    #[error("{what}")]
    Training {
        /// Why.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// The base model.
    #[error(transparent)]
    Base(#[from] sparsam_base::error::Error),
    /// An operation on tensors failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn config(key: &str, what: impl Into<String>) -> Self {
        Self::Config {
            key: key.to_owned(),
            what: what.into(),
        }
    }

    pub(crate) fn file(path: &Path, what: impl Into<String>) -> Self {
        Self::File {
            path: path.to_owned(),
            what: what.into(),
        }
    }

    pub(crate) fn weight(name: &str, what: impl Into<String>) -> Self {
        Self::Weight {
            name: name.to_owned(),
            what: what.into(),
        }
    }

    pub(crate) fn training(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Training {
            what: what.into(),
            hint: hint.into(),
        }
    }

    pub(crate) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |source| Self::Io {
            verb: "read",
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |source| Self::Io {
            verb: "write",
            path: path.to_owned(),
            source,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { source, verb, .. } => match source.kind() {
                std::io::ErrorKind::NotFound if *verb == "read" => Some(
                    "an adapter folder holds adapter_config.json and adapter_model.safetensors"
                        .to_owned(),
                ),
                std::io::ErrorKind::StorageFull => {
                    Some("free some space, nothing was left half written".to_owned())
                }
                std::io::ErrorKind::PermissionDenied => {
                    Some("choose a folder that you may write to".to_owned())
                }
                _ => None,
            },
            Self::File { .. } => {
                Some("the file may be cut short, copy or train it again".to_owned())
            }
            Self::Weight { .. } => {
                Some("the adapter may have been trained on another base model".to_owned())
            }
            Self::Format { hint, .. } if hint.is_empty() => None,
            Self::Format { hint, .. }
            | Self::Training { hint, .. }
            | Self::Setting { hint, .. }
            | Self::Name { hint, .. } => Some(hint.clone()),
            Self::Base(error) => error.hint(),
            Self::Config { .. } | Self::Tensor(_) => None,
        }
    }
}
