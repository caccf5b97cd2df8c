//! Matrix products over operands in any stored form.
//!
//! One driver serves every product of a training step: forward (`x · Wᵀ`), input gradient
//! (`dy · W`) and weight gradient (`dyᵀ · x`), over a weight that may be stored as f32, bf16 or
//! quantised. A stored form has to do one thing, [`Rows::fill`]: write a piece of one row as plain
//! numbers. The driver asks for the pieces of one panel at a time and packs them for the
//! microkernel, so a quantised weight is never expanded whole.
//!
//! A product is a sum of [`Term`]s that share their output. A low-rank branch is a second term of
//! small depth behind the frozen one, and the input gradients of q, k and v are three terms of one
//! product; neither costs a pass of its own over the output.
//!
//! Blocking follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
//! (ACM TOMS 34(3), 2008), except that the left operand is not packed where its rows are contiguous:
//! the microkernel broadcasts from them directly. Each output element is summed in an order that
//! depends on the shapes alone, so results are the same bits on any number of threads.

mod few_rows;
#[allow(clippy::wildcard_imports, reason = "the vector instructions")]
mod kernel;
mod pack;

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

pub use kernel::{Kernel, Pair, Product, Target, Tile};
pub use pack::Dense;
use pack::Held;
pub(crate) use pack::round;

use crate::cpu::Level;
use crate::vector::Real;

/// Greatest depth of one block, in numbers.
const DEPTH_BLOCK: usize = 576;
/// Columns packed at a time: with [`DEPTH_BLOCK`] the packed block, 576 KiB in f32, stays in a core's
/// second-level cache of 1 MiB.
const COLUMN_BLOCK: usize = 256;
/// Rows of a task: they stay in that cache beside the packed block.
const ROW_BLOCK: usize = 48;
/// At most this many rows are multiplied by dot products along the stored rows.
const FEW_ROWS: usize = 12;

/// A matrix stored row by row in any form.
pub trait Rows<T>: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;
    /// Number of columns.
    fn columns(&self) -> usize;
    /// Writes `self[row, columns]` to `out`, whose length is that of `columns`.
    fn fill(&self, row: usize, columns: Range<usize>, out: &mut [T]);
    /// The matrix as a plain slice with its row stride, where it is stored so.
    fn dense(&self) -> Option<(&[T], usize)> {
        None
    }
    /// Whether products with it may be of numbers rounded to bf16, both operands'; their sums are not.
    /// They are where the processor multiplies those faster.
    fn rounded(&self) -> bool {
        false
    }
    /// [`Rows::fill`], rounded to bf16.
    fn fill_bf16(&self, row: usize, columns: Range<usize>, out: &mut [bf16]);
}

/// The right operand of a product.
#[derive(Clone, Copy)]
pub enum Right<'a, T> {
    /// The matrix as it is: depth runs over its rows.
    Plain(&'a dyn Rows<T>),
    /// Its transpose: depth runs over its columns.
    Transposed(&'a dyn Rows<T>),
}

impl<'a, T> Right<'a, T> {
    fn matrix(&self) -> &'a dyn Rows<T> {
        match self {
            Self::Plain(matrix) | Self::Transposed(matrix) => *matrix,
        }
    }

    fn depth(&self) -> usize {
        match self {
            Self::Plain(matrix) => matrix.rows(),
            Self::Transposed(matrix) => matrix.columns(),
        }
    }

    fn columns(&self) -> usize {
        match self {
            Self::Plain(matrix) => matrix.columns(),
            Self::Transposed(matrix) => matrix.rows(),
        }
    }
}

/// The left operand of a product: a strided view of plain numbers.
#[derive(Clone, Copy)]
pub struct Left<'a, T> {
    values: &'a [T],
    rows: usize,
    depth: usize,
    row_stride: usize,
    depth_stride: usize,
}

