//! Where the documents of a batch begin and end.
//!
//! All documents of a batch are concatenated into one run of tokens. Nothing is padded, positions
//! restart in each document, and attention never crosses a boundary; a packed batch and an unpacked
//! one are therefore the same computation.

use std::ops::Range;

/// Boundaries of the documents concatenated in one batch (`cu_seqlens` elsewhere).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Documents {
    /// `[0, end of the first, …, tokens]`, strictly increasing.
    bounds: Vec<usize>,
}

impl Documents {
    /// Documents of the given lengths in tokens, in order; empty ones are left out.
    pub fn from_lengths(lengths: &[usize]) -> Self {
        let mut bounds = vec![0];
        let mut end = 0;
        for &length in lengths.iter().filter(|&&length| length > 0) {
            end += length;
            bounds.push(end);
        }
        Self { bounds }
    }

    /// A single document.
    pub fn single(tokens: usize) -> Self {
        Self::from_lengths(&[tokens])
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tokens of all documents together.
    pub fn tokens(&self) -> usize {
        self.bounds[self.bounds.len() - 1]
    }

    /// Token range of each document.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.bounds.windows(2).map(|pair| pair[0]..pair[1])
    }

    /// Length of the longest document in tokens.
    pub fn longest(&self) -> usize {
        self.ranges().map(|range| range.len()).max().unwrap_or(0)
    }

    /// Position of every token within its document, `[tokens]`.
    pub fn positions(&self) -> Vec<u32> {
        self.ranges()
            .flat_map(|range| 0..range.len() as u32)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Documents;

    #[test]
    fn positions_restart_in_each_document() {
        let documents = Documents::from_lengths(&[3, 0, 2]);
        assert_eq!(documents.len(), 2);
        assert_eq!(documents.tokens(), 5);
        assert_eq!(documents.positions(), [0, 1, 2, 0, 1]);
        assert_eq!(documents.ranges().collect::<Vec<_>>(), [0..3, 3..5]);
        assert_eq!(documents.longest(), 3);
    }

    #[test]
    fn no_document_is_empty() {
        assert!(Documents::from_lengths(&[]).is_empty());
        assert_eq!(Documents::from_lengths(&[0]).tokens(), 0);
    }
}
