//! Products of many rows: both operands are cut into blocks that stay in the caches.
//!
//! For each block of depth the right operand is packed into panels, many columns at a time; then every thread takes rows
//! of the output. It brings its rows of the left operand into the form in which they are held, where they are not, and keeps
//! them in its second-level cache while the panels pass by.
//!
//! Few rows would not repay the packing of what they are multiplied with once: a right operand that lies row by row
//! is then read from where it lies, and every thread takes columns. The sums are the same to the bit.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{Lying, Multiplying, Piece, Product, Target, Tile, places};
use super::pack::{self, Held};
use super::scratch::{Pooled, Scratch};
use super::{Left, Right, Term};
use crate::cpu::Level;
use crate::host::{Chunk, Fresh};
use crate::vector::Real;

/// Columns packed at a time: with [`Held::BLOCK`] 4.5 MiB in f32, which the threads share in the
/// last-level cache.
pub(super) const COLUMN_BLOCK: usize = 2048;
/// Panels that one task packs, at most: rows of the right operand are read in long pieces.
const PANELS: usize = 8;
/// Rows of a task, or those of a tile if they are more: with [`Held::BLOCK`] 108 KiB in f32, in a core's second-level
/// cache.
const ROW_BLOCK: usize = 48;
/// Columns of each side whose sums are handed on at a time: with [`ROW_BLOCK`] 288 KiB for two sides in f32, in a
/// core's second-level cache.
const PIECE_COLUMNS: usize = 768;
/// Up to so many rows of output a right operand is not packed: those of three branches of rank 16, whose weights'
/// gradients are sums over all tokens.
pub(super) const LYING_ROWS: usize = 48;
/// Rows that are brought into the form in which they are held at a time: not fewer than a product's task has.
const COPIED_ROWS: usize = 128;
/// A term is cut at multiples of this, or of [`Held::DEPTH`] where that is more.
const CUT: usize = 8;

/// Pieces of terms, `(term, depth range)`, that are packed and multiplied together.
type Block = Vec<(usize, Range<usize>)>;

/// [`gemm_at`](super::gemm_at) of checked operands, their numbers held as `H`; it writes every place of `out`.
///
/// # Safety
/// If it is to accumulate, every place of `out` holds a number.
#[expect(unsafe_code, reason = "a promise of the caller")]
pub(super) unsafe fn multiply<T: Real, H: Held<T>>(
    level: Level,
    terms: &[Term<T>],
    columns: usize,
    out: &mut [MaybeUninit<T>],
    accumulate: bool,
) {
    let blocks = depth_blocks::<T, H>(terms);
    let tile = H::tile(level, columns);
    let done = if lies(terms, out.len() / columns) {
        // SAFETY: the caller's promise.
        unsafe { multiply_lying::<T, H>(level, terms, &blocks, columns, out, accumulate) }
    } else {
        0
    };
    if done == columns {
        return;
    }
    let rows = out.len() / columns;
    let rows_per_task = even_share(rows, ROW_BLOCK.max(tile.rows));
    for (index, block) in blocks.iter().enumerate() {
        for first in (done..columns).step_by(COLUMN_BLOCK) {
            let range = first..columns.min(first + COLUMN_BLOCK);
            let packed = pack::<T, H>(level, terms, block, range.clone(), tile);
            let tasks = out.par_chunks_mut(rows_per_task * columns);
            let tasks = tasks.with_max_len(1).enumerate();
            tasks.for_each(|(task, out)| {
                let first_row = task * rows_per_task;
                let rows = first_row..first_row + out.len() / columns;
                let work = RowTask {
                    block,
                    // What has to be copied is in the task's cache then.
                    lefts: &HeldLeft::all(level, terms, block, &rows),
                    packed: &packed,
                    tile,
                    range: range.clone(),
                    columns,
                    add: accumulate || index > 0,
                    clear: H::CLEAR,
                };
                // SAFETY: places hold numbers after the first block at the latest, and before it if `accumulate`, by
                // the caller's promise.
                unsafe { work.run(level, 0, out) }
            });
        }
    }
}

/// Whether right operands are read as they lie, if they are held so.
pub(super) fn lies<T>(terms: &[Term<T>], rows: usize) -> bool {
    let plain = |term: &Term<T>| matches!(term.right, Right::Plain(_));
    rows <= LYING_ROWS && terms.iter().all(plain)
}

