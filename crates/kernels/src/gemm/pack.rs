//! Packing: pieces of stored rows become the panels that the microkernel reads.
//!
//! A panel holds `width` columns of the right operand, depth by depth: `panel[d * width + column]`,
//! where `d` counts [`Held`] numbers: one number each, or a pair of bf16 numbers. Columns past the
//! operand's edge are zero, as is what a pair lacks at the end of its depth.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::kernel::{Kernel, Lying, PAIRS, Pair, Piece, Product, Steps, Target, Tile};
use super::pairs::{self, Round, round};
use super::scratch::{Pooled, Scratch};
use super::{Left, Right, Rows, Term};
use crate::cpu::Level;
use crate::host::Element;
use crate::transpose::{Plain, transpose};
use crate::vector::{Real, prefetch, widen};

/// A plain row-major matrix.
#[derive(Clone, Copy)]
pub struct Dense<'a, T> {
    values: &'a [T],
    rows: usize,
    columns: usize,
    stride: usize,
    rounded: bool,
}

impl<'a, T> Dense<'a, T> {
    /// `values` as a matrix `[rows, columns]`.
    pub fn new(values: &'a [T], rows: usize, columns: usize) -> Self {
        assert_eq!(
            values.len(),
            rows * columns,
            "matrix: length does not fit its shape"
        );
        Self::strided(values, rows, columns, columns)
    }

    /// A matrix `[rows, columns]` whose rows begin `stride` apart.
    pub(crate) fn strided(values: &'a [T], rows: usize, columns: usize, stride: usize) -> Self {
        Self {
            values,
            rows,
            columns,
            stride,
            rounded: false,
        }
    }

    /// The same matrix, whose products may be of numbers rounded to bf16 if `rounded`.
    #[must_use]
    pub fn rounded(self, rounded: bool) -> Self {
        Self { rounded, ..self }
    }
}

impl<T: Real> Rows<T> for Dense<'_, T> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn fill(&self, row: usize, columns: Range<usize>, out: &mut [T]) {
        out.copy_from_slice(&self.values[row * self.stride..][columns]);
    }

    fn dense(&self) -> Option<(&[T], usize)> {
        Some((self.values, self.stride))
    }

    fn rounded(&self) -> bool {
        self.rounded
    }

    fn fill_bf16(&self, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        round::<T>(
            Level::detect(),
            &self.values[row * self.stride..][columns],
            out,
        );
    }
}

/// A matrix whose numbers are rounded to bf16, held in pairs along its rows: a left operand that several
/// products share.
pub(crate) struct Rounded {
    /// An odd last number of a row is paired with 0.
    pairs: Scratch<Pair>,
    /// Pairs of a row, of which the last are 0 where steps take more than there are.
    length: usize,
}

impl Rounded {
    /// `values`, a matrix of so many columns; `None` where products of rounded numbers are not faster.
    pub(crate) fn new<T: Real>(values: &[T], columns: usize) -> Option<Self> {
        /// Rows that one task rounds.
        const ROWS: usize = 64;
        let level = Level::detect();
        if !T::pairs_are_faster(level) || columns == 0 {
            return None;
        }
        let length = if T::steps_are_faster(level) {
            <Steps<1> as Held<T>>::stride(columns) * PAIRS
        } else {
            columns.div_ceil(2)
        };
        let mut pairs = Scratch::new(values.len() / columns * length);
        pairs
            .par_chunks_mut(ROWS * length)
            .zip(values.par_chunks(ROWS * columns))
            .for_each(|(out, values)| along::<T>(level, values, columns, out, length));
        Some(Self { pairs, length })
    }

    pub(super) fn pairs(&self) -> Pairs<'_> {
        Pairs {
            pairs: &self.pairs,
            length: self.length,
        }
    }
}

/// Rows of pairs.
#[derive(Clone, Copy)]
pub(crate) struct Pairs<'a> {
    pub(super) pairs: &'a [Pair],
    /// Pairs of a row.
    pub(super) length: usize,
}

impl<'a> Pairs<'a> {
    /// Rows of `columns` numbers, as they are stored.
    ///
    /// # Panics
    /// If they are odd in number, or do not begin where a pair may.
    pub(crate) fn of_rows(values: &'a [bf16], columns: usize) -> Self {
        assert!(columns.is_multiple_of(2), "no pair is of two rows");
        Self {
            pairs: Pair::of_numbers(values).expect("vectors begin where a pair may"),
            length: columns / 2,
        }
    }
}

