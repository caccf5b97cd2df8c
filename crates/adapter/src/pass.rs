//! One pass of a batch through the model, forward and backward.
//!
//! Embedding, blocks, last norm, head and loss; then back through the same in opposite order, as far
//! down as anything is trained. With checkpointing a block keeps less and is computed again when its turn
//! comes; the results are the same bits.

use sparsam_base::model::{HEAD, Model};
use sparsam_base::projection::Hook;
use sparsam_base::stack::{Checkpointing, Keep};
use sparsam_kernels::Documents;
use sparsam_kernels::cross_entropy::{
    Begun, Loss, Want, begin_cross_entropy, linear_cross_entropy,
};
use sparsam_kernels::norm::rms_norm_backward;

use crate::error::{Error, Result};
use crate::trainable::Trainable;

/// Tokens of one pass.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// `[tokens]`
    pub ids: &'a [u32],
    /// The next token at each place, or [`sparsam_kernels::cross_entropy::IGNORE`]; `[tokens]`.
    pub targets: &'a [u32],
    /// Where the documents begin and end.
    pub documents: &'a Documents,
}

/// Loss of a batch; nothing is differentiated and nothing dropped.
///
/// # Errors
/// An operation on tensors failed.
pub fn evaluate(model: &Model, trainable: &mut Trainable, input: Input) -> Result<Loss> {
    trainable.set_training(None);
    let x = model.hidden(input.ids, input.documents, trainable)?;
    let (x, _) = model.head_input(&x)?;
    let want = Want {
        softcap: model.config.final_softcap,
        ..Want::default()
    };
    Ok(linear_cross_entropy(&x, &model.head, input.targets, want)?)
}

/// Adds the gradients of `grad_scale · Σ loss` to everything that is trained, and returns the loss.
///
/// # Errors
/// An operation on tensors failed, or the loss is not a number.
pub fn differentiate(
    model: &Model,
    trainable: &mut Trainable,
    input: Input,
    grad_scale: f64,
    checkpointing: Checkpointing,
) -> Result<Loss> {
    checked_loss(begin(model, trainable, input, grad_scale, checkpointing)?)
}

/// [`differentiate`] that does not wait for a GPU; [`checked_loss`] does.
///
/// # Errors
/// As there, but for a loss on a GPU, which nobody has looked at yet.
pub fn begin(
    model: &Model,
    trainable: &mut Trainable,
    input: Input,
    grad_scale: f64,
    checkpointing: Checkpointing,
) -> Result<Begun> {
    let keep = Keep {
        lowest: trainable.lowest_block(),
        checkpointing,
    };
    let (x, kept) = model.forward(input.ids, input.documents, trainable, Some(keep))?;
    let (normed, roots) = model.head_input(&x)?;
    let head_grad = trainable.accumulator(HEAD);
    let want = Want {
        grad_scale: Some(grad_scale),
        weight_grad: head_grad.as_ref(),
        softcap: model.config.final_softcap,
    };
    let mut loss = begin_cross_entropy(&normed, &model.head, input.targets, want)?;
    drop(normed);
    let Some(dnormed) = loss.hidden_grad.take() else {
        return Err(Error::training(
            "no gradient was computed",
            "this is a defect of the program",
        ));
    };
    let dnormed = model.head_input_backward(dnormed)?;
    let norm_grad = trainable.accumulator(&model.norm.name);
    let dx = rms_norm_backward(
        &dnormed,
        &x,
        &model.norm.weight,
        &roots,
        None,
        norm_grad.as_ref(),
    )?;
    drop((dnormed, x));
    model.backward(dx, kept, input.ids, input.documents, trainable)?;
    loss.sum().map_or(Ok(()), check_loss)?;
    Ok(loss)
}

/// The numbers of a loss, which it waits for.
///
/// # Errors
/// A loss that is not a number, or what the GPU did wrong since the last wait.
pub fn checked_loss(loss: Begun) -> Result<Loss> {
    let loss = loss.read()?;
    check_loss(loss.sum)?;
    Ok(loss)
}

/// Refuses a loss that is not a number.
pub(crate) fn check_loss(sum: f64) -> Result<()> {
    if sum.is_finite() {
        return Ok(());
    }
    Err(Error::training(
        format!("the loss is {sum}"),
        "lower `learning_rate`, or look for damaged rows in the data; the last checkpoint is kept",
    ))
}
