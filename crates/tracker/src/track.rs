//! Running any other program under the tracker. The child inherits standard input, output and error,
//! and nothing is printed while it runs; its exit code is handed on, and the signals that are meant for
//! it reach it. When it is done the folder holds a journal, the record as JSON, `emissions.csv` with
//! codecarbon's columns, and a block for a model card.
//!
//! What the terminal's own keys send (Ctrl-C, Ctrl-\) goes to the whole foreground group, the child
//! included: this program only has to survive it. What is sent to this program alone (`kill`) is passed
//! on. A signal handler does nothing but note the number; a thread of its own forwards it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use crate::card::{TrainingKind, emissions_block};
use crate::export;
use crate::record::EnergyRecord;
use crate::tracker::{Options, StartError, Tracker};

/// The record's name in the run folder.
pub const RECORD_FILE: &str = "energy.json";

/// The card block's name in the run folder.
pub const CARD_FILE: &str = "card-block.md";

/// The name of the table in codecarbon's columns.
pub const CSV_FILE: &str = "emissions.csv";

/// What is run, and under which options. The folder is `options.run_dir`.
#[derive(Debug, Clone)]
pub struct Request {
    /// The tracker's options.
    pub options: Options,
    /// The program and its arguments.
    pub command: Vec<OsString>,
}

/// Why the program was not run.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// No program was named.
    #[error("no command was given")]
    NoCommand,
    /// The options make no sense.
    #[error(transparent)]
    Options(#[from] StartError),
    /// The program cannot be started.
    #[error("cannot run `{program}`: {}", refusal(error))]
    Spawn {
        /// Its name.
        program: String,
        /// What the system said.
        error: io::Error,
    },
    /// The program ran, and waiting for it failed.
    #[error("cannot wait for `{program}`: {source}")]
    Wait {
        /// Its name.
        program: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a program cannot be run, in words.
fn refusal(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such program".to_owned(),
        io::ErrorKind::PermissionDenied => "it may not be executed".to_owned(),
        _ => error.to_string(),
    }
}

impl TrackError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoCommand => {
                Some("put the command after `--`, as in `-- python train.py`".to_owned())
            }
            Self::Options(error) => error.hint(),
            Self::Spawn { error, .. } if error.kind() == io::ErrorKind::NotFound => {
                Some("is it installed and on the PATH?".to_owned())
            }
            Self::Spawn { .. } => Some(
                "is it a program for this system, and may it be executed (`chmod +x`)?".to_owned(),
            ),
            Self::Wait { .. } => None,
        }
    }

    /// The code a shell would give: 127 where the program is not found, 126 where it cannot be run.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Spawn { error, .. } if error.kind() == io::ErrorKind::NotFound => 127,
            Self::Spawn { .. } => 126,
            _ => 2,
        }
    }
}

/// How the program ended, and what it cost.
#[derive(Debug)]
pub struct Tracked {
    /// The code to exit with: the program's own, or 128 and the number of the signal that ended it.
    pub exit_code: u8,
    /// The record.
    pub record: EnergyRecord,
    /// The files that were written.
    pub files: Vec<PathBuf>,
    /// Files that could not be written, and why. The program's exit code is not changed by that.
    pub problems: Vec<String>,
}

