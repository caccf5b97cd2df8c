//! The rescaled rows of DoRA: `y = m/n ∘ (W + s B A) x`, row by row of the output.
//!
//! A branch with a [`Dora`] trains the length of every row apart from its direction: `m` is a trained
//! magnitude and `n` the norm of the row of `W + s B A` at present (Liu et al., "DoRA: Weight-Decomposed
//! Low-Rank Adaptation", arXiv 2402.09353). `n` follows `A` and `B` but is held fixed in the adjoint, as
//! section 4.3 of the paper proposes and PEFT does. The products themselves, and the adjoints of `A`, `B`
//! and the input, are [`crate::lora`]'s; this module has the norms, the rescaling and the adjoint of `m`.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::by_element;
use crate::gemm::{Dense, Left, Right, Term, gemm};
use crate::host::{Element, num::Float, tensor, update, view, zeroed};
use crate::vector::Real;
use crate::weight::Weight;

/// Rows of `W + s B A` that exist at a time.
const ROWS: usize = 128;

/// What DoRA adds to a low-rank branch.
#[derive(Clone, Debug)]
pub struct Dora {
    /// Trained length of each row, `[out]`.
    pub magnitude: Tensor,
    /// Length of each row of `W + s B A` for the present `A` and `B`, `[out]`, by [`row_norms`]. Whoever
    /// changes `A` or `B` brings it up to date.
    pub norms: Tensor,
}

impl Dora {
    /// `m/n`, one number for each row. A row of zeros has no direction to rescale; it stays zero, where
    /// a division would make it not a number.
    pub(crate) fn gains<T: Element>(&self) -> Result<Vec<T>> {
        let (magnitude, norms) = (view::<T>(&self.magnitude)?, view::<T>(&self.norms)?);
        let pairs = magnitude.iter().zip(norms.iter());
        Ok(pairs.map(|(m, n)| *m * inverse(*n)).collect())
    }

    pub(crate) fn check(&self, out: usize) -> Result<()> {
        for (what, tensor) in [("magnitude", &self.magnitude), ("norms", &self.norms)] {
            if tensor.dims() != [out] {
                bail!(
                    "`dora`: {what} of {:?} do not fit a weight of {out} rows",
                    tensor.dims()
                );
            }
        }
        Ok(())
    }
}

fn inverse<T: Element>(norm: T) -> T {
    if norm > T::ZERO {
        T::ONE / norm
    } else {
        T::ZERO
    }
}

/// Norms of the rows of `W + s B A` in the type of `A`, `[out]`.
///
/// The sum is made, a few rows at a time, and measured. Expanding the square into
/// `‖W‖² + 2s⟨W, BA⟩ + s²‖BA‖²` would need as many multiplications (`W Aᵀ` is as large as `B A`), and it
/// loses its digits where the branch works against the weight. A quantised weight is expanded no further
/// than those rows. Squares are summed in f64. On a GPU the sum is made whole, and its squares are summed in f32.
///
/// # Errors
/// Shapes that do not fit.
pub fn row_norms(weight: &Weight, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    let (out, input) = weight.dims()?;
    let rank = a.dims().first().copied().unwrap_or(0);
    if a.dims() != [rank, input] || b.dims() != [out, rank] {
        bail!(
            "`row_norms`: A of {:?} and B of {:?} do not fit a weight of [{out}, {input}]",
            a.dims(),
            b.dims()
        );
    }
    #[cfg(feature = "cuda")]
    if a.device().is_cuda() {
        return crate::cuda::row_norms(weight, a, b, scale);
    }
    by_element!(a, T => {
        let (a, b) = (view::<T>(a)?, view::<T>(b)?);
        let a = Dense::new(&a, rank, input);
        let b: Vec<T> = b.iter().map(|value| *value * scale as T).collect();
        let mut norms = vec![0 as T; out];
        weight.with_rows::<T, _>(|rows| {
            let mut sum = vec![0 as T; ROWS.min(out) * input];
            for (block, norms) in norms.chunks_mut(ROWS).enumerate() {
                let first = block * ROWS;
                let sum = &mut sum[..norms.len() * input];
                sum.par_chunks_mut(input.max(1))
                    .enumerate()
                    .for_each(|(row, sum)| rows.fill(first + row, 0..input, sum));
                let b = &b[first * rank..][..norms.len() * rank];
                let term = Term { left: Left::plain(b, norms.len(), rank), right: Right::Plain(&a) };
                gemm(&[term], input, sum, true);
                norms
                    .par_iter_mut()
                    .zip(sum.par_chunks(input.max(1)))
                    .for_each(|(norm, row)| *norm = length(row));
            }
            Ok(())
        })?;
        tensor(norms, out)
    })
}

/// Euclidean length, in four sums side by side.
fn length<T: Element>(row: &[T]) -> T {
    let mut sums = [0f64; 4];
    for piece in row.chunks(4) {
        for (sum, value) in sums.iter_mut().zip(piece) {
            let value = value.to_double();
            *sum += value * value;
        }
    }
    <T as Float>::of(sums.iter().sum::<f64>().sqrt())
}

/// `y = gains ∘ z` for every token, `[tokens, out]`.
pub(crate) fn rescaled<T: Real>(z: &[T], gains: &[T]) -> Vec<T> {
    let mut y = zeroed::<T>(z.len());
    let width = gains.len().max(1);
    y.par_chunks_mut(width)
        .zip(z.par_chunks(width))
        .for_each(|(y, z)| {
            for ((y, z), gain) in y.iter_mut().zip(z).zip(gains) {
                *y = *z * *gain;
            }
        });
    y
}

/// `into += Σ dy ∘ z / n` over the tokens: the adjoint of the magnitude, with `z = (W + s B A) x`.
pub(crate) fn magnitude_grad<T: Element>(
    dy: &[T],
    z: &[T],
    norms: &[T],
    into: &Tensor,
) -> Result<()> {
    let width = norms.len().max(1);
    let mut sums = vec![T::ZERO; norms.len()];
    for (dy, z) in dy.chunks_exact(width).zip(z.chunks_exact(width)) {
        for ((sum, dy), z) in sums.iter_mut().zip(dy).zip(z) {
            *sum += *dy * *z;
        }
    }
    update(into, |into: &mut [T]| {
        for ((into, sum), norm) in into.iter_mut().zip(&sums).zip(norms) {
            *into += *sum * inverse(*norm);
        }
        Ok(())
    })
}
