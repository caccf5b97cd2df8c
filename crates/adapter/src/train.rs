//! The training loop: batches in, a trained registry out.
//!
//! One optimiser step takes `accumulation` batches and divides their summed loss by the targets in all
//! of them, so that a target weighs the same however the batches were cut. Batches are never carried
//! over the end of an epoch. After a step come, in this order and where due: evaluation, checkpoint.
//! The loop writes no file but its [`checkpoint`](crate::checkpoint)s, prints nothing and measures no
//! energy: an [`Observer`] is told what happens and decides what to make of it.
//!
//! Everything random hangs on the seed and on counters that are part of [`Progress`], so a run that
//! goes on from a checkpoint makes the same steps, bit for bit.

use std::path::Path;
use std::time::Instant;

use sparsam_base::model::Model;
use sparsam_base::stack::Checkpointing;
use sparsam_kernels::awake::awake;
use sparsam_kernels::cross_entropy::{Begun, Loss};

use crate::checkpoint::{self, Best, Progress};
use crate::classes::ClassMetrics;
use crate::data::{Batch, Batches};
use crate::error::{Error, Result};
use crate::evaluate::{BatchLoss, batch_losses, mean};
use crate::optimizer::{Optimizer, checked_norm};
use crate::pass::{Input, begin, checked_loss};
use crate::schedule::Schedule;
use crate::trainable::Trainable;

/// When something recurring is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cadence {
    /// Every so many steps.
    Steps(usize),
    /// At the end of each pass over the data.
    Epoch,
    /// Not while the run goes on.
    Never,
}

impl Cadence {
    /// Whether it is due after that step.
    pub fn due(self, step: usize, steps_per_epoch: usize) -> bool {
        match self {
            Self::Steps(every) => step.is_multiple_of(every.max(1)),
            Self::Epoch => step.is_multiple_of(steps_per_epoch),
            Self::Never => false,
        }
    }
}

/// By what the best evaluation is chosen, and whether another is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BestBy {
    /// The lowest loss.
    #[default]
    Loss,
    /// The highest macro F1, of a classifier.
    MacroF1,
}

impl BestBy {
    /// A figure that is higher for what is better; less than every other where it is not known or not a number.
    fn score(self, loss: f64, macro_f1: Option<f64>) -> f64 {
        let score = match self {
            Self::Loss => -loss,
            Self::MacroF1 => macro_f1.unwrap_or(f64::NEG_INFINITY),
        };
        if score.is_nan() {
            f64::NEG_INFINITY
        } else {
            score
        }
    }
}

/// A model as the loop sees it.
pub trait Learner {
    /// Adds the gradients of `grad_scale · Σ loss` to everything that is trained, and returns the loss, which on a GPU
    /// nobody has waited for.
    ///
    /// # Errors
    /// An operation on tensors failed, or the loss is known and not a number.
    fn begin(
        &self,
        trainable: &mut Trainable,
        input: Input,
        grad_scale: f64,
        checkpointing: Checkpointing,
    ) -> Result<Begun>;

    /// [`Self::begin`], with a loss that was waited for.
    ///
    /// # Errors
    /// An operation on tensors failed, or the loss is not a number.
    fn differentiate(
        &self,
        trainable: &mut Trainable,
        input: Input,
        grad_scale: f64,
        checkpointing: Checkpointing,
    ) -> Result<Loss> {
        checked_loss(self.begin(trainable, input, grad_scale, checkpointing)?)
    }

    /// Measures one pass over data; nothing is differentiated and nothing dropped.
    ///
    /// # Errors
    /// An operation on tensors failed.
    fn measure(&self, trainable: &mut Trainable, batches: &Batches) -> Result<Measured>;
}

/// What an evaluation measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Batch by batch.
    pub losses: Vec<BatchLoss>,
    /// How well classes are told apart, of a classifier.
    pub classes: Option<ClassMetrics>,
    /// The class and the answer of each text in order, of a classifier.
    pub answers: Vec<(u32, u32)>,
}

impl Learner for Model {
    fn begin(
        &self,
        trainable: &mut Trainable,
        input: Input,
        grad_scale: f64,
        checkpointing: Checkpointing,
    ) -> Result<Begun> {
        begin(self, trainable, input, grad_scale, checkpointing)
    }

    fn measure(&self, trainable: &mut Trainable, batches: &Batches) -> Result<Measured> {
        Ok(Measured {
            losses: batch_losses(self, trainable, batches)?,
            classes: None,
            answers: Vec::new(),
        })
    }
}

/// When a run ends before its last step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EarlyStopping {
    /// Evaluations in a row without improvement.
    pub patience: usize,
    /// How far the loss must fall, or the macro F1 rise, to count as improvement.
    pub min_delta: f64,
}

/// How a run goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Learning rates, and how many steps there are.
    pub schedule: Schedule,
    /// Batches of one optimiser step.
    pub accumulation: usize,
    /// What is computed again on the way back.
    pub checkpointing: Checkpointing,
    /// When the evaluation data is measured, besides before the first and after the last step.
    pub evaluate: Cadence,
    /// When a checkpoint is written.
    pub save: Cadence,
    /// When the run ends early.
    pub early_stopping: Option<EarlyStopping>,
    /// Which evaluation is the best.
    pub best_by: BestBy,
}

