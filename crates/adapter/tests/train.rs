//! The loop: a run that was stopped anywhere goes on bit for bit, the best values are kept, and a run
//! stops when it should.

mod common;

use std::path::Path;

use common::{F32, family, lora, numbers, texts};
use sparsam_adapter::checkpoint::{Progress, latest, restore};
use sparsam_adapter::data::pack::unpacked;
use sparsam_adapter::data::{Batches, Example, Order};
use sparsam_adapter::error::{Error, Result};
use sparsam_adapter::evaluate::mean_loss;
use sparsam_adapter::lora::LoraConfig;
use sparsam_adapter::optimizer::{Moments, Optimizer, StateType};
use sparsam_adapter::schedule::{Schedule, Scheduler};
use sparsam_adapter::train::{
    BestBy, Cadence, EarlyStopping, Ending, Evaluation, Observer, Phase, Run, Settings, Step,
};
use sparsam_adapter::trainable::Trainable;
use sparsam_base::model::Model;
use sparsam_base::stack::Checkpointing;
use sparsam_kernels::adamw::AdamW;

const MODEL: &str = "llama-tied-bias";

fn examples(lengths: &[usize]) -> Vec<Example> {
    let texts = texts(lengths).into_iter();
    texts
        .map(|ids| Example {
            trained: (0..ids.len()).map(|i| i > 0).collect(),
            ids,
            label: None,
        })
        .collect()
}

fn batches(lengths: &[usize], order: Order) -> Batches {
    Batches::new(examples(lengths), unpacked(lengths.len()), 2, order)
}

fn train_batches() -> Batches {
    batches(&[9, 4, 12, 7, 5, 3, 11], Order::Shuffled { seed: 3 })
}

fn settings(total_steps: usize) -> Settings {
    Settings {
        schedule: Schedule {
            peak: 5e-3,
            scheduler: Scheduler::Cosine,
            warmup_steps: 2,
            total_steps,
            min_ratio: 0.0,
        },
        accumulation: 3,
        checkpointing: Checkpointing::Off,
        evaluate: Cadence::Epoch,
        save: Cadence::Steps(1),
        early_stopping: None,
        best_by: BestBy::Loss,
    }
}

/// Keeps what it is told, and stops after a number of steps.
#[derive(Default)]
struct Notes {
    steps: Vec<(usize, f64)>,
    evaluations: Vec<(usize, f64)>,
    open: Vec<Phase>,
    stop_after: Option<usize>,
    /// Steps that a budget pays for.
    budget: Option<usize>,
    crash_after: Option<usize>,
}

impl Observer for Notes {
    fn enter(&mut self, phase: Phase) {
        self.open.push(phase);
    }

    fn leave(&mut self, phase: Phase) {
        assert_eq!(self.open.pop(), Some(phase));
    }

    fn stepped(&mut self, step: &Step) -> Result<()> {
        self.steps.push((step.step, step.loss));
        match self.crash_after {
            Some(step) if self.steps.len() == step => Err(Error::Training {
                what: "crash".to_owned(),
                hint: String::new(),
            }),
            _ => Ok(()),
        }
    }

    fn evaluated(&mut self, evaluation: &Evaluation, progress: &Progress) -> Result<()> {
        assert_eq!(evaluation.step, progress.step);
        self.evaluations.push((evaluation.step, evaluation.loss));
        Ok(())
    }

    fn stop(&self) -> bool {
        self.stop_after
            .is_some_and(|after| self.steps.len() >= after)
    }

    fn used(&self) -> Option<f64> {
        Some(self.steps.len() as f64 / self.budget? as f64)
    }
}

/// What is trained, and how the optimiser keeps its moments.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Lora,
    Full,
    /// Branches so wide that most of them have moments in eight bits, or would have.
    Wide(StateType),
}

/// A model with what is trained on it: with dropout, whose masks must go on too.
fn fresh(way: Way) -> (Model, Trainable, Optimizer) {
    let mut model = family(MODEL, F32);
    let config = LoraConfig {
        lora_dropout: 0.2,
        ..lora()
    };
    let trainable = match way {
        Way::Full => Trainable::full(&mut model),
        Way::Lora => Trainable::lora(&mut model, &config, 7),
        Way::Wide(_) => Trainable::lora(&mut model, &LoraConfig { r: 128, ..config }, 7),
    };
    let trainable = trainable.expect("trainable");
    let state = match way {
        Way::Wide(state) => state,
        Way::Lora | Way::Full => StateType::F32,
    };
    let optimizer = Optimizer::with_state(&trainable, AdamW::default(), Some(1.0), state);
    (model, trainable, optimizer.expect("an optimiser"))
}

struct Outcome {
    ending: Result<Ending>,
    notes: Notes,
    values: Vec<(String, Vec<f32>)>,
    progress: Progress,
}