impl<'a, T> Left<'a, T> {
    /// `values` as a matrix `[rows, depth]`, row by row.
    pub fn plain(values: &'a [T], rows: usize, depth: usize) -> Self {
        assert_eq!(
            values.len(),
            rows * depth,
            "left operand: length does not fit its shape"
        );
        Self {
            values,
            rows,
            depth,
            row_stride: depth,
            depth_stride: 1,
        }
    }

    /// The transpose of `values`, which is a matrix `[depth, rows]`, row by row.
    pub fn transposed(values: &'a [T], depth: usize, rows: usize) -> Self {
        assert_eq!(
            values.len(),
            rows * depth,
            "left operand: length does not fit its shape"
        );
        Self {
            values,
            rows,
            depth,
            row_stride: 1,
            depth_stride: rows,
        }
    }

    /// The columns `depth` of a plain left operand.
    #[must_use]
    pub fn narrow(self, depth: Range<usize>) -> Self {
        assert!(
            depth.end <= self.depth,
            "left operand: columns out of range"
        );
        let values = &self.values[(depth.start * self.depth_stride).min(self.values.len())..];
        Self {
            values,
            depth: depth.len(),
            ..self
        }
    }
}

/// One summand of a product, `left · right`.
#[derive(Clone, Copy)]
pub struct Term<'a, T> {
    /// `[rows, depth]`
    pub left: Left<'a, T>,
    /// `[depth, columns]`
    pub right: Right<'a, T>,
}

/// Computes `out = Σ left·right` (or `out += …` if `accumulate`) for `out` of `[rows, columns]`.
///
/// Where one of the right operands allows it ([`Rows::rounded`]) and the processor multiplies them faster,
/// all operands are rounded to bf16; the sums are of `T`.
///
/// # Panics
/// If the shapes of the terms and of `out` do not fit; callers check the shapes users control.
pub fn gemm<T: Real>(terms: &[Term<T>], columns: usize, out: &mut [T], accumulate: bool) {
    gemm_at(Level::detect(), terms, columns, out, accumulate);
}

/// [`gemm`] at a given instruction level, which must not exceed [`Level::detect`]'s.
pub fn gemm_at<T: Real>(
    level: Level,
    terms: &[Term<T>],
    columns: usize,
    out: &mut [T],
    accumulate: bool,
) {
    assert!(
        level <= Level::detect(),
        "the processor lacks the instructions of {level:?}"
    );
    let rows = terms.first().map_or(0, |term| term.left.rows);
    assert_eq!(
        out.len(),
        rows * columns,
        "product: output length does not fit its shape"
    );
    for term in terms {
        assert_eq!(term.left.rows, rows, "product: terms differ in rows");
        assert_eq!(
            term.right.columns(),
            columns,
            "product: terms differ in columns"
        );
        assert_eq!(
            term.right.depth(),
            term.left.depth,
            "product: depths of a term differ"
        );
    }
    if out.is_empty() {
        return;
    }
    if !accumulate && terms.iter().all(|term| term.left.depth == 0) {
        out.fill(T::ZERO);
        return;
    }
    let few = rows <= FEW_ROWS
        && terms
            .iter()
            .all(|term| matches!(term.right, Right::Transposed(_)) && term.left.depth_stride == 1);
    if few {
        few_rows::multiply(level, terms, rows, columns, out, accumulate);
        return;
    }
    if T::pairs_are_faster(level) && terms.iter().any(|term| term.right.matrix().rounded()) {
        blocked::<T, Pair>(level, terms, columns, out, accumulate);
    } else {
        blocked::<T, T>(level, terms, columns, out, accumulate);
    }
}