/// Multiplies with right operands as they lie, in as many whole tiles as there are; says how many columns are done, none
/// where an operand does not lie so.
///
/// # Safety
/// As [`multiply`].
#[expect(unsafe_code, reason = "a promise of the caller")]
unsafe fn multiply_lying<T: Real, H: Held<T>>(
    level: Level,
    terms: &[Term<T>],
    blocks: &[Block],
    columns: usize,
    out: &mut [MaybeUninit<T>],
    accumulate: bool,
) -> usize {
    let tile = H::tile(level, columns);
    let rows = out.len() / columns;
    let tiles = columns / tile.columns;
    if tiles == 0 {
        return 0;
    }
    let rights = blocks.iter().map(|block| {
        let right = |(term, depth): &(usize, Range<usize>)| match terms[*term].right {
            Right::Plain(matrix) => H::lying(matrix, depth),
            Right::Transposed(_) => None,
        };
        block.iter().map(right).collect::<Option<Vec<_>>>()
    });
    let Some(rights) = rights.collect::<Option<Vec<_>>>() else {
        return 0;
    };
    let lefts = blocks
        .iter()
        .map(|block| HeldLeft::<H>::all(level, terms, block, &(0..rows)));
    let lefts: Vec<_> = lefts.collect();
    let pieces: Vec<_> = lefts
        .iter()
        .flatten()
        .zip(rights.iter().flatten())
        .collect();
    // Tiles of about equal height: a low one would leave registers unused.
    let height_of_each = rows.div_ceil(rows.div_ceil(tile.rows));
    let tiles_per_task = even_share(tiles, PANELS);
    let before = &*out;
    let work = |task: usize| {
        let first = task * tiles_per_task * tile.columns;
        let width = (tiles * tile.columns - first).min(tiles_per_task * tile.columns);
        let _multiplying = Multiplying::at(level);
        let mut sums = Scratch::<T>::new(rows * width);
        if accumulate {
            for (row, sums) in sums.chunks_exact_mut(width).enumerate() {
                for (sum, before) in sums.iter_mut().zip(&before[row * columns + first..]) {
                    // SAFETY: to accumulate, every place holds a number.
                    *sum = unsafe { before.assume_init() };
                }
            }
        }
        for column in (0..width).step_by(tile.columns) {
            for row in (0..rows).step_by(height_of_each) {
                let mut add = accumulate;
                for (left, right) in &pieces {
                    let product = Product {
                        tile,
                        rows: height_of_each.min(rows - row),
                        depth: right.count.div_ceil(H::DEPTH),
                        left: &left.values.slice()[row * left.stride..],
                        left_stride: left.stride,
                        right: &[],
                    };
                    let target = Target::of_numbers(&mut sums[row * width + column..], width, add);
                    let rows = &right.rows[(first + column) / H::DEPTH..];
                    H::multiply_lying(level, &product, Lying { rows, ..**right }, target);
                    add = true;
                }
            }
        }
        (first, width, sums)
    };
    let parts: Vec<_> = (0..tiles.div_ceil(tiles_per_task))
        .into_par_iter()
        .with_max_len(1)
        .map(work)
        .collect();
    for (first, width, sums) in parts {
        for (row, sums) in sums.chunks_exact(width).enumerate() {
            for (out, sum) in out[row * columns + first..].iter_mut().zip(sums) {
                out.write(*sum);
            }
        }
    }
    tiles * tile.columns
}

