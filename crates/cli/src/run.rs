//! A training run, from a checked recipe to the files it leaves.
//!
//! [`Session`] is the order of things: claim the folder, start the meters, open model and data, train,
//! write, close the books.
//! [`settings`] translates the recipe, [`folder`] guards the output folder, [`material`] is what is
//! read, [`watch`] listens to the loop, [`metrics`] keeps its curve, [`outputs`] writes what was trained,
//! [`words`] is what the user is told. The one record is [`RunRecord`]; screen and card are printed from
//! it.

use std::path::Path;

use jiff::Timestamp;
use sparsam_adapter::checkpoint::{self, Progress as Trained};
use sparsam_adapter::evaluate::exact_match;
use sparsam_adapter::optimizer::Optimizer;
use sparsam_adapter::peft;
use sparsam_adapter::train::{Ending, Run, Settings};
use sparsam_adapter::trainable::Trainable;
use sparsam_base::chat_template::TemplateSource;
use sparsam_base::projection::Hook as _;
use sparsam_tracker::{EnergyRecord, Tracker};

use crate::cards;
use crate::classifier;
use crate::device::{self, Place};
use crate::error::Failure;
use crate::interrupt;
use crate::machine::Platform;
use crate::probe_file::ProbeFile;
use crate::progress::{Look, Progress};
use crate::recipe::{Recipe, RecipeFile};
use crate::run_record::{Base, FORMAT, Quality, Results, RunRecord, State, Versions};

mod budget;
mod calibrate;
mod folder;
mod held_out;
pub(crate) mod inspect;
mod learned;
mod material;
mod metrics;
mod outputs;
mod settings;
mod task;
mod wait;
mod watch;
mod words;

pub(crate) use budget::BudgetUse;
use budget::Meter;
pub(crate) use calibrate::{Again, Calibration, Work, calibrate, count};
use folder::{Folder, Resumed};
pub(crate) use held_out::HeldOut;
use learned::Learned;
use material::{Data, Material, Ready, Revisions};
use metrics::Metrics;
pub(crate) use settings::{gpus as gpus_of, quantize as quantize_of};
pub(crate) use task::{is_of, settled};
pub(crate) use wait::Waited;
use watch::Watch;
use words::{examples, opening, say};

/// Folder of the checkpoints in the run's folder.
const CHECKPOINTS: &str = "checkpoints";
/// Name of the phase in which model and data are read.
const LOAD: &str = "load";

/// Where a run begins.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// With the first step, in a folder without a run.
    Fresh,
    /// From a checkpoint: the one given, or the last one in the output folder.
    Resume(Option<&'a Path>),
}

/// Says what a recipe would train, and trains nothing.
pub(crate) fn rehearse(file: &RecipeFile) -> anyhow::Result<()> {
    let file = &task::settled(file, None, false)?;
    let recipe = &file.recipe;
    file.check_files()?;
    let place = place(recipe)?;
    place.note.iter().for_each(|note| say(note));
    let material = Material::read(recipe, &place, Revisions::of(recipe, None), now(), false)?;
    let ready = Ready::make(recipe, material.opened, false)?;
    let settings = settings::training(recipe, &material.data.train);
    say(&opening(recipe, &ready, &material.data, &settings));
    Ok(())
}

/// Trains as a recipe says.
pub(crate) fn train(
    file: &RecipeFile,
    start: Start,
    quiet: bool,
    dashboard: bool,
) -> anyhow::Result<()> {
    let begun = match start {
        Start::Fresh => None,
        Start::Resume(_) => RunRecord::beside(&file.recipe.output_dir)?,
    };
    let commit = begun.and_then(|record| record.base.revision);
    let file = task::settled(file, commit.as_deref(), quiet)?;
    let mut session = Session::begin(&file, start, quiet, dashboard)?;
    let ending = session.work();
    session.end(ending)
}

/// A run while it goes on.
struct Session<'a> {
    recipe: &'a Recipe,
    folder: Folder,
    tracker: Tracker,
    ready: Ready,
    data: Data,
    optimizer: Optimizer,
    settings: Settings,
    /// How far the loop has come.
    trained: Trained,
    record: RunRecord,
    metrics: Metrics,
    progress: Progress,
    /// The meter of the budget, where there is one.
    budget: Option<Meter>,
    /// How many times as long as the last answers those that are expected are.
    longer: f64,
    held_out: HeldOut,
}

