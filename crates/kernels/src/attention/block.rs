//! Small serial products of blocks, on the microkernels of [`crate::gemm`].
//!
//! A right operand is packed once into [`Panels`] of the microkernel's width and used for many
//! blocks. A product is formed tile by tile, and for each tile the caller says which part of it
//! matters: above the diagonal and outside the window nothing is computed.

use std::ops::Range;

use crate::cpu::Level;
use crate::documents::Documents;
use crate::gemm::{Dense, Held, Piece, Pooled, Right, Scratch, Target, Tile, whole};
use crate::vector::{Real, levels};

/// The rows of one head, within the rows of all heads.
#[derive(Clone, Copy)]
pub(super) struct HeadRows<'a, T> {
    values: &'a [T],
    stride: usize,
    width: usize,
    rows: usize,
}

impl<'a, T: Real> HeadRows<'a, T> {
    /// The given rows of head `head` out of `heads` of `width` numbers.
    pub(super) fn new(
        values: &'a [T],
        heads: usize,
        width: usize,
        head: usize,
        rows: Range<usize>,
    ) -> Self {
        let stride = heads * width;
        Self {
            values: &values[rows.start * stride + head * width..],
            stride,
            width,
            rows: rows.len(),
        }
    }

    pub(super) fn row(&self, row: usize) -> &'a [T] {
        &self.values[row * self.stride..][..self.width]
    }

    /// The rows one after the other, times `factor`: `[rows, width]`.
    pub(super) fn scaled(&self, level: Level, factor: T) -> Vec<T> {
        let mut out = self.copied();
        scale::<T>(level, &mut out, factor);
        out
    }

    /// The rows one after the other: `[rows, width]`.
    pub(super) fn copied(&self) -> Vec<T> {
        let mut out = Vec::with_capacity(self.rows * self.width);
        for row in 0..self.rows {
            out.extend_from_slice(self.row(row));
        }
        out
    }

    fn matrix(&self) -> Dense<'a, T> {
        Dense::strided(self.values, self.rows, self.width, self.stride)
    }

    /// The same numbers as one head that stands alone.
    pub(super) fn alone(values: &'a [T], width: usize) -> Self {
        Self {
            values,
            stride: width,
            width,
            rows: values.len() / width,
        }
    }
}

/// A right operand, its numbers held as `H`, in panels of the microkernel's width, the last one filled up
/// with zeros.
pub(super) struct Panels<H: Pooled> {
    values: Scratch<H>,
    /// In numbers as they are held.
    depth: usize,
    tile: Tile,
}

/// The tile of blocks, which are wide in either direction.
fn tile<T: Real, H: Held<T>>(level: Level) -> Tile {
    H::tile(level, usize::MAX)
}

impl<H: Pooled> Panels<H> {
    /// The matrix as it is: depth runs over the head's rows, columns over its width.
    pub(super) fn plain<T: Real>(level: Level, head: &HeadRows<T>) -> Self
    where
        H: Held<T>,
    {
        Self::new(level, Right::Plain(&head.matrix()))
    }

    /// Its transpose: depth runs over the head's width, columns over its rows.
    pub(super) fn transposed<T: Real>(level: Level, head: &HeadRows<T>) -> Self
    where
        H: Held<T>,
    {
        Self::new(level, Right::Transposed(&head.matrix()))
    }

    fn new<T: Real>(level: Level, right: Right<T>) -> Self
    where
        H: Held<T>,
    {
        let tile = tile::<T, H>(level);
        let depth = right.depth().div_ceil(H::DEPTH);
        Self {
            values: whole::<T, H>(level, right, tile.columns),
            depth,
            tile,
        }
    }

    /// Columns of one panel.
    pub(super) fn width(&self) -> usize {
        self.tile.columns
    }

    /// Columns of all panels, the filled-up ones included.
    pub(super) fn columns(&self) -> usize {
        self.values.len() / self.depth.max(1)
    }
}

/// Every head of every document, with the document's tokens.
pub(super) fn problems(documents: &Documents, heads: usize) -> Vec<(Range<usize>, usize)> {
    let ranges = documents.ranges();
    ranges
        .flat_map(|range| (0..heads).map(move |head| (range.clone(), head)))
        .collect()
}

/// What blocks of queries gave, each `[heads, queries]` from a first token on, as `[heads, tokens]`.
pub(super) fn by_head<T: Real>(
    blocks: Vec<(usize, Vec<T>)>,
    heads: usize,
    tokens: usize,
) -> Vec<T> {
    let mut all = vec![T::ZERO; heads * tokens];
    for (first, numbers) in blocks {
        let count = numbers.len() / heads;
        for (head, numbers) in numbers.chunks_exact(count).enumerate() {
            all[head * tokens + first..][..count].copy_from_slice(numbers);
        }
    }
    all
}

/// The part of a tile that matters, in columns and in depth of the right operand. Beside it, within the pair
/// of its first and of its last number, `left` is 0 or the right operand ends.
pub(super) struct Part {
    pub(super) columns: Range<usize>,
    pub(super) depth: Range<usize>,
}

/// `out = left · right` (`+=` if `add`) for `rows` rows of `left`, which begins at the depth
/// `first_depth` of the right operand, an even one, as `out` does at its column `first_column`.
/// The caller holds a [`Multiplying`](crate::gemm::Multiplying).
///
/// `part` says for a range of rows what matters; whole panels that hold a part of it are computed,
/// others are left as they are.
pub(super) fn product<T: Real, H: Held<T>>(
    level: Level,
    rows: usize,
    (left, left_stride): (&[H], usize),
    right: &Panels<H>,
    (first_depth, first_column): (usize, usize),
    (out, stride): (&mut [T], usize),
    add: bool,
    part: impl Fn(Range<usize>) -> Part,
) {
    let tile = right.tile;
    let width = tile.columns;
    debug_assert_eq!(first_column % width, 0, "blocks begin at a panel's edge");
    debug_assert_eq!(first_depth % H::DEPTH, 0, "no pair is cut");
    let first_panel = first_column / width;
    let tiles = (0..rows).step_by(tile.rows).map(|row| {
        let height = tile.rows.min(rows - row);
        let part = part(row..row + height);
        let panels = part.columns.start / width..part.columns.end.div_ceil(width);
        let empty = part.columns.is_empty() || part.depth.is_empty();
        let depth = part.depth.start / H::DEPTH..part.depth.end.div_ceil(H::DEPTH);
        (row, height, if empty { 0..0 } else { panels }, depth)
    });
    let tiles: Vec<_> = tiles.collect();
    let first = tiles.iter().map(|tile| tile.2.start).min().unwrap_or(0);
    let last = tiles.iter().map(|tile| tile.2.end).max().unwrap_or(0);
    for panel in first.max(first_panel)..last {
        let numbers = &right.values[panel * right.depth * width..][..right.depth * width];
        for (row, height, panels, depth) in &tiles {
            if !panels.contains(&panel) {
                continue;
            }
            let piece = Piece {
                left: &left[row * left_stride + depth.start - first_depth / H::DEPTH..],
                stride: left_stride,
                depth: depth.len(),
            };
            let right = &numbers[depth.start * width..depth.end * width];
            let out = &mut out[row * stride + (panel - first_panel) * width..];
            let (pieces, target) = (std::iter::once(piece), Target::of_numbers(out, stride, add));
            H::multiply(level, tile, *height, pieces, right, target);
        }
    }
}

levels! {
    /// `values *= factor`
    fn scale<T: Real>(values: &mut [T], factor: T) {
        for value in values {
            *value *= factor;
        }
    }
}
