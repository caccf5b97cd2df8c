//! One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101), in place, in PyTorch's order.
//!
//! The order of operations is that of `torch.optim.AdamW`, so that losses can be compared step by
//! step: decay of the parameter first, then the moments, then the step, with ε added after the
//! square root and its bias correction. Schedules and state files are the caller's. [`eight_bit`] is the same step with
//! its moments kept in a quarter of the memory, [`all`] that of everything that is trained, with clipping before it.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::by_element;
use crate::cpu::Level;
use crate::host::{update, view};
use crate::vector::{Real, dot, levels};

pub mod all;
pub mod eight_bit;

/// Numbers of one task; a fixed size, because sums over a tensor are formed chunk by chunk.
const CHUNK: usize = 1 << 14;

/// The settings of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of the parameter that a step at learning rate 1 takes away.
    pub weight_decay: f64,
}

impl Default for AdamW {
    /// PyTorch's defaults, but for the weight decay, which is 0.
    fn default() -> Self {
        Self {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// The factors of one step, worked out once in f64.
#[derive(Clone, Copy)]
pub(crate) struct Factors {
    pub(crate) keep: f64,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) eps: f64,
    pub(crate) step_size: f64,
    pub(crate) root_correction: f64,
    pub(crate) grad_scale: f64,
}

impl Factors {
    /// Of step number `step`, which counts from 1.
    pub(crate) fn of(settings: &AdamW, step: usize, grad_scale: f64) -> Result<Self> {
        if step == 0 {
            bail!("`adamw_step`: steps count from 1");
        }
        let exponent = step as f64;
        Ok(Self {
            keep: 1.0 - settings.lr * settings.weight_decay,
            beta1: settings.beta1,
            beta2: settings.beta2,
            eps: settings.eps,
            step_size: settings.lr / (1.0 - settings.beta1.powf(exponent)),
            root_correction: (1.0 - settings.beta2.powf(exponent)).sqrt(),
            grad_scale,
        })
    }
}

/// Refuses tensors of another shape than the parameter's.
fn of_one_shape(param: &Tensor, others: &[&Tensor]) -> Result<()> {
    match others.iter().find(|other| other.dims() != param.dims()) {
        None => Ok(()),
        Some(other) => bail!(
            "`adamw_step`: {:?} and {:?} differ",
            param.dims(),
            other.dims()
        ),
    }
}

/// Updates `param` and its moments in place with `grad · grad_scale`.
///
/// `step` counts from 1. The four tensors have one shape and one type, and separate storages.
///
/// # Errors
/// Shapes that differ, step 0, or tensors that are not contiguous on the CPU.
pub fn adamw_step(
    param: &Tensor,
    grad: &Tensor,
    exp_avg: &Tensor,
    exp_avg_sq: &Tensor,
    settings: &AdamW,
    step: usize,
    grad_scale: f64,
) -> Result<()> {
    of_one_shape(param, &[grad, exp_avg, exp_avg_sq])?;
    let factors = Factors::of(settings, step, grad_scale)?;
    #[cfg(feature = "cuda")]
    if param.device().is_cuda() {
        let moments = all::Moments::F32(exp_avg, exp_avg_sq);
        return crate::cuda::adamw_step(param, grad, moments, &factors);
    }
    let level = Level::detect();
    by_element!(param, T => {
        let grad = view::<T>(grad)?;
        update(param, |param: &mut [T]| {
            update(exp_avg, |exp_avg: &mut [T]| {
                update(exp_avg_sq, |exp_avg_sq: &mut [T]| {
                    param
                        .par_chunks_mut(CHUNK)
                        .zip(grad.par_chunks(CHUNK))
                        .zip(exp_avg.par_chunks_mut(CHUNK))
                        .zip(exp_avg_sq.par_chunks_mut(CHUNK))
                        .for_each(|(((param, grad), exp_avg), exp_avg_sq)| {
                            one_step::<T>(level, param, grad, exp_avg, exp_avg_sq, factors);
                        });
                    Ok(())
                })
            })
        })
    })
}

levels! {
    fn one_step<T: Real>(
        param: &mut [T],
        grad: &[T],
        exp_avg: &mut [T],
        exp_avg_sq: &mut [T],
        factors: Factors,
    ) {
        advance(param, grad, exp_avg, exp_avg_sq, factors);
    }
}

/// The step of some numbers and their moments.
#[inline(always)]
fn advance<T: Real>(
    param: &mut [T],
    grad: &[T],
    exp_avg: &mut [T],
    exp_avg_sq: &mut [T],
    factors: Factors,
) {
    let (keep, eps, step_size) = (
        T::of(factors.keep),
        T::of(factors.eps),
        T::of(factors.step_size),
    );
    let (lerp, beta2) = (T::of(1.0 - factors.beta1), T::of(factors.beta2));
    let (beta2_rest, grad_scale) = (T::of(1.0 - factors.beta2), T::of(factors.grad_scale));
    let root_correction = T::of(factors.root_correction);
    let moments = exp_avg.iter_mut().zip(exp_avg_sq);
    for ((param, grad), (exp_avg, exp_avg_sq)) in param.iter_mut().zip(grad).zip(moments) {
        let grad = *grad * grad_scale;
        *exp_avg += lerp * (grad - *exp_avg);
        *exp_avg_sq = *exp_avg_sq * beta2 + beta2_rest * grad * grad;
        let root = exp_avg_sq.sqrt() / root_correction + eps;
        *param = *param * keep - step_size * (*exp_avg / root);
    }
}

/// `Σ x²` over all tensors: the square of the norm that clipping compares.
///
/// Summed in f64 over chunks of a fixed size, in order; the same on any number of threads.
///
/// # Errors
/// Tensors that are not contiguous on the CPU.
pub fn grad_norm_squared(tensors: &[&Tensor]) -> Result<f64> {
    #[cfg(feature = "cuda")]
    if tensors
        .first()
        .is_some_and(|tensor| tensor.device().is_cuda())
    {
        return crate::cuda::grad_norm_squared(tensors);
    }
    let level = Level::detect();
    let mut total = 0.0;
    for tensor in tensors {
        total += by_element!(tensor, T => {
            let values = view::<T>(tensor)?;
            let sums: Vec<f64> =
                values.par_chunks(CHUNK).map(|values| square_sum::<T>(level, values)).collect();
            sums.iter().sum::<f64>()
        });
    }
    Ok(total)
}

levels! {
    fn square_sum<T: Real>(values: &[T]) -> f64 {
        dot::<T, FMA>(values, values)
    }
}