/// A plain row-major matrix of bf16.
#[derive(Clone, Copy)]
pub(crate) struct DenseBf16<'a> {
    values: &'a [bf16],
    rows: usize,
    columns: usize,
}

impl<'a> DenseBf16<'a> {
    /// `values` as a matrix `[rows, columns]`.
    pub(crate) fn new(values: &'a [bf16], rows: usize, columns: usize) -> Self {
        assert_eq!(
            values.len(),
            rows * columns,
            "matrix: length does not fit its shape"
        );
        Self {
            values,
            rows,
            columns,
        }
    }
}

impl<T: Real> Rows<T> for DenseBf16<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn fill(&self, row: usize, columns: Range<usize>, out: &mut [T]) {
        let values = &self.values[row * self.columns..][columns];
        widen::<T>(Level::detect(), values, out);
    }

    fn rounded(&self) -> bool {
        true
    }

    fn fill_bf16(&self, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        out.copy_from_slice(&self.values[row * self.columns..][columns]);
    }

    fn dense_bf16(&self) -> Option<(&[bf16], usize)> {
        Some((self.values, self.columns))
    }
}

/// How the numbers of type `T` of a product are held while they are multiplied.
/// Its default is zero.
pub(crate) trait Held<T>: Plain + Pooled + Send + Sync {
    /// Numbers of depth in one.
    const DEPTH: usize;
    /// Greatest depth of a block, in numbers: so much of a task's rows stays in a core's second-level cache.
    const BLOCK: usize;

    /// Whether a product's output is cleared before it is written. That brings its lines into the cache without reading
    /// them, which stores of a few lines at a time would do.
    const CLEAR: bool = true;

    /// Distance of the rows of a left operand of so great a depth, where it is copied.
    fn stride(depth: usize) -> usize {
        depth.div_ceil(Self::DEPTH)
    }

    /// A left operand's numbers and its row stride, where they are held so already.
    fn as_is<'a>(left: &Left<'a, T>) -> Option<(&'a [Self], usize)>;

    /// Copies rows of a left operand: `out[row * stride + d]`, by [`Held::stride`].
    fn copy_left(
        level: Level,
        left: &Left<T>,
        rows: Range<usize>,
        depth: Range<usize>,
        out: &mut [Self],
    );

    /// Packs rows `depth` of `matrix`, columns `columns`.
    fn pack_plain(
        level: Level,
        matrix: &dyn Rows<T>,
        depth: Range<usize>,
        columns: Range<usize>,
        pieces: Pieces<Self>,
    );

    /// Packs columns `depth` of `matrix`, rows `rows`, as columns.
    fn pack_transposed(
        level: Level,
        matrix: &dyn Rows<T>,
        depth: Range<usize>,
        rows: Range<usize>,
        pieces: Pieces<Self>,
    );

    /// The rows `depth` of `matrix` as they lie, where products can read them so.
    fn lying<'a>(matrix: &'a dyn Rows<T>, depth: &Range<usize>) -> Option<Lying<'a, Self>>
    where
        T: 'a,
    {
        let _ = (matrix, depth);
        None
    }

    /// The tile of products of numbers held so, at this level, for an output of so many columns.
    fn tile(level: Level, columns: usize) -> Tile;

    /// The sum of the products of several pieces of depth; `right` is their depths of a panel, one after the other.
    fn multiply<'a>(
        level: Level,
        tile: Tile,
        rows: usize,
        pieces: impl Iterator<Item = Piece<'a, Self>> + Clone,
        right: &[Self],
        target: Target<T>,
    );

    /// The product of one piece with a right operand as it lies, which [`Held::lying`] gave.
    fn multiply_lying(
        level: Level,
        product: &Product<Self>,
        right: Lying<Self>,
        target: Target<T>,
    ) {
        let _ = (level, product, right, target);
        unreachable!("no operand lies as it is held")
    }
}

/// Numbers that are held as a matrix may store them, one by one or in pairs.
pub(crate) trait Stored<T>: Held<T> {
    /// The columns `depth` of `matrix`, from its first row on, and the stride of its rows, where its numbers are
    /// stored as they are held.
    fn stored<'a>(matrix: &'a dyn Rows<T>, depth: &Range<usize>) -> Option<(&'a [Self], usize)>;

    /// Writes a piece of a row of `matrix`.
    fn expand(matrix: &dyn Rows<T>, row: usize, columns: Range<usize>, out: &mut [Self]);

    /// Rows of `width` numbers that follow each other, and the stride of the rows; in `buffer` where they
    /// are not held so already.
    fn of_rows<'a>(
        level: Level,
        values: &'a [T],
        width: usize,
        buffer: &'a mut Scratch<Self>,
    ) -> (&'a [Self], usize);
}