impl<'a> Session<'a> {
    /// Everything before the first step. An error leaves nothing behind.
    fn begin(
        file: &'a RecipeFile,
        start: Start,
        quiet: bool,
        dashboard: bool,
    ) -> anyhow::Result<Self> {
        let recipe = &file.recipe;
        let resumed = to_resume(recipe, start)?;
        file.check_files()?;
        let mut folder = Folder::claim(&recipe.output_dir)?;
        interrupt::listen()?;
        let name = folder.path.display().to_string();
        let place = place(recipe)?;
        let waited = wait::for_clean_grid(recipe, quiet)?;
        let options =
            settings::tracker(recipe, &place.device, &folder.path, name, resumed.is_some());
        let seconds = recipe.energy.baseline_seconds;
        if seconds > 0.0 && !quiet {
            say(&format!("measuring the machine at rest for {seconds} s"));
        }
        let tracker = Tracker::start(&options)?;
        if let Some(answer) = tracker.grid_at_start().filter(|_| !quiet) {
            say(&words::grid_at_start(answer));
        }
        let before = resumed.as_ref().and_then(|resumed| resumed.record.budget);
        let budget = recipe
            .budget
            .map(|limits| Meter::start(limits, &tracker.live(), before.as_ref()))
            .transpose()?;
        tracker.enter(LOAD);
        let started = match &resumed {
            Some(resumed) => resumed.record.started.parse().unwrap_or_else(|_| now()),
            None => now(),
        };
        let revisions = Revisions::of(recipe, resumed.as_ref().map(|resumed| &resumed.record));
        let Material { opened, mut data } =
            Material::read(recipe, &place, revisions, started, quiet)?;
        let mut ready = Ready::make(recipe, opened, quiet)?;
        let settings = settings::training(recipe, &data.train);
        let mut optimizer = settings::optimizer(recipe, &ready.trainable)?;
        let trained = match resumed.as_ref().and_then(|r| r.checkpoint.as_ref()) {
            Some(from) => checkpoint::restore(from, &mut ready.trainable, &mut optimizer)?,
            None => Trained::default(),
        };
        data.train.seek(trained.position);
        let seen_again = settings::seen_again(&data, &settings);
        settings::keep_prefix(recipe, &mut ready, seen_again, &folder.path)?;
        tracker.leave(LOAD);
        if !quiet {
            place.note.iter().for_each(|note| say(note));
            if let Some(note) = device::attention_note(&ready.opened.model) {
                say(&note);
            }
            let before = resumed.as_ref().map(|r| r.record.platform.last_device());
            if let Some(before) = before.filter(|&before| before != place.name()) {
                say(&format!(
                    "the run so far was computed on `{before}` and goes on on `{}`, where the same steps \
                     differ by rounding",
                    place.name()
                ));
            }
            say(&opening(recipe, &ready, &data, &settings));
            if tracker.live().grams_per_kwh.is_none() {
                say(words::NO_COUNTRY);
            }
        }
        let record = match resumed {
            Some(Resumed { mut record, .. }) => {
                record.platform.goes_on(&place.name());
                RunRecord {
                    state: State::Running,
                    ended: None,
                    recipe: recipe.for_record(),
                    ..record
                }
            }
            None => new_record(recipe, &ready, &data, &place, started),
        };
        let record = RunRecord {
            waited: waited.or(record.waited),
            ..record
        };
        record.write(&folder.path)?;
        folder.keep();
        let step = trained.step;
        let logging = &recipe.logging;
        let metrics = Metrics::open(&folder.path, step, logging.tensorboard, logging.steps)?;
        let total = settings.schedule.total_steps as u64;
        let title = format!("{}: {}", folder.path.display(), recipe.model);
        let look = match (quiet, dashboard) {
            (true, _) => Look::Quiet,
            (false, true) => Look::Dashboard(&title, tracker.gauge()),
            (false, false) => Look::Usual,
        };
        let progress = Progress::start(total, step as u64, look);
        Ok(Self {
            recipe,
            folder,
            tracker,
            ready,
            data,
            optimizer,
            settings,
            trained,
            record,
            metrics,
            progress,
            budget,
            longer: 1.0,
            held_out: if step > 0 {
                HeldOut::read(&recipe.output_dir)
            } else {
                HeldOut::default()
            },
        })
    }

