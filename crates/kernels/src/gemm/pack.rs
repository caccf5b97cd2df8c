//! Packing: pieces of stored rows become the panels that the microkernel reads.
//!
//! A panel holds `width` columns of the right operand, depth by depth: `panel[d * width + column]`.
//! Columns past the operand's edge are zero.

use std::ops::Range;

use super::{Left, Right, Rows, Term};
use crate::host::Element;

/// A plain row-major matrix.
#[derive(Clone, Copy)]
pub struct Dense<'a, T> {
    values: &'a [T],
    rows: usize,
    columns: usize,
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
        }
    }
}

impl<T: Element> Rows<T> for Dense<'_, T> {
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
}

/// Packs the columns `columns` of one block of terms into a panel of `width` columns.
pub(super) fn panel<T: Element>(
    terms: &[Term<T>],
    block: &[(usize, Range<usize>)],
    columns: Range<usize>,
    width: usize,
    mut out: &mut [T],
) {
    for (term, depth) in block {
        let (now, rest) = out.split_at_mut(depth.len() * width);
        out = rest;
        match terms[*term].right {
            Right::Plain(matrix) => plain(matrix, depth.clone(), columns.clone(), width, now),
            Right::Transposed(matrix) => {
                transposed(matrix, depth.clone(), columns.clone(), width, now);
            }
        }
    }
}

fn plain<T: Element>(
    matrix: &dyn Rows<T>,
    depth: Range<usize>,
    columns: Range<usize>,
    width: usize,
    out: &mut [T],
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

/// Depth of the piece that is expanded, then transposed, at a time.
const PIECE: usize = 64;

fn transposed<T: Element>(
    matrix: &dyn Rows<T>,
    depth: Range<usize>,
    columns: Range<usize>,
    width: usize,
    out: &mut [T],
) {
    if columns.len() < width {
        out.fill(T::ZERO);
    }
    let mut scratch = [T::ZERO; PIECE];
    for (column, row) in columns.enumerate() {
        for start in (0..depth.len()).step_by(PIECE) {
            let piece = start..depth.len().min(start + PIECE);
            let from: &[T] = if let Some((values, stride)) = matrix.dense() {
                &values[row * stride + depth.start..][piece.clone()]
            } else {
                let from = &mut scratch[..piece.len()];
                matrix.fill(
                    row,
                    depth.start + piece.start..depth.start + piece.end,
                    from,
                );
                from
            };
            let to = out[piece.start * width + column..]
                .iter_mut()
                .step_by(width);
            for (to, from) in to.zip(from) {
                *to = *from;
            }
        }
    }
}

/// Copies rows of a left operand whose numbers lie apart in memory: `out[row * depth + d]`.
pub(super) fn transpose_left<T: Element>(
    left: &Left<T>,
    first_row: usize,
    rows: usize,
    depth: Range<usize>,
    out: &mut [T],
) {
    let length = depth.len();
    for (d, depth) in depth.enumerate() {
        let from = &left.values[depth * left.depth_stride + first_row * left.row_stride..];
        for (row, value) in from.iter().step_by(left.row_stride).take(rows).enumerate() {
            out[row * length + d] = *value;
        }
    }
}
