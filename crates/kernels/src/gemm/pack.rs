//! Packing: pieces of stored rows become the panels that the microkernel reads.
//!
//! A panel holds `width` columns of the right operand, depth by depth: `panel[d * width + column]`,
//! where `d` counts [`Held`] numbers: one number each, or a pair of bf16 numbers. Columns past the
//! operand's edge are zero, as is what a pair lacks at the end of its depth.

use std::ops::Range;

use half::bf16;

use super::kernel::{Pair, Product, Target};
use super::{Left, Right, Rows, Term};
use crate::cpu::Level;
use crate::host::Element;
use crate::vector::{Plain, Real, levels, transpose};

/// A plain row-major matrix.
#[derive(Clone, Copy)]
pub struct Dense<'a, T> {
    values: &'a [T],
    rows: usize,
    columns: usize,
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
        Self {
            values,
            rows,
            columns,
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
        out.copy_from_slice(&self.values[row * self.columns..][columns]);
    }

    fn dense(&self) -> Option<(&[T], usize)> {
        Some((self.values, self.columns))
    }

    fn rounded(&self) -> bool {
        self.rounded
    }

    fn fill_bf16(&self, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        round::<T>(
            Level::detect(),
            &self.values[row * self.columns..][columns],
            out,
        );
    }
}

/// How the numbers of type `T` of a product are held while they are multiplied.
/// Its default is zero.
pub(super) trait Held<T>: Plain + Send + Sync + 'static {
    /// Numbers of depth in one.
    const DEPTH: usize;

    /// `values` as they are, where they are held so.
    fn as_is(values: &[T]) -> Option<&[Self]>;

    /// Copies rows of a left operand: `out[row * length + d]`, `length` long enough for `depth`.
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
        width: usize,
        out: &mut [Self],
    );

    /// Writes a piece of a row of `matrix`.
    fn fill(matrix: &dyn Rows<T>, row: usize, columns: Range<usize>, out: &mut [Self]);

    /// [`Kernel::multiply`](super::Kernel::multiply) of numbers held so.
    fn multiply(level: Level, product: &Product<Self>, target: Target<T>);
}

impl<T: Real> Held<T> for T {
    const DEPTH: usize = 1;

    fn as_is(values: &[T]) -> Option<&[Self]> {
        Some(values)
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
        width: usize,
        out: &mut [Self],
    ) {
        let rows = depth.zip(out.chunks_exact_mut(width));
        if let Some((values, stride)) = matrix.dense() {
            for (row, out) in rows {
                let from = &values[row * stride..][columns.clone()];
                out[..from.len()].copy_from_slice(from);
                out[from.len()..].fill(T::ZERO);
            }
        } else {
            for (row, out) in rows {
                matrix.fill(row, columns.clone(), &mut out[..columns.len()]);
                out[columns.len()..].fill(T::ZERO);
            }
        }
    }

    fn fill(matrix: &dyn Rows<T>, row: usize, columns: Range<usize>, out: &mut [Self]) {
        matrix.fill(row, columns, out);
    }

    fn multiply(level: Level, product: &Product<Self>, target: Target<T>) {
        T::multiply(level, product, target);
    }
}

impl<T: Real> Held<T> for Pair {
    const DEPTH: usize = 2;

    fn as_is(_: &[T]) -> Option<&[Self]> {
        None
    }

    fn copy_left(
        level: Level,
        left: &Left<T>,
        rows: Range<usize>,
        depth: Range<usize>,
        out: &mut [Self],
    ) {
        let length = depth.len().div_ceil(2);
        let count = rows.len();
        let at = |row: usize, depth: usize| depth * left.depth_stride + row * left.row_stride;
        if left.depth_stride == 1 {
            for (row, out) in rows.zip(out.chunks_exact_mut(length.max(1))) {
                let from = &left.values[at(row, depth.start)..][..depth.len()];
                pairs_along::<T>(level, from, out);
            }
            return;
        }
        assert_eq!(left.row_stride, 1, "left operands lie along one direction");
        let mut across = vec![Pair(0); length * count];
        for (pair, out) in across.chunks_exact_mut(count.max(1)).enumerate() {
            let first = depth.start + 2 * pair;
            let row = |depth: usize| &left.values[at(rows.start, depth)..][..count];
            let second = (first + 1 < depth.end).then(|| row(first + 1));
            pairs_across::<T>(level, row(first), second.unwrap_or(&[]), out);
        }
        transpose::<Pair>(level, &across, count, length, count, out, length);
    }

    fn pack_plain(
        level: Level,
        matrix: &dyn Rows<T>,
        depth: Range<usize>,
        columns: Range<usize>,
        width: usize,
        out: &mut [Self],
    ) {
        let count = columns.len();
        let dense = matrix.dense();
        let mut scratch = [[bf16::ZERO; WIDEST]; 2];
        for (pair, out) in out.chunks_exact_mut(width).enumerate() {
            let first = depth.start + 2 * pair;
            let has_second = first + 1 < depth.end;
            if let Some((values, stride)) = dense {
                let row = |row: usize| &values[row * stride..][columns.clone()];
                let second = has_second.then(|| row(first + 1));
                pairs_across::<T>(level, row(first), second.unwrap_or(&[]), &mut out[..count]);
            } else {
                let [one, two] = &mut scratch;
                matrix.fill_bf16(first, columns.clone(), &mut one[..count]);
                if has_second {
                    matrix.fill_bf16(first + 1, columns.clone(), &mut two[..count]);
                } else {
                    two.fill(bf16::ZERO);
                }
                for ((out, one), two) in out.iter_mut().zip(&one[..count]).zip(&*two) {
                    *out = Pair::of_bits(one.to_bits(), two.to_bits());
                }
            }
            out[count..].fill(Pair(0));
        }
    }