    /// Answers, trains, answers again and writes what was trained.
    fn work(&mut self) -> anyhow::Result<Ending> {
        let before = if self.trained.step == 0 {
            if let Some(meter) = &mut self.budget {
                meter.enter(&self.tracker.sampled());
            }
            let before = self.answer("before")?;
            if let Some(meter) = &mut self.budget {
                meter.answered(&self.tracker.sampled(), self.longer);
            }
            before
        } else {
            self.record
                .results
                .as_ref()
                .and_then(|results| results.before)
        };
        let ending = self.fit(before)?;
        if ending == Ending::Interrupted {
            return Ok(ending);
        }
        let after = self.answer("after")?;
        self.record.results = Some(self.results(before, after));
        self.tracker.enter(watch::SAVE);
        let labels = &self.record.labels;
        let template = &self.ready.opened.template;
        let own = matches!(template.origin(), TemplateSource::Model)
            && self.recipe.chat_template.is_none();
        outputs::write(
            &self.folder.path,
            &self.ready.opened.place,
            &self.ready.trainable,
            &self.ready.opened.model,
            self.ready.adapter.as_ref(),
            (!own && labels.is_empty()).then(|| template.source()),
            labels,
        )?;
        if let (Some(_), Learned::Language(model)) = (&self.ready.adapter, &self.ready.opened.model)
        {
            let (trainable, tokenizer) = (&mut self.ready.trainable, &self.ready.opened.tokenizer);
            let longest = self.recipe.max_length;
            if let Some(probe) = ProbeFile::make(model, trainable, tokenizer, longest)? {
                probe.write(&self.folder.path)?;
            }
        }
        self.tracker.leave(watch::SAVE);
        Ok(ending)
    }

    /// Writes answers to held-out questions, shows some and counts the right ones, if the recipe asks.
    fn answer(&mut self, when: &str) -> anyhow::Result<Option<Quality>> {
        let Some(generation) = &self.recipe.eval_generation else {
            return Ok(None);
        };
        let answers = self
            .ready
            .answer(&self.data, generation, &self.tracker, &self.progress)?;
        if interrupt::requested() {
            // Some answers are cut short, so nothing can be said about all.
            return Ok(None);
        }
        let questions = &self.data.questions;
        self.longer = budget::longer(questions, &answers);
        examples(&self.progress, when, questions, &answers, generation);
        if when == "after" && generation.exact_match {
            self.held_out.exact = answers.iter().map(|answer| answer.exact).collect();
            self.held_out.write(&self.folder.path)?;
        }
        Ok(Some(Quality {
            // The loop fills in the loss, which it alone measures.
            loss: f64::NAN,
            exact_match: generation.exact_match.then(|| exact_match(&answers)),
            answers: Some(answers.len() as u64),
        }))
    }

    fn results(&self, before: Option<Quality>, answers: Option<Quality>) -> Results {
        let prefix = self.ready.trainable.prefix();
        watch::results(
            &self.trained,
            before,
            answers,
            &self.tracker,
            prefix.as_ref(),
        )
    }

    fn fit(&mut self, before: Option<Quality>) -> anyhow::Result<Ending> {
        let adapter = self.ready.adapter.as_ref();
        let labels = self.record.labels.clone();
        let export = |trainable: &Trainable, folder: &Path| match adapter {
            Some(config) => {
                peft::save(folder, trainable, config)?;
                classifier::write_labels(folder, &labels)
            }
            // A whole model is in the checkpoint's state already; a second copy would cost its size.
            None => Ok(()),
        };
        let mut watch = Watch {
            tracker: &self.tracker,
            progress: &mut self.progress,
            metrics: &mut self.metrics,
            record: &mut self.record,
            folder: &self.folder.path,
            before,
            budget: self.budget.as_mut(),
            held_out: &mut self.held_out,
            prefix: self.ready.trainable.prefix(),
            measured: Default::default(),
            tokens_per_second: None,
            training: false,
        };
        let ending = Run {
            model: &self.ready.opened.model,
            trainable: &mut self.ready.trainable,
            optimizer: &mut self.optimizer,
            train: &mut self.data.train,
            eval: self.data.eval.as_ref(),
            settings: self.settings,
            checkpoints: &self.folder.path.join(CHECKPOINTS),
            export: &export,
        }
        .fit(&mut self.trained, &mut watch);
        watch.end();
        self.record.results = Some(self.results(before, None));
        Ok(ending?)
    }

