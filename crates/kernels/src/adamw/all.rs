//! The optimiser's step of everything that is trained: the norm of all gradients, clipping by it, AdamW, and gradients
//! cleared. On a GPU these are a few launches however many tensors there are, and nothing waits: the norm stays there,
//! where the step reads its factor from it.

use candle_core::{Result, Tensor, bail};

use super::eight_bit::{EightBit, adamw_step_eight_bit};
use super::{AdamW, adamw_step, grad_norm_squared, of_one_shape};
use crate::host::{clear, copy_into};

/// The moments of a trained tensor.
#[derive(Clone, Copy)]
pub enum Moments<'a> {
    /// In f32, of the tensor's shape.
    F32(&'a Tensor, &'a Tensor),
    /// In eight bits.
    EightBit(&'a EightBit, &'a EightBit),
}

/// A tensor that a step updates in place.
pub struct Update<'a> {
    /// f32
    pub param: &'a Tensor,
    /// Of its shape; zeros afterwards.
    pub grad: &'a Tensor,
    /// First and second.
    pub moments: Moments<'a>,
    /// Its learning rate.
    pub lr: f64,
    /// Its decay, as [`AdamW::weight_decay`].
    pub weight_decay: f64,
    /// 1 where it is trained and 0 where it stays as it is, f32 of its shape, of a tensor that is trained in part.
    pub mask: Option<&'a Tensor>,
    /// Its copy in a narrower type, which follows it.
    pub narrow: Option<&'a Tensor>,
}

/// The norm of all gradients before clipping; it may be on its way still.
pub struct GradNorm(Norm);

enum Norm {
    Here(f64),
    #[cfg(feature = "cuda")]
    OnGpu(Tensor),
}

impl GradNorm {
    #[cfg(feature = "cuda")]
    pub(crate) fn on_gpu(norm: Tensor) -> Self {
        Self(Norm::OnGpu(norm))
    }

    /// Waits for it, on a GPU behind all that it has been asked for.
    ///
    /// # Errors
    /// What the GPU did wrong since the last wait.
    pub fn read(&self) -> Result<f64> {
        match &self.0 {
            Norm::Here(norm) => Ok(*norm),
            #[cfg(feature = "cuda")]
            Norm::OnGpu(norm) => crate::cuda::read_norm(norm),
        }
    }
}

/// Scale of gradients whose norm may be at most `most`: `torch.nn.utils.clip_grad_norm_` divides by the norm plus 10⁻⁶.
fn clipped(norm: f64, most: Option<f64>) -> f64 {
    most.map_or(1.0, |most| (most / (norm + 1e-6)).min(1.0))
}

/// Updates all tensors with gradients that are scaled to a norm of at most `max_norm`, and clears these. Where the norm
/// is not a number nothing is updated or cleared. Of `settings` learning rate and decay are the tensors' own.
///
/// `step` counts from 1.
///
/// # Errors
/// Shapes that differ, other types, step 0, or tensors on two devices.
pub fn adamw_all(
    updates: &[Update],
    settings: &AdamW,
    step: usize,
    max_norm: Option<f64>,
) -> Result<GradNorm> {
    if step == 0 {
        bail!("`adamw_all`: steps count from 1");
    }
    for update in updates {
        let mut others = vec![update.grad];
        others.extend(update.mask);
        others.extend(update.narrow);
        match update.moments {
            Moments::F32(first, second) => others.extend([first, second]),
            Moments::EightBit(first, second) => others.extend([first.codes(), second.codes()]),
        }
        of_one_shape(update.param, &others)?;
    }
    #[cfg(feature = "cuda")]
    if updates
        .first()
        .is_some_and(|update| update.param.device().is_cuda())
    {
        return crate::cuda::adamw_all(updates, settings, step, max_norm);
    }
    for update in updates {
        if let Some(mask) = update.mask {
            copy_into(&(update.grad * mask)?, update.grad)?;
        }
    }
    let grads: Vec<&Tensor> = updates.iter().map(|update| update.grad).collect();
    let norm = grad_norm_squared(&grads)?.sqrt();
    if !norm.is_finite() {
        return Ok(GradNorm(Norm::Here(norm)));
    }
    let scale = clipped(norm, max_norm);
    for update in updates {
        let mut settings = AdamW {
            lr: update.lr,
            weight_decay: update.weight_decay,
            ..*settings
        };
        // What is trained in part decays in part, here, and not in the step.
        if let Some(mask) = update.mask {
            if settings.weight_decay > 0.0 {
                let keep = mask.affine(-settings.lr * settings.weight_decay, 1.0)?;
                copy_into(&(update.param * keep)?, update.param)?;
            }
            settings.weight_decay = 0.0;
        }
        let (param, grad) = (update.param, update.grad);
        match update.moments {
            Moments::F32(first, second) => {
                adamw_step(param, grad, first, second, &settings, step, scale)?;
            }
            Moments::EightBit(first, second) => {
                adamw_step_eight_bit(param, grad, first, second, &settings, step, scale)?;
            }
        }
        if let Some(narrow) = update.narrow {
            copy_into(param, narrow)?;
        }
        clear(grad)?;
    }
    Ok(GradNorm(Norm::Here(norm)))
}