/// Runs the program to its end.
///
/// # Errors
/// The options make no sense, or the program cannot be started. A sensor or a disk that fails is no
/// error.
pub fn run(request: &Request) -> Result<Tracked, TrackError> {
    let (program, arguments) = request.command.split_first().ok_or(TrackError::NoCommand)?;
    let name = || program.to_string_lossy().into_owned();
    // Before anything is measured or written. What only spawning can find out is found out there.
    if !can_be_found(program) {
        return Err(TrackError::Spawn {
            program: name(),
            error: io::ErrorKind::NotFound.into(),
        });
    }
    let tracker = Tracker::start(&request.options)?;
    // Caught before the child is there, so that no signal falls between.
    let not_started = |error| TrackError::Spawn {
        program: name(),
        error,
    };
    let signals = signals::Forwarder::install().map_err(not_started)?;
    let child = Command::new(program)
        .args(arguments)
        .spawn()
        .map_err(not_started)?;
    let status = {
        let _window = tracker.window("command");
        wait(child, &signals)
    };
    drop(signals);
    let record = tracker.finish();
    let status = status.map_err(|source| TrackError::Wait {
        program: name(),
        source,
    })?;
    let (mut files, mut problems) = (Vec::new(), Vec::new());
    if let Some(folder) = request.options.run_dir.as_deref() {
        write_all(folder, &record, &mut files, &mut problems);
    }
    Ok(Tracked {
        exit_code: exit_code(status),
        record,
        files,
        problems,
    })
}

/// Whether a file of that name is where the system would look for a program.
#[cfg(unix)]
fn can_be_found(program: &OsStr) -> bool {
    let Some(path) = std::env::var_os("PATH") else {
        return true; // The system has a path of its own then.
    };
    if program.as_encoded_bytes().contains(&b'/') {
        return Path::new(program).exists();
    }
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// Other systems have rules of their own, which are theirs to apply.
#[cfg(not(unix))]
fn can_be_found(_: &OsStr) -> bool {
    true
}

/// Waits for the child, and passes on what is sent to this program meanwhile.
fn wait(mut child: Child, signals: &signals::Forwarder) -> io::Result<ExitStatus> {
    signals.forward_to(child.id());
    signals::wait_until_over(child.id());
    // Until it is waited for, the number is the child's alone.
    signals.stop();
    child.wait()
}

/// A shell's code for how a program ended.
fn exit_code(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return u8::try_from(128 + signal).unwrap_or(u8::MAX);
    }
    status
        .code()
        .map_or(1, |code| u8::try_from(code & 0xff).unwrap_or(1))
}

/// Writes record, table and card block of a run into its folder.
fn write_all(
    folder: &Path,
    record: &EnergyRecord,
    files: &mut Vec<PathBuf>,
    problems: &mut Vec<String>,
) {
    let mut note = |path: PathBuf, written: io::Result<()>| match written {
        Ok(()) => files.push(path),
        Err(error) => problems.push(format!("cannot write `{}`: {error}", path.display())),
    };
    let journal = folder.join(crate::journal::FILE_NAME);
    if journal.exists() {
        note(journal, Ok(()));
    }
    let json = folder.join(RECORD_FILE);
    note(json.clone(), write_json(&json, record));
    let csv = folder.join(CSV_FILE);
    note(csv.clone(), export::append_csv(&csv, record));
    let block = folder.join(CARD_FILE);
    note(block.clone(), write_card(&block, record));
}

/// Writes what [`run`] leaves in its folder again, from a record that was read from the journal: after a
/// crash, or for a country that was not known before. The table gets a row where it has none of this run.
/// Gives the paths.
///
/// # Errors
/// A file cannot be read or written.
pub fn write_record(folder: &Path, record: &EnergyRecord) -> io::Result<Vec<PathBuf>> {
    let (json, csv) = (folder.join(RECORD_FILE), folder.join(CSV_FILE));
    let card = folder.join(CARD_FILE);
    write_card(&card, record)?;
    write_json(&json, record)?;
    if !export::csv_holds(&csv, record)? {
        export::append_csv(&csv, record)?;
    }
    Ok(vec![card, json, csv])
}

fn write_json(path: &Path, record: &EnergyRecord) -> io::Result<()> {
    write_beside(path, export::record_json(record).as_bytes())
}

fn write_card(path: &Path, record: &EnergyRecord) -> io::Result<()> {
    let (block, section) = emissions_block(record, TrainingKind::FineTuning, None, None);
    let card = if block.is_empty() {
        section
    } else {
        format!("---\n{block}---\n\n{section}")
    };
    write_beside(path, card.as_bytes())
}

