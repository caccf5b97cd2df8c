//! Root-mean-square normalisation and its adjoint (Zhang and Sennrich, arXiv 1910.07467).
//!
//! `y = w ∘ x / √(mean(x²) + ε)` for every row. The same two functions serve the norms of a block,
//! of `[tokens, hidden]`, and those of single heads, whose caller reshapes to `[tokens · heads,
//! head_dim]`. Sums run in f64 over short blocks of the element type.

#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Result, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use crate::by_element;
use crate::cpu::Level;
use crate::gemm::round;
use crate::host::{Fresh, matrix, tensor, update, view};
use crate::vector::{Real, dot, levels};

/// Rows of one task; also the rows whose share of the weight's gradient is summed together, so it
/// must not depend on the number of threads.
const ROWS: usize = 32;

/// `(y, inverse roots)` of `x` `[rows, width]` under `weight` `[width]`; the roots are `[rows]`.
///
/// # Errors
/// Shapes that do not fit, or tensors that are not contiguous on the CPU.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
    let (rows, width) = matrix(x, "rms_norm", "the input")?;
    check("rms_norm", weight, width)?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::rms_norm(x, weight, epsilon, DType::F32);
    }
    let level = Level::detect();
    by_element!(x, T => {
        let (x, weight) = (view::<T>(x)?, view::<T>(weight)?);
        let mut y = Fresh::<T>::new(rows * width);
        let mut inverse_roots = vec![0 as T; rows];
        y.par_chunks_mut(ROWS * width)
            .zip(inverse_roots.par_chunks_mut(ROWS))
            .zip(x.par_chunks(ROWS * width))
            .for_each(|((y, roots), x)| forward::<T>(level, x, &weight, epsilon, y, roots));
        Ok((tensor(y.done(), (rows, width))?, tensor(inverse_roots, rows)?))
    })
}

/// [`rms_norm`] of f32, with `y` rounded to bf16: for products that would round it.
///
/// # Errors
/// As [`rms_norm`].
pub fn rms_norm_to_bf16(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
    /// Rows that are computed, then rounded, at a time: in the first-level cache.
    const FEW: usize = 4;
    let (rows, width) = matrix(x, "rms_norm_to_bf16", "the input")?;
    check("rms_norm_to_bf16", weight, width)?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::rms_norm(x, weight, epsilon, DType::BF16);
    }
    let level = Level::detect();
    let (x, weight) = (view::<f32>(x)?, view::<f32>(weight)?);
    let mut y = Fresh::<bf16>::new(rows * width);
    let mut inverse_roots = vec![0f32; rows];
    y.par_chunks_mut(ROWS * width)
        .zip(inverse_roots.par_chunks_mut(ROWS))
        .zip(x.par_chunks(ROWS * width))
        .for_each(|((y, roots), x)| {
            let mut wide = vec![0f32; FEW * width];
            for ((y, roots), x) in y
                .chunks_mut(FEW * width)
                .zip(roots.chunks_mut(FEW))
                .zip(x.chunks(FEW * width))
            {
                let wide = &mut wide[..y.len()];
                forward::<f32>(level, x, &weight, epsilon, wide, roots);
                round::<f32>(level, wide, y);
            }
        });
    Ok((
        tensor(y.done(), (rows, width))?,
        tensor(inverse_roots, rows)?,
    ))
}

