//! Training data, from a file to batches of ids.
//!
//! ```text
//! file ── formats ──▶ rows ── prepare (chat template, tokenizer, mask) ──▶ examples
//!      ── pack ──▶ rows of documents ── batches (seeded order) ──▶ ids, targets, boundaries
//! ```
//!
//! [`formats`] reads every file type into [`Row`]s and says which form it found; [`mask`] decides
//! which tokens are trained; [`labelled`] makes examples of texts and their classes; [`pack`] fills rows up to `max_length`; [`batches`] gives them out in an
//! order that depends on the seed and the epoch alone. Nothing here knows a model, only its tokenizer
//! and its chat template, and nothing prints.
//!
//! **There is no padding.** A batch is one run of tokens with the boundaries of its documents beside
//! it ([`Documents`]). A padding token that equals EOS, which elsewhere keeps models from learning to
//! stop, cannot matter here.

pub mod batches;
mod columns;
mod csv_file;
mod error;
pub mod formats;
mod json_file;
pub mod labelled;
pub mod mask;
pub mod pack;
mod parquet_file;
pub mod prepare;
pub mod questions;
pub mod shuffle;

pub use batches::{Batches, Order, Position};
pub use error::{DataError, Place};
pub use formats::{Columns, Container, Dataset, Format, Row};
pub use labelled::Labels;
pub use mask::TrainOn;
pub use prepare::{Examples, Overlong, PrepareOptions, PromptFormat, Statistics, prepare};

use sparsam_kernels::Documents;
use sparsam_kernels::cross_entropy::IGNORE;

/// One tokenised document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids, `[tokens]`.
    pub ids: Vec<u32>,
    /// `[tokens]`: whether a token is a target, that is, predicted from those before it and counted
    /// in the loss. The first token never is, as nothing comes before it.
    pub trained: Vec<bool>,
    /// The number of its class, where texts are classified; then no token is a target and the text as a whole is.
    pub label: Option<u32>,
}

impl Example {
    /// Number of targets.
    pub fn trained_tokens(&self) -> usize {
        if self.label.is_some() {
            return 1;
        }
        self.trained.iter().filter(|&&trained| trained).count()
    }
}

/// One forward and backward pass' worth of documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Ids of all documents one after the other, `[tokens]`.
    pub ids: Vec<u32>,
    /// `[tokens]`: the next token of the same document where it is trained, else [`IGNORE`]. Of a text that is
    /// classified, its class at its last token.
    pub targets: Vec<u32>,
    /// Where the documents begin and end.
    pub documents: Documents,
}

impl Batch {
    /// Concatenates documents.
    pub fn new<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let (mut ids, mut targets, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for example in examples {
            let next = example.ids.iter().zip(&example.trained).skip(1);
            targets.extend(next.map(|(&id, &trained)| if trained { id } else { IGNORE }));
            if !example.ids.is_empty() {
                targets.push(example.label.unwrap_or(IGNORE));
            }
            ids.extend_from_slice(&example.ids);
            lengths.push(example.ids.len());
        }
        Self {
            ids,
            targets,
            documents: Documents::from_lengths(&lengths),
        }
    }

    /// Number of targets, the divisor of the mean loss.
    pub fn trained_tokens(&self) -> usize {
        self.targets
            .iter()
            .filter(|&&target| target != IGNORE)
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_next_tokens_of_the_same_document() {
        let first = Example {
            ids: vec![1, 5, 6, 2],
            trained: vec![false, false, true, true],
            label: None,
        };
        let second = Example {
            ids: vec![1, 7],
            trained: vec![false, true],
            label: None,
        };
        let batch = Batch::new([&first, &second]);
        assert_eq!(batch.ids, [1, 5, 6, 2, 1, 7]);
        assert_eq!(batch.targets, [IGNORE, 6, 2, IGNORE, 7, IGNORE]);
        assert_eq!(batch.documents, Documents::from_lengths(&[4, 2]));
        assert_eq!(
            batch.trained_tokens(),
            first.trained_tokens() + second.trained_tokens()
        );
    }
}
