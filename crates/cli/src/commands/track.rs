//! `sparsam track`: any program under the tracker, and what it cost on standard error at the end.
//!
//! Standard output belongs to the program. So does the exit code; only where the program could not be
//! started is it a shell's 126 or 127.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use jiff::Zoned;
use sparsam_hub::grid::Grid;
use sparsam_tracker::track::{self, TrackError};
use sparsam_tracker::{Options, journal, summary_lines};

use crate::args::energy::{TrackArgs, refused};
use crate::error::Failure;
use crate::speaker::notes;
use crate::terminal::paint_stderr;
use crate::{columns, grid};

pub(super) fn run(args: TrackArgs, quiet: bool) -> anyhow::Result<ExitCode> {
    let folder = match &args.output {
        Some(folder) => folder.clone(),
        None => fresh_folder(),
    };
    let existed = folder.exists();
    let request = track::Request {
        options: options(&args, &folder)?,
        command: args.command,
    };
    if args.baseline_seconds > 0.0 {
        // Nothing that cannot be told is a reason not to run.
        let _ = writeln!(
            notes(quiet),
            "measuring the idle machine for {} before the start",
            sparsam_tracker::format::duration(args.baseline_seconds)
        );
    }
    let tracked = match track::run(&request) {
        Ok(tracked) => tracked,
        Err(error) => {
            if !existed {
                // Nothing ran, so nothing is left; what cannot be removed does no harm.
                let _ = fs_err::remove_file(folder.join(journal::FILE_NAME));
                let _ = fs_err::remove_dir(&folder);
            }
            return Err(match error {
                TrackError::Options(error) => refused(error),
                error => error.into(),
            });
        }
    };
    if !quiet {
        let mut lines = summary_lines(&tracked.record);
        lines.push(files(&folder, &tracked.files));
        say(&format!("\n{}", columns::fit(&lines, paint_stderr())));
    }
    for problem in &tracked.problems {
        say(&format!("warning: {problem}\n"));
    }
    Ok(ExitCode::from(tracked.exit_code))
}

fn options(args: &TrackArgs, folder: &Path) -> anyhow::Result<Options> {
    let defaults = Options::in_folder(folder);
    let grid = args.live_intensity.as_deref().map(Grid::parse).transpose();
    let grid = grid.map_err(|what| {
        Failure::usage(format!("`--live-intensity` {what}")).hint(format!("give {}", grid::SOURCES))
    })?;
    let typed = args.place.typed_country();
    let elsewhere = grid
        .as_ref()
        .and_then(|grid| grid::elsewhere(grid, typed.as_deref()));
    if let Some((of_grid, of_run)) = elsewhere {
        return Err(Failure::usage(format!(
            "`--live-intensity` is of the grid of {}, and `--country` is {}",
            of_grid.name, of_run.name
        ))
        .hint("name the zone in which the machine stands, or leave `--country` out")
        .into());
    }
    let of_grid = grid.as_ref().and_then(Grid::country).map(str::to_owned);
    Ok(Options {
        name: args.name.clone().unwrap_or(defaults.name),
        roots: args.roots.roots()?,
        interval: Duration::from_secs_f64(args.interval),
        country: typed.or(of_grid).or_else(grid::country_of_environment),
        intensity: args.place.stated()?,
        live: grid.map(grid::live),
        pue: args.pue,
        cpu_watts: args.cpu_watts,
        ram_watts: args.ram_watts,
        node_idle_watts: args.node_idle_watts,
        baseline_seconds: args.baseline_seconds,
        stage: args.stage.map(Into::into),
        run_dir: defaults.run_dir,
        ..Options::default()
    })
}

/// `runs/track-20260131-235959`, or with a number behind it where that is taken.
fn fresh_folder() -> PathBuf {
    let time = Zoned::now().strftime("%Y%m%d-%H%M%S").to_string();
    let mut folder = PathBuf::from(format!("runs/track-{time}"));
    let mut number = 2u32;
    while folder.exists() {
        folder.set_file_name(format!("track-{time}-{number}"));
        number += 1;
    }
    folder
}

/// `files      runs/x: energy.jsonl, energy.json`.
fn files(folder: &Path, files: &[PathBuf]) -> String {
    let names: Vec<String> = files
        .iter()
        .filter_map(|file| Some(file.file_name()?.to_string_lossy().into_owned()))
        .collect();
    format!("files      {}: {}", folder.display(), names.join(", "))
}

/// A standard error that cannot be written to is no reason to change the program's exit code.
fn say(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
