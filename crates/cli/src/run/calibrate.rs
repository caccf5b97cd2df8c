//! A few real steps of a recipe, for [`crate::plan`]: how long each part of a run takes, what the machine
//! draws meanwhile, and how much memory it needs. Nothing of it is kept but the figures.
//!
//! The largest batch of the data comes first, so that the memory is that of the whole run; then as many
//! batches in the run's own order as fit into the time.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use sparsam_adapter::checkpoint::Progress as Trained;
use sparsam_adapter::data::{Batches, Position};
use sparsam_adapter::error::Result as LoopResult;
use sparsam_adapter::evaluate::answers;
use sparsam_adapter::optimizer::Optimizer;
use sparsam_adapter::peft;
use sparsam_adapter::train::{
    Cadence, Evaluation, Learner as _, Observer, Phase, Run, Settings, Step, steps_per_epoch,
};
use sparsam_adapter::trainable::Trainable;
use sparsam_base::network::Network as _;
use sparsam_base::projection::Hook as _;
use sparsam_tracker::{EnergyRecord, Tracker};

use super::budget::longer;
use super::material::{Data, Material, Ready, Revisions};
use super::{place, settings};
use crate::machine::peak_memory;
use crate::opened::open_texts;
use crate::plan::memory::Shape;
use crate::recipe::{PrefixStore, Recipe, RecipeFile, Task};

/// At least so many steps, however long they take.
const FEWEST_STEPS: usize = 3;
/// Questions that are answered.
const QUESTIONS: usize = 16;

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Calibration {
    /// Numbers in the base.
    pub(crate) parameters: u64,
    /// Its weights as stored, bytes.
    pub(crate) weight_bytes: u64,
    /// Numbers that are trained.
    pub(crate) trainable: u64,
    /// The most memory the process held, bytes.
    pub(crate) peak_bytes: Option<u64>,
    /// Seconds to read and check everything.
    pub(crate) load_seconds: f64,
    /// Tokens and seconds of the measured steps.
    pub(crate) tokens: u64,
    pub(crate) step_seconds: f64,
    pub(crate) steps: u64,
    /// Seconds of one evaluation of all held-out data.
    pub(crate) evaluation_seconds: f64,
    /// The same again, where what lies below the lowest trained block is kept.
    #[serde(default)]
    pub(crate) again: Option<Again>,
    /// Seconds of all answers before and after the training.
    pub(crate) answer_seconds: (f64, f64),
    /// Seconds of one checkpoint.
    pub(crate) save_seconds: f64,
    /// The energy of this calibration, with its windows.
    pub(crate) energy: EnergyRecord,
}

/// Work on texts of which the lower blocks' part was kept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Again {
    /// Tokens and seconds of the measured steps.
    pub(crate) tokens: u64,
    pub(crate) step_seconds: f64,
    /// Seconds of one evaluation.
    pub(crate) evaluation_seconds: f64,
    /// The share of all texts for which there is room.
    pub(crate) share: f64,
    /// Memory that a whole run keeps beyond what was kept here, bytes.
    pub(crate) more_bytes: u64,
}

/// The amount of work in a run, which its data and its recipe decide.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Work {
    /// Tokens of the largest batch, and targets in it.
    pub(crate) largest_batch: (u64, u64),
    /// Tokens of one evaluation.
    pub(crate) evaluation_tokens: u64,
    /// Answers before and after, and the most tokens of one.
    pub(crate) answers: u64,
    pub(crate) answer_tokens: u64,
    /// Optimiser steps.
    pub(crate) steps: u64,
    /// Tokens in all of them.
    pub(crate) tokens: u64,
    /// Tokens of one pass over the data.
    pub(crate) epoch_tokens: u64,
    /// Evaluations, the first and the last among them.
    pub(crate) evaluations: u64,
    /// Checkpoints.
    pub(crate) saves: u64,
}

/// Counts steps and says when it is enough.
struct Pace {
    begun: Instant,
    seconds: f64,
    least: usize,
    steps: Vec<(usize, f64)>,
}

impl Pace {
    fn new(seconds: f64, least: usize) -> Self {
        Self {
            begun: Instant::now(),
            seconds,
            least,
            steps: Vec::new(),
        }
    }

    fn tokens(&self) -> u64 {
        self.steps.iter().map(|(tokens, _)| *tokens as u64).sum()
    }

    /// Seconds of the steps as if each token had taken what it took in the median one, as a machine that was
    /// busy with something else for a moment says nothing of a run.
    fn step_seconds(&self) -> f64 {
        let mut rates: Vec<f64> = self
            .steps
            .iter()
            .map(|(tokens, seconds)| seconds / (*tokens).max(1) as f64)
            .collect();
        rates.sort_by(f64::total_cmp);
        let (below, above) = ((rates.len().max(1) - 1) / 2, rates.len() / 2);
        match (rates.get(below), rates.get(above)) {
            (Some(below), Some(above)) => f64::midpoint(*below, *above) * self.tokens() as f64,
            _ => 0.0,
        }
    }
}

impl Observer for Pace {
    fn enter(&mut self, _: Phase) {}

