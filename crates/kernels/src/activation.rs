//! The gated activation of a feed-forward layer, `act(gate) ∘ up`, and its adjoint.
//!
//! With SiLU it is SwiGLU, with GELU it is GeGLU (Shazeer, arXiv 2002.05202). All are one pass over
//! the operands in both directions; nothing is kept but the operands.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::by_element;
use crate::cpu::Level;
use crate::host::{Fresh, tensor, view};
use crate::vector::{Real, levels};

/// Numbers of one task.
const CHUNK: usize = 1 << 13;

/// The function that the gate passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x σ(x)`
    Silu,
    /// `x Φ(x)`, with the normal distribution `Φ` exact.
    Gelu,
    /// `x Φ(x)`, with `Φ` approximated through the hyperbolic tangent (Hendrycks and Gimpel, arXiv
    /// 1606.08415).
    GeluTanh,
}

/// `act(gate) ∘ up` of two tensors of the same shape.
///
/// # Errors
/// Shapes that differ, or tensors that are not contiguous on the CPU.
pub fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    same("gated", gate, up)?;
    #[cfg(feature = "cuda")]
    if gate.device().is_cuda() {
        return crate::cuda::gated(activation, gate, up);
    }
    let level = Level::detect();
    by_element!(gate, T => {
        let (gate_values, up) = (view::<T>(gate)?, view::<T>(up)?);
        let mut y = Fresh::<T>::new(gate_values.len());
        y.par_chunks_mut(CHUNK)
            .zip(gate_values.par_chunks(CHUNK))
            .zip(up.par_chunks(CHUNK))
            .for_each(|((y, gate), up)| match activation {
                Activation::Silu => silu::<T>(level, gate, up, y),
                Activation::Gelu => gelu::<T>(level, gate, up, y),
                Activation::GeluTanh => gelu_tanh::<T>(level, gate, up, y),
            });
        tensor(y.done(), gate.shape())
    })
}

/// The adjoint of [`gated`]: the gradients of `gate` and of `up`.
///
/// # Errors
/// As [`gated`].
pub fn gated_backward(
    activation: Activation,
    dy: &Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<(Tensor, Tensor)> {
    same("gated_backward", gate, up)?;
    same("gated_backward", gate, dy)?;
    #[cfg(feature = "cuda")]
    if gate.device().is_cuda() {
        return crate::cuda::gated_backward(activation, dy, gate, up);
    }
    let level = Level::detect();
    by_element!(gate, T => {
        let (gate_values, up, dy) = (view::<T>(gate)?, view::<T>(up)?, view::<T>(dy)?);
        let mut dgate = Fresh::<T>::new(gate_values.len());
        let mut dup = Fresh::<T>::new(gate_values.len());
        dgate.par_chunks_mut(CHUNK)
            .zip(dup.par_chunks_mut(CHUNK))
            .zip(gate_values.par_chunks(CHUNK))
            .zip(up.par_chunks(CHUNK))
            .zip(dy.par_chunks(CHUNK))
            .for_each(|((((dgate, dup), gate), up), dy)| match activation {
                Activation::Silu => silu_backward::<T>(level, dy, gate, up, dgate, dup),
                Activation::Gelu => gelu_backward::<T>(level, dy, gate, up, dgate, dup),
                Activation::GeluTanh => gelu_tanh_backward::<T>(level, dy, gate, up, dgate, dup),
            });
        Ok((tensor(dgate.done(), gate.shape())?, tensor(dup.done(), gate.shape())?))
    })
}

fn same(operation: &str, gate: &Tensor, other: &Tensor) -> Result<()> {
    if gate.dims() != other.dims() {
        bail!(
            "`{operation}`: {:?} and {:?} differ",
            gate.dims(),
            other.dims()
        );
    }
    Ok(())
}

/// `(σ(x), σ'(x))`, the slope as precise where `σ` is nearly 1 as where it is nearly 0.
#[inline(always)]
fn sigmoid<T: Real, const FMA: bool>(x: T) -> (T, T) {
    let power = (-x).exp_inline::<FMA>();
    let below = T::ONE / (T::ONE + power);
    // `power` may be infinite for the negative ones.
    let above = if x > T::ZERO {
        power * below
    } else {
        T::ONE - below
    };
    (below, below * above)
}

/// `(Φ(x), Φ'(x) x)` of the normal distribution.
#[inline(always)]
fn normal<T: Real, const FMA: bool>(x: T) -> (T, T) {
    /// `1 / √(2π)`
    const DENSITY: f64 = 0.398_942_280_401_432_7;
    let below = T::of(0.5) * (T::ONE + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf());
    let density = T::of(DENSITY) * (-(x * x) * T::of(0.5)).exp_inline::<FMA>();
    (below, density * x)
}

/// The same by `½ (1 + tanh u) = σ(2u)` with `u = √(2/π) (x + 0.044715 x³)`.
#[inline(always)]
pub(crate) fn normal_tanh<T: Real, const FMA: bool>(x: T) -> (T, T) {
    /// `2 √(2/π)`
    const FACTOR: f64 = 1.595_769_121_605_730_8;
    const CUBIC: f64 = 0.044_715;
    let square = x * x;
    let (below, steepness) =
        sigmoid::<T, FMA>(T::of(FACTOR) * x * (T::ONE + T::of(CUBIC) * square));
    let slope = T::of(FACTOR) * (T::ONE + T::of(3.0 * CUBIC) * square);
    (below, steepness * slope * x)
}

/// `(σ(x), σ'(x) x)`
#[inline(always)]
pub(crate) fn logistic<T: Real, const FMA: bool>(x: T) -> (T, T) {
    let (below, steepness) = sigmoid::<T, FMA>(x);
    (below, steepness * x)
}

/// The forward and backward loops of `x p(x)`, given `(p, p' x)`.
macro_rules! gated_loops {
    ($forward:ident, $backward:ident, $parts:expr) => {
        levels! {
            fn $forward<T: Real>(gate: &[T], up: &[T], y: &mut [T]) {
                for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                    let (p, _): (T, T) = $parts(*gate);
                    *y = *gate * p * *up;
                }
            }
        }

        levels! {
            fn $backward<T: Real>(
                dy: &[T],
                gate: &[T],
                up: &[T],
                dgate: &mut [T],
                dup: &mut [T],
            ) {
                let operands = dy.iter().zip(gate).zip(up);
                for ((((dy, gate), up), dgate), dup) in operands.zip(dgate).zip(dup) {
                    let (p, slope): (T, T) = $parts(*gate);
                    *dgate = *dy * *up * (p + slope);
                    *dup = *dy * (*gate * p);
                }
            }
        }
    };
}

gated_loops!(silu, silu_backward, logistic::<T, FMA>);
gated_loops!(gelu, gelu_backward, normal::<T, FMA>);
gated_loops!(gelu_tanh, gelu_tanh_backward, normal_tanh::<T, FMA>);
