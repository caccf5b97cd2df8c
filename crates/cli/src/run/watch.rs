//! What becomes of the loop's news: the bar, the curve, the phases of the energy journal, and the
//! record, which is brought up to date with every evaluation so that a killed run has one.

use std::io;
use std::path::{Path, PathBuf};

use sparsam_adapter::checkpoint;
use sparsam_adapter::error::{Error, Result};
use sparsam_adapter::train::{Evaluation, Measured, Observer, Phase, Step};
use sparsam_base::prefix::SharedPrefix;
use sparsam_tracker::Tracker;

use super::budget::Meter;
use super::held_out::{self, HeldOut, pairs};
use super::metrics::Metrics;
use crate::dashboard::Budgeted;
use crate::device::peak_gpu_memory;
use crate::interrupt;
use crate::machine::peak_memory;
use crate::progress::{Progress, Status};
use crate::run_record::{Classified, PrefixUse, Quality, Results, RunRecord};

/// The names under which phases stand in the energy record.
pub(super) const TRAIN: &str = "train";
pub(super) const EVALUATE: &str = "eval";
pub(super) const SAVE: &str = "save";

/// Watches a run.
pub(super) struct Watch<'a> {
    pub(super) tracker: &'a Tracker,
    pub(super) progress: &'a mut Progress,
    pub(super) metrics: &'a mut Metrics,
    pub(super) record: &'a mut RunRecord,
    pub(super) folder: &'a Path,
    /// The answers before the first step, which the loop knows nothing of.
    pub(super) before: Option<Quality>,
    /// The meter of the budget, where there is one.
    pub(super) budget: Option<&'a mut Meter>,
    pub(super) held_out: &'a mut HeldOut,
    /// What is computed once, where it is.
    pub(super) prefix: Option<SharedPrefix>,
    /// The batches of the last evaluation, and the classes of its texts with what they were given.
    pub(super) measured: (Vec<(f64, usize)>, Vec<(u32, u32)>),
    /// Smoothed speed for the bar.
    pub(super) tokens_per_second: Option<f64>,
    /// Whether training is the open phase; it stays open from step to step.
    pub(super) training: bool,
}

impl Watch<'_> {
    /// Closes the phase that is left open between steps.
    pub(super) fn end(&mut self) {
        if std::mem::take(&mut self.training) {
            self.tracker.leave(TRAIN);
        }
    }

    fn failed(path: PathBuf) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io {
            verb: "write",
            path,
            source,
        }
    }
}

