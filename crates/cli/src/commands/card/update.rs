//! `sparsam card update`: the energy and emissions of runs, written into any model card.

use std::io::Write;
use std::path::Path;

use sparsam_tracker::card::TrainingKind;
use sparsam_tracker::card::edit::{self, Details, EditError, Outcome};
use sparsam_tracker::{EnergyRecord, combine, format, lifecycle};

use super::card_file;
use crate::args::energy::{CardTraining, CardUpdateArgs, refused};
use crate::commands::ledger;
use crate::error::{Failure, io_reason};
use crate::speaker::notes;

pub(super) fn run(args: &CardUpdateArgs, quiet: bool) -> anyhow::Result<()> {
    let card = card_file(&args.card);
    let records = read(args, quiet)?;
    let details = Details {
        training: args.training_type.map(|training| match training {
            CardTraining::FineTuning => TrainingKind::FineTuning,
            CardTraining::PreTraining => TrainingKind::PreTraining,
        }),
        cloud_provider: args.cloud_provider.clone(),
        compute_region: args.compute_region.clone(),
    };
    let section = if args.ledger.is_empty() {
        None
    } else {
        let ledger = ledger::gather(&args.ledger, &args.place, &args.requests)?;
        Some(lifecycle::card_section(&ledger))
    };
    let outcome = edit::update_file(&card, &records, &details, section.as_deref())
        .map_err(|error| unchanged(&card, error))?;
    let done = match outcome {
        Outcome::Written => "updated",
        Outcome::Unchanged => "nothing to change in",
    };
    let runs = match records.len() {
        1 => "1 run".to_owned(),
        count => format!("{count} runs"),
    };
    if let Some(total) = combine::sum(&records) {
        writeln!(
            notes(quiet),
            "{done} `{}`: {runs}, {}, {} CO2e",
            card.display(),
            format::energy_central(total.energy_kwh.central),
            format::grams(total.emissions_g),
        )?;
    } else {
        writeln!(notes(quiet), "{done} `{}`: its lifecycle", card.display())?;
    }
    Ok(())
}

/// Why the card stands as before.
fn unchanged(card: &Path, error: EditError) -> anyhow::Error {
    match error {
        EditError::File {
            action: "read",
            source,
            ..
        } => Failure::usage(format!(
            "cannot read the card `{}`: {}",
            card.display(),
            io_reason(&source)
        ))
        .hint("name a model card, or a folder with a README.md")
        .into(),
        // These name the file or have nothing to do with it.
        error @ (EditError::File { .. } | EditError::Twice { .. } | EditError::NoPlace { .. }) => {
            error.into()
        }
        error => anyhow::Error::new(error).context(format!("`{}` was not changed", card.display())),
    }
}

/// The records of all runs. Those that were measured without a place get the one that is given; a run
/// that knows where it was keeps what it says.
fn read(args: &CardUpdateArgs, quiet: bool) -> anyhow::Result<Vec<EnergyRecord>> {
    let stated = args.place.stated()?;
    let country = args.place.country.as_deref();
    let given = country.is_some() || stated.is_some();
    let mut used = false;
    let mut records = Vec::new();
    for folder in &args.runs {
        for record in combine::read_folder(folder, !args.latest_only)? {
            let placeless = record.emissions_g.central.is_none();
            used |= placeless;
            records.push(if placeless {
                record.at_place(country, stated.as_ref()).map_err(refused)?
            } else {
                record
            });
        }
    }
    if given && !used && !records.is_empty() {
        writeln!(
            notes(quiet),
            "note: every run states its own place, so the one given was not used"
        )?;
    }
    Ok(records)
}
