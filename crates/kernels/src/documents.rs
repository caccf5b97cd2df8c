//! Where the documents of a batch begin and end.
//!
//! All documents of a batch are concatenated into one run of tokens. Nothing is padded, positions
//! restart in each document, and attention never crosses a boundary; a packed batch and an unpacked
//! one are therefore the same computation.

use std::ops::Range;
use std::sync::OnceLock;

use candle_core::Tensor;

use crate::rope::Positions;

/// Boundaries of the documents concatenated in one batch (`cu_seqlens` elsewhere).
#[derive(Debug)]
pub struct Documents {
    /// `[0, end of the first, …, tokens]`, strictly increasing.
    bounds: Vec<usize>,
    /// Where the tiles of a GPU's attention lie, by the size of the tiles: 16, 32, 64 and 128.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "GPUs ask for it"))]
    tiles: [OnceLock<Tensor>; 4],
}

impl Clone for Documents {
    fn clone(&self) -> Self {
        Self::bounded(self.bounds.clone())
    }
}

impl PartialEq for Documents {
    fn eq(&self, other: &Self) -> bool {
        self.bounds == other.bounds
    }
}

impl Eq for Documents {}

impl Documents {
    /// Documents of the given lengths in tokens, in order; empty ones are left out.
    pub fn from_lengths(lengths: &[usize]) -> Self {
        let mut bounds = vec![0];
        let mut end = 0;
        for &length in lengths.iter().filter(|&&length| length > 0) {
            end += length;
            bounds.push(end);
        }
        Self::bounded(bounds)
    }

    fn bounded(bounds: Vec<usize>) -> Self {
        Self {
            bounds,
            tiles: std::array::from_fn(|_| OnceLock::new()),
        }
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
    pub fn positions(&self) -> Positions {
        let positions = self.ranges().flat_map(|range| 0..range.len() as u32);
        Positions::new(positions.collect())
    }

    /// Tiles of `size` tokens (16, 32, 64 or 128) that do not cross documents, on a GPU: the first token of each with the
    /// begin and the end of its document, `[tiles · 3]`.
    #[cfg(feature = "cuda")]
    pub(crate) fn tiles(
        &self,
        size: usize,
        device: &candle_core::Device,
    ) -> candle_core::Result<&Tensor> {
        let kept = &self.tiles[size.ilog2() as usize - 4];
        crate::rope::copied(kept, || {
            let mut tiles = Vec::new();
            for range in self.ranges() {
                for first in range.clone().step_by(size) {
                    tiles.extend([first as u32, range.start as u32, range.end as u32]);
                }
            }
            let count = tiles.len();
            Tensor::from_vec(tiles, count, device)
        })
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
        assert_eq!(*documents.positions(), [0, 1, 2, 0, 1]);
        assert_eq!(documents.ranges().collect::<Vec<_>>(), [0..3, 3..5]);
        assert_eq!(documents.longest(), 3);
    }

    #[test]
    fn no_document_is_empty() {
        assert!(Documents::from_lengths(&[]).is_empty());
        assert_eq!(Documents::from_lengths(&[0]).tokens(), 0);
    }
}
