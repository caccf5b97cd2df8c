//! The figures of a comparison, from what its runs left. Nothing is compared that does not stand on the
//! same ground: where data, amount of work, machine or meters differ, that is said, and no ratio of
//! energies is drawn from it.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use sparsam_tracker::{EnergyRecord, Range, range::Span};

use super::bootstrap::{Interval, Measured, difference, mean, ratio};
use super::file::{Comparison, Planned};
use super::finding::{Finding, Ground, Unlike};
use crate::cards;
use crate::error::Failure;
use crate::report::Language;
use crate::run::HeldOut;
use crate::run_record::{RunRecord, State};

/// The seed of the draws, so that the same runs give the same intervals.
const SEED: u64 = 20_260_101;

/// The result of a comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    /// The recipe, and what all arms share, as `key=value`.
    pub(crate) recipe: String,
    pub(crate) set: Vec<String>,
    pub(crate) repeats: usize,
    /// What all arms had in common.
    pub(crate) common: Common,
    /// In the order of the file.
    pub(crate) arms: Vec<ArmResult>,
    /// What makes the arms unlike, so that they are not compared in it.
    pub(crate) unlike: Vec<Unlike>,
    /// The loss that every arm reached, to which energies are given.
    pub(crate) target_loss: f64,
    /// What follows, and the same in words.
    pub(crate) findings: Vec<Finding>,
    pub(crate) advice: Vec<String>,
}

/// What all arms had in common.
#[derive(Debug, Serialize)]
pub(crate) struct Common {
    pub(crate) model: String,
    pub(crate) hardware: String,
    pub(crate) train_blake3: String,
    pub(crate) eval_blake3: Option<String>,
    pub(crate) steps: u64,
    pub(crate) tokens: u64,
    pub(crate) batch: String,
    pub(crate) loss_before: f64,
    /// How emissions are computed.
    pub(crate) emissions: String,
    pub(crate) measured_share: f64,
}

/// One arm.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ArmResult {
    pub(crate) name: String,
    /// What it changes.
    pub(crate) keys: Vec<String>,
    /// Numbers that are trained.
    pub(crate) trainable: u64,
    /// Mean loss on held-out data, an interval of 95 %.
    pub(crate) loss: Interval,
    /// Less the first arm's.
    pub(crate) loss_difference: Option<Interval>,
    /// Share of answers that are right, where they were counted.
    pub(crate) exact_match: Option<Interval>,
    pub(crate) exact_match_difference: Option<Interval>,
    /// Macro F1 of a classifier.
    pub(crate) macro_f1: Option<Interval>,
    pub(crate) macro_f1_difference: Option<Interval>,
    /// Minutes of a run, mean.
    pub(crate) minutes: f64,
    /// Of each run.
    pub(crate) minutes_each: Vec<f64>,
    /// The most memory of each run, bytes.
    pub(crate) peak_memory_each: Vec<u64>,
    /// The most memory of any of its runs, bytes.
    pub(crate) peak_memory_bytes: Option<u64>,
    /// Energy of a run, mean, with the meters' range; kWh.
    pub(crate) energy_kwh: Range,
    /// Of each run, kWh.
    pub(crate) energies_kwh: Vec<f64>,
    /// Over the first arm's, an interval of 95 % over the repeats.
    pub(crate) energy_ratio: Option<Interval>,
    pub(crate) emissions_g: Span,
    /// Energy by phase, mean of the runs, kWh.
    pub(crate) phases_kwh: Vec<(String, f64)>,
    /// Energy by component: label, method, kWh, mean of the runs.
    pub(crate) components_kwh: Vec<(String, String, Range)>,
    /// Size of what is published, bytes.
    pub(crate) published_bytes: Option<u64>,
    /// Wh until the held-out loss was the target's, mean of the runs that reached it.
    pub(crate) wh_to_target: Option<f64>,
    /// Nats of loss gained over the base for each Wh.
    pub(crate) gain_per_wh: f64,
    #[serde(skip)]
    pub(crate) losses: Measured<(f64, f64)>,
    #[serde(skip)]
    pub(crate) answers: Option<Measured<(f64, f64)>>,
    #[serde(skip)]
    pub(crate) classes: Option<Measured<(u32, u32)>>,
}

/// What a finished run left.
struct Left {
    record: RunRecord,
    energy: EnergyRecord,
    held_out: HeldOut,
    /// Wh and held-out loss, evaluation by evaluation.
    curve: Vec<(f64, f64)>,
}

impl Left {
    fn read(run: &Planned) -> anyhow::Result<Self> {
        let record = RunRecord::read(&run.folder)?;
        if record.state != State::Finished {
            return Err(Failure::run(format!(
                "the run in `{}` is not finished",
                run.folder.display()
            ))
            .into());
        }
        Ok(Self {
            energy: cards::energy_of(&run.folder, &record)?,
            held_out: HeldOut::read(&run.folder),
            curve: curve(&run.folder)?,
            record,
        })
    }

