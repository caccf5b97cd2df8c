//! The model card of a run, from its two records and from nothing else.
//!
//! `train` writes it at the end, `sparsam card` writes it again, after a crash from what the journal
//! holds. Everything on it stands in `run.json` or in the energy record.

use std::fmt::Write as _;
use std::path::Path;

use sparsam_adapter::classes::ClassMetrics;
use sparsam_tracker::card::{self, CardInputs, Classes, Metric, ModelKind, Origin, TrainingKind};
use sparsam_tracker::{EnergyRecord, journal};

use crate::figures::thousands;
use crate::from_hub;
use crate::recipe::{Method, PromptFormat, Recipe, TrainOn, TrainingType};
use crate::run_record::{DataRecord, Quality, RunRecord, State, write_whole};

/// The form of rows that are texts with classes.
const LABELLED: &str = "labelled";

/// Name of the card in the run's folder.
pub(crate) const FILE_NAME: &str = "README.md";

/// The energy of a run of `sparsam train`.
pub(crate) fn energy_of(folder: &Path, record: &RunRecord) -> anyhow::Result<EnergyRecord> {
    let recorded = match (&record.energy, record.state) {
        (Some(energy), State::Finished | State::Interrupted | State::Failed) => {
            serde_json::from_value(energy.clone()).ok()
        }
        // The run was killed: the journal knows more than the record.
        _ => None,
    };
    match recorded {
        Some(energy) => Ok(energy),
        None => Ok(EnergyRecord::from_journal(
            &folder.join(journal::FILE_NAME),
        )?),
    }
}

/// Writes the card of a run into its folder.
pub(crate) fn write(folder: &Path, run: &RunRecord, energy: &EnergyRecord) -> std::io::Result<()> {
    let text = card::render(&inputs(folder, run), energy);
    write_whole(&folder.join(FILE_NAME), text.as_bytes())
}

/// What else was made of a run's adapter, for the card under which it is published.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Made<'a> {
    /// The whole model, in a transformers folder.
    Merged,
    /// The same in GGUF; the name of the file that examples use.
    Gguf(&'a str),
}

/// The card of what was made of a run's adapter, under the name it will have on the Hub.
pub(crate) fn of_made(
    folder: &Path,
    run: &RunRecord,
    energy: &EnergyRecord,
    (made, name): (Made, &str),
) -> String {
    let mut inputs = inputs(folder, run);
    let prompt = quoted(run.example_prompt.as_deref().unwrap_or("Hello"));
    let step = match made {
        Made::Merged => {
            inputs.kind = ModelKind::Merged;
            inputs.command = Some(format!("sparsam generate --model {name} --prompt {prompt}"));
            "merging it"
        }
        Made::Gguf(file) => {
            inputs.kind = ModelKind::Gguf;
            let file = quoted(file);
            inputs.command = Some(format!("sparsam generate --model {file} --prompt {prompt}"));
            inputs.other_command = Some(format!("llama-cli -m {file} -p {prompt}"));
            "merging and converting it"
        }
    };
    name.clone_into(&mut inputs.title);
    inputs.data.push(format!(
        "Energy and emissions are those of the training of the adapter; {step} is not in them."
    ));
    card::render(&inputs, energy)
}

fn inputs(folder: &Path, run: &RunRecord) -> CardInputs {
    let recipe = &run.recipe;
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    let title = folder.canonicalize().ok().and_then(|path| name(&path));
    let full = recipe.method == Method::Full;
    let from_scratch = recipe.training_type == TrainingType::PreTraining;
    CardInputs {
        title: title.unwrap_or_else(|| "model".to_owned()),
        kind: if full {
            ModelKind::Full
        } else {
            ModelKind::Adapter
        },
        base_model: (!from_scratch).then(|| match &run.base.revision {
            Some(_) => Origin::hub(from_hub::plain(&recipe.model)),
            None => Origin::local(&recipe.model),
        }),
        license: recipe.license.clone().or_else(|| run.base.license.clone()),
        datasets: vec![dataset(run)],
        languages: recipe.language.0.clone(),
        tags: recipe.tags.0.clone(),
        description: recipe.description.clone(),
        training: if from_scratch {
            TrainingKind::PreTraining
        } else {
            TrainingKind::FineTuning
        },
        data: data(run),
        recipe: table(run),
        evaluation_data: recipe
            .data
            .eval
            .as_ref()
            .map(|path| path.display().to_string()),
        metrics: metrics(run),
        command: Some(command(folder, run)),
        other_command: None,
        classes: classes(run),
        example_prompt: run.example_prompt.clone(),
        chat: run.train_data.format != "text" && recipe.data.prompt_format == PromptFormat::Chat,
        cloud_provider: None,
        compute_region: None,
        version: run.versions.sparsam.clone(),
    }
}

