//! The gated activation of a feed-forward layer, `act(gate) ∘ up`, and its adjoint.
//!
//! With SiLU it is SwiGLU, with GELU it is GeGLU (Shazeer, arXiv 2002.05202). All are one pass over
//! the operands in both directions; nothing is kept but the operands.

use candle_core::{DType, Result, Storage, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use crate::by_element;
use crate::cpu::Level;
use crate::gemm::round;
use crate::host::{Fresh, tensor, update, view};
use crate::vector::{Real, levels, widen};

/// Numbers of one task.
const CHUNK: usize = 1 << 13;
/// Numbers that are widened from bf16 or rounded to it at a time, in the first-level cache.
const PIECE: usize = 1 << 9;

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

impl Activation {
    fn forward<T: Real>(self, level: Level, gate: &[T], up: &[T], y: &mut [T]) {
        match self {
            Self::Silu => silu::<T>(level, gate, up, y),
            Self::Gelu => gelu::<T>(level, gate, up, y),
            Self::GeluTanh => gelu_tanh::<T>(level, gate, up, y),
        }
    }

    fn backward<T: Real>(
        self,
        level: Level,
        dy: &[T],
        gate: &[T],
        up: &[T],
        dgate: &mut [T],
        dup: &mut [T],
    ) {
        match self {
            Self::Silu => silu_backward::<T>(level, dy, gate, up, dgate, dup),
            Self::Gelu => gelu_backward::<T>(level, dy, gate, up, dgate, dup),
            Self::GeluTanh => gelu_tanh_backward::<T>(level, dy, gate, up, dgate, dup),
        }
    }
}

/// `act(gate) ∘ up` of two tensors of the same shape, of their type; those of bf16 are computed in f32.
///
/// # Errors
/// Shapes that differ, or tensors that are not contiguous on the CPU.
pub fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    same("gated", gate, up)?;
    #[cfg(feature = "cuda")]
    if gate.device().is_cuda() {
        return crate::cuda::gated(activation, gate, up);
    }
    if gate.dtype() == DType::BF16 {
        return gated_bf16(activation, gate, up);
    }
    let level = Level::detect();
    by_element!(gate, T => {
        let (gate_values, up) = (view::<T>(gate)?, view::<T>(up)?);
        let mut y = Fresh::<T>::new(gate_values.len());
        y.par_chunks_mut(CHUNK)
            .zip(gate_values.par_chunks(CHUNK))
            .zip(up.par_chunks(CHUNK))
            .for_each(|((y, gate), up)| activation.forward::<T>(level, gate, up, y));
        tensor(y.done(), gate.shape())
    })
}