    fn loss(&self) -> f64 {
        let after = self
            .record
            .results
            .as_ref()
            .and_then(|results| results.after);
        after.map_or(f64::NAN, |after| after.loss)
    }
}

/// Energy at each evaluation: that of the last step before it.
fn curve(folder: &Path) -> anyhow::Result<Vec<(f64, f64)>> {
    let text = fs_err::read_to_string(folder.join("metrics.jsonl"))?;
    let (mut wh, mut points) = (0.0, Vec::new());
    for line in text.lines() {
        let Ok(point) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        wh = point["energy_wh"].as_f64().unwrap_or(wh);
        if let Some(loss) = point["eval_loss"].as_f64() {
            points.push((wh, loss));
        }
    }
    Ok(points)
}

/// Reads all runs of a comparison and adds them up.
pub(crate) fn gather(comparison: &Comparison, runs: &[Planned]) -> anyhow::Result<Outcome> {
    let mut left: Vec<(&Planned, Left)> = Vec::new();
    for run in runs {
        left.push((run, Left::read(run)?));
    }
    let of = |name: &str| -> Vec<&Left> {
        left.iter()
            .filter(|(run, _)| run.arm == name)
            .map(|(_, left)| left)
            .collect()
    };
    let unlike = unlike(&left);
    let target_loss = left
        .iter()
        .map(|(_, left)| left.loss())
        .fold(f64::NEG_INFINITY, f64::max);
    let mut arms: Vec<ArmResult> = comparison
        .arms
        .iter()
        .map(|(name, keys)| arm(name, keys, &of(name), target_loss))
        .collect();
    if let Some((first, others)) = arms.split_first_mut() {
        for (index, arm) in others.iter_mut().enumerate() {
            let seed = SEED + index as u64;
            arm.loss_difference = Some(difference(&arm.losses, &first.losses, seed));
            arm.exact_match_difference = arm
                .answers
                .as_ref()
                .zip(first.answers.as_ref())
                .map(|(ours, theirs)| difference(ours, theirs, seed));
            arm.macro_f1_difference = arm
                .classes
                .as_ref()
                .zip(first.classes.as_ref())
                .map(|(ours, theirs)| difference(ours, theirs, seed));
            if unlike.is_empty() {
                arm.energy_ratio = Some(ratio(&arm.energies_kwh, &first.energies_kwh, seed));
            }
        }
    }
    let common = common(&left)?;
    let mut outcome = Outcome {
        recipe: comparison.recipe.display().to_string(),
        set: comparison.set.clone(),
        repeats: comparison.repeats,
        common,
        arms,
        unlike,
        target_loss,
        findings: Vec::new(),
        advice: Vec::new(),
    };
    outcome.findings = super::advice::of(&outcome, SEED);
    let english = |finding: &Finding| finding.words(Language::En);
    outcome.advice = outcome.findings.iter().map(english).collect();
    Ok(outcome)
}

fn common(left: &[(&Planned, Left)]) -> anyhow::Result<Common> {
    let Some((run, first)) = left.first() else {
        return Err(Failure::run("there is no run to compare").into());
    };
    let results = first.record.results.as_ref();
    let recipe = &run.recipe;
    Ok(Common {
        model: recipe.model.clone(),
        hardware: first.energy.hardware.line(),
        train_blake3: first.record.train_data.blake3.clone(),
        eval_blake3: first
            .record
            .eval_data
            .as_ref()
            .map(|data| data.blake3.clone()),
        steps: results.map_or(0, |results| results.steps),
        tokens: results.map_or(0, |results| results.tokens),
        batch: format!(
            "{} x {} rows of up to {} tokens",
            recipe.gradient_accumulation_steps, recipe.batch_size, recipe.max_length
        ),
        loss_before: results
            .and_then(|results| results.before)
            .map_or(f64::NAN, |before| before.loss),
        emissions: sparsam_tracker::summary::formula(&first.energy),
        measured_share: first.energy.measured_share,
    })
}

/// What differs between runs that should be alike.
fn unlike(left: &[(&Planned, Left)]) -> Vec<Unlike> {
    let Some((_, first)) = left.first() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut check = |what: Ground, same: &dyn Fn(&Left) -> bool| {
        if let Some((run, _)) = left.iter().find(|(_, left)| !same(left)) {
            let arm = run.arm.clone();
            found.push(Unlike { what, arm });
        }
    };
    let steps = |left: &Left| {
        let results = left.record.results.as_ref();
        results.map(|results| (results.steps, results.trained_tokens))
    };
    let meters = |left: &Left| -> Vec<(String, &'static str)> {
        let components = left.energy.components.iter();
        components
            .map(|c| (c.domain.clone(), c.method.name()))
            .collect()
    };
    check(Ground::TrainingData, &|l| {
        l.record.train_data.blake3 == first.record.train_data.blake3
    });
    check(Ground::EvaluationData, &|l| {
        let blake3 = |record: &RunRecord| record.eval_data.as_ref().map(|data| data.blake3.clone());
        blake3(&l.record) == blake3(&first.record)
    });
    check(Ground::Machine, &|l| {
        l.energy.hardware == first.energy.hardware
    });
    check(Ground::Meters, &|l| meters(l) == meters(first));
    check(Ground::Grid, &|l| {
        l.energy.intensity.g_per_kwh == first.energy.intensity.g_per_kwh
    });
    // Repeats have seeds of their own, and with them another part of the data where it is not gone through
    // to the end: in each repeat all arms do what the first does.
    let first_of = |run: &Planned| {
        let mut same = left.iter().filter(|(other, _)| other.repeat == run.repeat);
        same.next().map(|(_, left)| steps(left))
    };
    if let Some((run, _)) = left
        .iter()
        .find(|(run, left)| first_of(run) != Some(steps(left)))
    {
        found.push(Unlike {
            what: Ground::Work,
            arm: run.arm.clone(),
        });
    }
    found
}