/// Steps in one pass over the data.
pub fn steps_per_epoch(batches: &Batches, accumulation: usize) -> usize {
    batches.per_epoch().div_ceil(accumulation.max(1)).max(1)
}

/// A part of the loop, for timing and energy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Forward, backward and optimiser.
    Train,
    /// Loss on the evaluation data.
    Evaluate,
    /// Writing a checkpoint.
    Save,
}

/// What one optimiser step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Counted from 1.
    pub step: usize,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean loss per target, in nats.
    pub loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Tokens gone through in the step.
    pub tokens: usize,
    /// Targets among them.
    pub trained_tokens: usize,
    /// Time of the step.
    pub seconds: f64,
}

/// A measurement on the evaluation data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Steps made so far.
    pub step: usize,
    /// Mean loss per target, in nats.
    pub loss: f64,
    /// Whether it is the best so far.
    pub best: bool,
    /// Accuracy and macro F1, of a classifier.
    pub scores: Option<(f64, f64)>,
}

/// Is told what happens.
pub trait Observer {
    /// A phase begins.
    fn enter(&mut self, phase: Phase);
    /// It ends.
    fn leave(&mut self, phase: Phase);
    /// A step is done.
    ///
    /// # Errors
    /// Whatever the observer cannot go on after, such as a metrics file that cannot be written.
    fn stepped(&mut self, step: &Step) -> Result<()>;
    /// The evaluation data was measured.
    ///
    /// # Errors
    /// As [`Observer::stepped`].
    fn evaluated(&mut self, evaluation: &Evaluation, progress: &Progress) -> Result<()>;
    /// What an evaluation measured, told before [`Observer::evaluated`].
    fn measured(&mut self, _measured: &Measured) {}
    /// Whether the run is to stop after this step, with a checkpoint.
    fn stop(&self) -> bool;
    /// How much is used of a budget, 0 at the first step and 1 when only what the run's end needs is
    /// left; none without a budget. The learning rate then follows it, so that such a run is no longer
    /// the same bit for bit when it is made again.
    fn used(&self) -> Option<f64> {
        None
    }
    /// Whether the budget has room for an evaluation or a checkpoint now and for steps after it. Where it
    /// has not, the run goes on without, as both come again at its end.
    fn affords(&self, _phase: Phase) -> bool {
        true
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With its last step.
    Finished,
    /// Because the evaluation loss no longer fell.
    StoppedEarly,
    /// Because the observer's budget was used up.
    Spent,
    /// Because the observer asked, with a checkpoint to go on from.
    Interrupted,
}

/// A run: what is trained, on what, and where it leaves its checkpoints.
pub struct Run<'a> {
    /// The base.
    pub model: &'a dyn Learner,
    /// What is trained.
    pub trainable: &'a mut Trainable,
    /// Its updates.
    pub optimizer: &'a mut Optimizer,
    /// What is learned.
    pub train: &'a mut Batches,
    /// What is measured.
    pub eval: Option<&'a Batches>,
    /// How.
    pub settings: Settings,
    /// Folder of the checkpoints.
    pub checkpoints: &'a Path,
    /// Writes what is trained into a checkpoint so that it can be used as it is.
    pub export: &'a dyn Fn(&Trainable, &Path) -> Result<()>,
}