    /// Closes the books, whatever happened, and says how it ended.
    fn end(mut self, ending: anyhow::Result<Ending>) -> anyhow::Result<()> {
        self.progress.finish();
        self.record.state = match &ending {
            Ok(Ending::Finished | Ending::StoppedEarly | Ending::Spent) => State::Finished,
            Ok(Ending::Interrupted) => State::Interrupted,
            Err(_) => State::Failed,
        };
        let so_far = self
            .budget
            .as_ref()
            .map(|meter| meter.so_far(&self.tracker.live()));
        let energy = self.tracker.finish();
        self.record.budget = so_far.map(|mut so_far| {
            so_far.close(&energy, matches!(ending, Ok(Ending::Spent)));
            so_far
        });
        let closed = close(&self.folder.path, &mut self.record, &energy);
        let ending = ending?;
        closed?;
        if ending == Ending::Interrupted {
            let total = self.settings.schedule.total_steps;
            let step = self.trained.step;
            return Err(
                Failure::run(format!("interrupted after step {step} of {total}"))
                    .hint("the same command with `--resume` continues from there")
                    .into(),
            );
        }
        words::print(&words::screen(
            &self.folder.path,
            &self.record,
            &energy,
            ending,
        ));
        Ok(())
    }
}

/// The run to be continued, if one is, after making sure that it can be.
fn to_resume(recipe: &Recipe, start: Start) -> anyhow::Result<Option<Resumed>> {
    let Start::Resume(from) = start else {
        Folder::is_fresh(&recipe.output_dir)?;
        return Ok(None);
    };
    let resumed = Folder::to_resume(&recipe.output_dir, from)?;
    if resumed.record.state == State::Finished {
        return Err(Failure::usage(format!(
            "the run in `{}` is finished",
            recipe.output_dir.display()
        ))
        .hint("to train it further, begin another run with `adapter:` set to this folder")
        .into());
    }
    same_recipe(recipe, &resumed.record.recipe)?;
    Ok(Some(resumed))
}

/// Writes the record, the card, and the record again with the list of files.
fn close(folder: &Path, record: &mut RunRecord, energy: &EnergyRecord) -> anyhow::Result<()> {
    record.ended = Some(energy.ended.clone());
    if let Some(results) = &mut record.results {
        results.total_seconds = energy.duration_seconds;
    }
    record.energy = Some(serde_json::to_value(energy)?);
    record.write(folder)?;
    cards::write(folder, record, energy)?;
    record.files = outputs::list(folder, record);
    record.write(folder)?;
    Ok(())
}

/// The time to the second.
fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(jiff::Unit::Second).unwrap_or(now)
}

/// Where the recipe wants it computed.
fn place(recipe: &Recipe) -> anyhow::Result<Place> {
    device::open(recipe.device.parse().map_err(anyhow::Error::msg)?)
}

fn new_record(
    recipe: &Recipe,
    ready: &Ready,
    data: &Data,
    place: &Place,
    started: Timestamp,
) -> RunRecord {
    RunRecord {
        format: FORMAT,
        state: State::Running,
        started: started.to_string(),
        ended: None,
        versions: Versions::here(),
        platform: Platform::here(&place.name()),
        recipe: recipe.for_record(),
        base: Base {
            model: recipe.model.clone(),
            revision: ready.opened.hub.as_ref().map(|hub| hub.commit.clone()),
            license: ready
                .opened
                .hub
                .as_ref()
                .and_then(|hub| hub.license.clone()),
            architecture: ready.opened.architecture.clone(),
            parameters: ready.opened.parameters,
            blake3: ready.opened.blake3.clone(),
        },
        train_data: data.train_record.clone(),
        eval_data: data.eval_record.clone(),
        trainable_parameters: ready.trainable.parameters() as u64,
        example_prompt: match &data.example {
            Some(text) => Some(text.clone()),
            None => data
                .questions
                .first()
                .map(|question| question.asked.clone()),
        },
        labels: ready.opened.model.labels().to_vec(),
        results: None,
        energy: None,
        budget: None,
        waited: None,
        files: Vec::new(),
    }
}

/// The recipe of a run that is continued may differ only where the steps to come do not.
fn same_recipe(now: &Recipe, then: &Recipe) -> Result<(), Failure> {
    const FREE: &[&str] = &[
        "threads",
        "device",
        "country",
        "energy",
        "description",
        "license",
        "language",
        "dataset_name",
        "tags",
        "logging",
        "output_dir",
        "save_steps",
        "training_type",
        "stage",
    ];
    let value = |recipe: &Recipe| serde_json::to_value(recipe).unwrap_or_default();
    let (now, then) = (value(now), value(then));
    let (Some(now), Some(then)) = (now.as_object(), then.as_object()) else {
        return Ok(());
    };
    for (key, value) in now {
        let before = then.get(key).unwrap_or(&serde_json::Value::Null);
        if value != before && !FREE.contains(&key.as_str()) {
            return Err(Failure::usage(format!(
                "`{key}` is {value}, the run to be continued had {before}"
            ))
            .hint("continue with the same recipe, or begin a new run with another `output_dir`"));
        }
    }
    Ok(())
}