    fn leave(&mut self, _: Phase) {}

    fn stepped(&mut self, step: &Step) -> LoopResult<()> {
        self.steps.push((step.tokens, step.seconds));
        Ok(())
    }

    fn evaluated(&mut self, _: &Evaluation, _: &Trained) -> LoopResult<()> {
        Ok(())
    }

    fn stop(&self) -> bool {
        false
    }

    fn used(&self) -> Option<f64> {
        let enough =
            self.steps.len() >= self.least && self.begun.elapsed().as_secs_f64() >= self.seconds;
        Some(f64::from(u8::from(enough)))
    }
}

/// Counts the work of a recipe whose task is settled. The model's weights are not read.
pub(crate) fn count(file: &RecipeFile, quiet: bool) -> anyhow::Result<(Shape, Work)> {
    let recipe = &file.recipe;
    file.check_files()?;
    let revisions = Revisions::of(recipe, None);
    let (shape, data) = if recipe.task == Task::Classification {
        let (texts, data) = Data::read_classes(recipe, revisions, quiet)?;
        (texts.shape(), data)
    } else {
        let texts = open_texts(
            &recipe.model,
            recipe.revision.as_deref(),
            recipe.max_length,
            recipe.chat_template.as_deref(),
            quiet,
        )?;
        let template = texts.template.with_clock(super::now().as_second());
        let data = Data::read(recipe, revisions, &texts.tokenizer, &template, None, quiet)?;
        (Shape::of(&texts.config), data)
    };
    let planned = settings::training(recipe, &data.train);
    let steps = planned.schedule.total_steps;
    let per_epoch = steps_per_epoch(&data.train, planned.accumulation);
    let due = |cadence: Cadence| {
        (1..=steps)
            .filter(|step| cadence.due(*step, per_epoch))
            .count()
    };
    let (evaluations, saves) = (due(planned.evaluate), due(planned.save));
    let last_is_due = |cadence: Cadence| cadence.due(steps, per_epoch);
    let (tokens, targets, _) = largest(&data.train);
    let work = Work {
        largest_batch: (tokens as u64, targets as u64),
        evaluation_tokens: data.eval_record.as_ref().map_or(0, |record| record.tokens),
        answers: data.questions.len() as u64,
        answer_tokens: recipe
            .eval_generation
            .as_ref()
            .map_or(0, |generation| generation.max_new_tokens as u64),
        steps: steps as u64,
        tokens: (data.train_record.tokens as f64 * steps as f64 / per_epoch as f64) as u64,
        epoch_tokens: data.train_record.tokens,
        evaluations: match data.eval {
            // Before the first step and after the last, besides those that are due.
            Some(_) => (1 + evaluations + usize::from(!last_is_due(planned.evaluate))) as u64,
            None => 0,
        },
        saves: match planned.save {
            Cadence::Never => 0,
            _ => (saves + usize::from(!last_is_due(planned.save))) as u64,
        },
    };
    Ok((shape, work))
}

/// Tokens, targets and place of the batch with the most tokens.
fn largest(train: &Batches) -> (usize, usize, usize) {
    train
        .epoch()
        .enumerate()
        .map(|(index, batch)| (batch.ids.len(), batch.trained_tokens(), index))
        .max()
        .unwrap_or((0, 0, 0))
}

/// What of all texts there is room to keep, with no figure of time in it.
fn room(recipe: &Recipe, ready: &Ready, data: &Data) -> Again {
    let eval = data.eval_record.as_ref().map_or(0, |record| record.tokens);
    let a_token = (ready.opened.model.width() * size_of::<f32>()) as u64;
    let all = (data.train_record.tokens + eval) * a_token;
    let kept = all.min(settings::prefix_bytes(recipe));
    let here = ready
        .trainable
        .prefix()
        .map_or(0, |prefix| prefix.lock().counts().bytes);
    Again {
        tokens: 0,
        step_seconds: 0.0,
        evaluation_seconds: 0.0,
        share: kept as f64 / all.max(1) as f64,
        more_bytes: match recipe.prefix_cache.store {
            PrefixStore::Memory => kept.saturating_sub(here),
            PrefixStore::File | PrefixStore::None => 0,
        },
    }
}

