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
use sparsam_kernels::cross_entropy::{Begun, IGNORE, Loss};
use sparsam_kernels::host::{fetch, view};

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

/// Probabilities of each text, `[texts · classes]` in f64, and how many classes there are.
fn probabilities(logits: &Tensor) -> Result<(Vec<f64>, usize)> {
    let (_, classes) = logits.dims2()?;
    let logits = fetch(logits)?;
    let logits = view::<f32>(&logits)?;
    let mut all = Vec::with_capacity(logits.len());
    for row in logits.chunks_exact(classes) {
        let greatest = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        let powers = row.iter().map(|logit| f64::from(logit - greatest).exp());
        let powers: Vec<f64> = powers.collect();
        let sum: f64 = powers.iter().sum();
        all.extend(powers.into_iter().map(|power| power / sum));
    }
    Ok((all, classes))
}

/// The summed loss of texts whose classes are known.
fn loss_of(probabilities: &[f64], classes: usize, truths: &[u32]) -> Result<Loss> {
    let mut loss = Loss {
        sum: 0.0,
        targets: 0,
        correct: 0,
        hidden_grad: None,
    };
    for (row, truth) in probabilities.chunks_exact(classes).zip(truths) {
        if *truth == IGNORE {
            continue;
        }
        let Some(p) = row.get(*truth as usize) else {
            let what = format!("a text is of class {truth}, the head knows {classes}");
            return Err(Error::training(
                what,
                "the data and the head must be of the same classes",
            ));
        };
        loss.sum -= p.max(f64::MIN_POSITIVE).ln();
        loss.targets += 1;
        loss.correct += usize::from(row.iter().all(|other| other <= p));
    }
    // Logits that are not numbers make every probability none.
    if probabilities.iter().any(|p| p.is_nan()) {
        loss.sum = f64::NAN;
    }
    Ok(loss)
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
        let (mut p, classes) = probabilities(&logits)?;
        let loss = loss_of(&p, classes, &truths)?;
        check_loss(loss.sum)?;
        // The gradient of a text's loss by its logits: probabilities, less 1 at its class.
        for (row, truth) in p.chunks_exact_mut(classes).zip(&truths) {
            if *truth == IGNORE {
                row.fill(0.0);
            } else {
                row[*truth as usize] -= 1.0;
            }
        }
        let gradient: Vec<f32> = p.iter().map(|p| (p * grad_scale) as f32).collect();
        let gradient = Tensor::from_vec(gradient, (truths.len(), classes), &Device::Cpu)?;
        let gradient = gradient.to_device(logits.device())?;
        self.backward(&gradient, kept, input.ids, input.documents, trainable)?;
        Ok(Begun::known(loss))
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
            let loss = loss_of(&p, classes, &truths)?;
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