/// [`gemm_at`] of checked operands that are packed, their numbers held as `H`.
fn blocked<T: Real, H: Held<T>>(
    level: Level,
    terms: &[Term<T>],
    columns: usize,
    out: &mut [T],
    accumulate: bool,
) {
    let rows = out.len() / columns;
    let blocks = depth_blocks(terms);
    let tile = T::tile(level, columns);
    let mut packed = Vec::new();
    for first in (0..columns).step_by(COLUMN_BLOCK) {
        let range = first..columns.min(first + COLUMN_BLOCK);
        let panels = range.len().div_ceil(tile.columns);
        for (index, block) in blocks.iter().enumerate() {
            let panel_length = held_depth::<T, H>(block) * tile.columns;
            if packed.len() < panels * panel_length {
                packed.resize(panels * panel_length, H::default());
            }
            let packed = &mut packed[..panels * panel_length];
            packed
                .par_chunks_mut(panel_length)
                .enumerate()
                .for_each(|(panel, out)| {
                    let start = range.start + panel * tile.columns;
                    let columns = start..range.end.min(start + tile.columns);
                    pack::panel(level, terms, block, columns, tile.columns, out);
                });
            let add = accumulate || index > 0;
            let rows_per_task = rows_per_task(rows, tile.rows);
            out.par_chunks_mut(rows_per_task * columns)
                .enumerate()
                .for_each(|(task, out)| {
                    let first_row = task * rows_per_task;
                    let work = RowTask {
                        terms,
                        block,
                        packed,
                        tile,
                        range: range.clone(),
                        columns,
                        add,
                    };
                    work.run(level, first_row, out);
                });
        }
    }
}

/// Pieces of terms, `(term, depth range)`, that are packed and multiplied together.
type Block = Vec<(usize, Range<usize>)>;

/// Depth of a block in numbers as they are held; every piece begins with one of its own.
fn held_depth<T, H: Held<T>>(block: &Block) -> usize {
    let pieces = block
        .iter()
        .map(|(_, depth)| depth.len().div_ceil(H::DEPTH));
    pieces.sum()
}

/// Cuts the joint depth of all terms into equal blocks of at most [`DEPTH_BLOCK`].
fn depth_blocks<T>(terms: &[Term<T>]) -> Vec<Block> {
    let total: usize = terms.iter().map(|term| term.left.depth).sum();
    // A short tail, a low-rank branch say, rides along with the last block.
    let count = (total.saturating_sub(DEPTH_BLOCK / 4))
        .div_ceil(DEPTH_BLOCK)
        .max(1);
    let length = total.div_ceil(count).next_multiple_of(8);
    let mut blocks = vec![Block::new()];
    let mut room = length;
    for (index, term) in terms.iter().enumerate() {
        let mut start = 0;
        while start < term.left.depth {
            if room == 0 {
                blocks.push(Block::new());
                room = length;
            }
            let end = term.left.depth.min(start + room);
            blocks
                .last_mut()
                .expect("there is always a block")
                .push((index, start..end));
            room -= end - start;
            start = end;
        }
    }
    blocks
}

/// Rows of one task: a multiple of the tile's, the same number of tasks for every thread.
fn rows_per_task(rows: usize, tile_rows: usize) -> usize {
    let threads = rayon::current_num_threads().max(1);
    let tasks = rows.div_ceil(ROW_BLOCK).next_multiple_of(threads);
    rows.div_ceil(tasks).next_multiple_of(tile_rows)
}

/// What the threads share while they multiply one packed block.
struct RowTask<'a, T, H> {
    terms: &'a [Term<'a, T>],
    block: &'a Block,
    packed: &'a [H],
    tile: Tile,
    /// Output columns of the packed block.
    range: Range<usize>,
    /// Row stride of the output.
    columns: usize,
    add: bool,
}