fn arm(name: &str, keys: &[String], runs: &[&Left], target: f64) -> ArmResult {
    let count = runs.len().max(1) as f64;
    let losses = Measured(
        runs.iter()
            .map(|run| {
                run.held_out
                    .after
                    .iter()
                    .map(|(sum, n)| (*sum, *n as f64))
                    .collect()
            })
            .collect(),
    );
    let answers = Measured(
        runs.iter()
            .map(|run| {
                let right = run.held_out.exact.iter();
                right
                    .map(|right| (f64::from(u8::from(*right)), 1.0))
                    .collect()
            })
            .collect(),
    )
    .whole();
    let classes = runs.iter().map(|run| run.held_out.classes.clone());
    let classes = Measured(classes.collect()).whole();
    let sum: Range = runs.iter().map(|run| run.energy.energy_kwh).sum();
    let energy_kwh = sum.scale(1.0 / count);
    let mut phases: Vec<(String, f64)> = Vec::new();
    let mut components: Vec<(String, String, Range)> = Vec::new();
    for run in runs {
        for window in &run.energy.windows {
            let kwh = window.energy_kwh.central / count;
            match phases.iter_mut().find(|(path, _)| *path == window.path) {
                Some((_, sum)) => *sum += kwh,
                None => phases.push((window.path.clone(), kwh)),
            }
        }
        for component in &run.energy.components {
            let kwh = component.energy_kwh.scale(1.0 / count);
            let method = component.method.name();
            match components
                .iter_mut()
                .find(|(label, m, _)| *label == component.label && m == method)
            {
                Some((_, _, sum)) => *sum += kwh,
                None => components.push((component.label.clone(), method.to_owned(), kwh)),
            }
        }
    }
    let before = runs
        .first()
        .and_then(|run| run.record.results.as_ref()?.before)
        .map_or(f64::NAN, |before| before.loss);
    let loss = mean(&losses, SEED);
    let reached: Vec<f64> = runs
        .iter()
        .filter_map(|run| {
            run.curve
                .iter()
                .find(|(_, loss)| *loss <= target)
                .map(|(wh, _)| *wh)
        })
        .collect();
    let peaks: Vec<u64> = runs
        .iter()
        .filter_map(|run| run.record.results.as_ref()?.peak_memory_bytes)
        .collect();
    ArmResult {
        name: name.to_owned(),
        keys: keys.to_vec(),
        trainable: runs
            .first()
            .map_or(0, |run| run.record.trainable_parameters),
        loss,
        loss_difference: None,
        exact_match: answers.as_ref().map(|answers| mean(answers, SEED)),
        exact_match_difference: None,
        macro_f1: classes.as_ref().map(|classes| mean(classes, SEED)),
        macro_f1_difference: None,
        minutes: runs
            .iter()
            .map(|run| run.energy.duration_seconds)
            .sum::<f64>()
            / 60.0
            / count,
        minutes_each: runs
            .iter()
            .map(|run| run.energy.duration_seconds / 60.0)
            .collect(),
        peak_memory_bytes: peaks.iter().copied().max(),
        peak_memory_each: peaks,
        energy_kwh,
        energies_kwh: runs
            .iter()
            .map(|run| run.energy.energy_kwh.central)
            .collect(),
        energy_ratio: None,
        emissions_g: Span {
            low: runs
                .iter()
                .map(|run| run.energy.emissions_g.low)
                .sum::<f64>()
                / count,
            central: runs
                .iter()
                .map(|run| run.energy.emissions_g.central)
                .sum::<Option<f64>>()
                .map(|sum| sum / count),
            high: runs
                .iter()
                .map(|run| run.energy.emissions_g.high)
                .sum::<f64>()
                / count,
        },
        phases_kwh: phases,
        components_kwh: components,
        published_bytes: runs.first().and_then(|run| run.record.published_bytes()),
        wh_to_target: (reached.len() == runs.len()).then(|| reached.iter().sum::<f64>() / count),
        gain_per_wh: (before - loss.mean) / (energy_kwh.central * 1e3),
        losses,
        answers,
        classes,
    }
}