/// The data set: that of the Hub, or the name the recipe gives it, or that of the folder it lies in.
fn dataset(run: &RunRecord) -> Origin {
    let recipe = &run.recipe;
    if run.train_data.revision.is_some() && recipe.dataset_name.is_none() {
        let name = recipe.data.train.display().to_string();
        return Origin::hub(from_hub::plain(&name));
    }
    Origin::local(dataset_name(recipe))
}

/// The name the recipe gives the data set, or that of the folder it lies in.
fn dataset_name(recipe: &Recipe) -> String {
    let folder = || {
        let parent = recipe.data.train.parent()?;
        Some(parent.file_name()?.to_string_lossy().into_owned())
    };
    recipe
        .dataset_name
        .clone()
        .or_else(folder)
        .unwrap_or_else(|| recipe.data.train.display().to_string())
}

/// Sentences on the training data and on how far the run came.
fn data(run: &RunRecord) -> Vec<String> {
    let mut sentences = vec![counted("Trained on", &run.train_data)];
    let answers = run.recipe.data.train_on == TrainOn::Assistant;
    let loss = match (run.train_data.format.as_str(), answers) {
        (LABELLED, _) => format!(
            "the cross entropy over {} classes",
            thousands(run.labels.len() as u64)
        ),
        ("text", _) | (_, false) => "taken over all of the text".to_owned(),
        (_, true) => "taken over the answers alone".to_owned(),
    };
    let _ = write!(sentences[0], " The loss is {loss}.");
    if let Some(data) = &run.eval_data {
        sentences.push(counted("Evaluated on", data));
    }
    if let Some(results) = &run.results {
        sentences.push(format!(
            "{} steps, {} passes over the data, {} tokens{}, at {} tokens/s.",
            thousands(results.steps),
            sparsam_tracker::format::plain_decimal(results.epochs, 2),
            thousands(results.tokens),
            match run.train_data.format.as_str() {
                LABELLED => String::new(),
                _ => format!(", {} of them targets", thousands(results.trained_tokens)),
            },
            thousands(results.tokens_per_second as u64),
        ));
    }
    if let Some(budget) = &run.budget {
        let end = if budget.ended_by_budget {
            "; the training stopped in time for it"
        } else {
            ""
        };
        sentences.push(format!(
            "Of its budget the run used {}{end}.",
            budget.words()
        ));
    }
    if let Some(waited) = &run.waited {
        sentences.push(format!(
            "The run waited {} for a grid below {} gCO2e/kWh ({}){}.",
            sparsam_tracker::format::duration(waited.seconds),
            sparsam_tracker::format::plain_decimal(waited.wanted_below, 3),
            waited.source,
            match (waited.intensity, waited.reached) {
                (Some(grams), true) => format!(
                    " and began at {}",
                    sparsam_tracker::format::plain_decimal(grams, 3)
                ),
                (Some(grams), false) => format!(
                    " and began at {} as the longest wait was over",
                    sparsam_tracker::format::plain_decimal(grams, 3)
                ),
                (None, _) => " and began without a figure as the longest wait was over".to_owned(),
            }
        ));
    }
    match run.state {
        State::Finished => {}
        State::Running | State::Failed => sentences.push(
            "The run did not come to its end; what is here is its last checkpoint, if it wrote one."
                .to_owned(),
        ),
        State::Interrupted => {
            sentences.push("The run was interrupted and can be continued.".to_owned());
        }
    }
    sentences
}

fn counted(what: &str, data: &DataRecord) -> String {
    let mut sentence = format!(
        "{what} {} {} with {} tokens",
        thousands(data.examples),
        if data.format == LABELLED {
            "texts"
        } else {
            "examples"
        },
        thousands(data.tokens),
    );
    if data.format != LABELLED {
        let targets = thousands(data.trained_tokens);
        let _ = write!(sentence, ", {targets} of them targets");
    }
    if data.truncated > 0 {
        let count = thousands(data.truncated);
        let _ = write!(sentence, "; {count} were cut to the longest length");
    }
    if data.skipped > 0 {
        let count = thousands(data.skipped);
        let _ = write!(
            sentence,
            "; {count} were left out, as nothing in them is trained"
        );
    }
    sentence.push('.');
    sentence
}

