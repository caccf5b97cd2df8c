//! What a run says: the lines before its first step, held-out examples, the end screen.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::Duration;

use candle_core::Device;
use sparsam_adapter::data::questions::Question;
use sparsam_adapter::evaluate::Answer;
use sparsam_adapter::train::{Ending, Settings};
use sparsam_tracker::{EnergyRecord, format, summary};

use super::material::{Data, Ready};
use crate::cards;
use crate::device;
use crate::figures::{significant, thousands};
use crate::progress::Progress;
use crate::recipe::{EvalGeneration, Recipe};
use crate::run_record::RunRecord;
use crate::summary::Summary;
use crate::terminal::paint_stdout;

/// Said where no figure of emissions can be given.
pub(super) const NO_COUNTRY: &str = "no country is set, so the card will state energy and a range of \
    emissions; add `country: DEU` (your own) to the recipe, or set SPARSAM_COUNTRY";

/// What the grid said at the start.
pub(super) fn grid_at_start(answer: &Result<f64, String>) -> String {
    match answer {
        Ok(grams) => format!(
            "the grid emits {} gCO2e/kWh now, and is asked again as the run goes on",
            significant(*grams, 3)
        ),
        Err(reason) => format!(
            "{reason}; until it answers, emissions count as without `energy.live_intensity`"
        ),
    }
}

/// The lines before the first step.
pub(super) fn opening(recipe: &Recipe, ready: &Ready, data: &Data, settings: &Settings) -> String {
    let opened = &ready.opened;
    let mut lines = vec![format!(
        "{}: {}, {} weights, {} in memory{}; {} trained",
        recipe.model,
        opened.architecture,
        thousands(opened.parameters),
        crate::figures::bytes(opened.model.bytes() as u64),
        match opened.model.device() {
            Device::Cpu => String::new(),
            device => format!(" of {}", device::name(device)),
        },
        thousands(ready.trainable.parameters() as u64),
    )];
    if let Some(hub) = &opened.hub {
        let license = hub.license.as_deref();
        lines.push(format!(
            "commit {}, licence of the base: {}",
            hub.commit,
            license.unwrap_or("its card names none")
        ));
    }
    for key in opened.model.unrecognised() {
        lines.push(format!(
            "config.json has `{key}`, which is not known here and was left alone"
        ));
    }
    lines.extend(opened.model.head_words());
    lines.extend(data.found.iter().cloned());
    lines.push(format!(
        "{} steps of {} rows, {} batches a pass",
        thousands(settings.schedule.total_steps as u64),
        recipe.batch_size * recipe.gradient_accumulation_steps,
        thousands(data.train.per_epoch() as u64),
    ));
    lines.join("\n")
}

/// Shows held-out questions with what was written.
pub(super) fn examples(
    progress: &Progress,
    when: &str,
    questions: &[Question],
    answers: &[Answer],
    generation: &EvalGeneration,
) {
    for (question, answer) in questions.iter().zip(answers).take(generation.show) {
        progress.note(&format!(
            "\nheld-out example, {when} training\n{}\n{}\n{}\n",
            indented("asked", &question.asked),
            indented("expected", question.expected.trim()),
            indented("answered", &shown(answer)),
        ));
    }
}

/// A label and a text of several lines in a column of its own.
fn indented(label: &str, text: &str) -> String {
    let mut lines = text.lines().map(str::trim_end);
    let mut out = format!("  {label:10}{}", lines.next().unwrap_or("(nothing)"));
    for line in lines {
        let _ = write!(out, "\n  {:10}{line}", "");
    }
    out
}

pub(super) fn screen(
    folder: &Path,
    record: &RunRecord,
    energy: &EnergyRecord,
    ending: Ending,
) -> Summary {
    let results = record.results.as_ref();
    let steps = results.map_or(0, |results| results.steps);
    Summary {
        ending: match ending {
            Ending::StoppedEarly => "Stopped early".to_owned(),
            Ending::Spent => "Stopped at its budget".to_owned(),
            Ending::Finished | Ending::Interrupted => "Finished".to_owned(),
        },
        time: Duration::from_secs_f64(energy.duration_seconds.max(0.0)),
        steps,
        trainable: record.trainable_parameters,
        parameters: record.base.parameters,
        before: results.and_then(|results| results.before),
        after: results.and_then(|results| results.after),
        classes: results.and_then(|results| results.classes.clone()),
        tokens_per_second: results.map_or(0.0, |results| results.tokens_per_second),
        peak_memory: results.and_then(|results| results.peak_memory_bytes),
        peak_gpu_memory: results.and_then(|results| results.peak_gpu_memory_bytes),
        energy: energy_rows(energy)
            .into_iter()
            .chain(
                record
                    .budget
                    .map(|used| ("budget".to_owned(), used.words())),
            )
            .chain(
                results
                    .and_then(|results| results.prefix.as_ref())
                    .map(|prefix| ("frozen prefix".to_owned(), prefix.words())),
            )
            .collect(),
        files: record
            .files
            .iter()
            .map(|file| (folder.join(&file.path), file.what.clone()))
            .collect(),
        next: vec![if record.labels.is_empty() {
            format!("sparsam chat {}", cards::model_arguments(folder, record))
        } else {
            cards::command(folder, record)
        }],
    }
}

/// Energy and emissions in the tracker's own phrases, as they stand on the card.
fn energy_rows(energy: &EnergyRecord) -> Vec<(String, String)> {
    let mut rows = vec![(
        "energy".to_owned(),
        format!(
            "{}, {} measured",
            format::energy(energy.energy_kwh),
            format::percent(energy.measured_share)
        ),
    )];
    for component in &energy.components {
        let text = format!(
            "{} {}: {}",
            format::energy_central(component.energy_kwh.central),
            component.method.name(),
            component.source
        );
        rows.push((format!("  {}", component.label), text));
    }
    let emissions = format!("{} CO2e", format::grams(energy.emissions_g));
    rows.push(("emissions".to_owned(), emissions));
    rows.push((String::new(), summary::formula(energy)));
    rows
}

/// The end screen. The run is over and its files are written, so that nobody reads it is no failure.
pub(super) fn print(summary: &Summary) {
    let text = summary.render(paint_stdout());
    let _ = io::Write::write_all(&mut io::stdout().lock(), text.as_bytes());
}

/// News of a run; one that cannot be told is no reason to end it.
pub(super) fn say(text: &str) {
    let _ = io::Write::write_all(&mut io::stderr(), format!("{text}\n").as_bytes());
}
/// An answer, with a mark where it was not written to its end.
fn shown(answer: &Answer) -> String {
    if answer.cut {
        format!("{} …", answer.text)
    } else {
        answer.text.clone()
    }
}
