//! Layer normalisation and its adjoint (Ba, Kiros and Hinton, arXiv 1607.06450).
//!
//! `y = w ∘ (x − mean(x)) / √(var(x) + ε) + b` for every row, with the variance over all numbers of the row;
//! the bias may be absent.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::by_element;
use crate::cpu::Level;
use crate::host::{Fresh, matrix, tensor, update, view};
use crate::vector::{LANES, Real, dot, levels, reduce};

/// Rows of one task; also the rows whose share of the parameters' gradients is summed together, so it
/// must not depend on the number of threads.
const ROWS: usize = 32;

/// Mean and inverse deviation of each row, both `[rows]`, which the adjoint needs.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Means.
    pub means: Tensor,
    /// `1 / √(var + ε)`
    pub inverse_deviations: Tensor,
}

/// Where the gradients of weight and bias are added up, both `[width]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Into<'a> {
    /// Of the weight.
    pub weight: Option<&'a Tensor>,
    /// Of the bias.
    pub bias: Option<&'a Tensor>,
}

/// `y` and the moments of `x` `[rows, width]` under `weight` and `bias` `[width]`.
///
/// # Errors
/// Shapes that do not fit, or tensors that are not contiguous on the CPU.
pub fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    epsilon: f64,
) -> Result<(Tensor, Moments)> {
    let (rows, width) = matrix(x, "layer_norm", "the input")?;
    check("layer_norm", weight, width)?;
    if let Some(bias) = bias {
        check("layer_norm", bias, width)?;
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::layer_norm(x, weight, bias, epsilon);
    }
    let level = Level::detect();
    by_element!(x, T => {
        let (x, weight) = (view::<T>(x)?, view::<T>(weight)?);
        let bias = match bias {
            Some(bias) => view::<T>(bias)?.to_vec(),
            None => vec![0 as T; width],
        };
        let mut y = Fresh::<T>::new(rows * width);
        let mut means = vec![0 as T; rows];
        let mut inverse = vec![0 as T; rows];
        y.par_chunks_mut(ROWS * width)
            .zip(means.par_chunks_mut(ROWS))
            .zip(inverse.par_chunks_mut(ROWS))
            .zip(x.par_chunks(ROWS * width))
            .for_each(|(((y, means), inverse), x)| {
                forward::<T>(level, x, &weight, &bias, epsilon, y, means, inverse);
            });
        let moments = Moments {
            means: tensor(means, rows)?,
            inverse_deviations: tensor(inverse, rows)?,
        };
        Ok((tensor(y.done(), (rows, width))?, moments))
    })
}

/// Adjoint of [`layer_norm`]: the gradient of `x`, `[rows, width]`.
///
/// `residual` is added to the result in the same pass: the gradient that reaches `x` on the way past
/// the norm. To `into` the gradients of weight and bias are added in place.
///
/// # Errors
/// As [`layer_norm`].
pub fn layer_norm_backward(
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    moments: &Moments,
    residual: Option<&Tensor>,
    into: Into,
) -> Result<Tensor> {
    const NAME: &str = "layer_norm_backward";
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
    for moment in [&moments.means, &moments.inverse_deviations] {
        if moment.dims() != [rows] {
            bail!("`{NAME}`: {rows} rows meet moments of {:?}", moment.dims());
        }
    }
    for gradient in [into.weight, into.bias].into_iter().flatten() {
        check(NAME, gradient, width)?;
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::layer_norm_backward(dy, x, weight, moments, residual, into);
    }
    let level = Level::detect();
    by_element!(x, T => {
        let (dy, x, weight) = (view::<T>(dy)?, view::<T>(x)?, view::<T>(weight)?);
        let (means, inverse) = (view::<T>(&moments.means)?, view::<T>(&moments.inverse_deviations)?);
        let residual = residual.map(view::<T>).transpose()?;
        let mut dx = Fresh::<T>::new(rows * width);
        // Each task's share of the parameters' gradients; without one, shares of no width.
        let share = if into.weight.is_some() || into.bias.is_some() { width } else { 0 };
        let shares: Vec<(Vec<T>, Vec<T>)> = dx
            .par_chunks_mut(ROWS * width)
            .enumerate()
            .map(|(task, dx)| {
                let at = task * ROWS * width..task * ROWS * width + dx.len();
                let of_rows = task * ROWS..rows.min((task + 1) * ROWS);
                let residual = residual.as_ref().map(|residual| &residual[at.clone()]);
                let mut shares = (vec![0 as T; share], vec![0 as T; share]);
                backward::<T>(
                    level,
                    &dy[at.clone()],
                    &x[at],
                    &weight,
                    &means[of_rows.clone()],
                    &inverse[of_rows],
                    residual,
                    dx,
                    &mut shares.0,
                    &mut shares.1,
                );
                shares
            })
            .collect();
        let add = |gradient: Option<&Tensor>, of: fn(&(Vec<T>, Vec<T>)) -> &[T]| match gradient {
            None => Ok(()),
            Some(gradient) => update(gradient, |into: &mut [T]| {
                for shares in &shares {
                    for (into, share) in into.iter_mut().zip(of(shares)) {
                        *into += *share;
                    }
                }
                Ok(())
            }),
        };
        add(into.weight, |shares| &shares.0)?;
        add(into.bias, |shares| &shares.1)?;
        tensor(dx.done(), (rows, width))
    })
}

