//! The journal: one JSON object a line in `energy.jsonl`, only ever appended to. It is the run's memory
//! of its energy when the process is gone: whatever kills the run, the file reads back up to its last
//! whole line. A session of a run opens with `start`, which carries all that is needed to make a record
//! from the file alone; a resumed run appends a further session, whose counters start at zero again.
//!
//! This file knows the format and the disk. What the lines add up to is the business of
//! [`crate::window::Ledger`].

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::accounting::Pue;
use crate::intensity::CarbonIntensity;
use crate::meter::Domain;
use crate::record::{Baseline, Hardware, Place};
use crate::stage::Stage;
use crate::water::WaterRates;

/// The journal's name in the run folder.
pub const FILE_NAME: &str = "energy.jsonl";

/// The version of the format, raised when a reader must change.
pub const JOURNAL_VERSION: u32 = 1;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A session starts; its counters stand at zero.
    Start(Box<Start>),
    /// The counters now.
    Sample(Totals),
    /// A window opens.
    Enter {
        /// The window's own name, without its parents'.
        window: String,
        /// The counters at that moment.
        #[serde(flatten)]
        totals: Totals,
    },
    /// A window closes, and with it all that were opened inside it.
    Leave {
        /// The window's own name.
        window: String,
        /// The counters at that moment.
        #[serde(flatten)]
        totals: Totals,
    },
    /// The grid was asked how clean it is now.
    Intensity {
        /// gCO2e/kWh from now on; nothing where there was no answer.
        g_per_kwh: Option<f64>,
        /// Wall time, RFC 3339 in UTC.
        at: String,
        /// The counters at that moment.
        #[serde(flatten)]
        totals: Totals,
    },
    /// Something a reader of the figures should know.
    Note {
        /// In words.
        text: String,
    },
    /// The session ended as it should.
    End(Totals),
}

/// The first line of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// [`JOURNAL_VERSION`] of the writer.
    pub version: u32,
    /// The run's name.
    pub name: String,
    /// Wall time, RFC 3339 in UTC.
    pub at: String,
    /// What is counted, in the order of [`Totals::joules`].
    pub domains: Vec<Domain>,
    /// The machine.
    pub hardware: Hardware,
    /// The country, where it was given.
    pub place: Option<Place>,
    /// Carbon intensity of the electricity, where nothing tells it live.
    pub intensity: CarbonIntensity,
    /// Who tells it live, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<String>,
    /// Power usage effectiveness.
    pub pue: Pue,
    /// What the energy consists of.
    #[serde(default)]
    pub contains: Vec<String>,
    /// What the figures leave out.
    pub not_included: Vec<String>,
    /// Idle power before the session, where it was measured.
    #[serde(default)]
    pub baseline: Option<Baseline>,
    /// Litres for each kilowatt-hour, where they are known.
    #[serde(default)]
    pub water: Option<WaterRates>,
    /// The part of a project the run belongs to, where it was stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// By which runs that shared a machine are recognised; journals of older versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,
}

/// A machine from one start of its system to the next, and the part of it that a run may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// The kernel's random number for this start of the system, which says nothing about the machine.
    pub boot: String,
    /// The processors and control groups that models of power go by; counters are the machine's.
    pub part: String,
    /// The session's start, seconds since 1970 in UTC, finer than [`Start::at`].
    pub began: f64,
}

/// The counters of a session at one moment.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Seconds since the session's start.
    pub t: f64,
    /// Joules since the session's start, `[low, central, high]` for each domain.
    pub joules: Vec<[f64; 3]>,
    /// Failed readings and lost seconds of each domain; empty while there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<(u64, f64)>,
}

/// A journal that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be read.
    #[error("cannot read the energy journal `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No session starts in it.
    #[error("`{}` holds no whole first line of an energy journal", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A newer sparsam wrote it.
    #[error("`{}` is an energy journal of version {version}, newer than this program's {JOURNAL_VERSION}", path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// The version it states.
        version: u32,
    },
}

impl JournalError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => Some(format!(
                "give the folder of a run: its journal is called `{FILE_NAME}`"
            )),
            Self::Empty { .. } => {
                Some("the run was stopped before its energy was first recorded".to_owned())
            }
            Self::TooNew { .. } => Some("use the version of sparsam that wrote it".to_owned()),
        }
    }
}

/// What a journal holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Contents {
    /// All whole lines, in order.
    pub events: Vec<Event>,
    /// Lines that could not be read: torn by a crash, or damaged.
    pub unreadable_lines: usize,
}

/// Reads all whole lines. A line that was cut by a crash is counted and skipped.
pub fn parse(bytes: &[u8]) -> Contents {
    let mut contents = Contents::default();
    for line in bytes.split(|byte| *byte == b'\n') {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match serde_json::from_slice(line) {
            Ok(event) => contents.events.push(event),
            Err(_) => contents.unreadable_lines += 1,
        }
    }
    contents
}

/// Reads a journal file.
///
/// # Errors
/// The file cannot be read, holds no session, or was written by a newer version.
pub fn read(path: &Path) -> Result<Contents, JournalError> {
    let bytes = std::fs::read(path).map_err(|source| JournalError::Read {
        path: path.to_owned(),
        source,
    })?;
    let contents = parse(&bytes);
    let mut starts = contents.events.iter().filter_map(|event| match event {
        Event::Start(start) => Some(start.version),
        _ => None,
    });
    let Some(first) = starts.next() else {
        return Err(JournalError::Empty {
            path: path.to_owned(),
        });
    };
    let version = starts.fold(first, u32::max);
    if version > JOURNAL_VERSION {
        return Err(JournalError::TooNew {
            path: path.to_owned(),
            version,
        });
    }
    Ok(contents)
}

/// Appends lines to a journal.
#[derive(Debug)]
pub struct Writer {
    file: File,
    /// The file may end inside a line, so that the next line must not be glued to it.
    torn: bool,
}

impl Writer {
    /// Opens the journal of a run folder for appending, and makes the folder where it is missing.
    ///
    /// Unless the run is `resumed`, a journal that is already there belongs to an earlier run: it is
    /// kept beside as `energy.1.jsonl`, `energy.2.jsonl`, …, for its energy was spent too.
    ///
    /// # Errors
    /// The folder or file cannot be made, opened or moved.
    pub fn open(run_dir: &Path, resumed: bool) -> io::Result<Self> {
        std::fs::create_dir_all(run_dir)?;
        let path = run_dir.join(FILE_NAME);
        if !resumed && path.try_exists()? {
            std::fs::rename(&path, free_name(run_dir)?)?;
        }
        let mut file = File::options()
            .create(true)
            .append(true)
            .read(true)
            .open(&path)?;
        let torn = if file.metadata()?.len() == 0 {
            false
        } else {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            last != *b"\n"
        };
        Ok(Self { file, torn })
    }

    /// Appends one line, in one write.
    ///
    /// # Errors
    /// The line could not be written whole; the next one starts on a line of its own.
    pub fn append(&mut self, event: &Event) -> io::Result<()> {
        let mut line = if self.torn { vec![b'\n'] } else { Vec::new() };
        serde_json::to_writer(&mut line, event)?;
        line.push(b'\n');
        self.torn = true;
        self.file.write_all(&line)?;
        self.torn = false;
        Ok(())
    }

    /// Has the system put all lines on the disk.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The first of `energy.1.jsonl`, `energy.2.jsonl`, … that is not taken.
fn free_name(run_dir: &Path) -> io::Result<PathBuf> {
    for number in 1u32.. {
        let path = run_dir.join(format!("energy.{number}.jsonl"));
        if !path.try_exists()? {
            return Ok(path);
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}
