//! `sparsam compare`: runs the arms of a comparison, each in a process of its own, and puts their figures
//! side by side.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sparsam_tracker::Range;

use crate::args::compare::CompareArgs;
use crate::columns;
use crate::compare::file::{Comparison, Planned};
use crate::compare::{result, words};
use crate::error::Failure;
use crate::report::comparison::{FILE_NAME, spread};
use crate::report::plots::{Trade, pareto};
use crate::report::{self, Language};
use crate::run_record::{RunRecord, State, write_whole};
use crate::speaker::notes;
use crate::terminal::paint_stdout;

pub(super) fn run(args: &CompareArgs, quiet: bool) -> anyhow::Result<()> {
    let comparison = Comparison::load(&args.comparison)?;
    let runs = comparison.runs()?;
    if args.dry_run {
        let mut out = io::stdout().lock();
        for run in &runs {
            let state = if is_finished(run)? {
                "finished"
            } else {
                "to do"
            };
            writeln!(
                out,
                "{}\t{}\t{state}\t{}",
                run.arm,
                run.repeat + 1,
                run.folder.display()
            )?;
        }
        return Ok(());
    }
    if let Some(number) = args.run {
        let Some(run) = runs.get(number - 1) else {
            return Err(Failure::usage(format!(
                "there is no run {number}: the comparison has {}",
                runs.len()
            ))
            .hint("`--dry-run` lists them, a line each")
            .into());
        };
        make(&comparison, &[run], quiet)?;
        writeln!(io::stdout().lock(), "{}", run.folder.display())?;
        return Ok(());
    }
    let all: Vec<&Planned> = runs.iter().collect();
    if args.result {
        for run in &all {
            if !is_finished(run)? {
                return Err(Failure::run(format!(
                    "repeat {} of the arm `{}` is not finished",
                    run.repeat + 1,
                    run.arm
                ))
                .hint("without `--result` the runs that are missing are made")
                .into());
            }
        }
    } else {
        make(&comparison, &all, quiet)?;
    }
    let outcome = result::gather(&comparison, &runs)?;
    let written = write(&comparison, &outcome)?;
    let mut out = io::stdout().lock();
    out.write_all(columns::fit(&words::lines(&outcome), paint_stdout()).as_bytes())?;
    writeln!(out)?;
    for path in written {
        writeln!(out, "{}", path.display())?;
    }
    Ok(())
}

/// Makes the runs that are not finished.
fn make(comparison: &Comparison, runs: &[&Planned], quiet: bool) -> anyhow::Result<()> {
    let mut notes = notes(quiet);
    let mut to_do = Vec::new();
    for run in runs {
        if !is_finished(run)? {
            to_do.push(*run);
        }
    }
    if to_do.len() < runs.len() {
        writeln!(
            notes,
            "{} of {} runs are finished already",
            runs.len() - to_do.len(),
            runs.len()
        )?;
    }
    let Some(first) = to_do.first() else {
        return Ok(());
    };
    if comparison.warm_up_seconds > 0.0 {
        writeln!(notes, "warming up for {} s", comparison.warm_up_seconds)?;
        let seconds = comparison.warm_up_seconds.to_string();
        sparsam(&["calibrate", "--seconds", &seconds], comparison, first)?;
    }
    for (index, run) in to_do.iter().enumerate() {
        if index > 0 && comparison.pause_seconds > 0.0 {
            std::thread::sleep(Duration::from_secs_f64(comparison.pause_seconds));
        }
        set_aside(&run.folder)?;
        writeln!(
            notes,
            "run {} of {}: {}, repeat {}",
            index + 1,
            to_do.len(),
            run.arm,
            run.repeat + 1
        )?;
        sparsam(&["--quiet", "train"], comparison, run)?;
    }
    Ok(())
}

/// Whether a run is finished, and the one that is meant.
fn is_finished(run: &Planned) -> anyhow::Result<bool> {
    if !run.folder.join(crate::run_record::FILE_NAME).exists() {
        return Ok(false);
    }
    let record = RunRecord::read(&run.folder)?;
    if record.state != State::Finished {
        return Ok(false);
    }
    if !crate::run::is_of(&record.recipe, &run.recipe) {
        return Err(Failure::usage(format!(
            "`{}` holds a run of another recipe than the arm `{}` has now",
            run.folder.display(),
            run.arm
        ))
        .hint("give the comparison another `output_dir`, or remove that folder")
        .into());
    }
    Ok(true)
}

/// A run that was cut off is made again from its start, as its figures would hold two loadings. What it
/// drew stays beside, for the ledger.
fn set_aside(folder: &Path) -> io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let mut number = 1u32;
    loop {
        let mut name = folder.file_name().unwrap_or_default().to_owned();
        name.push(format!("-cut-{number}"));
        let aside = folder.with_file_name(name);
        if !aside.exists() {
            return fs_err::rename(folder, aside);
        }
        number += 1;
    }
}

/// This program again, on a run's recipe.
fn sparsam(command: &[&str], comparison: &Comparison, run: &Planned) -> anyhow::Result<()> {
    let child = Command::new(std::env::current_exe()?)
        .args(command)
        .arg(&comparison.recipe)
        .args(&run.overrides)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    if child.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&child.stderr);
    let error = said.lines().find_map(|line| line.strip_prefix("error: "));
    let failure = Failure::run(format!(
        "the arm `{}` failed: {}",
        run.arm,
        error.unwrap_or("it was stopped")
    ));
    let hint = said.lines().find_map(|line| line.strip_prefix("hint: "));
    Err(failure
        .hint(hint.unwrap_or("the same command goes on with the runs that are missing"))
        .into())
}

/// Writes the result in all its forms, and gives the paths.
fn write(comparison: &Comparison, outcome: &result::Outcome) -> anyhow::Result<Vec<PathBuf>> {
    let folder = &comparison.output_dir;
    let mut written = Vec::new();
    let trades: Vec<Trade> = outcome
        .arms
        .iter()
        .map(|arm| Trade {
            name: arm.name.clone(),
            energy_kwh: spread(&arm.energies_kwh).unwrap_or(Range::ZERO),
            loss: Range::new(arm.loss.low, arm.loss.mean, arm.loss.high),
        })
        .collect();
    let mut files = vec![
        (FILE_NAME, serde_json::to_string_pretty(outcome)? + "\n"),
        ("comparison.csv", words::csv(outcome)),
        ("comparison.md", words::markdown(outcome)),
    ];
    if let Some((_, svg)) = pareto(&trades, "pareto", Language::En) {
        files.push(("pareto.svg", svg.file()));
    }
    for (name, text) in files {
        let path = folder.join(name);
        write_whole(&path, text.as_bytes())?;
        written.push(path);
    }
    let page = folder.join("report.html");
    let report = report::make(std::slice::from_ref(folder), Language::En)?;
    report.write(&page)?;
    written.push(page);
    Ok(written)
}