impl<T: Real, H: Held<T>> RowTask<'_, T, H> {
    /// Multiplies the output rows from `first_row` on, as many as `out` holds.
    fn run(&self, level: Level, first_row: usize, out: &mut [T]) {
        let tile = self.tile;
        let rows = out.len() / self.columns;
        // Rows of each term's left operand, copied only where their numbers are not held as they lie.
        let mut scratch = Vec::new();
        let mut lefts = Vec::with_capacity(self.block.len());
        for (term, depth) in self.block {
            let left = self.terms[*term].left;
            let values = H::as_is(left.values).filter(|_| left.depth_stride == 1);
            lefts.push(if let Some(values) = values {
                let at = first_row * left.row_stride + depth.start;
                (Some(&values[at.min(values.len())..]), 0, left.row_stride)
            } else {
                let (start, length) = (scratch.len(), depth.len().div_ceil(H::DEPTH));
                scratch.resize(start + rows * length, H::default());
                let rows = first_row..first_row + rows;
                H::copy_left(level, &left, rows, depth.clone(), &mut scratch[start..]);
                (None, start, length)
            });
        }
        let depth = held_depth::<T, H>(self.block);
        // Tiles of about equal height: a low one would leave registers unused.
        let height_of_each = rows.div_ceil(rows.div_ceil(tile.rows));
        let mut edge = vec![T::ZERO; tile.rows * tile.columns];
        for (panel, right) in self.packed.chunks_exact(depth * tile.columns).enumerate() {
            let column = self.range.start + panel * tile.columns;
            let width = tile.columns.min(self.range.end - column);
            for row in (0..rows).step_by(height_of_each) {
                let height = height_of_each.min(rows - row);
                let whole = width == tile.columns;
                let mut right = right;
                let mut add = self.add;
                if !whole && add {
                    for r in 0..height {
                        let at = (row + r) * self.columns + column;
                        edge[r * tile.columns..][..width].copy_from_slice(&out[at..at + width]);
                    }
                }
                for ((_, depth), (values, start, stride)) in self.block.iter().zip(&lefts) {
                    let depth = depth.len().div_ceil(H::DEPTH);
                    let (now, rest) = right.split_at(depth * tile.columns);
                    right = rest;
                    let product = Product {
                        tile,
                        rows: height,
                        depth,
                        left: &values.unwrap_or(&scratch[*start..])[row * stride..],
                        left_stride: *stride,
                        right: now,
                    };
                    let (out, stride) = if whole {
                        (&mut out[row * self.columns + column..], self.columns)
                    } else {
                        (&mut edge[..], tile.columns)
                    };
                    H::multiply(level, &product, Target { out, stride, add });
                    add = true;
                }
                if !whole {
                    for r in 0..height {
                        let at = (row + r) * self.columns + column;
                        out[at..at + width].copy_from_slice(&edge[r * tile.columns..][..width]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Small whole numbers, exact in every order of summation.
    fn numbers<T: Real>(seed: u64, length: usize) -> Vec<T> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (0..length)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                <T as crate::host::num::Float>::of((state % 17) as f64 - 8.0)
            })
            .collect()
    }

    fn naive<T: Real>(left: &[T], right: &[T], m: usize, n: usize, k: usize, out: &mut [T]) {
        for i in 0..m {
            for j in 0..n {
                for d in 0..k {
                    out[i * n + j] += left[i * k + d] * right[d * n + j];
                }
            }
        }
    }

    fn transpose<T: Real>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
        (0..rows * columns)
            .map(|i| values[(i % rows) * columns + i / rows])
            .collect()
    }

    fn check<T: Real>(level: Level, m: usize, n: usize, depths: &[usize], form: u8) {
        let mut expected = numbers::<T>(3, m * n);
        let mut out = expected.clone();
        let operands: Vec<_> = depths
            .iter()
            .enumerate()
            .map(|(i, &k)| {
                let left = numbers::<T>(10 + i as u64, m * k);
                let right = numbers::<T>(20 + i as u64, k * n);
                let left_t = transpose(&left, m, k);
                let right_t = transpose(&right, k, n);
                (k, left, right, left_t, right_t)
            })
            .collect();
        let dense: Vec<_> = operands
            .iter()
            .map(|(k, _, right, _, right_t)| (Dense::new(right, *k, n), Dense::new(right_t, n, *k)))
            .collect();
        let terms: Vec<Term<T>> = operands
            .iter()
            .zip(&dense)
            .map(|((k, left, _, left_t, _), (plain, transposed))| Term {
                left: if form & 1 == 0 {
                    Left::plain(left, m, *k)
                } else {
                    Left::transposed(left_t, *k, m)
                },
                right: if form & 2 == 0 {
                    Right::Plain(plain)
                } else {
                    Right::Transposed(transposed)
                },
            })
            .collect();
        for (k, left, right, _, _) in &operands {
            naive(left, right, m, n, *k, &mut expected);
        }
        gemm_at(level, &terms, n, &mut out, true);
        assert!(
            out == expected,
            "{level:?} {m}×{n}×{depths:?} form {form}: accumulated product"
        );
        let start = numbers::<T>(3, m * n);
        // These numbers are exact in bf16 too; where vectors have no microkernel for pairs, `gemm` makes none.
        if level == Level::Portable || T::pairs_are_faster(level) {
            let mut of_pairs = vec![T::of(f64::NAN); m * n];
            blocked::<T, Pair>(level, &terms, n, &mut of_pairs, false);
            blocked::<T, Pair>(level, &terms, n, &mut of_pairs, true);
            let twice = out.iter().zip(&start).map(|(out, start)| *out - *start);
            assert!(
                of_pairs.into_iter().eq(twice.map(|once| once + once)),
                "{level:?} {m}×{n}×{depths:?} form {form}: pairs"
            );
        }
        let mut fresh = vec![T::of(f64::NAN); m * n];
        gemm_at(level, &terms, n, &mut fresh, false);
        for (fresh, (out, start)) in fresh.iter().zip(out.iter().zip(&start)) {
            assert!(
                *fresh + *start == *out,
                "{level:?} {m}×{n}×{depths:?} form {form}: product"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn equals_the_definition(m in 1usize..70, n in 1usize..90, k in 1usize..50, r in 0usize..20, form in 0u8..4) {
            for level in Level::available() {
                check::<f32>(level, m, n, &[k, r], form);
                check::<f64>(level, m, n, &[k, r], form);
            }
        }
    }

    #[test]
    fn equals_the_definition_past_every_block_size() {
        for level in Level::available() {
            for form in 0..4 {
                check::<f32>(level, 101, COLUMN_BLOCK + 19, &[37], form);
                check::<f32>(level, 13, 40, &[2 * DEPTH_BLOCK + 7, 16, 3], form);
                check::<f32>(level, 5, 33, &[700, 16], form);
            }
        }
    }

    #[test]
    fn rounds_only_where_an_operand_allows_it() {
        let (m, n, k) = (40, 50, 70);
        let left: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
        let right: Vec<f32> = (0..k * n).map(|i| (i as f32 * 0.11).cos()).collect();
        let product = |level, rounded| {
            let right = Dense::new(&right, k, n).rounded(rounded);
            let left = Left::plain(&left, m, k);
            let right = Right::Plain(&right);
            let mut out = vec![0f32; m * n];
            gemm_at(level, &[Term { left, right }], n, &mut out, false);
            out
        };
        for level in Level::available() {
            let (plain, rounded) = (product(level, false), product(level, true));
            let largest = plain
                .iter()
                .zip(&rounded)
                .map(|(x, y)| (x - y).abs())
                .fold(0f32, f32::max);
            if f32::pairs_are_faster(level) {
                // Each factor is off by up to 2⁻⁹ of itself.
                assert!(
                    largest > 0.0 && f64::from(largest) < k as f64 / 256.0,
                    "{largest}"
                );
            } else {
                assert_eq!(largest, 0.0, "{level:?}");
            }
        }
    }

    #[test]
    fn same_bits_on_any_number_of_threads() {
        let (m, n, k) = (200, 170, 900);
        let left: Vec<f32> = numbers::<f32>(1, m * k).iter().map(|x| x * 0.37).collect();
        let right: Vec<f32> = numbers::<f32>(2, k * n).iter().map(|x| x * 0.11).collect();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("a pool");
            pool.install(|| {
                let right = Dense::new(&right, n, k);
                let term = Term {
                    left: Left::plain(&left, m, k),
                    right: Right::Transposed(&right),
                };
                let mut out = vec![0f32; m * n];
                gemm(&[term], n, &mut out, false);
                out
            })
        };
        assert!(run(1) == run(2) && run(1) == run(3));
    }
}
