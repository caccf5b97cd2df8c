//! `sparsam card lint`: what cards say of their emissions, checked. Findings are the result and go to
//! standard output; the exit code is for a CI job.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;
use sparsam_tracker::card::lint::{Finding, Severity, lint, render, worst};

use super::card_file;
use crate::args::energy::CardLintArgs;
use crate::error::{Failure, io_reason};
use crate::speaker::notes;

pub(super) fn run(args: &CardLintArgs, quiet: bool) -> anyhow::Result<ExitCode> {
    // All are read before anything is said, so that a wrong name does not look like half a result.
    let checked = args
        .cards
        .iter()
        .map(|named| {
            let path = card_file(named);
            let findings = lint(&read(&path)?);
            Ok((path.display().to_string(), findings))
        })
        .collect::<Result<Vec<(String, Vec<Finding>)>, Failure>>()?;
    let mut out = io::stdout().lock();
    if args.json {
        let cards: Vec<_> = checked
            .iter()
            .map(|(card, findings)| json!({ "card": card, "findings": findings }))
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&cards)?)?;
    } else {
        for line in checked.iter().flat_map(|(name, found)| render(name, found)) {
            writeln!(out, "{line}")?;
        }
        out.flush()?;
        writeln!(notes(quiet), "{}", tally(&checked))?;
    }
    let worst = checked.iter().filter_map(|(_, found)| worst(found)).max();
    Ok(if worst >= Some(Severity::Warning) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| {
        Failure::usage(format!(
            "cannot read `{}`: {}",
            path.display(),
            io_reason(&error)
        ))
        .hint("name model cards, or folders with a README.md")
    })
}

/// `3 cards checked: 1 error, 2 warnings`.
fn tally(checked: &[(String, Vec<Finding>)]) -> String {
    let counted = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    let found: Vec<String> = [Severity::Error, Severity::Warning, Severity::Note]
        .into_iter()
        .filter_map(|severity| {
            let all = checked.iter().flat_map(|(_, findings)| findings);
            let count = all.filter(|finding| finding.severity == severity).count();
            (count > 0).then(|| counted(count, severity.name()))
        })
        .collect();
    let found = if found.is_empty() {
        "nothing found".to_owned()
    } else {
        found.join(", ")
    };
    format!("{} checked: {found}", counted(checked.len(), "card"))
}