/// Makes steps of a recipe for about `seconds`.
pub(crate) fn calibrate(file: &RecipeFile, seconds: f64) -> anyhow::Result<Calibration> {
    let recipe = &file.recipe;
    file.check_files()?;
    let scratch = tempfile::tempdir()?;
    let place = place(recipe)?;
    let name = "calibration".to_owned();
    let mut options = settings::tracker(recipe, &place.device, scratch.path(), name, false);
    options.baseline_seconds = 0.0;
    options.live = None;
    let tracker = Tracker::start(&options)?;
    let begun = Instant::now();
    let revisions = Revisions::of(recipe, None);
    let Material { opened, mut data } =
        Material::read(recipe, &place, revisions, super::now(), true)?;
    let mut ready = Ready::make(recipe, opened, true)?;
    let planned = settings::training(recipe, &data.train);
    let mut optimizer = settings::optimizer(recipe, &ready.trainable)?;
    let per_epoch = steps_per_epoch(&data.train, planned.accumulation);
    let seen_again = settings::seen_again(&data, &planned);
    let load_seconds = begun.elapsed().as_secs_f64();

    // A step takes several batches where gradients are accumulated; the largest batch is enough.
    let (_, _, largest) = largest(&data.train);
    let adapter = ready.adapter.clone();
    let export = |trainable: &Trainable, folder: &std::path::Path| match &adapter {
        Some(config) => peft::save(folder, trainable, config),
        None => Ok(()),
    };
    let mut fit = |ready: &mut Ready,
                   optimizer: &mut Optimizer,
                   settings: Settings,
                   from: Position,
                   pace: &mut Pace|
     -> anyhow::Result<Trained> {
        data.train.seek(from);
        let mut progress = Trained::default();
        Run {
            model: &ready.opened.model,
            trainable: &mut ready.trainable,
            optimizer,
            train: &mut data.train,
            eval: None,
            settings,
            checkpoints: scratch.path(),
            export: &export,
        }
        .fit(&mut progress, pace)?;
        Ok(progress)
    };
    let quiet = Settings {
        evaluate: Cadence::Never,
        save: Cadence::Never,
        early_stopping: None,
        ..planned
    };
    let mut one = quiet;
    one.schedule.total_steps = 1;
    one.accumulation = 1;
    let at = Position {
        epoch: 0,
        batch: largest,
    };
    fit(&mut ready, &mut optimizer, one, at, &mut Pace::new(0.0, 1))?;
    let (mut first, start) = (quiet, Position::default());
    let passes_again = settings::keep_prefix(recipe, &mut ready, seen_again, scratch.path())?;
    if passes_again {
        // Texts of a second epoch would be read back.
        first.schedule.total_steps = first.schedule.total_steps.min(per_epoch);
    }
    tracker.enter("train");
    let mut pace = Pace::new(seconds, FEWEST_STEPS.min(first.schedule.total_steps));
    fit(&mut ready, &mut optimizer, first, start, &mut pace)?;
    tracker.leave("train");
    let mut second = None;
    if passes_again {
        first.schedule.total_steps = pace.steps.len();
        let mut pace = Pace::new(f64::INFINITY, usize::MAX);
        fit(&mut ready, &mut optimizer, first, start, &mut pace)?;
        second = Some(pace);
    }

    // A checkpoint is written by the loop alone: one more step of a run that ends with one.
    let before = Instant::now();
    let mut saving = one;
    saving.save = Cadence::Epoch;
    let mut last = Pace::new(0.0, 1);
    fit(&mut ready, &mut optimizer, saving, at, &mut last)?;
    let step: f64 = last.steps.iter().map(|(_, seconds)| seconds).sum();
    let save_seconds = (before.elapsed().as_secs_f64() - step).max(0.0);

    let mut evaluate = || -> anyhow::Result<f64> {
        let Some(eval) = &data.eval else {
            return Ok(0.0);
        };
        let before = Instant::now();
        ready.opened.model.measure(&mut ready.trainable, eval)?;
        Ok(before.elapsed().as_secs_f64())
    };
    let evaluation_seconds = evaluate()?;
    let again = match second {
        Some(pace) => Some(Again {
            tokens: pace.tokens(),
            step_seconds: pace.step_seconds(),
            evaluation_seconds: evaluate()?,
            ..room(recipe, &ready, &data)
        }),
        None => None,
    };
    let mut answer_seconds = (0.0, 0.0);
    if let Some(generation) = &recipe.eval_generation {
        let some = &data.questions[..data.questions.len().min(QUESTIONS)];
        let before = Instant::now();
        let given = answers(
            ready.opened.model.language()?,
            &mut ready.trainable,
            &ready.opened.tokenizer,
            &ready.opened.template,
            some,
            generation.max_new_tokens,
            &|| false,
        )?;
        let all = before.elapsed().as_secs_f64() * data.questions.len() as f64 / some.len() as f64;
        answer_seconds = (all, all * longer(some, &given));
    }
    Ok(Calibration {
        parameters: ready.opened.parameters,
        weight_bytes: ready.opened.model.bytes() as u64,
        trainable: ready.trainable.parameters() as u64,
        peak_bytes: peak_memory(),
        load_seconds,
        tokens: pace.tokens(),
        step_seconds: pace.step_seconds(),
        steps: pace.steps.len() as u64,
        evaluation_seconds,
        again,
        answer_seconds,
        save_seconds,
        energy: tracker.finish(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_of_other_work_is_no_part_of_a_plan() {
        let mut pace = Pace::new(0.0, 1);
        assert_eq!(pace.step_seconds(), 0.0);
        pace.steps = vec![(100, 1.0), (50, 0.5), (100, 9.0), (100, 1.0)];
        assert!((pace.step_seconds() - 3.5).abs() < 1e-12);
        pace.steps = vec![(100, 1.0), (100, 2.0)];
        assert!((pace.step_seconds() - 3.0).abs() < 1e-12);
    }
}