    fn fill(matrix: &dyn Rows<T>, row: usize, columns: Range<usize>, out: &mut [Self]) {
        let mut numbers = [bf16::ZERO; 2 * PIECE];
        let numbers = &mut numbers[..columns.len().next_multiple_of(2)];
        if let Some(last) = numbers.last_mut() {
            *last = bf16::ZERO;
        }
        let count = columns.len();
        matrix.fill_bf16(row, columns, &mut numbers[..count]);
        for (out, pair) in out.iter_mut().zip(numbers.chunks_exact(2)) {
            *out = Pair::of_bits(pair[0].to_bits(), pair[1].to_bits());
        }
    }

    fn multiply(level: Level, product: &Product<Self>, target: Target<T>) {
        T::multiply_pairs(level, product, target);
    }
}

/// Columns of the widest panel.
const WIDEST: usize = 32;
/// Depth, in held numbers, of the piece of rows that is expanded, then transposed, at a time.
const PIECE: usize = 64;
/// Rows that are transposed at a time.
const STRIP: usize = 16;

/// Packs the columns `columns` of one block of terms into a panel of `width` columns.
pub(super) fn panel<T: Element, H: Held<T>>(
    level: Level,
    terms: &[Term<T>],
    block: &[(usize, Range<usize>)],
    columns: Range<usize>,
    width: usize,
    mut out: &mut [H],
) {
    for (term, depth) in block {
        let (now, rest) = out.split_at_mut(depth.len().div_ceil(H::DEPTH) * width);
        out = rest;
        match terms[*term].right {
            Right::Plain(matrix) => {
                H::pack_plain(level, matrix, depth.clone(), columns.clone(), width, now);
            }
            Right::Transposed(matrix) => {
                transposed(level, matrix, depth.clone(), columns.clone(), width, now);
            }
        }
    }
}

fn transposed<T: Element, H: Held<T>>(
    level: Level,
    matrix: &dyn Rows<T>,
    depth: Range<usize>,
    columns: Range<usize>,
    width: usize,
    out: &mut [H],
) {
    if columns.len() < width {
        out.fill(H::default());
    }
    let mut scratch = [H::default(); STRIP * PIECE];
    let dense = matrix
        .dense()
        .and_then(|(values, stride)| Some((H::as_is(values)?, stride)));
    for first in (0..columns.len()).step_by(STRIP) {
        let count = STRIP.min(columns.len() - first);
        let row = columns.start + first;
        if let Some((values, stride)) = dense {
            let from = &values[row * stride + depth.start..];
            transpose::<H>(
                level,
                from,
                stride,
                count,
                depth.len(),
                &mut out[first..],
                width,
            );
            continue;
        }
        for start in (0..depth.len()).step_by(PIECE * H::DEPTH) {
            let piece = depth.start + start..depth.end.min(depth.start + start + PIECE * H::DEPTH);
            let held = piece.len().div_ceil(H::DEPTH);
            for (row, out) in (row..row + count).zip(scratch.chunks_exact_mut(PIECE)) {
                H::fill(matrix, row, piece.clone(), &mut out[..held]);
            }
            let to = &mut out[start / H::DEPTH * width + first..];
            transpose::<H>(level, &scratch, PIECE, count, held, to, width);
        }
    }
}

levels! {
    /// `values`, each rounded to bf16.
    pub(crate) fn round<T: Real>(values: &[T], out: &mut [bf16]) {
        for (out, value) in out.iter_mut().zip(values) {
            *out = bf16::from_bits(value.to_bf16_bits());
        }
    }
}

levels! {
    /// Pairs of numbers that follow each other; an odd last one is paired with 0.
    fn pairs_along<T: Real>(values: &[T], out: &mut [Pair]) {
        let (pairs, rest) = values.as_chunks::<2>();
        for (out, [first, second]) in out.iter_mut().zip(pairs) {
            *out = Pair::of(*first, *second);
        }
        if let ([last], Some(out)) = (rest, out.get_mut(pairs.len())) {
            *out = Pair::of(*last, T::ZERO);
        }
    }
}

levels! {
    /// Pairs of one number of each row; of the first row and 0 where the second is empty.
    fn pairs_across<T: Real>(first: &[T], second: &[T], out: &mut [Pair]) {
        if second.is_empty() {
            for (out, first) in out.iter_mut().zip(first) {
                *out = Pair::of(*first, T::ZERO);
            }
        } else {
            for ((out, first), second) in out.iter_mut().zip(first).zip(second) {
                *out = Pair::of(*first, *second);
            }
        }
    }
}
