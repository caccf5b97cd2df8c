//! The activation of a feed-forward layer without a gate, `act(x)`, and its adjoint.
//!
//! Encoders of BERT's kind pass each hidden number through GELU (Hendrycks and Gimpel, arXiv 1606.08415),
//! millions of them a step. In f32 the normal distribution is therefore computed without a call or a branch:
//! `Φ(x) = ½ q(t) e^(−x²/2)` for `x < 0` with `t = 1 / (1 + p |x| / √2)` and a polynomial `q` of degree 5
//! (Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26), which is within 1.5e-7. In f64, which
//! tests use, it is exact.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::activation::{Activation, logistic, normal_tanh};
use crate::by_element;
use crate::cpu::Level;
use crate::host::{Fresh, tensor, view};
use crate::vector::{Real, levels};

/// Numbers of one task.
const CHUNK: usize = 1 << 13;

/// `act(x)`, of any shape.
///
/// # Errors
/// A tensor that is not contiguous on the CPU.
pub fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::activate(activation, x);
    }
    let level = Level::detect();
    by_element!(x, T => {
        let values = view::<T>(x)?;
        let mut y = Fresh::<T>::new(values.len());
        y.par_chunks_mut(CHUNK)
            .zip(values.par_chunks(CHUNK))
            .for_each(|(y, x)| match activation {
                Activation::Silu => silu::<T>(level, x, y),
                Activation::Gelu => gelu::<T>(level, x, y),
                Activation::GeluTanh => gelu_tanh::<T>(level, x, y),
            });
        tensor(y.done(), x.shape())
    })
}

/// Adjoint of [`activate`]: the gradient of `x`.
///
/// # Errors
/// Shapes that differ; as [`activate`].
pub fn activate_backward(activation: Activation, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    if dy.dims() != x.dims() {
        bail!(
            "`activate_backward`: {:?} and {:?} differ",
            dy.dims(),
            x.dims()
        );
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::activate_backward(activation, dy, x);
    }
    let level = Level::detect();
    by_element!(x, T => {
        let (dy, values) = (view::<T>(dy)?, view::<T>(x)?);
        let mut dx = Fresh::<T>::new(values.len());
        dx.par_chunks_mut(CHUNK)
            .zip(dy.par_chunks(CHUNK))
            .zip(values.par_chunks(CHUNK))
            .for_each(|((dx, dy), x)| match activation {
                Activation::Silu => silu_backward::<T>(level, dy, x, dx),
                Activation::Gelu => gelu_backward::<T>(level, dy, x, dx),
                Activation::GeluTanh => gelu_tanh_backward::<T>(level, dy, x, dx),
            });
        tensor(dx.done(), x.shape())
    })
}

/// `(Φ(x), Φ'(x) x)` of the normal distribution.
#[inline(always)]
fn normal<T: Real, const FMA: bool>(x: T) -> (T, T) {
    /// `1 / √(2π)`
    const DENSITY: f64 = 0.398_942_280_401_432_7;
    const P: f64 = 0.327_591_1 * std::f64::consts::FRAC_1_SQRT_2;
    let bell = (-(x * x) * T::of(0.5)).exp_inline::<FMA>();
    let slope = T::of(DENSITY) * bell * x;
    if size_of::<T>() == size_of::<f64>() {
        let below = T::of(0.5) * (T::ONE + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf());
        return (below, slope);
    }
    let negative = x < T::ZERO;
    let size = if negative { -x } else { x };
    let t = T::ONE / (T::ONE + T::of(P) * size);
    let mut q = T::of(1.061_405_429);
    for c in [-1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592] {
        q = q.mul_add::<FMA>(t, T::of(c));
    }
    let tail = T::of(0.5) * q * t * bell;
    (if negative { tail } else { T::ONE - tail }, slope)
}

/// The forward and backward loops of `x p(x)`, given `(p, p' x)`.
macro_rules! loops {
    ($forward:ident, $backward:ident, $parts:expr) => {
        levels! {
            fn $forward<T: Real>(x: &[T], y: &mut [T]) {
                for (y, x) in y.iter_mut().zip(x) {
                    let (p, _): (T, T) = $parts(*x);
                    *y = *x * p;
                }
            }
        }

        levels! {
            fn $backward<T: Real>(dy: &[T], x: &[T], dx: &mut [T]) {
                for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
                    let (p, slope): (T, T) = $parts(*x);
                    *dx = *dy * (p + slope);
                }
            }
        }
    };
}

loops!(silu, silu_backward, logistic::<T, FMA>);
loops!(gelu, gelu_backward, normal::<T, FMA>);
loops!(gelu_tanh, gelu_tanh_backward, normal_tanh::<T, FMA>);
