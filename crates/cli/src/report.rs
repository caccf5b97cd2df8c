//! The report: one page of HTML on one run or several, which asks nothing of any network, and its pictures
//! as files.
//!
//! [`data`] reads what the runs left and [`comparison`] what `compare` made of its runs; [`plots`], [`bars`] and
//! [`models`] draw, [`svg`] writes pictures, [`language`] has the words, [`published`] what others emitted. The page is a template; here it is filled. Figures are worded by the
//! tracker, as on the card and in the terminal.

use std::path::{Path, PathBuf};

use minijinja::value::{Serde, Value};
use minijinja::{Environment, context};
use serde::Serialize;
use sparsam_adapter::classes::ClassMetrics;
use sparsam_tracker::{format, summary};

use crate::figures::{bytes, thousands};
use crate::recipe::Method;
use crate::run_record::State;

mod bars;
pub(crate) mod comparison;
mod data;
mod language;
mod models;
pub(crate) mod plots;
mod published;
mod svg;

use comparison::Comparison;
use data::RunData;
pub(crate) use language::Language;
use plots::{Plot, Speech};

/// The page, without what is filled in.
const TEMPLATE: &str = include_str!("report/report.html");

/// A page and the files of its pictures.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) html: String,
    /// Name and text.
    pub(crate) pictures: Vec<(String, String)>,
}

/// A run as the page shows it.
#[derive(Debug, Serialize)]
struct Shown {
    id: String,
    name: String,
    facts: Vec<(String, String)>,
    plots: Vec<Plot>,
    components: Vec<[String; 4]>,
    formula: String,
    contains: Vec<String>,
    not_included: Vec<String>,
    beside: Vec<String>,
    notes: Vec<String>,
}

/// Makes the report of the runs in these folders, which name them, or of a comparison in its folder.
///
/// # Errors
/// A folder that holds no run, or a file of it that cannot be read.
pub(crate) fn make(folders: &[PathBuf], language: Language) -> anyhow::Result<Report> {
    let comparison = match folders {
        [one] => Comparison::of(one)?.map(|comparison| (one, comparison)),
        _ => None,
    };
    let named: Vec<(String, PathBuf)> = match &comparison {
        Some((folder, comparison)) => comparison.runs(folder),
        None => folders
            .iter()
            .map(|folder| (data::name(folder), folder.clone()))
            .collect(),
    };
    let runs = named
        .iter()
        .map(|(name, folder)| RunData::read(name, folder))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let comparison = comparison.map(|(_, comparison)| comparison);
    let all: Vec<&RunData> = runs.iter().collect();
    let speech = Speech::new(language);
    let w = speech.words;
    let several = runs.len() > 1;
    let mut together: Vec<Plot> = Vec::new();
    if several {
        let (sides, trades, about) = match &comparison {
            Some(comparison) => (comparison.sides(), comparison.trades(), w.arms_about),
            None => (bars::of_runs(&all), plots::trades(&all), w.compared_about),
        };
        together.extend(plots::trade_off(&trades, "all-quality", speech));
        together.extend(bars::compared(&sides, about, speech));
        together.extend(plots::losses(&all, "all-loss", speech));
    }
    together.push(plots::among_published(&all, "all-published", speech));
    together.push(models::by_year(&all, "all-models", speech));
    let shown: Vec<Shown> = runs
        .iter()
        .enumerate()
        .map(|(index, run)| shown(run, index, speech))
        .collect();
    let pictures = together
        .iter()
        .chain(shown.iter().flat_map(|run| &run.plots))
        .map(|plot| (format!("{}.svg", plot.id), plot.file.clone()))
        .collect();
    let title = match &all[..] {
        [one] => format!("{}: {}", one.name, speech.words.report),
        _ => speech.words.report.to_owned(),
    };
    let mut environment = Environment::new();
    environment.add_template("report.html", TEMPLATE)?;
    let html = environment.get_template("report.html")?.render(context! {
        w => Value::from(Serde(speech.words)),
        title,
        runs => Value::from(Serde(&shown)),
        plots => Value::from(Serde(&together)),
        advice => Value::from(Serde(comparison.as_ref().map(|comparison| comparison.advice(language)))),
        version => env!("CARGO_PKG_VERSION"),
        style => format!("{}{}", svg::COLOURS, svg::STYLE),
    })?;
    Ok(Report { html, pictures })
}