/// What [`Held`] asks for of numbers that are [`Stored`], given the tile, the product of one piece, and that with an
/// operand as it lies.
macro_rules! as_stored {
    ($tile:expr, $one:expr, $lying:expr) => {
        fn pack_transposed(
            level: Level,
            matrix: &dyn Rows<T>,
            depth: Range<usize>,
            rows: Range<usize>,
            pieces: Pieces<Self>,
        ) {
            turned::<T, Self>(level, matrix, depth, rows, pieces);
        }

        fn lying<'a>(matrix: &'a dyn Rows<T>, depth: &Range<usize>) -> Option<Lying<'a, Self>>
        where
            T: 'a,
        {
            as_it_lies(matrix, depth)
        }

        fn tile(level: Level, columns: usize) -> Tile {
            $tile(level, columns)
        }

        fn multiply<'a>(
            level: Level,
            tile: Tile,
            rows: usize,
            pieces: impl Iterator<Item = Piece<'a, Self>> + Clone,
            right: &[Self],
            target: Target<T>,
        ) {
            one_by_one(level, tile, rows, pieces, right, target, $one);
        }

        fn multiply_lying(
            level: Level,
            product: &Product<Self>,
            right: Lying<Self>,
            target: Target<T>,
        ) {
            $lying(level, product, right, target);
        }
    };
}

/// [`Held::lying`] of what is stored as it is held.
fn as_it_lies<'a, T: 'a, H: Stored<T>>(
    matrix: &'a dyn Rows<T>,
    depth: &Range<usize>,
) -> Option<Lying<'a, H>> {
    let (values, stride) = H::stored(matrix, &(0..matrix.columns()))?;
    Some(Lying {
        rows: &values[depth.start * stride..],
        stride,
        count: depth.len(),
    })
}

/// [`Held::pack_transposed`] of what a matrix may store.
fn turned<T, H: Stored<T>>(
    level: Level,
    matrix: &dyn Rows<T>,
    depth: Range<usize>,
    rows: Range<usize>,
    mut pieces: Pieces<H>,
) {
    let width = pieces.width;
    let stored = H::stored(matrix, &depth);
    let held = depth.len().div_ceil(H::DEPTH);
    let end = rows.end;
    for (rows, out) in pieces.each(rows) {
        if rows.len() < width {
            out.fill(H::default());
        }
        if let Some((values, stride)) = stored {
            ask_for(
                values,
                stride,
                rows.end..end.min(rows.end + width),
                &(0..held),
            );
            let from = &values[rows.start * stride..];
            transpose::<H>(level, from, stride, rows.len(), held, out, width);
        } else {
            in_strips(level, matrix, rows, &depth, width, out);
        }
    }
}

/// The part of some panels that one piece of depth takes.
pub(crate) struct Pieces<'a, H> {
    pub(super) values: &'a mut [H],
    /// Distance of two panels.
    pub(super) length: usize,
    /// Where the piece begins within each panel.
    pub(super) start: usize,
    /// Numbers of the piece within each.
    pub(super) size: usize,
    /// Columns of each.
    pub(super) width: usize,
}

impl<H> Pieces<'_, H> {
    /// The piece in each panel, with the columns out of `columns` that are there.
    pub(super) fn each(
        &mut self,
        columns: Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, &mut [H])> {
        let (width, piece) = (self.width, self.start..self.start + self.size);
        self.values
            .chunks_exact_mut(self.length.max(1))
            .enumerate()
            .map(move |(panel, values)| {
                let start = columns.start + panel * width;
                (
                    start..columns.end.min(start + width),
                    &mut values[piece.clone()],
                )
            })
    }
}

impl<T: Real> Held<T> for T {
    const DEPTH: usize = 1;
    const BLOCK: usize = 576;

