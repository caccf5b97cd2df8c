//! `sparsam ledger`: all runs below some folders, by stage.
//!
//! The tracker finds and adds up; here is only what it cannot know, what `run.json` says of a folder.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sparsam_tracker::lifecycle::{self, About, Bench, LedgerError, Lifecycle, Placeless, Requests};
use sparsam_tracker::{Stage, StartError};

use crate::args::energy::{PlaceArgs, refused};
use crate::args::ledger::{LedgerArgs, RequestsArgs};
use crate::columns;
use crate::run_record::{self, RunRecord, State};
use crate::terminal::paint_stdout;

pub(super) fn run(args: &LedgerArgs) -> anyhow::Result<()> {
    let ledger = gather(&args.paths, &args.place, &args.requests)?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&ledger)?)?;
    } else {
        let lines = lifecycle::lines(&ledger);
        out.write_all(columns::fit(&lines, paint_stdout()).as_bytes())?;
    }
    Ok(())
}

/// The ledger of all runs below `paths`, with what requests are expected to cost.
pub(super) fn gather(
    paths: &[PathBuf],
    place: &PlaceArgs,
    requests: &RequestsArgs,
) -> anyhow::Result<Lifecycle> {
    let placeless = Placeless {
        country: place.country.clone(),
        intensity: place.stated()?,
    };
    let mut ledger = lifecycle::gather(paths, &placeless, &about).map_err(|error| match error {
        LedgerError::Place(error @ StartError::OutOfRange { .. }) => refused(error),
        error => error.into(),
    })?;
    if let Some(per_day) = requests.requests_per_day {
        if !requests.inference.is_empty() {
            let read = requests.inference.iter().map(|run| Bench::read(run));
            ledger.inference = read.collect::<Result<_, _>>()?;
        }
        ledger.expect(Requests {
            per_day,
            days: requests.days,
            prompt_tokens: requests.prompt_tokens_per_request.map(f64::from),
            answer_tokens: requests.tokens_per_request.map(f64::from),
        })?;
    }
    Ok(ledger)
}

/// What `run.json` says of a folder, where there is one.
fn about(folder: &Path) -> Option<About> {
    if !folder.join(run_record::FILE_NAME).exists() {
        return None;
    }
    // Another program's file, or another version's: its journal counts all the same.
    let Ok(record) = RunRecord::read(folder) else {
        return Some(About::default());
    };
    Some(About {
        state: match record.state {
            // What it says since its process is gone, or while it works.
            State::Running => Some(lifecycle::State::Cut),
            State::Interrupted => Some(lifecycle::State::Interrupted),
            State::Failed => Some(lifecycle::State::Failed),
            State::Finished => Some(lifecycle::State::Finished),
        },
        stage: Some(Stage::Train),
        energy: record
            .energy
            .and_then(|energy| serde_json::from_value(energy).ok()),
    })
}
