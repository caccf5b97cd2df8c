//! Products with a weight in any stored form, and their adjoints.
//!
//! `y = x Wᵀ` with `W` of `[out, in]`; its adjoints are `dx = dy W` and `dW = dyᵀ x`. Bias is added
//! by [`add_bias`], whose adjoint is a sum over the tokens.

use candle_core::{Result, Tensor, bail};

use crate::by_element;
use crate::gemm::{Dense, Left, Right, Term, gemm, product};
use crate::host::{self, matrix, tensor, update, view};
use crate::weight::Weight;

/// `x Wᵀ`: `[tokens, in]` and `[out, in]` to `[tokens, out]`.
///
/// # Errors
/// Shapes that do not fit, or tensors that are not contiguous on the CPU.
pub fn linear(x: &Tensor, weight: &Weight) -> Result<Tensor> {
    let (tokens, width) = matrix(x, "linear", "the input")?;
    let (out, input) = weight.dims()?;
    if width != input {
        bail!("`linear`: an input of width {width} meets a weight of [{out}, {input}]");
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::linear(x, weight);
    }
    by_element!(x, T => {
        let x = view::<T>(x)?;
        let y = weight.with_rows::<T, _>(|rows| {
            let term = Term { left: Left::plain(&x, tokens, input), right: Right::Transposed(rows) };
            Ok(product(&[term], out))
        })?;
        tensor(y, (tokens, out))
    })
}

/// `dy W`: the gradient of [`linear`] with respect to its input, `[tokens, in]`.
///
/// # Errors
/// As [`linear`].
pub fn linear_input_grad(dy: &Tensor, weight: &Weight) -> Result<Tensor> {
    let (tokens, width) = matrix(dy, "linear_input_grad", "the gradient")?;
    let (out, input) = weight.dims()?;
    if width != out {
        bail!(
            "`linear_input_grad`: a gradient of width {width} meets a weight of [{out}, {input}]"
        );
    }
    #[cfg(feature = "cuda")]
    if dy.device().is_cuda() {
        return crate::cuda::linear_input_grad(dy, weight);
    }
    by_element!(dy, T => {
        let dy = view::<T>(dy)?;
        let dx = weight.with_rows::<T, _>(|rows| {
            let term = Term { left: Left::plain(&dy, tokens, out), right: Right::Plain(rows) };
            Ok(product(&[term], input))
        })?;
        tensor(dx, (tokens, input))
    })
}

/// `into += dyᵀ x`: the gradient of [`linear`] with respect to its weight, `[out, in]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear_weight_grad(dy: &Tensor, x: &Tensor, into: &Tensor) -> Result<()> {
    let (tokens, out) = matrix(dy, "linear_weight_grad", "the gradient")?;
    let (rows, input) = matrix(x, "linear_weight_grad", "the input")?;
    if rows != tokens || into.dims() != [out, input] {
        bail!(
            "`linear_weight_grad`: {:?} and {:?} do not give {:?}",
            dy.dims(),
            x.dims(),
            into.dims()
        );
    }
    #[cfg(feature = "cuda")]
    if dy.device().is_cuda() {
        return crate::cuda::linear_weight_grad(dy, x, into);
    }
    by_element!(dy, T => {
        let (dy, x) = (view::<T>(dy)?, view::<T>(x)?);
        update(into, |into: &mut [T]| {
            let right = Dense::new(&x, tokens, input);
            let term = Term { left: Left::transposed(&dy, tokens, out), right: Right::Plain(&right) };
            gemm(&[term], input, into, true);
            Ok(())
        })
    })
}

/// `y += bias` for every token, in place.
///
/// # Errors
/// Shapes that do not fit.
pub fn add_bias(y: &Tensor, bias: &Tensor) -> Result<()> {
    let (_, width) = matrix(y, "add_bias", "the output")?;
    if bias.dims() != [width] {
        bail!(
            "`add_bias`: a bias of {:?} meets an output of width {width}",
            bias.dims()
        );
    }
    #[cfg(feature = "cuda")]
    if y.device().is_cuda() {
        return crate::cuda::add_bias(y, bias);
    }
    by_element!(y, T => {
        let bias = view::<T>(bias)?;
        update(y, |y: &mut [T]| {
            for row in y.chunks_exact_mut(width.max(1)) {
                for (y, bias) in row.iter_mut().zip(bias.iter()) {
                    *y += *bias;
                }
            }
            Ok(())
        })
    })
}

/// `into += Σ dy` over the tokens: the gradient of [`add_bias`] with respect to the bias, `[out]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn bias_grad(dy: &Tensor, into: &Tensor) -> Result<()> {
    let (_, width) = matrix(dy, "bias_grad", "the gradient")?;
    if into.dims() != [width] {
        bail!(
            "`bias_grad`: {:?} meets a gradient of width {width}",
            into.dims()
        );
    }
    #[cfg(feature = "cuda")]
    if dy.device().is_cuda() {
        return crate::cuda::bias_grad(dy, into);
    }
    by_element!(dy, T => {
        let dy = view::<T>(dy)?;
        update(into, |into: &mut [T]| {
            for row in dy.chunks_exact(width.max(1)) {
                for (into, dy) in into.iter_mut().zip(row) {
                    *into += *dy;
                }
            }
            Ok(())
        })
    })
}

/// `x += y`, in place; on a GPU also of bf16.
///
/// # Errors
/// Shapes that differ.
pub fn add_in_place(x: &Tensor, y: &Tensor) -> Result<()> {
    if x.dims() != y.dims() {
        bail!("`add_in_place`: {:?} and {:?} differ", x.dims(), y.dims());
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::add_in_place(x, y);
    }
    by_element!(x, T => {
        let y = host::view::<T>(y)?;
        update(x, |x: &mut [T]| {
            use rayon::prelude::*;
            const CHUNK: usize = 1 << 14;
            x.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(x, y)| {
                for (x, y) in x.iter_mut().zip(y) {
                    *x += *y;
                }
            });
            Ok(())
        })
    })
}
