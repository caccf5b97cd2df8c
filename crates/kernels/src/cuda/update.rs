//! What follows the backward pass: the norm of the gradients, the optimiser's step, clearing.

use candle_core::{DType, Result, Tensor};

use super::launch::{Launch, device, unwritten};
use crate::adamw::Factors;
use crate::adamw::eight_bit::{BLOCK, EightBit};

/// Parts that the sum of squares of one tensor is formed in.
const PARTS: usize = 64;

pub(crate) fn adamw_step(
    param: &Tensor,
    grad: &Tensor,
    exp_avg: &Tensor,
    exp_avg_sq: &Tensor,
    factors: &Factors,
) -> Result<()> {
    let count = param.elem_count();
    let launch = Launch::new("adamw", device(param)?)
        .floats(param)?
        .floats(grad)?
        .floats(exp_avg)?
        .floats(exp_avg_sq)?
        .long(count);
    with(launch, factors).each(count)
}

/// The same with moments in eight bits: a block of threads for each of theirs.
pub(crate) fn adamw_eight_bit(
    param: &Tensor,
    grad: &Tensor,
    exp_avg: &EightBit,
    exp_avg_sq: &EightBit,
    factors: &Factors,
) -> Result<()> {
    let count = param.elem_count();
    let mut launch = Launch::new("adamw_eight_bit", device(param)?)
        .floats(param)?
        .floats(grad)?;
    for moment in [exp_avg, exp_avg_sq] {
        launch = launch
            .bytes(moment.codes())?
            .floats(moment.absmax())?
            .floats(moment.levels())?;
    }
    let blocks = count.div_ceil(BLOCK);
    with(launch.long(count), factors).run((blocks, 1), (BLOCK, 1), 0)
}

fn with<'a>(launch: Launch<'a>, factors: &Factors) -> Launch<'a> {
    launch
        .float(factors.keep)
        .float(1.0 - factors.beta1)
        .float(factors.beta2)
        .float(1.0 - factors.beta2)
        .float(factors.eps)
        .float(factors.step_size)
        .float(factors.root_correction)
        .float(factors.grad_scale)
}

/// `Σ x²` over all tensors; waits for the GPU once.
pub(crate) fn grad_norm_squared(tensors: &[&Tensor]) -> Result<f64> {
    let Some(first) = tensors.first() else {
        return Ok(0.0);
    };
    let parts = unwritten((tensors.len(), PARTS), DType::F32, first)?;
    for (index, tensor) in tensors.iter().enumerate() {
        let row = parts.narrow(0, index, 1)?;
        Launch::new("square_sum", device(tensor)?)
            .floats(tensor)?
            .floats(&row)?
            .long(tensor.elem_count())
            .run((PARTS, 1), (256, 1), 0)?;
    }
    let parts = parts.flatten_all()?.to_vec1::<f32>()?;
    Ok(parts.iter().map(|part| f64::from(*part)).sum())
}

/// Zeros, in place.
pub(crate) fn clear(tensor: &Tensor) -> Result<()> {
    let zeros = tensor.zeros_like()?;
    super::copy_into(&zeros, tensor)
}