/// Runs to the end, or as far as `notes` lets it; from the last checkpoint in the folder, if any.
fn run(folder: &Path, way: Way, settings: Settings, mut notes: Notes) -> Outcome {
    let (model, mut trainable, mut optimizer) = fresh(way);
    let mut train = train_batches();
    let eval = batches(&[8, 6, 10], Order::AsRead);
    let mut progress = match latest(folder).expect("a folder") {
        Some(from) => restore(&from, &mut trainable, &mut optimizer).expect("a checkpoint"),
        None => Progress::default(),
    };
    train.seek(progress.position);
    let ending = Run {
        model: &model,
        trainable: &mut trainable,
        optimizer: &mut optimizer,
        train: &mut train,
        eval: Some(&eval),
        settings,
        checkpoints: folder,
        export: &|_, _| Ok(()),
    }
    .fit(&mut progress, &mut notes);
    let registry = trainable.registry().iter();
    let values = registry
        .map(|(name, trained)| (name.clone(), numbers(&trained.value)))
        .collect();
    Outcome {
        ending,
        notes,
        values,
        progress,
    }
}

#[test]
fn a_run_goes_on_bit_for_bit_from_wherever_it_was_stopped() {
    let eight_bit = Way::Wide(StateType::EightBit);
    for way in [Way::Lora, Way::Full, eight_bit] {
        let folder = tempfile::tempdir().expect("a folder");
        let whole = run(folder.path(), way, settings(7), Notes::default());
        assert_eq!(whole.ending.expect("an ending"), Ending::Finished);
        assert_eq!(whole.notes.steps.len(), 7);
        for stop in 1..7 {
            let folder = tempfile::tempdir().expect("a folder");
            let notes = Notes {
                stop_after: Some(stop),
                ..Notes::default()
            };
            let first = run(folder.path(), way, settings(7), notes);
            assert_eq!(first.ending.expect("an ending"), Ending::Interrupted);
            let rest = run(folder.path(), way, settings(7), Notes::default());
            let steps = [first.notes.steps, rest.notes.steps].concat();
            assert_eq!(steps, whole.notes.steps, "stopped after {stop}");
            let evaluations = [first.notes.evaluations, rest.notes.evaluations].concat();
            assert_eq!(evaluations, whole.notes.evaluations);
            assert_eq!(rest.values, whole.values, "stopped after {stop}");
            assert_eq!(rest.progress.best, whole.progress.best);
        }
    }
}

#[test]
fn a_crash_between_checkpoints_costs_only_the_steps_since_the_last() {
    let every_three = Settings {
        save: Cadence::Steps(3),
        ..settings(7)
    };
    let folder = tempfile::tempdir().expect("a folder");
    let whole = run(folder.path(), Way::Lora, every_three, Notes::default());
    let folder = tempfile::tempdir().expect("a folder");
    let notes = Notes {
        crash_after: Some(5),
        ..Notes::default()
    };
    let crashed = run(folder.path(), Way::Lora, every_three, notes);
    assert!(crashed.ending.is_err());
    let rest = run(folder.path(), Way::Lora, every_three, Notes::default());
    assert_eq!(rest.notes.steps.first().map(|step| step.0), Some(4));
    assert_eq!(rest.notes.steps, whole.notes.steps[3..]);
    assert_eq!(rest.values, whole.values);
}

#[test]
fn nothing_but_the_last_checkpoint_and_the_best_values_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    run(folder.path(), Way::Lora, settings(5), Notes::default());
    let mut names: Vec<String> = std::fs::read_dir(folder.path())
        .expect("a folder")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("a name")
        })
        .collect();
    names.sort();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names[0].starts_with("best-") && names[1] == "step-000005");
}

#[test]
fn the_values_of_the_lowest_evaluation_loss_are_kept() {
    // Rates so high that steps after the best one do harm; which of them does is found by trying.
    let outcome = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
        .into_iter()
        .find_map(|peak| {
            let mut settings = settings(11);
            settings.schedule.peak = peak;
            settings.schedule.scheduler = Scheduler::Constant;
            settings.evaluate = Cadence::Steps(1);
            let folder = tempfile::tempdir().expect("a folder");
            let outcome = run(folder.path(), Way::Lora, settings, Notes::default());
            let best = outcome.progress.best.expect("an evaluation");
            (best.step < 11).then_some(outcome)
        });
    let outcome = outcome.expect("a run whose last step is not its best");
    let best = outcome.progress.best.expect("an evaluation");
    let lowest = outcome.notes.evaluations[1..]
        .iter()
        .copied()
        .min_by(|x, y| x.1.total_cmp(&y.1))
        .expect("evaluations");
    assert_eq!((best.step, best.loss), lowest);
    let (model, mut trainable, _) = fresh(Way::Lora);
    for (name, values) in &outcome.values {
        let shape = trainable.registry()[name].value.shape().clone();
        let value = candle_core::Tensor::from_slice(values, shape, &candle_core::Device::Cpu);
        trainable.set(name, &value.expect("a tensor")).expect("set");
    }
    let eval = batches(&[8, 6, 10], Order::AsRead);
    let loss = mean_loss(&model, &mut trainable, &eval).expect("a loss");
    assert_eq!(loss, best.loss);
}

