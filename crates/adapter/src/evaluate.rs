//! How good a model is on held-out data: the loss, and answers written to its questions.

use std::ops::ControlFlow;

use sparsam_base::chat_template::ChatTemplate;
use sparsam_base::generate::{Sampling, generate};
use sparsam_base::model::Model;
use sparsam_base::tokenizer::Tokenizer;

use crate::data::Batches;
use crate::data::questions::Question;
use crate::error::{Error, Result};
use crate::pass::{Input, evaluate};
use crate::trainable::Trainable;

/// Prompts answered at once: enough to keep the products wide, few enough to hold their caches.
const AT_ONCE: usize = 16;

/// Loss of one batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchLoss {
    /// Over all targets, in nats.
    pub sum: f64,
    /// How many there are.
    pub targets: usize,
}

/// Mean loss per target, in nats, over one pass.
///
/// # Errors
/// An operation on tensors failed, or there is no target.
pub fn mean_loss(model: &Model, trainable: &mut Trainable, batches: &Batches) -> Result<f64> {
    mean(&batch_losses(model, trainable, batches)?)
}

/// Loss of each batch over one pass, from which the spread of their mean can be judged.
///
/// # Errors
/// An operation on tensors failed.
pub fn batch_losses(
    model: &Model,
    trainable: &mut Trainable,
    batches: &Batches,
) -> Result<Vec<BatchLoss>> {
    let mut losses = Vec::with_capacity(batches.per_epoch());
    for batch in batches.epoch() {
        let input = Input {
            ids: &batch.ids,
            targets: &batch.targets,
            documents: &batch.documents,
        };
        let loss = evaluate(model, trainable, input)?;
        losses.push(BatchLoss {
            sum: loss.sum,
            targets: loss.targets,
        });
    }
    Ok(losses)
}

/// Mean loss per target of all batches.
///
/// # Errors
/// There is no target.
pub fn mean(losses: &[BatchLoss]) -> Result<f64> {
    let (mut sum, mut targets) = (0.0, 0);
    for loss in losses {
        sum += loss.sum;
        targets += loss.targets;
    }
    if targets == 0 {
        return Err(Error::training(
            "the evaluation data holds no token to predict",
            "look at the file of `data.eval`",
        ));
    }
    Ok(sum / targets as f64)
}

/// What a model answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The text it wrote, without space at the ends.
    pub text: String,
    /// Whether it is the expected one but for space at the ends.
    pub exact: bool,
    /// Whether it was not written to its end.
    pub cut: bool,
}

/// Tokens by which an answer may be longer than the longest that is expected beside it.
const SPARE: usize = 8;

/// Greedy answers to questions, in their order. Each stops at the end of a turn, after `max_new_tokens`, or
/// where it is some tokens longer than the longest that is expected among those that are written with it: it is
/// not the expected one then, and a model that does not come to an end would cost many times the others. `stop` is asked after every token; where it says so, answers come back cut short.
///
/// # Errors
/// A tokenizer or template that fails, or an operation on tensors.
pub fn answers(
    model: &Model,
    trainable: &mut Trainable,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    questions: &[Question],
    max_new_tokens: usize,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Answer>> {
    trainable.set_training(None);
    let ends = template
        .end_ids(tokenizer)
        .map_err(|e| Error::training(e.to_string(), "look at the model's chat template"))?;
    let read = |e: sparsam_base::tokenizer::TokenizerError| {
        Error::training(e.to_string(), "look at the model's tokenizer.json")
    };
    let mut answers = Vec::with_capacity(questions.len());
    for group in questions.chunks(AT_ONCE) {
        let mut longest = 0;
        for question in group {
            let ids = tokenizer.encode(question.expected.trim(), false);
            longest = longest.max(ids.map_err(read)?.len());
        }
        let sampling = Sampling {
            max_new_tokens: max_new_tokens.min(longest + SPARE),
            temperature: 0.0,
            top_p: None,
            seed: 0,
        };
        let prompts: Vec<Vec<u32>> = group.iter().map(|q| q.prompt.clone()).collect();
        let mut each = |_: usize, _: u32| {
            if stop() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let written = generate(model, trainable, &prompts, &ends, &sampling, &mut each)?;
        for (ids, question) in written.iter().zip(group) {
            let text = tokenizer.decode(ids, true).map_err(read)?;
            let text = text.trim().to_owned();
            answers.push(Answer {
                exact: text == question.expected.trim(),
                cut: ids.len() == sampling.max_new_tokens,
                text,
            });
        }
    }
    Ok(answers)
}

/// Share of exact answers, 0 to 1.
pub fn exact_match(answers: &[Answer]) -> f64 {
    let exact = answers.iter().filter(|answer| answer.exact).count();
    exact as f64 / answers.len().max(1) as f64
}