/// Writes a file beside its name, then renames it.
pub(crate) fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or(io::ErrorKind::InvalidInput)?
        .to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}.new", std::process::id()));
    let written = fs::File::create(&beside)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        drop(fs::remove_file(&beside));
    }
    written
}

/// Signals on Unix.
#[cfg(unix)]
mod signals {
    use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
    use std::mem::MaybeUninit;
    use std::os::fd::{AsRawFd as _, RawFd};
    use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
    use std::sync::{Arc, Mutex, PoisonError};
    use std::thread::JoinHandle;

    /// Those that are caught.
    const CAUGHT: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

    /// Whether a signal has arrived that is still to be passed on, in the order of [`CAUGHT`].
    static ARRIVED: [AtomicBool; CAUGHT.len()] = [const { AtomicBool::new(false) }; CAUGHT.len()];

    /// What a handler wakes the thread through that passes signals on: the end of a pipe, or -1.
    static WAKE: AtomicI32 = AtomicI32::new(-1);

    /// Notes a signal that a process has sent. What comes from the kernel (the terminal's keys) has
    /// reached the child by itself, and a second SIGINT would make many programs stop without tidying
    /// up.
    extern "C" fn note(
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        _context: *mut libc::c_void,
    ) {
        #[expect(unsafe_code, reason = "the kernel gives a pointer")]
        // SAFETY: with SA_SIGINFO the kernel gives a valid pointer for the time of the call.
        let by_a_process = unsafe { (*info).si_code } <= 0;
        if by_a_process {
            for (slot, caught) in ARRIVED.iter().zip(CAUGHT) {
                if caught == signal {
                    slot.store(true, Ordering::SeqCst);
                }
            }
            let pipe: RawFd = WAKE.load(Ordering::SeqCst);
            if pipe >= 0 {
                #[expect(unsafe_code, reason = "a handler may call nothing else")]
                // SAFETY: one byte, to a pipe that is open as long as it stands in `WAKE`. It holds far more than comes
                // before it is read, so that this neither waits nor fails.
                unsafe {
                    libc::write(pipe, [0u8].as_ptr().cast(), 1);
                }
            }
        }
    }

    /// Catches signals while it lives, and passes them on to a child.
    pub(super) struct Forwarder {
        before: Vec<(libc::c_int, libc::sigaction)>,
        /// Held while a signal is sent, so that none goes to a number that is free again.
        child: Arc<Mutex<Option<libc::pid_t>>>,
        over: Arc<AtomicBool>,
        thread: Option<JoinHandle<()>>,
        /// What wakes the thread.
        pipe: PipeWriter,
    }

    impl Forwarder {
        /// # Errors
        /// There is no room for a pipe or a thread.
        pub(super) fn install() -> io::Result<Self> {
            for slot in &ARRIVED {
                slot.store(false, Ordering::SeqCst);
            }
            let (reader, pipe) = io::pipe()?;
            let (child, over) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
            let thread = std::thread::Builder::new()
                .name("sparsam-signals".to_owned())
                .spawn({
                    let (child, over) = (Arc::clone(&child), Arc::clone(&over));
                    move || pass_on_until(&over, &child, reader)
                })?;
            WAKE.store(pipe.as_raw_fd(), Ordering::SeqCst);
            let before = CAUGHT
                .into_iter()
                .filter_map(|signal| Some((signal, catch(signal)?)))
                .collect();
            Ok(Self {
                before,
                child,
                over,
                thread: Some(thread),
                pipe,
            })
        }

        /// From now on this process receives the signals.
        pub(super) fn forward_to(&self, child: u32) {
            self.set(libc::pid_t::try_from(child).ok());
        }

        /// The child is gone.
        pub(super) fn stop(&self) {
            self.set(None);
        }

        fn set(&self, child: Option<libc::pid_t>) {
            *self.child.lock().unwrap_or_else(PoisonError::into_inner) = child;
            self.wake(); // For what arrived before.
        }

