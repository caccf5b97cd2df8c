//! `sparsam card`: writes the card of a run again, from its record and its energy journal.
//!
//! A folder of `sparsam train` has a record, and its card is a whole one. A folder of `sparsam track` has
//! the journal alone; its record and the block for a card are made of that. [`update`] writes into cards
//! that somebody else wrote, [`lint`] checks cards.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sparsam_tracker::EnergyRecord;
use sparsam_tracker::card::TrainingKind;
use sparsam_tracker::export::{self, About};
use sparsam_tracker::{journal, track};

use crate::args::energy::{CardArgs, CardCommand, CardFormat};
use crate::cards;
use crate::error::Failure;
use crate::recipe::{Quantize, TrainingType};
use crate::run_record::{self, RunRecord, write_whole};

mod lint;
mod update;

pub(super) fn run(args: &CardArgs, quiet: bool) -> anyhow::Result<ExitCode> {
    if args.command.is_some() && (args.run_dir.is_some() || !args.format.is_empty()) {
        return Err(Failure::usage(
            "the folder of a run and `--format` do not go with `update` and `lint`",
        )
        .hint("`sparsam card --help` shows the three forms")
        .into());
    }
    match (&args.command, &args.run_dir) {
        (Some(CardCommand::Update(args)), _) => update::run(args, quiet)?,
        (Some(CardCommand::Lint(args)), _) => return lint::run(args, quiet),
        (None, Some(folder)) => {
            for path in write(folder, &args.format)? {
                writeln!(io::stdout().lock(), "{}", path.display())?;
            }
        }
        (None, None) => return Err(Failure::usage("no folder of a run was given").into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the card of a run and what else is asked for, and gives the paths.
fn write(folder: &Path, formats: &[CardFormat]) -> anyhow::Result<Vec<PathBuf>> {
    let has = |name: &str| folder.join(name).exists();
    let trained = has(run_record::FILE_NAME);
    if !trained && !has(journal::FILE_NAME) {
        return Err(run_record::no_run(folder).into());
    }
    let (energy, about, mut paths) = if trained {
        let mut record = RunRecord::read(folder)?;
        let energy = cards::energy_of(folder, &record)?;
        record.energy = Some(serde_json::to_value(&energy)?);
        record.write(folder)?;
        cards::write(folder, &record, &energy)?;
        (energy, about(&record), vec![folder.join(cards::FILE_NAME)])
    } else {
        let energy = EnergyRecord::from_journal(&folder.join(journal::FILE_NAME))?;
        let paths = track::write_record(folder, &energy)?;
        (energy, About::default(), paths)
    };
    for format in formats {
        let (name, text) = match format {
            CardFormat::Boamps => {
                let report = export::boamps(&energy, &about);
                let text = serde_json::to_string_pretty(&report)? + "\n";
                ("boamps.json", text)
            }
            CardFormat::Climate => ("climate-card.md", export::climate_card(&energy, &about)),
        };
        let path = folder.join(name);
        write_whole(&path, text.as_bytes())?;
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// What the other formats ask beyond energy.
fn about(record: &RunRecord) -> About {
    let recipe = &record.recipe;
    let from_scratch = recipe.training_type == TrainingType::PreTraining;
    let stored = match recipe.quantize {
        Quantize::None => &serde_json::to_value(recipe.dtype),
        _ => &serde_json::to_value(recipe.quantize),
    };
    About {
        training: if from_scratch {
            TrainingKind::PreTraining
        } else {
            TrainingKind::FineTuning
        },
        base_model: (!from_scratch).then(|| recipe.model.clone()),
        billion_parameters: Some(record.base.parameters as f64 / 1e9),
        epochs: record.results.as_ref().map(|results| results.epochs),
        optimizer: serde_json::to_value(recipe.optim)
            .ok()
            .and_then(|word| word.as_str().map(str::to_owned)),
        quantization: stored
            .as_ref()
            .ok()
            .and_then(|word| word.as_str())
            .filter(|word| *word != "auto")
            .map(str::to_owned),
        examples: Some(record.train_data.examples),
        ..About::default()
    }
}

/// The card that is meant: the file, or the `README.md` of the folder.
fn card_file(named: &Path) -> PathBuf {
    if named.is_dir() {
        named.join(cards::FILE_NAME)
    } else {
        named.to_owned()
    }
}
