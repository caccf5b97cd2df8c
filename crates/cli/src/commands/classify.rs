//! `sparsam classify`: which class texts are of, on standard output or in a file.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, Write};
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Map, Value, json};
use sparsam_adapter::classes::Prediction;
use sparsam_adapter::classify::classify;
use sparsam_adapter::data::{Columns, Dataset, Format, Row};
use sparsam_adapter::files::write_whole;
use sparsam_adapter::peft;
use sparsam_adapter::trainable::Trainable;

use crate::args::classify::ClassifyArgs;
use crate::classifier::{self, Named, Options};
use crate::device;
use crate::error::{Failure, io_reason};
use crate::from_hub;
use crate::opened::Opened;
use crate::run_record::RunRecord;

/// Classifies texts.
pub(super) fn run(args: &ClassifyArgs, quiet: bool) -> anyhow::Result<()> {
    let form = args.output.as_deref().map(form_of).transpose()?;
    let adapter = match args.base.adapter.as_slice() {
        [] => None,
        [one] => Some(from_hub::adapter(one, quiet)?),
        _ => {
            return Err(
                Failure::usage("classifiers do not add up, as each has a head of its own")
                    .hint("name one adapter")
                    .into(),
            );
        }
    };
    let named = Named {
        model: &args.base.model,
        revision: args.base.revision.as_deref(),
        max_length: args.max_length.unwrap_or(0),
    };
    let texts = classifier::open_texts(&named, quiet)?;
    // A run says how long its texts were.
    let trained = match &adapter {
        Some(folder) => RunRecord::beside(folder)?.map(|run| run.recipe.max_length),
        None => None,
    };
    let usual = trained.unwrap_or(classifier::LONGEST).min(texts.context);
    let named = Named {
        max_length: args.max_length.unwrap_or(usual),
        ..named
    };
    let labels = match &adapter {
        Some(folder) => classifier::labels_of(folder)?,
        None => texts.labels.clone().ok_or_else(|| {
            Failure::usage(format!("`{}` names no classes", args.base.model)).hint(
                "give the adapter of a classifier with `--adapter`, or a model trained as one",
            )
        })?,
    };
    let place = device::open(args.device)?;
    let options = Options {
        quantize: sparsam_base::model::Quantize::None,
        dtype: None,
        device: &place.device,
        seed: 0,
    };
    let mut opened = classifier::open(&named, texts, labels, &options)?;
    let mut trainable = match &adapter {
        Some(folder) => peft::load(folder, &mut opened.model, 0)?.0,
        None if opened.model.fresh.is_empty() => Trainable::none(&opened.model),
        None => {
            return Err(Failure::usage(format!(
                "`{}` holds no head over classes: it lacks {}",
                args.base.model,
                opened.model.fresh.join(", ")
            ))
            .hint("give the adapter of a classifier with `--adapter`")
            .into());
        }
    };
    let texts = read(args)?;
    let mut answers = Vec::with_capacity(texts.len());
    let each = &mut |_: usize, prediction: &Prediction| {
        answers.push(prediction.clone());
        if crate::interrupt::requested() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
    let Opened {
        model, tokenizer, ..
    } = &opened;
    let cut = classify(
        model,
        &mut trainable,
        tokenizer,
        &borrowed,
        named.max_length,
        each,
    )?;
    if cut > 0 && !quiet {
        writeln!(
            io::stderr(),
            "note: {cut} of {} texts were cut at {} tokens",
            texts.len(),
            named.max_length
        )?;
    }
    let told = Told {
        labels: &model.labels,
        texts: &texts,
        answers: &answers,
    };
    match (&args.output, form) {
        (Some(path), Some(form)) => {
            let bytes = match form {
                Form::Csv => told.csv()?,
                Form::JsonLines => told.json_lines()?.into_bytes(),
            };
            write_whole(path, &bytes).map_err(|error| {
                Failure::run(format!(
                    "cannot write `{}`: {}",
                    path.display(),
                    io_reason(&error)
                ))
            })?;
        }
        _ => told.print()?,
    }
    Ok(())
}

/// The texts of the arguments, of the file, or of standard input.
fn read(args: &ClassifyArgs) -> anyhow::Result<Vec<String>> {
    if let Some(path) = &args.file {
        let columns = BTreeMap::from([("text".to_owned(), args.column.clone())]);
        let dataset = Dataset::load_as(path, &Columns::new(columns)?, Some(Format::Text))?;
        let texts = dataset.rows.into_iter().filter_map(|(_, row)| match row {
            Row::Text(text) => Some(text),
            _ => None,
        });
        return Ok(texts.collect());
    }
    if !args.text.is_empty() {
        return Ok(args.text.clone());
    }
    let lines: Vec<String> = io::stdin().lock().lines().collect::<io::Result<_>>()?;
    let texts: Vec<String> = lines
        .into_iter()
        .filter(|line| !line.trim().is_empty())
        .collect();
    if texts.is_empty() {
        return Err(Failure::usage("there is no text to classify")
            .hint("give one with `--text`, a file with `--file`, or texts on standard input, one a line")
            .into());
    }
    Ok(texts)
}

#[derive(Clone, Copy)]
enum Form {
    Csv,
    JsonLines,
}

fn form_of(path: &Path) -> Result<Form, Failure> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => Ok(Form::Csv),
        Some("jsonl") => Ok(Form::JsonLines),
        _ => Err(Failure::usage(format!(
            "`{}` is neither a .csv nor a .jsonl file",
            path.display()
        ))
        .hint("answers are written in either form")),
    }
}

