//! What can go wrong between here and the Hub, each with what to do about it.

use std::io;
use std::path::PathBuf;

/// Why something of the Hub is not here, or not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// Not `owner/name`.
    #[error("`{name}` is not a name on the Hub")]
    Name {
        /// What was given.
        name: String,
    },
    /// No branch, tag or commit can be called that.
    #[error("`{revision}` cannot be a branch, tag or commit")]
    RevisionName {
        /// What was given.
        revision: String,
    },
    /// An environment variable that cannot be meant.
    #[error("{name} {what}")]
    Variable {
        /// Its name.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The token holds what no token holds.
    #[error("HF_TOKEN, or the file with the token, holds no token of the Hub")]
    TokenForm,
    /// Offline, and not in the cache.
    #[error("`{repo}` at `{revision}` is not, or not wholly, in the cache `{}`, and HF_HUB_OFFLINE forbids to fetch it", cache.display())]
    Offline {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// The cache's folder.
        cache: PathBuf,
    },
    /// Offline, and something is to be sent.
    #[error("HF_HUB_OFFLINE is set, so nothing is sent to the Hub")]
    OfflineWrite,
    /// Its conditions must be accepted first.
    #[error("`{repo}` is gated: its owner wants conditions accepted before it is given out")]
    Gated {
        /// The repository.
        repo: String,
        /// Where to accept them.
        page: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// No such repository, or one that is not shown to everybody.
    #[error("there is no {kind} `{repo}` on the Hub, or it is private")]
    NotFound {
        /// `model` or `data set`.
        kind: &'static str,
        /// The repository.
        repo: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// No such branch, tag or commit.
    #[error("`{repo}` has no revision `{revision}`")]
    Revision {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
    },
    /// A file that was listed is not there.
    #[error("`{repo}` has no file `{file}` any more")]
    Entry {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
    },
    /// The token is not accepted.
    #[error("the Hub does not accept the token")]
    Token,
    /// There is no token.
    #[error("the Hub lets nobody write without a token")]
    NoToken,
    /// The token is accepted and not enough.
    #[error("the Hub refuses access to `{repo}`: {message}")]
    Forbidden {
        /// The repository.
        repo: String,
        /// What it says.
        message: String,
    },
    /// Too many requests, and it does not get better soon.
    #[error("the Hub has had too many requests from here{}", wait(*.seconds))]
    TooMany {
        /// How long it wants to be left alone.
        seconds: Option<u64>,
    },
    /// The Hub has trouble of its own.
    #[error("the Hub answered `{status}` for {what}, {attempts} times")]
    Server {
        /// The status.
        status: u16,
        /// What was asked.
        what: String,
        /// How often.
        attempts: u32,
    },
    /// No answer at all.
    #[error("cannot reach `{endpoint}`: {reason}")]
    Unreachable {
        /// The address.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// Nothing came any more.
    #[error("`{file}` stopped coming after {have} of {size} bytes: {reason}")]
    Stalled {
        /// The file.
        file: String,
        /// Bytes that are here.
        have: u64,
        /// Bytes there are.
        size: u64,
        /// Why.
        reason: String,
    },
    /// What came is not what was promised.
    #[error("`{file}` came with a wrong checksum: {found}, not {expected}")]
    Checksum {
        /// The file.
        file: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The file became another while it was fetched.
    #[error("`{file}` of `{repo}` changed while it was fetched")]
    Changed {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
    },
    /// An answer that makes no sense.
    #[error("the answer of `{endpoint}` cannot be used: {what}")]
    Answer {
        /// The address.
        endpoint: String,
        /// What is wrong with it.
        what: String,
    },
    /// Somebody else wrote at the same time.
    #[error("`{repo}` was changed by somebody else meanwhile")]
    Conflict {
        /// The repository.
        repo: String,
    },
    /// A repository without what is needed.
    #[error("`{repo}` cannot be used: {what}")]
    Unsuitable {
        /// The repository.
        repo: String,
        /// What is missing.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// The user wants it to stop.
    #[error("interrupted while fetching")]
    Interrupted,
    /// A file here.
    #[error("cannot {verb} `{}`: {source}", path.display())]
    Io {
        /// `read`, `write`, …
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn wait(seconds: Option<u64>) -> String {
    seconds.map_or(String::new(), |seconds| {
        format!(" and asks to wait {seconds} s")
    })
}

impl HubError {
    pub(crate) fn io(
        verb: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { verb, path, source }
    }

    /// Whether the command or recipe names what cannot be: the invocation's fault, not the run's.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Name { .. }
                | Self::RevisionName { .. }
                | Self::Variable { .. }
                | Self::NotFound { .. }
                | Self::Revision { .. }
                | Self::Unsuitable { .. }
        )
    }

    /// Whether the Hub could not be asked, so that what is known of it may serve instead.
    pub(crate) fn is_no_answer(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Server { .. } | Self::TooMany { .. }
        )
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        const TOKEN: &str = "make a token at https://huggingface.co/settings/tokens and put it into \
                             the environment as HF_TOKEN";
        let text = match self {
            Self::Name { .. } => {
                "a name has the form `owner/name`, of letters, digits, `-`, `_` and `.`"
            }
            Self::RevisionName { .. } => {
                "give a branch such as `main`, a tag, or the 40 digits of a commit"
            }
            Self::Variable { .. } => "set the environment variable to another value, or unset it",
            Self::TokenForm | Self::NoToken => TOKEN,
            Self::Offline { .. } => {
                "fetch it once with `sparsam fetch` where there is a network, or unset HF_HUB_OFFLINE"
            }
            Self::OfflineWrite => "unset HF_HUB_OFFLINE; what is sent depends on what is there",
            Self::Gated { page, token, .. } => {
                return Some(if *token {
                    format!(
                        "accept them at {page} with the account the token belongs to, and wait for the owner where he decides himself"
                    )
                } else {
                    format!(
                        "accept them at {page}, then set HF_TOKEN to a token of the same account"
                    )
                });
            }
            Self::NotFound { token: true, .. } => {
                "check the spelling; a private repository needs a token that may read it"
            }
            Self::NotFound { token: false, .. } => {
                "check the spelling; for a private repository set HF_TOKEN"
            }
            Self::Revision { .. } => {
                "the default is the branch `main`; the Hub lists the others under `Files and versions`"
            }
            Self::Entry { .. } => "try again; the repository was changed meanwhile",
            Self::Token => {
                "it may have expired: set HF_TOKEN to a new one, or unset it for public repositories"
            }
            Self::Forbidden { .. } => "use a token that may do this, of an account that may",
            Self::TooMany { .. } => {
                "wait and run the same command again, what came so far is kept; a token (HF_TOKEN) has a larger allowance"
            }
            Self::Server { .. } => "try again later; what came so far is kept",
            Self::Unreachable { .. } => {
                "check the network, the proxy and HF_ENDPOINT; what is in the cache can be used with HF_HUB_OFFLINE=1"
            }
            Self::Stalled { .. } => {
                "run the same command again, it goes on where it stopped; HF_HUB_DOWNLOAD_TIMEOUT sets the seconds to wait"
            }
            Self::Checksum { .. } => {
                "nothing of it was kept; run the command again, and suspect a proxy or the disk if it stays so"
            }
            Self::Changed { .. } => {
                "run the command again, or name a commit as the revision, which cannot change"
            }
            Self::Answer { .. } => "is HF_ENDPOINT the address of a Hub?",
            Self::Conflict { .. } => {
                "nothing was changed; run the same command again, it looks at what is there now"
            }
            Self::Interrupted => "the same command goes on where it stopped",
            Self::Unsuitable { hint, .. } => return Some(hint.clone()),
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull => {
                    "free some space, or set HF_HOME to a folder on another disk"
                }
                io::ErrorKind::PermissionDenied => "set HF_HOME to a folder you may write to",
                _ => return None,
            },
        };
        Some(text.to_owned())
    }
}