    fn as_is<'a>(left: &Left<'a, T>) -> Option<(&'a [Self], usize)> {
        (left.depth_stride == 1).then_some((left.values, left.row_stride))
    }

    fn copy_left(
        level: Level,
        left: &Left<T>,
        rows: Range<usize>,
        depth: Range<usize>,
        out: &mut [Self],
    ) {
        let length = depth.len();
        let at = depth.start * left.depth_stride + rows.start * left.row_stride;
        if left.row_stride == 1 {
            let from = &left.values[at..];
            transpose::<T>(
                level,
                from,
                left.depth_stride,
                length,
                rows.len(),
                out,
                length,
            );
            return;
        }
        for (row, out) in out.chunks_exact_mut(length).take(rows.len()).enumerate() {
            let from = left.values[at + row * left.row_stride..].iter();
            for (out, from) in out.iter_mut().zip(from.step_by(left.depth_stride)) {
                *out = *from;
            }
        }
    }

    fn pack_plain(
        _: Level,
        matrix: &dyn Rows<T>,
        depth: Range<usize>,
        columns: Range<usize>,
        mut pieces: Pieces<Self>,
    ) {
        let width = pieces.width;
        let dense = matrix.dense();
        for rows in strips(depth.clone()) {
            if let Some((values, stride)) = dense {
                ask_for(values, stride, next(&rows, &depth), &columns);
            }
            for (columns, out) in pieces.each(columns.clone()) {
                let out = &mut out[(rows.start - depth.start) * width..];
                for (row, out) in rows.clone().zip(out.chunks_exact_mut(width)) {
                    let (now, past) = out.split_at_mut(columns.len());
                    if let Some((values, stride)) = dense {
                        now.copy_from_slice(&values[row * stride..][columns.clone()]);
                    } else {
                        matrix.fill(row, columns.clone(), now);
                    }
                    past.fill(T::ZERO);
                }
            }
        }
    }

    as_stored!(
        <T as Kernel>::tile,
        <T as Kernel>::multiply,
        <T as Kernel>::multiply_lying
    );
}

impl<T: Real> Stored<T> for T {
    fn stored<'a>(matrix: &'a dyn Rows<T>, depth: &Range<usize>) -> Option<(&'a [Self], usize)> {
        let (values, stride) = matrix.dense()?;
        Some((&values[depth.start..], stride))
    }

    fn expand(matrix: &dyn Rows<T>, row: usize, columns: Range<usize>, out: &mut [Self]) {
        matrix.fill(row, columns, out);
    }

    fn of_rows<'a>(
        _: Level,
        values: &'a [T],
        width: usize,
        _: &'a mut Scratch<Self>,
    ) -> (&'a [Self], usize) {
        (values, width)
    }
}

impl<T: Real> Held<T> for Pair {
    const DEPTH: usize = 2;
    const BLOCK: usize = 1152;

    fn as_is<'a>(left: &Left<'a, T>) -> Option<(&'a [Self], usize)> {
        let rounded = left.rounded?;
        debug_assert!(rounded.length >= left.depth.div_ceil(2) && left.depth_stride == 1);
        Some((rounded.pairs, rounded.length))
    }

    fn copy_left(
        level: Level,
        left: &Left<T>,
        rows: Range<usize>,
        depth: Range<usize>,
        out: &mut [Self],
    ) {
        let length = depth.len().div_ceil(2);
        copy_pairs(level, left, rows, depth, out, length);
    }

    fn pack_plain(
        level: Level,
        matrix: &dyn Rows<T>,
        depth: Range<usize>,
        columns: Range<usize>,
        mut pieces: Pieces<Self>,
    ) {
        if let Some((values, stride)) = matrix.dense() {
            across::<T>(level, values, stride, depth, columns, &mut pieces);
            return;
        }
        if let Some((values, stride)) = matrix.dense_bf16() {
            across::<bf16>(level, values, stride, depth, columns, &mut pieces);
            return;
        }
        let count = columns.len();
        let mut expanded = vec![bf16::ZERO; STRIP * count];
        for rows in strips(depth.clone()) {
            let first = (rows.start - depth.start) / 2;
            for (row, out) in rows.clone().zip(expanded.chunks_exact_mut(count.max(1))) {
                matrix.fill_bf16(row, columns.clone(), out);
            }
            strip_across::<bf16>(
                level,
                &expanded,
                count,
                rows.len(),
                count,
                &mut pieces,
                first,
            );
        }
    }

    as_stored!(T::tile_of_pairs, T::multiply_pairs, T::multiply_lying_pairs);
}