/// `act(gate) ∘ up` rounded to bf16, for a product that would round it; and both operands rounded so, for the way back
/// through [`gated`] and [`gated_backward`], in half the memory. The adjoint then differentiates at operands with the
/// eight significant bits that a model computed in bf16 altogether has.
///
/// # Errors
/// As [`gated`].
pub fn gated_to_bf16(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<[Tensor; 3]> {
    same("gated_to_bf16", gate, up)?;
    #[cfg(feature = "cuda")]
    if gate.device().is_cuda() {
        return crate::cuda::gated_to_bf16(activation, gate, up);
    }
    let level = Level::detect();
    let shape = gate.shape();
    let (gate, up) = (view::<f32>(gate)?, view::<f32>(up)?);
    let mut narrow: [Fresh<bf16>; 3] = std::array::from_fn(|_| Fresh::new(gate.len()));
    let [y, gate_to, up_to] = narrow.each_mut().map(|to| to.par_chunks_mut(CHUNK));
    y.zip(gate_to.zip(up_to))
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
        .for_each(|((y, (gate_to, up_to)), (gate, up))| {
            narrow_product(level, activation, [gate, up], [y, gate_to, up_to]);
        });
    let [y, gate, up] = narrow.map(|numbers| tensor(numbers.done(), shape));
    Ok([y?, gate?, up?])
}

/// `act(gate) ∘ up`, gate and up, each rounded to bf16.
pub(crate) fn narrow_product(
    level: Level,
    activation: Activation,
    [gate, up]: [&[f32]; 2],
    [y, gate_to, up_to]: [&mut [bf16]; 3],
) {
    round::<f32>(level, gate, gate_to);
    round::<f32>(level, up, up_to);
    let mut product = [0f32; PIECE];
    for ((y, gate), up) in y
        .chunks_mut(PIECE)
        .zip(gate.chunks(PIECE))
        .zip(up.chunks(PIECE))
    {
        let product = &mut product[..y.len()];
        activation.forward::<f32>(level, gate, up, product);
        round::<f32>(level, product, y);
    }
}

/// The adjoint of the product at operands of bf16, in bf16.
pub(crate) fn narrow_gradients(
    level: Level,
    activation: Activation,
    dy: &[f32],
    [gate, up]: [&[bf16]; 2],
    [dgate, dup]: [&mut [bf16]; 2],
) {
    let mut wide = [[0f32; PIECE]; 4];
    for ((to, from), dy) in dgate
        .chunks_mut(PIECE)
        .zip(dup.chunks_mut(PIECE))
        .zip(gate.chunks(PIECE).zip(up.chunks(PIECE)))
        .zip(dy.chunks(PIECE))
    {
        let [g, u, dg, du] = wide.each_mut().map(|wide| &mut wide[..dy.len()]);
        widen::<f32>(level, from.0, g);
        widen::<f32>(level, from.1, u);
        activation.backward::<f32>(level, dy, g, u, dg, du);
        round::<f32>(level, dg, to.0);
        round::<f32>(level, du, to.1);
    }
}

/// [`gated`] of operands of bf16, in bf16.
fn gated_bf16(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let level = Level::detect();
    let shape = gate.shape();
    let (gate, up) = (view::<bf16>(gate)?, view::<bf16>(up)?);
    let mut y = Fresh::<bf16>::new(gate.len());
    y.par_chunks_mut(CHUNK)
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
        .for_each(|(y, (gate, up))| {
            let mut wide = [[0f32; PIECE]; 3];
            for ((y, gate), up) in y
                .chunks_mut(PIECE)
                .zip(gate.chunks(PIECE))
                .zip(up.chunks(PIECE))
            {
                let [g, u, product] = wide.each_mut().map(|wide| &mut wide[..y.len()]);
                widen::<f32>(level, gate, g);
                widen::<f32>(level, up, u);
                activation.forward::<f32>(level, g, u, product);
                round::<f32>(level, product, y);
            }
        });
    tensor(y.done(), shape)
}

/// [`gated_backward`] of operands of bf16, in bf16; `dy` is f32.
fn gated_backward_bf16(
    activation: Activation,
    dy: &Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let level = Level::detect();
    let shape = gate.shape();
    let (dy, gate, up) = (view::<f32>(dy)?, view::<bf16>(gate)?, view::<bf16>(up)?);
    let mut dgate = Fresh::<bf16>::new(gate.len());
    let mut dup = Fresh::<bf16>::new(gate.len());
    dgate
        .par_chunks_mut(CHUNK)
        .zip(dup.par_chunks_mut(CHUNK))
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
        .zip(dy.par_chunks(CHUNK))
        .for_each(|(((dgate, dup), (gate, up)), dy)| {
            narrow_gradients(level, activation, dy, [gate, up], [dgate, dup]);
        });
    Ok((tensor(dgate.done(), shape)?, tensor(dup.done(), shape)?))
}

/// The adjoint of [`gated`]: the gradients of `gate` and of `up`, of their type.
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
    if gate.dtype() == DType::BF16 {
        return gated_backward_bf16(activation, dy, gate, up);
    }
    gated_backward_in_place(activation, dy, gate.copy()?, up.copy()?)
}

/// [`gated_backward`], whose results take the places of `gate` and `up`, which nobody else may hold: where many tokens
/// were kept for it, two tensors less are what decides whether they fit. Those of bf16 are new tensors on a processor.
///
/// # Errors
/// As [`gated`], and if `gate`, `up` and `dy` share their storage.
pub fn gated_backward_in_place(
    activation: Activation,
    dy: &Tensor,
    gate: Tensor,
    up: Tensor,
) -> Result<(Tensor, Tensor)> {
    if gate.device().is_cpu() && gate.dtype() == DType::BF16 {
        return gated_backward(activation, dy, &gate, &up);
    }
    same("gated_backward_in_place", &gate, &up)?;
    same("gated_backward_in_place", &gate, dy)?;
    for (x, y) in [(&gate, &up), (&gate, dy), (&up, dy)] {
        // Each is locked while it is written to.
        let (x, y) = (x.storage_and_layout().0, y.storage_and_layout().0);
        if std::ptr::from_ref::<Storage>(&x) == std::ptr::from_ref::<Storage>(&y) {
            bail!("`gated_backward_in_place`: two of the operands are parts of one tensor");
        }
    }
    #[cfg(feature = "cuda")]
    if gate.device().is_cuda() {
        crate::cuda::gated_backward_in_place(activation, dy, &gate, &up)?;
        return Ok((gate, up));
    }
    let level = Level::detect();
    by_element!(gate, T => {
        let dy = view::<T>(dy)?;
        update(&gate, |gate: &mut [T]| {
            update(&up, |up: &mut [T]| {
                gate.par_chunks_mut(CHUNK)
                    .zip(up.par_chunks_mut(CHUNK))
                    .zip(dy.par_chunks(CHUNK))
                    .for_each(|((gate, up), dy)| {
                        in_place::<T>(level, activation, dy, gate, up);
                    });
                Ok(())
            })
        })?;
    });
    Ok((gate, up))
}

/// The adjoint of the product, written over its operands.
fn in_place<T: Real>(level: Level, activation: Activation, dy: &[T], gate: &mut [T], up: &mut [T]) {
    let mut held = [[T::ZERO; PIECE]; 2];
    for ((gate, up), dy) in gate
        .chunks_mut(PIECE)
        .zip(up.chunks_mut(PIECE))
        .zip(dy.chunks(PIECE))
    {
        let [g, u] = held.each_mut().map(|held| &mut held[..dy.len()]);
        g.copy_from_slice(gate);
        u.copy_from_slice(up);
        activation.backward::<T>(level, dy, g, u, gate, up);
    }
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