/// Adjoint of [`rms_norm`]: the gradient of `x`, `[rows, width]`.
///
/// `residual` is added to the result in the same pass: the gradient that reaches `x` on the way past
/// the norm. To `weight_grad`, `[width]`, the gradient of the weight is added in place.
///
/// # Errors
/// As [`rms_norm`].
pub fn rms_norm_backward(
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    inverse_roots: &Tensor,
    residual: Option<&Tensor>,
    weight_grad: Option<&Tensor>,
) -> Result<Tensor> {
    const NAME: &str = "rms_norm_backward";
    let (rows, width) = matrix(x, NAME, "the input")?;
    check(NAME, weight, width)?;
    for (what, other) in [("the gradient", Some(dy)), ("the residual", residual)] {
        if let Some(other) = other
            && other.dims() != x.dims()
        {
            bail!(
                "`{NAME}`: {what} is {:?}, the input {:?}",
                other.dims(),
                x.dims()
            );
        }
    }
    if inverse_roots.dims() != [rows] {
        bail!(
            "`{NAME}`: {rows} rows meet roots of {:?}",
            inverse_roots.dims()
        );
    }
    if let Some(weight_grad) = weight_grad {
        check(NAME, weight_grad, width)?;
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::rms_norm_backward(dy, x, weight, inverse_roots, residual, weight_grad);
    }
    let level = Level::detect();
    by_element!(x, T => {
        let (dy, x) = (view::<T>(dy)?, view::<T>(x)?);
        let (weight, roots) = (view::<T>(weight)?, view::<T>(inverse_roots)?);
        let residual = residual.map(view::<T>).transpose()?;
        let mut dx = Fresh::<T>::new(rows * width);
        // Each task's share of the weight's gradient; without one, shares of no width.
        let share = if weight_grad.is_some() { width } else { 0 };
        let shares: Vec<Vec<T>> = dx
            .par_chunks_mut(ROWS * width)
            .enumerate()
            .map(|(task, dx)| {
                let at = task * ROWS * width..task * ROWS * width + dx.len();
                let residual = residual.as_ref().map(|residual| &residual[at.clone()]);
                let roots = &roots[task * ROWS..rows.min((task + 1) * ROWS)];
                let mut share = vec![0 as T; share];
                backward::<T>(
                    level, &dy[at.clone()], &x[at], &weight, roots, residual, dx, &mut share,
                );
                share
            })
            .collect();
        if let Some(weight_grad) = weight_grad {
            update(weight_grad, |into: &mut [T]| {
                for share in &shares {
                    for (into, share) in into.iter_mut().zip(share) {
                        *into += *share;
                    }
                }
                Ok(())
            })?;
        }
        tensor(dx.done(), (rows, width))
    })
}

fn check(operation: &str, weight: &Tensor, width: usize) -> Result<()> {
    if weight.dims() != [width] || width == 0 {
        bail!(
            "`{operation}`: rows of {width} meet a weight of {:?}",
            weight.dims()
        );
    }
    Ok(())
}

levels! {
    fn forward<T: Real>(x: &[T], weight: &[T], epsilon: f64, y: &mut [T], roots: &mut [T]) {
        let width = weight.len();
        let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(roots);
        for ((x, y), root) in rows {
            let scale = T::of(1.0 / (dot::<T, FMA>(x, x) / width as f64 + epsilon).sqrt());
            *root = scale;
            for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
                *y = *weight * (*x * scale);
            }
        }
    }
}

levels! {
    /// With the inverse root `r` and `g = w ∘ dy`: `dx = r g − x r³ mean(g ∘ x)`, `dw = Σ dy ∘ r x`.
    fn backward<T: Real>(
        dy: &[T],
        x: &[T],
        weight: &[T],
        roots: &[T],
        residual: Option<&[T]>,
        dx: &mut [T],
        weight_grad: &mut [T],
    ) {
        let width = weight.len();
        for (row, dx) in dx.chunks_exact_mut(width).enumerate() {
            let at = row * width..(row + 1) * width;
            let (x, dy, scale) = (&x[at.clone()], &dy[at.clone()], roots[row]);
            for ((dx, dy), weight) in dx.iter_mut().zip(dy).zip(weight) {
                *dx = *dy * *weight;
            }
            let mean = dot::<T, FMA>(dx, x) / width as f64;
            let pull = T::of(mean * scale.to_f64().powi(3));
            match residual {
                None => {
                    for (dx, x) in dx.iter_mut().zip(x) {
                        *dx = *dx * scale - *x * pull;
                    }
                }
                Some(residual) => {
                    for ((dx, x), residual) in dx.iter_mut().zip(x).zip(&residual[at]) {
                        *dx = *residual + (*dx * scale - *x * pull);
                    }
                }
            }
            for ((grad, dy), x) in weight_grad.iter_mut().zip(dy).zip(x) {
                *grad += *dy * (*x * scale);
            }
        }
    }
}