#[test]
fn a_run_stops_when_the_loss_no_longer_falls() {
    let mut settings = settings(50);
    settings.schedule.peak = 0.3;
    settings.schedule.scheduler = Scheduler::Constant;
    settings.evaluate = Cadence::Steps(1);
    settings.early_stopping = Some(EarlyStopping {
        patience: 2,
        min_delta: 0.0,
    });
    let folder = tempfile::tempdir().expect("a folder");
    let outcome = run(folder.path(), Way::Lora, settings, Notes::default());
    assert_eq!(outcome.ending.expect("an ending"), Ending::StoppedEarly);
    let best = outcome.progress.best.expect("an evaluation");
    assert_eq!(outcome.progress.step, best.step + 2);
}

#[test]
fn a_loss_that_is_not_a_number_ends_the_run_with_advice() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, mut trainable, mut optimizer) = fresh(Way::Lora);
    let name = trainable.registry().keys().next().expect("a name").clone();
    let value = &trainable.registry()[&name].value;
    let broken = (value.ones_like().expect("ones") * f64::NAN).expect("a tensor");
    trainable.set(&name, &broken).expect("set");
    let mut train = train_batches();
    let mut progress = Progress::default();
    let error = Run {
        model: &model,
        trainable: &mut trainable,
        optimizer: &mut optimizer,
        train: &mut train,
        eval: None,
        settings: settings(3),
        checkpoints: folder.path(),
        export: &|_, _| Ok(()),
    }
    .fit(&mut progress, &mut Notes::default())
    .expect_err("no loss");
    assert!(error.to_string().contains("NaN"), "{error}");
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("learning_rate"))
    );
    assert!(latest(folder.path()).expect("a folder").is_none());
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    run(folder.path(), Way::Lora, settings(1), Notes::default());
    let from = latest(folder.path())
        .expect("a folder")
        .expect("a checkpoint");
    let (_, mut trainable, mut optimizer) = fresh(Way::Full);
    let error = restore(&from, &mut trainable, &mut optimizer).expect_err("another run");
    assert!(error.to_string().contains("state.safetensors"), "{error}");
}

/// Both ways: what was begun with one type of moments does not go on with the other.
#[test]
fn moments_of_another_type_are_refused_with_advice() {
    let types = [
        (StateType::F32, StateType::EightBit, "adamw"),
        (StateType::EightBit, StateType::F32, "adamw_8bit"),
    ];
    for (began, wants, word) in types {
        let folder = tempfile::tempdir().expect("a folder");
        run(
            folder.path(),
            Way::Wide(began),
            settings(1),
            Notes::default(),
        );
        let from = latest(folder.path())
            .expect("a folder")
            .expect("a checkpoint");
        let (_, mut trainable, mut optimizer) = fresh(Way::Wide(wants));
        let before = values(&trainable);
        let error = restore(&from, &mut trainable, &mut optimizer).expect_err("another type");
        let text = error.to_string();
        assert!(
            text.contains("state.safetensors") && text.contains("eight bits"),
            "{text}"
        );
        let hint = error.hint().expect("advice");
        assert!(hint.contains(&format!("`optim: {word}`")), "{hint}");
        assert_eq!(values(&trainable), before, "nothing is restored by half");
        let (_, mut trainable, mut optimizer) = fresh(Way::Wide(began));
        restore(&from, &mut trainable, &mut optimizer).expect("its own type");
    }
}

/// What a checkpoint holds is what the optimiser had, byte for byte.
#[test]
fn codes_and_magnitudes_come_back_as_they_were() {
    let folder = tempfile::tempdir().expect("a folder");
    let way = Way::Wide(StateType::EightBit);
    run(folder.path(), way, settings(3), Notes::default());
    let from = latest(folder.path())
        .expect("a folder")
        .expect("a checkpoint");
    let stored =
        candle_core::safetensors::load(from.join("state.safetensors"), &candle_core::Device::Cpu)
            .expect("tensors");
    let (_, mut trainable, mut optimizer) = fresh(way);
    restore(&from, &mut trainable, &mut optimizer).expect("a checkpoint");
    let mut narrow = 0;
    for (name, moments) in optimizer.moments() {
        let Moments::EightBit(first, second) = moments else {
            assert!(
                trainable.registry()[name].value.elem_count() < 4096,
                "{name}"
            );
            continue;
        };
        narrow += 1;
        for (part, moment) in [("first", first), ("second", second)] {
            let codes = |t: &candle_core::Tensor| -> Vec<u8> {
                t.flatten_all().and_then(|t| t.to_vec1()).expect("codes")
            };
            let kept = &stored[&format!("{part}.{name}")];
            assert_eq!(kept.dims(), trainable.registry()[name].value.dims());
            assert_eq!(codes(moment.codes()), codes(kept), "{part} of {name}");
            assert!(codes(kept).iter().any(|code| *code != 0));
            let absmax = numbers(&stored[&format!("{part}_absmax.{name}")]);
            assert_eq!(numbers(moment.absmax()), absmax, "{part} of {name}");
            assert!(absmax.iter().all(|x| *x > 0.0));
        }
    }
    assert!(narrow > 10, "{narrow}");
}

fn values(trainable: &Trainable) -> Vec<Vec<f32>> {
    let registry = trainable.registry().values();
    registry.map(|trained| numbers(&trained.value)).collect()
}