impl Observer for Watch<'_> {
    fn enter(&mut self, phase: Phase) {
        match phase {
            Phase::Train => {
                if !std::mem::replace(&mut self.training, true) {
                    self.tracker.enter(TRAIN);
                }
                if let Some(meter) = &mut self.budget
                    && !meter.has_begun()
                {
                    meter.begin(&self.tracker.sampled());
                }
            }
            Phase::Evaluate => {
                self.end();
                self.tracker.enter(EVALUATE);
                if let Some(meter) = &mut self.budget {
                    meter.enter(&self.tracker.sampled());
                }
                self.progress.doing("measuring the evaluation data");
            }
            Phase::Save => {
                self.end();
                self.tracker.enter(SAVE);
                if let Some(meter) = &mut self.budget {
                    meter.enter(&self.tracker.sampled());
                }
            }
        }
    }

    fn leave(&mut self, phase: Phase) {
        match phase {
            Phase::Train => {}
            Phase::Evaluate => self.tracker.leave(EVALUATE),
            Phase::Save => self.tracker.leave(SAVE),
        }
        match (&mut self.budget, phase) {
            (Some(meter), Phase::Evaluate) => meter.evaluated(&self.tracker.sampled()),
            (Some(meter), Phase::Save) => meter.saved(&self.tracker.sampled()),
            _ => {}
        }
    }

    fn stepped(&mut self, step: &Step) -> Result<()> {
        let live = self.tracker.live();
        let grams = live.emissions_g.central;
        if let Some(meter) = &mut self.budget {
            meter.stepped(&live);
        }
        let speed = step.tokens as f64 / step.seconds;
        let smooth = self
            .tokens_per_second
            .map_or(speed, |s| 0.9 * s + 0.1 * speed);
        self.tokens_per_second = Some(smooth);
        let status = Status {
            step: step.step as u64,
            loss: step.loss,
            tokens_per_second: smooth,
            watts: live.watts,
            grams,
        };
        let meter = self.budget.as_deref();
        self.progress.update(&status, || {
            meter.map(|meter| Budgeted {
                used: meter.used(&live),
                words: meter.so_far(&live).words(),
            })
        });
        let path = self.folder.join(super::metrics::FILE_NAME);
        self.metrics
            .step(step, &live, grams)
            .map_err(Self::failed(path))
    }

    fn measured(&mut self, measured: &Measured) {
        self.measured = (pairs(&measured.losses), measured.answers.clone());
    }

    fn evaluated(
        &mut self,
        evaluation: &Evaluation,
        progress: &checkpoint::Progress,
    ) -> Result<()> {
        let note = format!(
            "step {}: evaluation loss {:.4}{}{}",
            evaluation.step,
            evaluation.loss,
            evaluation
                .scores
                .map_or(String::new(), |(accuracy, macro_f1)| {
                    format!(", accuracy {accuracy:.4}, macro F1 {macro_f1:.4}")
                }),
            match (evaluation.best, evaluation.scores) {
                (true, None) => ", the lowest so far",
                (true, Some(_)) => ", the best so far",
                (false, _) => "",
            }
        );
        let step = evaluation.step as u64;
        self.progress
            .evaluated(step, evaluation.loss, evaluation.best);
        self.progress.note(&note);
        self.metrics
            .evaluation(evaluation)
            .map_err(Self::failed(self.folder.join(super::metrics::FILE_NAME)))?;
        let (losses, classes) = std::mem::take(&mut self.measured);
        if evaluation.step == 0 {
            self.held_out.before = losses;
        } else if evaluation.best {
            self.held_out.after = losses;
            self.held_out.classes = classes;
        }
        self.held_out
            .write(self.folder)
            .map_err(Self::failed(self.folder.join(held_out::FILE_NAME)))?;
        self.record.results = Some(results(
            progress,
            self.before,
            None,
            self.tracker,
            self.prefix.as_ref(),
        ));
        let live = self.tracker.live();
        self.record.budget = self.budget.as_ref().map(|meter| meter.so_far(&live));
        self.record
            .write(self.folder)
            .map_err(Self::failed(self.folder.join(crate::run_record::FILE_NAME)))
    }

    fn stop(&self) -> bool {
        interrupt::requested()
    }

    fn affords(&self, phase: Phase) -> bool {
        let meter = self.budget.as_deref();
        meter.is_none_or(|meter| meter.affords(phase, &self.tracker.live()))
    }

    fn used(&self) -> Option<f64> {
        let live = self.tracker.live();
        self.budget.as_ref().map(|meter| meter.used(&live))
    }
}

/// The results as far as they are known. `before` and `answers` bring what was generated.
pub(super) fn results(
    progress: &checkpoint::Progress,
    before: Option<Quality>,
    answers: Option<Quality>,
    tracker: &Tracker,
    prefix: Option<&SharedPrefix>,
) -> Results {
    let kept = progress.best.map_or(progress.step, |best| best.step);
    let generated = |quality: Option<Quality>, loss: f64| Quality {
        loss,
        exact_match: quality.and_then(|q| q.exact_match),
        answers: quality.and_then(|q| q.answers),
    };
    let seconds = progress.train_seconds;
    Results {
        before: progress.loss_before.map(|loss| generated(before, loss)),
        after: progress.best.map(|best| generated(answers, best.loss)),
        train_loss: progress.recent_loss(),
        steps: progress.step as u64,
        best_step: kept as u64,
        epochs: progress.epochs(),
        tokens: progress.tokens,
        trained_tokens: progress.trained_tokens,
        tokens_per_second: if seconds > 0.0 {
            progress.tokens as f64 / seconds
        } else {
            0.0
        },
        train_seconds: seconds,
        total_seconds: tracker.live().seconds,
        peak_memory_bytes: peak_memory(),
        peak_gpu_memory_bytes: peak_gpu_memory(),
        classes: progress.classes_best.clone().map(|after| Classified {
            before: progress.classes_before.clone(),
            after,
        }),
        prefix: prefix.map(PrefixUse::of),
    }
}
