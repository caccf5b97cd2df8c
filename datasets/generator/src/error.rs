//! What can go wrong, in one sentence each, with a hint where there is something to do.

use std::path::PathBuf;

/// An error of the generators.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A grammar file does not parse.
    #[error("grammar `{file}`, line {line}: {what}")]
    Grammar {
        /// The grammar file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// A rule is used and nowhere defined.
    #[error("the grammar uses the rule `{rule}`, which it does not define")]
    UnknownRule {
        /// Its name.
        rule: String,
    },
    /// A rule has no alternatives.
    #[error("the grammar's rule `{rule}` has no alternatives")]
    EmptyRule {
        /// Its name.
        rule: String,
    },
    /// A slot's category is not in the lexicon.
    #[error("the lexicon has no category `{category}`")]
    UnknownCategory {
        /// Its name.
        category: String,
    },
    /// A slot asks for a form its category does not have.
    #[error("`{category}` has no form `{form}`")]
    UnknownForm {
        /// The category.
        category: String,
        /// The forms asked for.
        form: String,
    },
    /// The grammar is too small for the rows asked for.
    #[error("after {tries} tries only {found} of {wanted} different rows were found")]
    TooFew {
        /// Expansions tried.
        tries: usize,
        /// Rows kept.
        found: usize,
        /// Rows wanted.
        wanted: usize,
    },
    /// A corpus file holds a line that is not a row with a `text`.
    #[error("`{path}`, line {line}: not an object with a string `text`")]
    Row {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// The corpus is too small for the vocabulary.
    #[error("the corpus gives a vocabulary of {found} entries, not {wanted}")]
    Vocabulary {
        /// Entries found.
        found: usize,
        /// Entries wanted.
        wanted: usize,
    },
    /// The tokenizer could not be trained or written.
    #[error("the tokenizer: {0}")]
    Tokenizer(String),
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The weights could not be written.
    #[error("the weights: {0}")]
    Weights(#[from] safetensors::SafeTensorError),
}

impl Error {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Vocabulary { .. } => {
                Some("write a larger corpus: `sparsam-datasets corpus --megabytes 24`".into())
            }
            Self::TooFew { .. } => Some("ask for fewer rows, or add to the grammar".into()),
            Self::Row { .. } => {
                Some("`--corpus` wants the folder that `sparsam-datasets corpus` wrote".into())
            }
            Self::Io(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Some("`--corpus` wants the folder that `sparsam-datasets corpus` wrote".into())
            }
            _ => None,
        }
    }
}