fn check(operation: &str, vector: &Tensor, width: usize) -> Result<()> {
    if vector.dims() != [width] || width == 0 {
        bail!(
            "`{operation}`: rows of {width} meet a vector of {:?}",
            vector.dims()
        );
    }
    Ok(())
}

/// `Σ x`, in lanes of the element type over short blocks and in f64 over those.
#[inline(always)]
fn sum<T: Real>(x: &[T]) -> f64 {
    let mut total = 0.0;
    for block in x.chunks(16 * LANES) {
        let (lanes, rest) = block.as_chunks::<LANES>();
        let mut sums = [T::ZERO; LANES];
        for x in lanes {
            for lane in 0..LANES {
                sums[lane] += x[lane];
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *sum += *x;
        }
        total += reduce(sums, |a, b| a + b).to_f64();
    }
    total
}

levels! {
    fn forward<T: Real>(
        x: &[T],
        weight: &[T],
        bias: &[T],
        epsilon: f64,
        y: &mut [T],
        means: &mut [T],
        inverse: &mut [T],
    ) {
        let width = weight.len();
        let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(means).zip(inverse);
        for (((x, y), mean), inverse) in rows {
            *mean = T::of(sum::<T>(x) / width as f64);
            for (y, x) in y.iter_mut().zip(x) {
                *y = *x - *mean;
            }
            let scale = T::of(1.0 / (dot::<T, FMA>(y, y) / width as f64 + epsilon).sqrt());
            *inverse = scale;
            for ((y, weight), bias) in y.iter_mut().zip(weight).zip(bias) {
                *y = (*y * scale).mul_add::<FMA>(*weight, *bias);
            }
        }
    }
}

levels! {
    /// With `n = (x − mean) r` and `g = w ∘ dy`: `dx = r (g − mean(g) − n mean(g ∘ n))`, `dw = Σ dy ∘ n`,
    /// `db = Σ dy`.
    fn backward<T: Real>(
        dy: &[T],
        x: &[T],
        weight: &[T],
        means: &[T],
        inverse: &[T],
        residual: Option<&[T]>,
        dx: &mut [T],
        weight_grad: &mut [T],
        bias_grad: &mut [T],
    ) {
        let width = weight.len();
        let mut normed = vec![T::ZERO; width];
        for (row, dx) in dx.chunks_exact_mut(width).enumerate() {
            let at = row * width..(row + 1) * width;
            let (x, dy, mean, scale) = (&x[at.clone()], &dy[at.clone()], means[row], inverse[row]);
            for (normed, x) in normed.iter_mut().zip(x) {
                *normed = (*x - mean) * scale;
            }
            for ((dx, dy), weight) in dx.iter_mut().zip(dy).zip(weight) {
                *dx = *dy * *weight;
            }
            let level_part = T::of(sum::<T>(dx) / width as f64);
            let slope_part = T::of(dot::<T, FMA>(dx, &normed) / width as f64);
            for (dx, normed) in dx.iter_mut().zip(&normed) {
                *dx = (*dx - level_part - *normed * slope_part) * scale;
            }
            if let Some(residual) = residual {
                for (dx, residual) in dx.iter_mut().zip(&residual[at]) {
                    *dx += *residual;
                }
            }
            for ((grad, dy), normed) in weight_grad.iter_mut().zip(dy).zip(&normed) {
                *grad += *dy * *normed;
            }
            for (grad, dy) in bias_grad.iter_mut().zip(dy) {
                *grad += *dy;
            }
        }
    }
}
