//! `sparsam ledger`: all runs below some folders, by stage.
//!
//! The tracker finds and adds up; here is only what it cannot know, what `run.json` says of a folder.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sparsam_tracker::lifecycle::{self, About, Lifecycle, Placeless};
use sparsam_tracker::{Stage, StartError};

use crate::args::energy::{PlaceArgs, refused};
use crate::args::ledger::LedgerArgs;
use crate::columns;
use crate::run_record::{self, RunRecord, State};
use crate::terminal::paint_stdout;

pub(super) fn run(args: &LedgerArgs) -> anyhow::Result<()> {
    let ledger = gather(&args.paths, &args.place)?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&ledger)?)?;
    } else {
        let lines = lifecycle::lines(&ledger);
        out.write_all(columns::fit(&lines, paint_stdout()).as_bytes())?;
    }
    Ok(())
}

/// The ledger of all runs below `paths`.
pub(super) fn gather(paths: &[PathBuf], place: &PlaceArgs) -> anyhow::Result<Lifecycle> {
    let placeless = Placeless {
        country: place.country.clone(),
        intensity: place.stated()?,
    };
    lifecycle::gather(paths, &placeless, &about).map_err(|error| match error {
        lifecycle::LedgerError::Place(error @ StartError::OutOfRange { .. }) => refused(error),
        error => error.into(),
    })
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