/// Answers in the words of the classes.
struct Told<'a> {
    labels: &'a [String],
    texts: &'a [String],
    answers: &'a [Prediction],
}

impl Told<'_> {
    fn rows(&self) -> impl Iterator<Item = (&str, &str, &Prediction)> {
        let rows = self.texts.iter().zip(self.answers);
        rows.map(|(text, answer)| (text.as_str(), self.labels[answer.answer()].as_str(), answer))
    }

    /// Six digits, more than a probability is worth.
    fn csv(&self) -> anyhow::Result<Vec<u8>> {
        let mut out = csv::Writer::from_writer(Vec::new());
        let classes = self.labels.iter().map(|label| format!("p({label})"));
        let header = ["text", "label", "probability"].map(str::to_owned);
        out.write_record(header.into_iter().chain(classes))?;
        for (text, label, answer) in self.rows() {
            let figures = answer.probabilities.iter().map(|p| format!("{p:.6}"));
            let row = [
                text.to_owned(),
                label.to_owned(),
                format!("{:.6}", answer.confidence()),
            ];
            out.write_record(row.into_iter().chain(figures))?;
        }
        Ok(out.into_inner()?)
    }

    fn json_lines(&self) -> anyhow::Result<String> {
        let mut out = String::new();
        for (text, label, answer) in self.rows() {
            let probabilities: Map<String, Value> = self
                .labels
                .iter()
                .zip(&answer.probabilities)
                .map(|(label, p)| (label.clone(), json!(p)))
                .collect();
            let row = json!({
                "text": text,
                "label": label,
                "probability": answer.confidence(),
                "probabilities": probabilities,
            });
            out.push_str(&serde_json::to_string(&row)?);
            out.push('\n');
        }
        Ok(out)
    }

    fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let [answer] = self.answers else {
            for (text, label, answer) in self.rows() {
                let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
                writeln!(out, "{label}\t{:.1} %\t{text}", 100.0 * answer.confidence())?;
            }
            return Ok(());
        };
        let mut classes: Vec<(&String, &f32)> =
            self.labels.iter().zip(&answer.probabilities).collect();
        classes.sort_by(|a, b| b.1.total_cmp(a.1));
        let longest = self
            .labels
            .iter()
            .map(|label| label.chars().count())
            .max()
            .unwrap_or(0);
        // Ten classes are a screen; what follows them is of no account.
        for (label, p) in classes.into_iter().take(10) {
            writeln!(out, "{label:longest$}  {:5.1} %", 100.0 * p)?;
        }
        Ok(())
    }
}
