//! One pass of a batch of texts through a classifier, forward and backward, and what it makes of texts.
//!
//! The loss is the cross entropy over classes, `−ln p(class)` in nats, a target a text. Dropout acts in training
//! alone: that of the adapter, and that of the base's own configuration on hidden numbers and before the head.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use sparsam_base::classifier::{Classifier, Start};
use sparsam_base::stack::{Checkpointing, Keep};
use sparsam_base::tokenizer::Tokenizer;
use sparsam_kernels::Documents;
use sparsam_kernels::cross_entropy::{
    Begun, IGNORE, begin_class_loss, beyond_classes, class_loss, probabilities,
};

use crate::classes::{ClassMetrics, Prediction};
use crate::data::Batches;
use crate::data::labelled::ids;
use crate::error::{Error, Result};
use crate::evaluate::BatchLoss;
use crate::pass::{Input, check_loss};
use crate::random::Random;
use crate::train::{Learner, Measured};
use crate::trainable::Trainable;

/// Most tokens of texts that are classified at once.
const TOKENS: usize = 8192;

/// Parameters of a head that no file holds, from a seed: a name's numbers do not depend on what else there is.
pub fn init(seed: u64) -> impl Fn(&str, (usize, usize), Start) -> candle_core::Result<Tensor> {
    move |name, shape, start| {
        let mut random = Random::new(seed, name);
        let mut draw = || match start {
            Start::Normal(deviation) => random.normal() * deviation,
            Start::Truncated(deviation, most) => loop {
                let x = random.normal();
                if x.abs() <= most {
                    break x * deviation;
                }
            },
        };
        let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| draw() as f32).collect();
        Tensor::from_vec(values, shape, &Device::Cpu)
    }
}

/// The class of each text, [`IGNORE`] where it is not known.
fn truths(input: Input) -> Vec<u32> {
    let ends = input.documents.ranges().map(|range| range.end - 1);
    ends.map(|end| input.targets[end]).collect()
}

/// Refuses classes that the head does not have.
fn check(truths: &[u32], classes: usize) -> Result<()> {
    beyond_classes(truths, classes).map_or(Ok(()), |truth| {
        let what = format!("a text is of class {truth}, the head knows {classes}");
        let hint = "the data and the head must be of the same classes";
        Err(Error::training(what, hint))
    })
}

impl Learner for Classifier {
    fn begin(
        &self,
        trainable: &mut Trainable,
        input: Input,
        grad_scale: f64,
        checkpointing: Checkpointing,
    ) -> Result<Begun> {
        let keep = Keep {
            lowest: trainable.lowest_block(),
            checkpointing,
        };
        let (logits, kept) = self.forward(input.ids, input.documents, trainable, Some(keep))?;
        let Some(kept) = kept else {
            return Err(Error::training(
                "nothing was kept",
                "this is a defect of the program",
            ));
        };
        let truths = truths(input);
        check(&truths, logits.dims2()?.1)?;
        let (loss, gradient) = begin_class_loss(&logits, &truths, grad_scale)?;
        loss.sum().map_or(Ok(()), check_loss)?;
        self.backward(&gradient, kept, input.ids, input.documents, trainable)?;
        Ok(loss)
    }

    fn measure(&self, trainable: &mut Trainable, batches: &Batches) -> Result<Measured> {
        trainable.set_training(None);
        let (mut losses, mut predictions) = (Vec::new(), Vec::new());
        for batch in batches.epoch() {
            let input = Input {
                ids: &batch.ids,
                targets: &batch.targets,
                documents: &batch.documents,
            };
            let (logits, _) = self.forward(input.ids, input.documents, trainable, None)?;
            let truths = truths(input);
            let (p, classes) = probabilities(&logits)?;
            check(&truths, classes)?;
            let loss = class_loss(&p, classes, &truths)?;
            losses.push(BatchLoss {
                sum: loss.sum,
                targets: loss.targets,
            });
            predictions.extend(predicted(&p, classes, &truths));
        }
        Ok(Measured {
            losses,
            classes: ClassMetrics::of(&predictions, self.labels.len()),
            answers: predictions
                .iter()
                .filter_map(Prediction::answered)
                .collect(),
        })
    }
}

fn predicted<'a>(
    probabilities: &'a [f64],
    classes: usize,
    truths: &'a [u32],
) -> impl Iterator<Item = Prediction> + 'a {
    let rows = probabilities.chunks_exact(classes).zip(truths);
    rows.map(|(row, truth)| Prediction {
        truth: (*truth != IGNORE).then_some(*truth),
        probabilities: row.iter().map(|p| *p as f32).collect(),
    })
}

/// What a classifier makes of texts, handed out in their order; those of more than `max_length` tokens are cut,
/// and counted in what is returned. Texts of similar lengths are computed at once, as many as fit.
///
/// # Errors
/// A text the tokenizer cannot take or without a token, an operation on tensors that failed, or what `each` stops at.
pub fn classify(
    model: &Classifier,
    trainable: &mut Trainable,
    tokenizer: &Tokenizer,
    texts: &[&str],
    max_length: usize,
    each: &mut dyn FnMut(usize, &Prediction) -> ControlFlow<()>,
) -> Result<usize> {
    trainable.set_training(None);
    let failed = |error: sparsam_base::tokenizer::TokenizerError| {
        Error::training(error.to_string(), "look at the model's tokenizer.json")
    };
    let mut cut = 0;
    let mut first = 0;
    while first < texts.len() {
        let (mut all, mut lengths) = (Vec::new(), Vec::new());
        for text in &texts[first..] {
            let (ids, length) = ids(tokenizer, text, max_length).map_err(failed)?;
            if ids.is_empty() {
                let what = format!("text {} is empty", first + lengths.len() + 1);
                return Err(Error::training(what, "leave it out"));
            }
            if !lengths.is_empty() && all.len() + ids.len() > TOKENS {
                break;
            }
            cut += usize::from(length > max_length);
            lengths.push(ids.len());
            all.extend(ids);
        }
        let documents = Documents::from_lengths(&lengths);
        let (logits, _) = model.forward(&all, &documents, trainable, None)?;
        let (p, classes) = probabilities(&logits)?;
        let unknown = vec![IGNORE; lengths.len()];
        for (text, prediction) in predicted(&p, classes, &unknown).enumerate() {
            if each(first + text, &prediction).is_break() {
                return Ok(cut);
            }
        }
        first += lengths.len();
    }
    Ok(cut)
}
