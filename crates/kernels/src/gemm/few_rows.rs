//! Products of a few rows, as when a model generates: dot products along the stored rows.
//!
//! Packing pays off only when a panel is used by many rows. With few, each stored row is read (and
//! expanded, if quantised) once, multiplied with every left row while it is in the cache, and the
//! small transposed result is turned round at the end.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::{Right, Term};
use crate::cpu::Level;
use crate::vector::Real;

/// Stored rows of one task.
const COLUMNS_PER_TASK: usize = 64;

/// # Safety
/// If it is to accumulate, every place of `out` holds a number.
#[expect(unsafe_code, reason = "a promise of the caller")]
pub(super) unsafe fn multiply<T: Real>(
    level: Level,
    terms: &[Term<T>],
    rows: usize,
    columns: usize,
    out: &mut [MaybeUninit<T>],
    accumulate: bool,
) {
    let mut turned = vec![T::ZERO; rows * columns];
    let longest = terms.iter().map(|term| term.left.depth).max().unwrap_or(0);
    turned
        .par_chunks_mut(rows * COLUMNS_PER_TASK)
        .enumerate()
        .for_each(|(task, turned)| {
            let mut scratch = vec![T::ZERO; longest];
            for (i, sums) in turned.chunks_exact_mut(rows).enumerate() {
                let column = task * COLUMNS_PER_TASK + i;
                for term in terms {
                    let Right::Transposed(matrix) = term.right else {
                        unreachable!("the driver sends only transposed right operands here")
                    };
                    let depth = term.left.depth;
                    let stored: &[T] = if let Some((values, stride)) = matrix.dense() {
                        &values[column * stride..][..depth]
                    } else {
                        matrix.fill(column, 0..depth, &mut scratch[..depth]);
                        &scratch[..depth]
                    };
                    for (row, sum) in sums.iter_mut().enumerate() {
                        let left = &term.left.values[row * term.left.row_stride..][..depth];
                        *sum += T::dot(level, left, stored);
                    }
                }
            }
        });
    for (row, out) in out.chunks_exact_mut(columns).enumerate() {
        for (out, sum) in out.iter_mut().zip(turned.iter().skip(row).step_by(rows)) {
            let before = if accumulate {
                // SAFETY: the caller's promise.
                unsafe { out.assume_init() }
            } else {
                T::ZERO
            };
            out.write(before + *sum);
        }
    }
}
