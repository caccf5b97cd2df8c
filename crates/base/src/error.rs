//! What can be wrong with a base model, said so that its owner can mend it.

use std::path::{Path, PathBuf};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with a base model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file or folder cannot be written.
    #[error("cannot write `{}`: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder that would be written holds something already.
    #[error("`{}` is there already and not an empty folder", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// A file does not hold what its name promises.
    #[error("`{}` {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file is sound, but not one that can be used here.
    #[error("`{}` {what}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A key of `config.json` cannot be honoured.
    #[error("config key `{key}` {what}")]
    Config {
        /// The key.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// A tensor is missing or does not fit the configuration.
    #[error("tensor `{name}` {what}")]
    Weight {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// A tensor that is to be quantised is so already.
    #[error("the model cannot be quantised: its tensor `{name}` is so already")]
    Quantized {
        /// The tensor.
        name: String,
    },
    /// A text cannot be continued.
    #[error("{what}")]
    Generation {
        /// What is wrong.
        what: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A weight cannot be put into the memory of a device.
    #[error("{source}")]
    Placed {
        /// How many bytes of weights are there.
        bytes: usize,
        /// Why.
        source: candle_core::Error,
    },
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

    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |source| Self::Write {
            path: path.to_owned(),
            source,
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

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Some(
                "a model folder holds config.json, tokenizer.json and model.safetensors".to_owned(),
            ),
            Self::Read { .. } | Self::Placed { .. } | Self::Tensor(_) => None,
            Self::Quantized { .. } => Some("leave `quantize` out".to_owned()),
            Self::Write { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull => Some("free some space".to_owned()),
                _ => Some("choose a folder that you may write to".to_owned()),
            },
            Self::Occupied { .. } => Some("name a folder that does not exist yet".to_owned()),
            Self::Generation { hint, .. } | Self::Unfit { hint, .. } => Some((*hint).to_owned()),
            Self::File { .. } => {
                Some("the file may be cut short, download or copy it again".to_owned())
            }
            Self::Config { .. } => {
                Some("choose another base model, or a version of it without this key".to_owned())
            }
            Self::Weight { .. } => {
                Some("config.json and the weights may be of different models".to_owned())
            }
        }
    }
}