        fn wake(&self) {
            // It fails only where the thread is gone.
            let _ = (&self.pipe).write(&[0]);
        }
    }

    impl Drop for Forwarder {
        fn drop(&mut self) {
            for (signal, action) in &self.before {
                set_action(*signal, action);
            }
            // Unless a later one stands there.
            let own = self.pipe.as_raw_fd();
            let _ = WAKE.compare_exchange(own, -1, Ordering::SeqCst, Ordering::SeqCst);
            self.over.store(true, Ordering::SeqCst);
            self.wake();
            if let Some(thread) = self.thread.take() {
                drop(thread.join());
            }
        }
    }

    /// Passes on what arrives, whenever it is woken, until all is over.
    fn pass_on_until(over: &AtomicBool, child: &Mutex<Option<libc::pid_t>>, mut pipe: PipeReader) {
        while !over.load(Ordering::SeqCst) {
            pass_on(child);
            match pipe.read(&mut [0; 64]) {
                Ok(0) => return,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return,
                _ => {}
            }
        }
    }

    /// Catches a signal, and gives what was done with it before. None where it is ignored, as under
    /// nohup: it stays ignored, and the child inherits that.
    fn catch(signal: libc::c_int) -> Option<libc::sigaction> {
        #[expect(unsafe_code, reason = "an all-zero sigaction is the empty one")]
        // SAFETY: sigaction is a plain C structure of numbers and a set of signals, valid as zeros.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = note as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        let before = set_action(signal, &action)?;
        if before.sa_sigaction == libc::SIG_IGN {
            set_action(signal, &before);
            return None;
        }
        Some(before)
    }

    /// Sets what is done with a signal, and gives what was done before.
    fn set_action(signal: libc::c_int, action: &libc::sigaction) -> Option<libc::sigaction> {
        let mut before = MaybeUninit::<libc::sigaction>::uninit();
        #[expect(unsafe_code, reason = "the standard library has no signal handlers")]
        // SAFETY: both pointers are valid for the call; the handler, where there is one, does only what
        // a handler may do and lives as long as the program. On success `before` has been written.
        unsafe {
            (libc::sigaction(signal, &raw const *action, before.as_mut_ptr()) == 0)
                .then(|| before.assume_init())
        }
    }

    /// Sends what has arrived to the child, if there is one.
    fn pass_on(child: &Mutex<Option<libc::pid_t>>) {
        let held = child.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(child) = *held else {
            return; // Kept until there is one.
        };
        for (slot, signal) in ARRIVED.iter().zip(CAUGHT) {
            if slot.swap(false, Ordering::SeqCst) {
                #[expect(unsafe_code, reason = "the standard library can only kill")]
                // SAFETY: plain numbers; the child has not been waited for, so its number is its own.
                unsafe {
                    libc::kill(child, signal);
                }
            }
        }
    }

    /// Returns when the child has ended, and leaves it to be waited for.
    pub(super) fn wait_until_over(child: u32) {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        loop {
            #[expect(unsafe_code, reason = "the standard library always reaps a child")]
            // SAFETY: `info` is valid for writing during the call.
            let result = unsafe {
                libc::waitid(
                    libc::P_PID,
                    child,
                    info.as_mut_ptr(),
                    libc::WEXITED | libc::WNOWAIT,
                )
            };
            let interrupted =
                || std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted;
            if result == 0 || !interrupted() {
                return; // On any other error the wait that follows will say so.
            }
        }
    }
}

/// Other systems pass the terminal's keys to the child by themselves.
#[cfg(not(unix))]
mod signals {
    pub(super) struct Forwarder;

    impl Forwarder {
        #[expect(clippy::unnecessary_wraps, reason = "on Unix it can fail")]
        pub(super) fn install() -> std::io::Result<Self> {
            Ok(Self)
        }

        pub(super) fn forward_to(&self, _: u32) {}

        pub(super) fn stop(&self) {}
    }

    pub(super) fn wait_until_over(_: u32) {}
}