fn shown(run: &RunData, index: usize, speech: Speech) -> Shown {
    let id = format!("run-{}", index + 1);
    let own = |name: &str| format!("{id}-{name}");
    let plots = [
        plots::losses(&[run], &own("loss"), speech),
        plots::power(run, &own("power"), speech),
        plots::phases(run, &own("phases"), speech),
        plots::cumulative(run, &own("emissions"), speech),
    ];
    let energy = &run.energy;
    let mut notes = energy.notes.clone();
    if energy.ended_early {
        let until = &energy.ended;
        notes.insert(
            0,
            format!("the run ended early: this covers it up to {until}"),
        );
    }
    if energy.gaps > 0 {
        notes.push(format!("{} readings of the meters failed", energy.gaps));
    }
    Shown {
        name: run.name.clone(),
        facts: facts(run, speech),
        plots: plots.into_iter().flatten().collect(),
        components: energy
            .components
            .iter()
            .map(|component| {
                [
                    component.label.clone(),
                    speech.energy(component.energy_kwh),
                    component.method.name().to_owned(),
                    component.source.clone(),
                ]
            })
            .collect(),
        formula: summary::formula(energy),
        contains: energy.contains.clone(),
        not_included: energy.not_included.clone(),
        beside: summary::beside(energy),
        notes,
        id,
    }
}

/// The figures at the head of a run.
fn facts(run: &RunData, speech: Speech) -> Vec<(String, String)> {
    let w = speech.words;
    let energy = &run.energy;
    let mut facts: Vec<(&str, String)> = Vec::new();
    if let Some(record) = &run.record {
        facts.push((w.model, record.base.model.clone()));
        let method = match record.recipe.method {
            Method::Lora => format!("LoRA, r {}", record.recipe.lora.r),
            Method::Full => "full".to_owned(),
        };
        let trained = format!(
            "{method}; {} / {}",
            thousands(record.trainable_parameters),
            thousands(record.base.parameters)
        );
        facts.push((w.method, speech.language.figure(&trained)));
        let state = match record.state {
            State::Running => 0,
            State::Interrupted => 1,
            State::Failed => 2,
            State::Finished => 3,
        };
        facts.push((w.state, w.states[state].to_owned()));
        if let Some(results) = &record.results {
            if let Some(after) = results.after {
                let number = |value: f64| speech.number(value, 4);
                let change = |before: Option<f64>, after: f64| match before {
                    Some(before) => format!("{} → {}", number(before), number(after)),
                    None => number(after),
                };
                let before = results.before;
                facts.push((w.held_out, change(before.map(|b| b.loss), after.loss)));
                if let Some(exact) = after.exact_match {
                    let percent = |share: f64| share * 100.0;
                    let before = before.and_then(|b| b.exact_match).map(percent);
                    facts.push((
                        w.exact_match,
                        format!("{} %", change(before, percent(exact))),
                    ));
                }
                if let Some(classes) = &results.classes {
                    let figures: [(&str, fn(&ClassMetrics) -> f64); 2] = [
                        (w.accuracy, |metrics| metrics.accuracy),
                        (w.macro_f1, |metrics| metrics.macro_f1),
                    ];
                    for (label, of) in figures {
                        let before = classes.before.as_ref().map(|metrics| of(metrics) * 100.0);
                        let change = change(before, of(&classes.after) * 100.0);
                        facts.push((label, format!("{change} %")));
                    }
                }
            }
            let speed = format!("{} tokens/s", thousands(results.tokens_per_second as u64));
            facts.push((w.speed, speech.language.figure(&speed)));
            if let Some(peak) = results.peak_memory_bytes {
                facts.push((w.memory, speech.language.figure(&bytes(peak))));
            }
            if let Some(peak) = results.peak_gpu_memory_bytes {
                facts.push((w.gpu_memory, speech.language.figure(&bytes(peak))));
            }
        }
    }
    facts.push((w.time, speech.duration(energy.duration_seconds)));
    facts.push((
        w.energy,
        format!(
            "{}, {} {}",
            speech.energy(energy.energy_kwh),
            format::percent(energy.measured_share),
            w.measured
        ),
    ));
    facts.push((w.emissions, speech.grams(energy.emissions_g)));
    if let Some(budget) = run.record.as_ref().and_then(|record| record.budget) {
        let words = budget.words().replace(" of ", " / ");
        facts.push((w.budget, speech.language.figure(&words)));
    }
    facts.push((w.hardware, energy.hardware.line()));
    facts
        .into_iter()
        .map(|(label, text)| (label.to_owned(), text))
        .collect()
}

impl Report {
    /// Writes the page, and its pictures into the folder `<page>-plots` beside it. Gives the paths.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn write(&self, page: &Path) -> std::io::Result<Vec<PathBuf>> {
        let stem = page.file_stem().unwrap_or_default().to_string_lossy();
        let folder = page.with_file_name(format!("{stem}-plots"));
        if let Some(parent) = page
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            fs_err::create_dir_all(parent)?;
        }
        fs_err::create_dir_all(&folder)?;
        let mut written = Vec::new();
        for (name, text) in &self.pictures {
            let path = folder.join(name);
            crate::run_record::write_whole(&path, text.as_bytes())?;
            written.push(path);
        }
        crate::run_record::write_whole(page, self.html.as_bytes())?;
        written.insert(0, page.to_owned());
        Ok(written)
    }
}
