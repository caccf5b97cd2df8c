//! The part of a project that a run belongs to. A model is the work of all of them, so the ledger sums
//! each one by itself.

use serde::{Deserialize, Serialize};

/// A stage of a model's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Gathering, cleaning, labelling or generating data.
    Data,
    /// Runs made to choose settings, whose results are not used.
    Search,
    /// Training what is used.
    Train,
    /// Measuring how good it is.
    Eval,
    /// Answering requests.
    Inference,
}

impl Stage {
    /// All of them, in the order in which a project goes through them.
    pub const ALL: [Self; 5] = [
        Self::Data,
        Self::Search,
        Self::Train,
        Self::Eval,
        Self::Inference,
    ];

    /// The word of the command line and of the files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Search => "search",
            Self::Train => "train",
            Self::Eval => "eval",
            Self::Inference => "inference",
        }
    }
}