/// [`in_pieces`](super::in_pieces) of checked operands, their numbers held as `H`.
pub(super) fn in_pieces<T: Real, H: Held<T>, O, const N: usize, const M: usize>(
    level: Level,
    sides: [&[Term<T>]; N],
    columns: usize,
    outputs: [&mut Fresh<O>; M],
    finish: impl Fn(usize, Range<usize>, [&[T]; N], [&mut [O]; M]) + Sync,
) where
    O: Copy + Default + Send + Sync,
{
    let rows = sides[0].first().map_or(0, |term| term.left.rows);
    if rows * columns == 0 {
        return;
    }
    let tile = H::tile(level, columns);
    let blocks = sides.map(depth_blocks::<T, H>);
    let lefts = std::array::from_fn::<_, N, _>(|side| {
        let of_block = |block| HeldLeft::<H>::all(level, sides[side], block, &(0..rows));
        blocks[side].iter().map(of_block).collect::<Vec<_>>()
    });
    // What is packed at a time is no more than for a product of one side.
    let depth: usize = blocks.iter().flatten().map(held_depth::<T, H>).sum();
    let most = H::BLOCK / H::DEPTH * COLUMN_BLOCK / depth.max(1);
    let most = most.clamp(tile.columns, PIECE_COLUMNS);
    let width = columns.div_ceil(columns.div_ceil(most));
    let width = width.next_multiple_of(tile.columns);
    let rows_per_task = even_share(rows, ROW_BLOCK.max(tile.rows));
    let mut outputs = outputs.map(|fresh| fresh.chunks(rows_per_task * columns));
    let mut tasks: Vec<[Chunk<O>; M]> = Vec::new();
    for _ in (0..rows).step_by(rows_per_task) {
        let chunk = |chunks: &mut _| Iterator::next(chunks).expect("outputs have all rows");
        tasks.push(outputs.each_mut().map(chunk));
    }
    for first in (0..columns).step_by(width) {
        let range = first..columns.min(first + width);
        let each: Vec<_> = (0..N)
            .flat_map(|side| blocks[side].iter().map(move |block| (side, block)))
            .collect();
        let packed: Vec<_> = each
            .par_iter()
            .map(|(side, block)| pack::<T, H>(level, sides[*side], block, range.clone(), tile))
            .collect();
        let each = tasks.par_iter_mut().with_max_len(1).enumerate();
        each.for_each(|(task, outputs)| {
            let outputs = outputs.each_mut().map(Chunk::numbers);
            let count = outputs[0].len() / columns;
            let mut sums = Scratch::<T>::new(N * count * range.len());
            let mut packed = packed.iter();
            let mut sides = sums.chunks_exact_mut(count * range.len());
            let sides: [&[T]; N] = std::array::from_fn(|side| {
                let sums = sides.next().expect("there is room for all sides");
                for (index, (block, lefts)) in blocks[side].iter().zip(&lefts[side]).enumerate() {
                    let work = RowTask {
                        block,
                        lefts,
                        packed: packed.next().expect("all blocks are packed"),
                        tile,
                        range: 0..range.len(),
                        columns: range.len(),
                        add: index > 0,
                        clear: false,
                    };
                    // SAFETY: the places hold numbers.
                    #[expect(unsafe_code, reason = "the sums hold numbers already")]
                    unsafe {
                        work.run(level, task * rows_per_task, places(sums));
                    }
                }
                &*sums
            });
            let mut outputs = outputs.map(|numbers| numbers.chunks_exact_mut(columns));
            for row in 0..count {
                let sums = sides.map(|sums| &sums[row * range.len()..][..range.len()]);
                let outputs = outputs.each_mut().map(|rows| {
                    let row = rows.next().expect("outputs have all rows");
                    &mut row[range.clone()]
                });
                finish(task * rows_per_task + row, range.clone(), sums, outputs);
            }
        });
    }
}

/// Depth of a block in numbers as they are held; every piece begins with one of its own.
fn held_depth<T, H: Held<T>>(block: &Block) -> usize {
    let pieces = block
        .iter()
        .map(|(_, depth)| depth.len().div_ceil(H::DEPTH));
    pieces.sum()
}

/// Cuts the joint depth of all terms into blocks of about equal depth, not much more than [`Held::BLOCK`].
fn depth_blocks<T, H: Held<T>>(terms: &[Term<T>]) -> Vec<Block> {
    let (most, cut) = (H::BLOCK, H::DEPTH.max(CUT));
    let total: usize = terms.iter().map(|term| term.left.depth).sum();
    // A short tail, a low-rank branch say, rides along with the last block.
    let count = (total.saturating_sub(most / 4)).div_ceil(most).max(1);
    let length = total.div_ceil(count).next_multiple_of(cut);
    let mut blocks = vec![Block::new()];
    let mut room = length;
    for (index, term) in terms.iter().enumerate() {
        let mut start = 0;
        while start < term.left.depth {
            if room == 0 {
                blocks.push(Block::new());
                room = length;
            }
            let end = term.left.depth.min(start + room.next_multiple_of(cut));
            blocks
                .last_mut()
                .expect("there is always a block")
                .push((index, start..end));
            room = room.saturating_sub(end - start);
            start = end;
        }
    }
    blocks
}

/// Items of one task, not much more than `most`: tasks are equal, the same number for every thread.
fn even_share(items: usize, most: usize) -> usize {
    let threads = rayon::current_num_threads().max(1);
    let tasks = items.div_ceil(most).next_multiple_of(threads);
    items.div_ceil(tasks).max(1)
}

/// Packs the columns `range` of a block into panels.
fn pack<T: Real, H: Held<T>>(
    level: Level,
    terms: &[Term<T>],
    block: &Block,
    range: Range<usize>,
    tile: Tile,
) -> Scratch<H> {
    let panel_length = held_depth::<T, H>(block) * tile.columns;
    let panels = range.len().div_ceil(tile.columns);
    let panels_per_task = even_share(panels, PANELS);
    let mut packed = Scratch::new(panels * panel_length);
    packed
        .par_chunks_mut((panels_per_task * panel_length).max(1))
        .with_max_len(1)
        .enumerate()
        .for_each(|(task, out)| {
            let start = range.start + task * panels_per_task * tile.columns;
            let columns = start..range.end.min(start + panels_per_task * tile.columns);
            pack::panels(level, terms, block, columns, tile.columns, out);
        });
    packed
}

/// Rows of the left operand of one piece; row `r` begins at `r * stride`.
struct HeldLeft<'a, H: Pooled> {
    values: Values<'a, H>,
    stride: usize,
}

