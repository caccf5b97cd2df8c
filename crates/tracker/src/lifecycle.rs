//! A project's whole cost: all runs below some folders, whatever their end, by stage. A model is the work
//! of its failed runs, its searches and its evaluations too.
//!
//! Every journal counts once: a copy of it elsewhere is recognised, a resumed run is the sum of its
//! sessions, and where several runs counted the same machine at the same time ([`Shared`]) that energy
//! is counted once. What the journals say in sum, and what was taken off for that, stand side by side.
//!
//! What a run was, beside its energy, is known to whoever calls: [`About`] tells its state. The ledger of
//! another machine is one file, which is read like a folder.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::journal::{self, Contents, Event, JournalError};
use crate::range::{Range, Span};
use crate::record::EnergyRecord;
use crate::stage::Stage;
use crate::tracker::{StartError, StatedIntensity};
use crate::water::Water;
use crate::window::Ledger;
use crate::{accounting, embodied, water};

mod find;
mod inference;
mod shared;
mod words;

pub use inference::{BENCH_FILE, BENCH_VERSION, Bench, Cost, Expectation, Requests, Way, Work};
pub use shared::Shared;
pub use words::{card_section, lines};

/// The version of [`Lifecycle`]'s shape, raised when a field changes its meaning.
pub const LEDGER_VERSION: u32 = 1;

/// All runs of a project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lifecycle {
    /// [`LEDGER_VERSION`] of the writer. By this key the file is recognised.
    pub sparsam_ledger: u32,
    /// The runs, by their start.
    pub runs: Vec<Entry>,
    /// Sums by stage, in the order of a project; last what belongs to none that was stated.
    pub stages: Vec<StageTotal>,
    /// What the journals say in sum, kWh.
    pub journals_kwh: Range,
    /// What several journals counted and is counted once, kWh.
    pub counted_twice_kwh: Range,
    /// The energy: the first less the second, kWh.
    pub energy_kwh: Range,
    /// Operational emissions, gCO2e.
    pub emissions_g: Span,
    /// Making the hardware, gCO2e, where some run has a figure. Beside the emissions.
    pub embodied_g: Option<Range>,
    /// Runs whose hardware has no figure for its making.
    pub without_embodied: usize,
    /// Water, litres, where some run has rates. Beside the emissions.
    pub water_l: Option<Range>,
    /// Runs whose place has no rates.
    pub without_water: usize,
    /// Runs that shared a machine.
    pub shared: Vec<Shared>,
    /// Journals that are copies of others and were left out.
    pub copies: Vec<String>,
    /// Runs whose energy is not known at all, and why.
    pub unknown: Vec<String>,
    /// Ways of answering that were measured, the last measurement of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inference: Vec<Bench>,
    /// What answering is expected to cost, where that was asked. Beside the sums.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Expectation>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// By which a copy of the run is recognised.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The journal or record it was read from.
    pub path: String,
    /// The part of the project, where it is known.
    pub stage: Option<Stage>,
    /// How it ended.
    pub state: State,
    /// Its start, RFC 3339 in UTC.
    pub started: String,
    /// The last moment that was recorded.
    pub ended: String,
    /// Seconds, all sessions together.
    pub seconds: f64,
    /// Number of sessions.
    pub sessions: u32,
    /// What its journal says, kWh.
    pub journal_kwh: Range,
    /// Its part of that where others ran on the machine too, kWh.
    pub energy_kwh: Range,
    /// The part of the energy that was measured, 0 to 1.
    pub measured_share: f64,
    /// Operational emissions of its part, gCO2e.
    pub emissions_g: Span,
    /// Its share of making the hardware, gCO2e.
    pub embodied_g: Option<Range>,
    /// Water, litres.
    pub water_l: Option<Range>,
    /// Readings that failed.
    pub gaps: u64,
    /// The most seconds of one component whose energy is missing.
    pub gap_seconds: f64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should.
    Finished,
    /// Stopped by its user, with a checkpoint.
    Interrupted,
    /// With an error.
    Failed,
    /// Its journal has no end: it was killed, or is still running. What it drew after the last line of
    /// its journal is missing.
    Cut,
}

impl State {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
            Self::Cut => "killed or still running",
        }
    }
}

/// The sum of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageTotal {
    /// The stage, or none for runs that state none.
    pub stage: Option<Stage>,
    /// How many runs.
    pub runs: usize,
    /// Those among them that did not finish.
    pub unfinished_runs: usize,
    /// Seconds, all runs together.
    pub seconds: f64,
    /// Energy, kWh.
    pub energy_kwh: Range,
    /// That of the runs that did not finish, kWh.
    pub unfinished_kwh: Range,
    /// Operational emissions, gCO2e.
    pub emissions_g: Span,
}