impl<T: Real> Stored<T> for Pair {
    fn stored<'a>(matrix: &'a dyn Rows<T>, depth: &Range<usize>) -> Option<(&'a [Self], usize)> {
        let (values, stride) = matrix.dense_bf16()?;
        let even = [stride, depth.start, depth.len()]
            .iter()
            .all(|count| count.is_multiple_of(2));
        let pairs = Pair::of_numbers(values).filter(|_| even)?;
        Some((&pairs[depth.start / 2..], stride / 2))
    }

    fn expand(matrix: &dyn Rows<T>, row: usize, columns: Range<usize>, out: &mut [Self]) {
        let (numbers, past) = Pair::numbers_mut(out).split_at_mut(columns.len());
        matrix.fill_bf16(row, columns, numbers);
        past.fill(bf16::ZERO);
    }

    fn of_rows<'a>(
        level: Level,
        values: &'a [T],
        width: usize,
        buffer: &'a mut Scratch<Self>,
    ) -> (&'a [Self], usize) {
        let stride = width.div_ceil(2);
        buffer.resize(values.len() / width.max(1) * stride);
        along::<T>(level, values, width, buffer, stride);
        (buffer, stride)
    }
}

/// The products of some pieces, each added to those before it.
fn one_by_one<'a, T, H: 'a>(
    level: Level,
    tile: Tile,
    rows: usize,
    pieces: impl Iterator<Item = Piece<'a, H>>,
    mut right: &[H],
    mut target: Target<T>,
    multiply: impl Fn(Level, &Product<H>, Target<T>),
) {
    let mut add = target.adds();
    for piece in pieces {
        let (now, rest) = right.split_at(piece.depth * tile.columns);
        right = rest;
        let product = Product {
            tile,
            rows,
            depth: piece.depth,
            left: piece.left,
            left_stride: piece.stride,
            right: now,
        };
        multiply(level, &product, target.again(add));
        add = true;
    }
}

/// Copies rows of a left operand as pairs, `out[row · stride + d]`.
pub(super) fn copy_pairs<T: Real>(
    level: Level,
    left: &Left<T>,
    rows: Range<usize>,
    depth: Range<usize>,
    out: &mut [Pair],
    stride: usize,
) {
    let length = depth.len().div_ceil(2);
    let count = rows.len();
    let at = |row: usize, depth: usize| depth * left.depth_stride + row * left.row_stride;
    if left.depth_stride == 1 {
        for (row, out) in rows.zip(out.chunks_exact_mut(stride.max(1))) {
            let from = &left.values[at(row, depth.start)..][..depth.len()];
            pairs::along::<T>(level, from, out);
        }
        return;
    }
    assert_eq!(left.row_stride, 1, "left operands lie along one direction");
    let mut across = Scratch::new(length * count);
    let from = &left.values[at(rows.start, depth.start)..];
    pairs::across::<T>(
        level,
        from,
        left.depth_stride,
        depth.len(),
        count,
        count,
        &mut across,
    );
    transpose::<Pair>(level, &across, count, length, count, out, stride);
}

/// Packs the columns `columns` of one block of terms into panels of `width` columns.
pub(super) fn panels<T: Element, H: Held<T>>(
    level: Level,
    terms: &[Term<T>],
    block: &[(usize, Range<usize>)],
    columns: Range<usize>,
    width: usize,
    out: &mut [H],
) {
    let sizes = block
        .iter()
        .map(|(_, depth)| depth.len().div_ceil(H::DEPTH) * width);
    let length = sizes.clone().sum();
    let mut start = 0;
    for ((term, depth), size) in block.iter().zip(sizes) {
        let pieces = Pieces {
            values: out,
            length,
            start,
            size,
            width,
        };
        pack(
            level,
            terms[*term].right,
            depth.clone(),
            columns.clone(),
            pieces,
        );
        start += size;
    }
}

/// A whole right operand in panels of `width` columns, one after the other.
pub(crate) fn whole<T: Element, H: Held<T>>(
    level: Level,
    right: Right<T>,
    width: usize,
) -> Scratch<H> {
    let (depth, columns) = (right.depth(), right.columns());
    let size = depth.div_ceil(H::DEPTH) * width;
    let mut values = Scratch::new(columns.div_ceil(width) * size);
    let pieces = Pieces {
        values: &mut values,
        length: size,
        start: 0,
        size,
        width,
    };
    pack(level, right, 0..depth, 0..columns, pieces);
    values
}