impl Run<'_> {
    /// Trains from `progress` on. Afterwards what is trained holds the values of the best evaluation, or of the last step where nothing is evaluated; after an interruption those of the last
    /// step.
    ///
    /// # Errors
    /// A loss or gradient that is not a number, a file that cannot be written, or a failed operation.
    pub fn fit(&mut self, progress: &mut Progress, observer: &mut dyn Observer) -> Result<Ending> {
        let total = self.settings.schedule.total_steps;
        progress.batches_per_epoch = self.train.per_epoch();
        if progress.step == 0 && progress.loss_before.is_none() {
            self.evaluate(progress, observer)?;
        }
        let mut ending = Ending::Finished;
        while progress.step < total {
            if observer.stop() {
                self.save(progress, observer)?;
                return Ok(Ending::Interrupted);
            }
            observer.enter(Phase::Train);
            let step = self.step(progress, observer.used());
            observer.leave(Phase::Train);
            observer.stepped(&step?)?;

            let per_epoch = steps_per_epoch(self.train, self.settings.accumulation);
            let spent = progress.step < total && observer.used().is_some_and(|used| used >= 1.0);
            let last = progress.step == total || spent;
            let due = self.settings.evaluate.due(progress.step, per_epoch);
            if last || due && observer.affords(Phase::Evaluate) {
                self.evaluate(progress, observer)?;
            }
            let stops = self.settings.early_stopping.is_some_and(|early| {
                progress.best.is_some() && progress.without_gain >= early.patience
            });
            let saves = self.settings.save != Cadence::Never;
            let due = self.settings.save.due(progress.step, per_epoch);
            if saves && (last || stops) || due && observer.affords(Phase::Save) {
                self.save(progress, observer)?;
            }
            if spent {
                ending = Ending::Spent;
                break;
            }
            if stops && !last {
                ending = Ending::StoppedEarly;
                break;
            }
        }
        if let Some(best) = progress.best.filter(|best| best.step != progress.step) {
            checkpoint::restore_best(self.checkpoints, best.step, self.trainable)?;
        }
        Ok(ending)
    }

    fn step(&mut self, progress: &mut Progress, used: Option<f64>) -> Result<Step> {
        let started = Instant::now();
        let mut group = Vec::with_capacity(self.settings.accumulation);
        while group.len() < self.settings.accumulation.max(1) {
            let Some(batch) = self.train.next_batch() else {
                return Err(Error::training(
                    "there is nothing to train on",
                    "look at the training data",
                ));
            };
            group.push(batch);
            if self.train.position().batch >= self.train.per_epoch() {
                break;
            }
        }
        let targets: usize = group.iter().map(Batch::trained_tokens).sum();
        let tokens: usize = group.iter().map(|batch| batch.ids.len()).sum();
        if targets == 0 {
            return Err(Error::training(
                "a step holds no token to learn",
                "this is a defect of the program: rows without targets are left out when they are read",
            ));
        }
        let learning_rate = self.settings.schedule.within(progress.step, used);
        let device = self.trainable.device();
        let (sum, grad_norm) = awake(&device, || -> Result<_> {
            let mut losses = Vec::with_capacity(group.len());
            for batch in &group {
                self.trainable.set_training(Some(progress.micro_batches));
                let input = Input {
                    ids: &batch.ids,
                    targets: &batch.targets,
                    documents: &batch.documents,
                };
                let scale = 1.0 / targets as f64;
                let checkpointing = self.settings.checkpointing;
                let (model, trainable) = (self.model, &mut *self.trainable);
                losses.push(model.begin(trainable, input, scale, checkpointing)?);
                progress.micro_batches += 1;
            }
            let norm = self.optimizer.begin_step(self.trainable, learning_rate)?;
            // Numbers are read now and not before, so that a GPU never waits for its work to be enqueued.
            let mut sum = 0.0;
            for loss in losses {
                sum += checked_loss(loss)?.sum;
            }
            Ok((sum, checked_norm(&norm)?))
        })?;
        let (loss, seconds) = (sum / targets as f64, started.elapsed().as_secs_f64());
        progress.position = self.train.position();
        progress.stepped(loss, tokens, targets, seconds);
        Ok(Step {
            step: progress.step,
            epoch: progress.epochs(),
            loss,
            learning_rate,
            grad_norm,
            tokens,
            trained_tokens: targets,
            seconds,
        })
    }

    fn evaluate(&mut self, progress: &mut Progress, observer: &mut dyn Observer) -> Result<()> {
        let Some(eval) = self.eval else {
            return Ok(());
        };
        observer.enter(Phase::Evaluate);
        let device = self.trainable.device();
        let measured = awake(&device, || self.model.measure(self.trainable, eval));
        observer.leave(Phase::Evaluate);
        let measured = measured?;
        let loss = mean(&measured.losses)?;
        observer.measured(&measured);
        let Measured { classes, .. } = measured;
        let scores = classes
            .as_ref()
            .map(|classes| (classes.accuracy, classes.macro_f1));
        let macro_f1 = scores.map(|(_, macro_f1)| macro_f1);
        let step = progress.step;
        let mut best = false;
        if step == 0 {
            progress.loss_before = Some(loss);
            progress.classes_before = classes;
        } else {
            let least = self.settings.early_stopping.map_or(0.0, |e| e.min_delta);
            // A figure that is not a number is never an improvement.
            let by = self.settings.best_by;
            let score = by.score(loss, macro_f1);
            let before = progress.best.map(|best| by.score(best.loss, best.macro_f1));
            let gained = before.is_none_or(|before| score > before + least);
            progress.without_gain = if gained { 0 } else { progress.without_gain + 1 };
            best = before.is_none_or(|before| score > before) && loss.is_finite();
            if best {
                observer.enter(Phase::Save);
                let written = checkpoint::write_best(self.checkpoints, step, self.trainable);
                observer.leave(Phase::Save);
                written?;
                progress.best = Some(Best {
                    step,
                    loss,
                    macro_f1,
                });
                progress.classes_best = classes;
            }
        }
        let evaluation = Evaluation {
            step,
            loss,
            best,
            scores,
        };
        observer.evaluated(&evaluation, progress)
    }

    fn save(&mut self, progress: &Progress, observer: &mut dyn Observer) -> Result<()> {
        observer.enter(Phase::Save);
        let (trainable, optimizer) = (&*self.trainable, &*self.optimizer);
        let written = checkpoint::write(
            self.checkpoints,
            progress,
            trainable,
            optimizer,
            self.export,
        );
        observer.leave(Phase::Save);
        written
    }
}