/// What a caller knows of a folder's current run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct About {
    /// How it ended.
    pub state: Option<State>,
    /// The stage of all runs in the folder that state none.
    pub stage: Option<Stage>,
    /// Its energy, for a folder whose journal is gone.
    pub energy: Option<EnergyRecord>,
}

/// The place of runs that were measured without one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Placeless {
    /// The country.
    pub country: Option<String>,
    /// An own intensity.
    pub intensity: Option<StatedIntensity>,
}

/// Why there is no ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Something cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that was named is no ledger.
    #[error("`{}` is not a ledger: {reason}", path.display())]
    NotALedger {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A measurement of answering that was named is none.
    #[error("`{}` is no measurement of a model that answers: {reason}", path.display())]
    NotABench {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Requests are expected, and nothing says what one costs.
    #[error("no measurement of a model that answers was found, so what requests cost is not known")]
    NoBench,
    /// A journal of a newer version.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The place of the runs makes no sense.
    #[error(transparent)]
    Place(#[from] StartError),
    /// There is no run.
    #[error("there is no run below {}", paths.iter().map(|path| format!("`{}`", path.display())).collect::<Vec<_>>().join(", "))]
    NoRun {
        /// What was looked at.
        paths: Vec<PathBuf>,
    },
}

impl LedgerError {
    fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read {
            path: path.to_owned(),
            source,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => {
                Some("name folders with runs, or ledgers of `sparsam ledger --json`".to_owned())
            }
            Self::NotALedger { .. } => Some(
                "a ledger is what `sparsam ledger --json` prints; for a journal name its folder"
                    .to_owned(),
            ),
            Self::NotABench { .. } | Self::NoBench => {
                Some("`sparsam bench-generate` measures one and leaves it in its folder".to_owned())
            }
            Self::Journal(error) => error.hint(),
            Self::Place(error) => error.hint(),
            Self::NoRun { .. } => Some(
                "`sparsam train` leaves its runs in `output_dir`, `sparsam track` in `runs`"
                    .to_owned(),
            ),
        }
    }
}

/// A run before it is known what it shared.
struct Draft {
    entry: Entry,
    record: EnergyRecord,
    contents: Option<Contents>,
}

/// All runs at or below `paths`, which are folders or ledgers. `about` says what a folder is.
///
/// # Errors
/// Something that was named cannot be read, or there is no run.
pub fn gather(
    paths: &[PathBuf],
    placeless: &Placeless,
    about: &dyn Fn(&Path) -> Option<About>,
) -> Result<Lifecycle, LedgerError> {
    let (folders, files) = find::below(paths)?;
    let mut drafts = Vec::new();
    let mut unknown = Vec::new();
    let mut benches = Vec::new();
    for folder in &folders {
        if let Some(path) = inference::beside(&folder.path) {
            match Bench::read(&path) {
                Ok(bench) => benches.push(bench),
                Err(error) => unknown.push(error.to_string()),
            }
        }
        let about = about(&folder.path);
        read_folder(folder, about, placeless, &mut drafts, &mut unknown)?;
    }
    let mut copies = without_copies(&mut drafts);
    let names: Vec<String> = drafts
        .iter()
        .map(|draft| draft.entry.path.clone())
        .collect();
    let sessions: Vec<shared::Session> = drafts
        .iter()
        .enumerate()
        .filter_map(|(run, draft)| Some(shared::sessions(run, draft.contents.as_ref()?)))
        .flatten()
        .collect();
    let (off, mut shared) = shared::share(&sessions, &names);
    let mut runs: Vec<Entry> = drafts
        .into_iter()
        .zip(off)
        .map(|(draft, off)| complete(draft, off))
        .collect();
    for file in &files {
        let other = read_ledger(file)?;
        for entry in other.runs {
            match runs.iter_mut().find(|run| run.id == entry.id) {
                Some(run) => {
                    copies.push(format!("{} in {}", entry.path, file.display()));
                    if entry.seconds > run.seconds {
                        *run = entry;
                    }
                }
                None => runs.push(entry),
            }
        }
        shared.extend(other.shared);
        unknown.extend(other.unknown);
        benches.extend(other.inference);
    }
    if runs.is_empty() && unknown.is_empty() {
        return Err(LedgerError::NoRun {
            paths: paths.to_vec(),
        });
    }
    let mut ledger = total(runs, shared, copies, unknown);
    ledger.inference = inference::latest(benches);
    Ok(ledger)
}

fn read_folder(
    folder: &find::RunFolder,
    about: Option<About>,
    placeless: &Placeless,
    drafts: &mut Vec<Draft>,
    unknown: &mut Vec<String>,
) -> Result<(), LedgerError> {
    let known = about.is_some();
    let about = about.unwrap_or_default();
    let last = folder.journals.len().saturating_sub(1);
    let mut has_current = false;
    for (index, path) in folder.journals.iter().enumerate() {
        let current = folder.has_current && index == last;
        let contents = match journal::read(path) {
            Ok(contents) => contents,
            Err(error @ JournalError::Empty { .. }) => {
                // The caller's record may have what the journal lacks.
                if !current || about.energy.is_none() {
                    unknown.push(error.to_string());
                    has_current |= current;
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        has_current |= current;
        let Some(record) = Ledger::replay(contents.clone()).record() else {
            continue;
        };
        let state = match about.state.filter(|_| current) {
            Some(state) => state,
            None if record.ended_early => State::Cut,
            None => State::Finished,
        };
        let id = fingerprint(&contents).unwrap_or_else(|| path.display().to_string());
        let draft = draft(id, path, record, state, about.stage, placeless)?;
        drafts.push(Draft {
            contents: Some(contents),
            ..draft
        });
    }
    if has_current {
        return Ok(());
    }
    let recorded = match (&about.energy, &folder.record) {
        (Some(energy), _) => Some((folder.path.as_path(), energy.clone())),
        (None, Some(path)) => {
            let bytes = std::fs::read(path).map_err(LedgerError::read(path))?;
            // Other programs have files of that name too.
            serde_json::from_slice(&bytes)
                .ok()
                .map(|record| (path.as_path(), record))
        }
        (None, None) => None,
    };
    match recorded {
        Some((path, record)) => {
            let state = match about.state {
                Some(state) => state,
                None if record.ended_early => State::Cut,
                None => State::Finished,
            };
            let id = format!(
                "{} {} {}",
                record.started, record.name, record.energy_kwh.central
            );
            drafts.push(draft(id, path, record, state, about.stage, placeless)?);
        }
        None if known => unknown.push(format!(
            "`{}` holds a run without a journal or a record of its energy",
            folder.path.display()
        )),
        None => {}
    }
    Ok(())
}

/// A run as its record has it, at the place given where it has none.
fn draft(
    id: String,
    path: &Path,
    record: EnergyRecord,
    state: State,
    stage: Option<Stage>,
    placeless: &Placeless,
) -> Result<Draft, LedgerError> {
    let record = if record.emissions_g.central.is_none() {
        record.at_place(placeless.country.as_deref(), placeless.intensity.as_ref())?
    } else {
        record
    };
    let entry = Entry {
        id,
        name: record.name.clone(),
        path: path.display().to_string(),
        stage: record.stage.or(stage),
        state,
        started: record.started.clone(),
        ended: record.ended.clone(),
        seconds: record.duration_seconds,
        sessions: record.sessions,
        journal_kwh: record.energy_kwh,
        energy_kwh: record.energy_kwh,
        measured_share: record.measured_share,
        emissions_g: record.emissions_g,
        embodied_g: None,
        water_l: None,
        gaps: record.gaps,
        gap_seconds: record
            .components
            .iter()
            .map(|c| c.gap_seconds)
            .fold(0.0, f64::max),
    };
    Ok(Draft {
        entry,
        record,
        contents: None,
    })
}

/// A run with what is its own of the machine.
fn complete(draft: Draft, off: shared::TakenOff) -> Entry {
    let Draft {
        mut entry, record, ..
    } = draft;
    let taken = accounting::kwh(off.joules);
    if taken.central > 0.0 {
        entry.energy_kwh = record.energy_kwh - taken;
        entry.emissions_g = accounting::operational_g(
            entry.energy_kwh,
            record.pue.value,
            record.intensity.g_per_kwh,
        );
    }
    let hours = (record.duration_seconds - off.seconds).max(0.0) / 3600.0;
    entry.embodied_g = embodied::of_gpus(&record.hardware.gpus, hours).map(|e| e.grams);
    entry.water_l = record
        .water
        .as_ref()
        .map(|Water { rates, .. }| water::litres(entry.energy_kwh, record.pue.value, rates).litres);
    entry
}

/// The start of a run and its first reading, which no other run has, as one short word. None while
/// nothing was read: such a journal has no energy that could be counted twice.
fn fingerprint(contents: &Contents) -> Option<String> {
    let start = contents
        .events
        .iter()
        .find(|event| matches!(event, Event::Start(_)))?;
    let reading = contents.events.iter().find(|event| match event {
        Event::Sample(totals)
        | Event::Enter { totals, .. }
        | Event::Leave { totals, .. }
        | Event::End(totals) => totals.t > 0.0,
        _ => false,
    })?;
    let text = serde_json::to_string(&[start, reading]).ok()?;
    // FNV-1a, 64 bits (Fowler, Noll and Vo).
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Some(format!("{hash:016x}"))
}

/// Takes out runs that are there already, and keeps of each the copy that goes furthest. Gives the names
/// of the others.
fn without_copies(drafts: &mut Vec<Draft>) -> Vec<String> {
    let mut copies = Vec::new();
    let mut kept: Vec<Draft> = Vec::with_capacity(drafts.len());
    for draft in drafts.drain(..) {
        match kept.iter_mut().find(|have| have.entry.id == draft.entry.id) {
            Some(have) if draft.entry.seconds > have.entry.seconds => {
                copies.push(std::mem::replace(have, draft).entry.path);
            }
            Some(_) => copies.push(draft.entry.path),
            None => kept.push(draft),
        }
    }
    *drafts = kept;
    copies
}

fn read_ledger(path: &Path) -> Result<Lifecycle, LedgerError> {
    let not = |reason: String| LedgerError::NotALedger {
        path: path.to_owned(),
        reason,
    };
    let bytes = std::fs::read(path).map_err(LedgerError::read(path))?;
    let ledger: Lifecycle = serde_json::from_slice(&bytes).map_err(|e| not(e.to_string()))?;
    if ledger.sparsam_ledger > LEDGER_VERSION {
        return Err(not(format!(
            "it has version {}, newer than this program's {LEDGER_VERSION}",
            ledger.sparsam_ledger
        )));
    }
    Ok(ledger)
}

fn total(
    mut runs: Vec<Entry>,
    shared: Vec<Shared>,
    copies: Vec<String>,
    unknown: Vec<String>,
) -> Lifecycle {
    runs.sort_by(|a, b| (&a.started, &a.path).cmp(&(&b.started, &b.path)));
    let stages = Stage::ALL
        .into_iter()
        .map(Some)
        .chain([None])
        .filter_map(|stage| {
            let of: Vec<&Entry> = runs.iter().filter(|run| run.stage == stage).collect();
            (!of.is_empty()).then(|| stage_total(stage, &of))
        })
        .collect();
    let all: Vec<&Entry> = runs.iter().collect();
    let journals_kwh: Range = runs.iter().map(|run| run.journal_kwh).sum();
    let energy_kwh: Range = runs.iter().map(|run| run.energy_kwh).sum();
    let some = |of: &dyn Fn(&Entry) -> Option<Range>| {
        let known: Vec<Range> = runs.iter().filter_map(of).collect();
        let without = runs.len() - known.len();
        (
            (!known.is_empty()).then(|| known.into_iter().sum()),
            without,
        )
    };
    let (embodied_g, without_embodied) = some(&|run| run.embodied_g);
    let (water_l, without_water) = some(&|run| run.water_l);
    Lifecycle {
        sparsam_ledger: LEDGER_VERSION,
        stages,
        journals_kwh,
        counted_twice_kwh: runs
            .iter()
            .map(|run| run.journal_kwh - run.energy_kwh)
            .sum(),
        energy_kwh,
        emissions_g: emissions(&all),
        embodied_g,
        without_embodied,
        water_l,
        without_water,
        shared,
        copies,
        unknown,
        inference: Vec::new(),
        expected: None,
        runs,
    }
}

fn stage_total(stage: Option<Stage>, runs: &[&Entry]) -> StageTotal {
    let unfinished: Vec<&&Entry> = runs
        .iter()
        .filter(|run| run.state != State::Finished)
        .collect();
    StageTotal {
        stage,
        runs: runs.len(),
        unfinished_runs: unfinished.len(),
        seconds: runs.iter().map(|run| run.seconds).sum(),
        energy_kwh: runs.iter().map(|run| run.energy_kwh).sum(),
        unfinished_kwh: unfinished.iter().map(|run| run.energy_kwh).sum(),
        emissions_g: emissions(runs),
    }
}

fn emissions(runs: &[&Entry]) -> Span {
    Span {
        low: runs
            .iter()
            .map(|run| run.emissions_g.low)
            .fold(0.0, |a, b| a + b),
        central: runs.iter().map(|run| run.emissions_g.central).sum(),
        high: runs
            .iter()
            .map(|run| run.emissions_g.high)
            .fold(0.0, |a, b| a + b),
    }
}