/// The keys of the recipe that decide the result.
fn table(run: &RunRecord) -> Vec<(String, String)> {
    let recipe = &run.recipe;
    let mut rows = vec![
        ("model".to_owned(), recipe.model.clone()),
        ("method".to_owned(), word(&recipe.method)),
        ("quantize".to_owned(), word(&recipe.quantize)),
        ("dtype".to_owned(), word(&recipe.dtype)),
    ];
    if recipe.method == Method::Lora {
        let lora = &recipe.lora;
        rows.extend([
            ("lora.r".to_owned(), lora.r.to_string()),
            ("lora.alpha".to_owned(), lora.alpha.to_string()),
            ("lora.dropout".to_owned(), lora.dropout.to_string()),
            ("lora.target_modules".to_owned(), word(&lora.target_modules)),
        ]);
    }
    if let Some(commit) = &run.base.revision {
        rows.insert(1, ("revision".to_owned(), commit.clone()));
    }
    rows.extend([
        ("max_length".to_owned(), recipe.max_length.to_string()),
        ("packing".to_owned(), recipe.packing.to_string()),
        ("batch_size".to_owned(), recipe.batch_size.to_string()),
        (
            "gradient_accumulation_steps".to_owned(),
            recipe.gradient_accumulation_steps.to_string(),
        ),
        ("learning_rate".to_owned(), recipe.learning_rate.to_string()),
        ("lr_scheduler".to_owned(), word(&recipe.lr_scheduler)),
        ("optim".to_owned(), word(&recipe.optim)),
        ("weight_decay".to_owned(), recipe.weight_decay.to_string()),
        ("seed".to_owned(), recipe.seed.to_string()),
        (
            "trained weights".to_owned(),
            format!(
                "{} of {}",
                thousands(run.trainable_parameters),
                thousands(run.base.parameters)
            ),
        ),
        ("base, BLAKE3".to_owned(), run.base.blake3.clone()),
        ("data, BLAKE3".to_owned(), run.train_data.blake3.clone()),
    ]);
    rows
}

/// A value of the recipe in the recipe's own words.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(value) => value.to_string(),
        Err(_) => String::new(),
    }
}

fn metrics(run: &RunRecord) -> Vec<Metric> {
    let Some(results) = &run.results else {
        return Vec::new();
    };
    let Some(after) = results.after else {
        return Vec::new();
    };
    if let Some(classes) = &results.classes {
        let figures: [(&str, &str, fn(&ClassMetrics) -> f64); 3] = [
            ("accuracy", "Accuracy", |m| m.accuracy),
            ("f1", "Macro F1", |m| m.macro_f1),
            (
                "expected_calibration_error",
                "Expected calibration error",
                |m| m.calibration_error,
            ),
        ];
        let loss = Metric {
            kind: "loss".to_owned(),
            name: "Loss (nats per text)".to_owned(),
            before: results.before.map(|before| before.loss),
            after: after.loss,
        };
        let figures = figures.into_iter().map(|(kind, name, figure)| Metric {
            kind: kind.to_owned(),
            name: name.to_owned(),
            before: classes.before.as_ref().map(figure),
            after: figure(&classes.after),
        });
        return figures.chain([loss]).collect();
    }
    let measured: [(&str, &str, &dyn Fn(&Quality) -> Option<f64>); 3] = [
        ("loss", "Loss (nats per token)", &|q| Some(q.loss)),
        ("perplexity", "Perplexity", &|q| Some(q.perplexity())),
        ("exact_match", "Exact match", &|q| q.exact_match),
    ];
    measured
        .into_iter()
        .filter_map(|(kind, name, value)| {
            Some(Metric {
                kind: kind.to_owned(),
                name: name.to_owned(),
                before: results.before.as_ref().and_then(value),
                after: value(&after)?,
            })
        })
        .collect()
}

/// The classes of a classifier as its card shows them.
fn classes(run: &RunRecord) -> Option<Classes> {
    if run.labels.is_empty() {
        return None;
    }
    let mut classes = Classes {
        labels: run.labels.clone(),
        ..Classes::default()
    };
    let measured = run
        .results
        .as_ref()
        .and_then(|results| results.classes.as_ref());
    if let Some(measured) = measured {
        let after = &measured.after;
        let scores = after.per_class.iter();
        classes.scores = scores
            .map(|class| ([class.precision, class.recall, class.f1], class.texts))
            .collect();
        classes.confusion.clone_from(&after.confusion);
        let bins = after.bins.iter();
        classes.bins = bins
            .map(|bin| (bin.answers, bin.confidence, bin.accuracy))
            .collect();
        classes.calibration_error = after.calibration_error;
    }
    Some(classes)
}

/// The line that lets the model answer.
pub(crate) fn command(folder: &Path, run: &RunRecord) -> String {
    let prompt = run.example_prompt.as_deref().unwrap_or("Hello");
    if !run.labels.is_empty() {
        let arguments = model_arguments(folder, run);
        return format!("sparsam classify {arguments} --text {}", quoted(prompt));
    }
    format!(
        "sparsam generate {} --prompt {}",
        model_arguments(folder, run),
        quoted(prompt)
    )
}

/// `--model … --adapter …` of a run's result.
pub(crate) fn model_arguments(folder: &Path, run: &RunRecord) -> String {
    let folder = quoted(&folder.display().to_string());
    let revision = run
        .recipe
        .revision
        .as_ref()
        .filter(|_| run.base.revision.is_some());
    let revision = revision.map_or(String::new(), |name| {
        format!(" --revision {}", quoted(name))
    });
    match run.recipe.method {
        Method::Lora => format!(
            "--model {}{revision} --adapter {folder}",
            quoted(&run.recipe.model)
        ),
        Method::Full => format!("--model {folder}"),
    }
}

/// A word for a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quoted("runs/quick-start"), "runs/quick-start");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }
}