enum Values<'a, H: Pooled> {
    AsTheyLie(&'a [H]),
    Copied(Scratch<H>),
}

impl<H: Pooled> Values<'_, H> {
    fn slice(&self) -> &[H] {
        match self {
            Self::AsTheyLie(values) => values,
            Self::Copied(values) => values,
        }
    }
}

impl<'a, H: Pooled> HeldLeft<'a, H> {
    /// Those of all pieces of a block.
    fn all<T: Real>(
        level: Level,
        terms: &[Term<'a, T>],
        block: &Block,
        rows: &Range<usize>,
    ) -> Vec<Self>
    where
        H: Held<T>,
    {
        let of_piece = |(term, depth): &(usize, _)| {
            let left = &terms[*term].left;
            Self::new(level, left, rows, depth)
        };
        block.iter().map(of_piece).collect()
    }

    /// As they lie, where they are held so; otherwise copied.
    fn new<T: Real>(
        level: Level,
        left: &Left<'a, T>,
        rows: &Range<usize>,
        depth: &Range<usize>,
    ) -> Self
    where
        H: Held<T>,
    {
        if let Some((values, stride)) = H::as_is(left) {
            let at = rows.start * stride + depth.start / H::DEPTH;
            let values = Values::AsTheyLie(&values[at.min(values.len())..]);
            return Self { values, stride };
        }
        let stride = H::stride(depth.len());
        let mut values = Scratch::new(rows.len() * stride);
        values
            .par_chunks_mut((COPIED_ROWS * stride).max(1))
            .enumerate()
            .for_each(|(task, out)| {
                let start = rows.start + task * COPIED_ROWS;
                let rows = start..rows.end.min(start + COPIED_ROWS);
                H::copy_left(level, left, rows, depth.clone(), out);
            });
        Self {
            values: Values::Copied(values),
            stride,
        }
    }
}

/// What the threads share while they multiply one packed block.
struct RowTask<'a, H: Pooled> {
    block: &'a Block,
    /// The left operand of each piece of the block.
    lefts: &'a [HeldLeft<'a, H>],
    packed: &'a [H],
    tile: Tile,
    /// Output columns of the packed block.
    range: Range<usize>,
    /// Row stride of the output.
    columns: usize,
    add: bool,
    /// Whether the output is cleared first if nothing is added to it: [`Held::CLEAR`], if it is not in the cache.
    clear: bool,
}

impl<H: Pooled> RowTask<'_, H> {
    /// Multiplies the rows from `first_row` on, as many as `out` holds.
    ///
    /// # Safety
    /// If it is to add, every place of `out` holds a number.
    #[expect(unsafe_code, reason = "a promise of the caller")]
    unsafe fn run<T: Real>(&self, level: Level, first_row: usize, out: &mut [MaybeUninit<T>])
    where
        H: Held<T>,
    {
        let _multiplying = Multiplying::at(level);
        let tile = self.tile;
        let rows = out.len() / self.columns;
        let depth = held_depth::<T, H>(self.block);
        // Tiles of about equal height: a low one would leave registers unused.
        let height_of_each = rows.div_ceil(rows.div_ceil(tile.rows));
        if self.clear && !self.add {
            for row in out.chunks_exact_mut(self.columns) {
                row[self.range.clone()].fill(MaybeUninit::new(T::ZERO));
            }
        }
        let ragged = !self.range.len().is_multiple_of(tile.columns);
        let edge = if ragged { tile.rows * tile.columns } else { 0 };
        let mut edge = vec![MaybeUninit::new(T::ZERO); edge];
        for (panel, right) in self.packed.chunks_exact(depth * tile.columns).enumerate() {
            let column = self.range.start + panel * tile.columns;
            let width = tile.columns.min(self.range.end - column);
            for row in (0..rows).step_by(height_of_each) {
                let height = height_of_each.min(rows - row);
                let whole = width == tile.columns;
                if !whole && self.add {
                    for r in 0..height {
                        let at = (row + r) * self.columns + column;
                        edge[r * tile.columns..][..width].copy_from_slice(&out[at..at + width]);
                    }
                }
                let pieces = self.block.iter().zip(self.lefts);
                let pieces = pieces.map(|((_, depth), left)| Piece {
                    left: &left.values.slice()[(first_row + row) * left.stride..],
                    stride: left.stride,
                    depth: depth.len().div_ceil(H::DEPTH),
                });
                let (out_of_tile, stride) = if whole {
                    (&mut out[row * self.columns + column..], self.columns)
                } else {
                    (&mut edge[..], tile.columns)
                };
                // SAFETY: the caller's promise.
                let target = unsafe { Target::new(out_of_tile, stride, self.add) };
                H::multiply(level, tile, height, pieces, right, target);
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