/// Rows of `width` numbers that follow each other as rows of pairs, `stride` to each, of which those past the row are 0.
fn along<T: Real>(level: Level, values: &[T], width: usize, out: &mut [Pair], stride: usize) {
    let length = width.div_ceil(2);
    if width.is_multiple_of(2) && stride == length {
        pairs::along::<T>(level, values, out);
        return;
    }
    for (row, out) in values.chunks_exact(width).zip(out.chunks_exact_mut(stride)) {
        let (pairs, past) = out.split_at_mut(length);
        pairs::along::<T>(level, row, pairs);
        past.fill(Pair::default());
    }
}

/// Packs the depth `depth` of a right operand's columns `columns`.
fn pack<T: Element, H: Held<T>>(
    level: Level,
    right: Right<T>,
    depth: Range<usize>,
    columns: Range<usize>,
    pieces: Pieces<H>,
) {
    match right {
        Right::Plain(matrix) => H::pack_plain(level, matrix, depth, columns, pieces),
        Right::Transposed(matrix) => H::pack_transposed(level, matrix, depth, columns, pieces),
    }
}

/// Turns rows that have to be expanded into the columns of a panel, strip by strip.
fn in_strips<T, H: Stored<T>>(
    level: Level,
    matrix: &dyn Rows<T>,
    rows: Range<usize>,
    depth: &Range<usize>,
    width: usize,
    out: &mut [H],
) {
    /// Depth, in held numbers, of the piece of rows that is expanded, then transposed, at a time.
    const PIECE: usize = 64;
    /// Rows that are transposed at a time.
    const STRIP: usize = 16;
    let mut scratch = [H::default(); STRIP * PIECE];
    for first in (0..rows.len()).step_by(STRIP) {
        let count = STRIP.min(rows.len() - first);
        let strip = rows.start + first..rows.start + first + count;
        for start in depth.clone().step_by(PIECE * H::DEPTH) {
            let piece = start..depth.end.min(start + PIECE * H::DEPTH);
            let held = piece.len().div_ceil(H::DEPTH);
            for (row, out) in strip.clone().zip(scratch.chunks_exact_mut(PIECE)) {
                H::expand(matrix, row, piece.clone(), &mut out[..held]);
            }
            let to = &mut out[(start - depth.start) / H::DEPTH * width + first..];
            transpose::<H>(level, &scratch, PIECE, count, held, to, width);
        }
    }
}

/// Rows of a right operand that are packed at a time, for all panels of a task: an even number.
pub(super) const STRIP: usize = 16;

/// Consecutive pieces of a depth, each of [`STRIP`] rows but the last.
pub(super) fn strips(depth: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = depth.end;
    depth
        .step_by(STRIP)
        .map(move |start| start..end.min(start + STRIP))
}

/// The strip after one.
pub(super) fn next(strip: &Range<usize>, depth: &Range<usize>) -> Range<usize> {
    strip.end..depth.end.min(strip.end + STRIP)
}

/// Asks the cache for the columns `columns` of the rows `rows`.
pub(super) fn ask_for<N>(values: &[N], stride: usize, rows: Range<usize>, columns: &Range<usize>) {
    for row in rows {
        prefetch(&values[row * stride..][columns.clone()]);
    }
}

/// Packs the columns `columns` of the rows `depth`, that lie `stride` apart, in pairs of one row and the next.
fn across<N: Round>(
    level: Level,
    values: &[N],
    stride: usize,
    depth: Range<usize>,
    columns: Range<usize>,
    pieces: &mut Pieces<Pair>,
) {
    for rows in strips(depth.clone()) {
        ask_for(values, stride, next(&rows, &depth), &columns);
        let from = &values[rows.start * stride + columns.start..];
        let first = (rows.start - depth.start) / 2;
        strip_across::<N>(
            level,
            from,
            stride,
            rows.len(),
            columns.len(),
            pieces,
            first,
        );
    }
}

/// Packs `depth` rows of `count` numbers, from the pair `first` of the pieces on.
fn strip_across<N: Round>(
    level: Level,
    values: &[N],
    stride: usize,
    depth: usize,
    count: usize,
    pieces: &mut Pieces<Pair>,
    first: usize,
) {
    let width = pieces.width;
    for (columns, out) in pieces.each(0..count) {
        let out = &mut out[first * width..];
        let from = &values[columns.start..];
        pairs::across::<N>(level, from, stride, depth, columns.len(), width, out);
    }
}
