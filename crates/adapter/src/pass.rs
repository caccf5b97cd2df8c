//! One pass of a batch through the model, forward and backward.
//!
//! Embedding, blocks, last norm, head and loss; then back through the same in opposite order, as far
//! down as anything is trained. With checkpointing a block keeps only its input and is computed again
//! when its turn comes; the results are the same bits.

use sparsam_base::model::{EMBEDDING, HEAD, Model};
use sparsam_base::projection::Hook;
use sparsam_kernels::Documents;
use sparsam_kernels::cross_entropy::{Loss, Want, linear_cross_entropy};
use sparsam_kernels::embedding::add_rows;
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
    checkpointing: bool,
) -> Result<Loss> {
    let positions = input.documents.positions();
    let pass = model.pass(input.documents, &positions);
    let lowest = trainable.lowest_block();
    let mut x = model.embed(input.ids)?;
    let mut inputs = Vec::new();
    let mut kept = Vec::new();
    for (layer, block) in model.blocks.iter().enumerate() {
        let keep = layer >= lowest && !checkpointing;
        if layer >= lowest && checkpointing {
            inputs.push(x.clone());
        }
        let (y, k) = block.forward(&x, &pass, trainable, keep)?;
        kept.extend(k);
        x = y;
    }
    let (normed, roots) = model.head_input(&x)?;
    let head_grad = trainable.accumulator(HEAD);
    let want = Want {
        grad_scale: Some(grad_scale),
        weight_grad: head_grad.as_ref(),
        softcap: model.config.final_softcap,
    };
    let mut loss = linear_cross_entropy(&normed, &model.head, input.targets, want)?;
    drop(normed);
    if !loss.sum.is_finite() {
        return Err(Error::training(
            format!("the loss is {}", loss.sum),
            "lower `learning_rate`, or look for damaged rows in the data; the last checkpoint is kept",
        ));
    }
    let Some(dnormed) = loss.hidden_grad.take() else {
        return Err(Error::training(
            "no gradient was computed",
            "this is a defect of the program",
        ));
    };
    let dnormed = model.head_input_backward(dnormed)?;
    let norm_grad = trainable.accumulator(&model.norm.name);
    let mut dx = rms_norm_backward(
        &dnormed,
        &x,
        &model.norm.weight,
        &roots,
        None,
        norm_grad.as_ref(),
    )?;
    drop((dnormed, x));
    for block in model.blocks[lowest..].iter().rev() {
        let kept = match inputs.pop() {
            Some(input) => block.forward(&input, &pass, trainable, true)?.1,
            None => kept.pop(),
        };
        let Some(kept) = kept else {
            return Err(Error::training(
                "a block kept nothing",
                "this is a defect of the program",
            ));
        };
        dx = block.backward(&dx, kept, &pass, trainable)?;
    }
    if let Some(into) = trainable.accumulator(EMBEDDING) {
        let multiplier = model.config.embedding_multiplier;
        if multiplier != 1.0 {
            dx = dx.affine(multiplier, 0.0)?;
        }
        add_rows(&dx, input.ids, &into)?;
    }
    Ok(loss)
}
