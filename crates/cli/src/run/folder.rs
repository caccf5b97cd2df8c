//! The folder of a run: claimed before anything slow, given back clean if nothing came of it.

use std::fs::File;
use std::path::{Path, PathBuf};

use sparsam_adapter::checkpoint;

use crate::error::{Failure, io_reason};
use crate::run_record::{self, RunRecord};

/// Held while a run writes into its folder.
const LOCK: &str = ".lock";

/// A claimed folder. Dropping it gives it back.
pub(super) struct Folder {
    /// Where the run leaves everything.
    pub(super) path: PathBuf,
    /// Held for its lock, which ends with the file.
    lock: Option<File>,
    /// What was there before, if the folder was.
    existed: bool,
    /// Whether something worth keeping lies in it.
    kept: bool,
}

/// From where a run goes on.
pub(super) struct Resumed {
    /// The folder of the checkpoint. None if the run ended before its first: it begins again, and the
    /// energy of both is counted.
    pub(super) checkpoint: Option<PathBuf>,
    /// The record so far.
    pub(super) record: RunRecord,
}

impl Folder {
    /// Creates the folder if need be, makes sure that it can be written to and that no other run does.
    pub(super) fn claim(path: &Path) -> Result<Self, Failure> {
        let existed = path.exists();
        let refuse = |error: &std::io::Error| {
            Failure::run(format!(
                "cannot write to `output_dir`, `{}`: {}",
                path.display(),
                io_reason(error)
            ))
            .hint("choose a folder you may write to, such as `output_dir=runs/mine`")
        };
        // Not through fs_err, whose messages name the path again.
        std::fs::create_dir_all(path).map_err(|error| refuse(&error))?;
        let lock = File::create(path.join(LOCK)).map_err(|error| refuse(&error))?;
        // On a file system without locks, two runs at once are the user's own affair.
        if let Err(std::fs::TryLockError::WouldBlock) = lock.try_lock() {
            return Err(
                Failure::usage(format!("another run is writing to `{}`", path.display()))
                    .hint("wait for it, or give this one a folder of its own with `output_dir=…`"),
            );
        }
        Ok(Self {
            path: path.to_owned(),
            lock: Some(lock),
            existed,
            kept: false,
        })
    }

    /// Refuses a folder that holds a run already.
    pub(super) fn is_fresh(path: &Path) -> Result<(), Failure> {
        if path.join(run_record::FILE_NAME).exists() {
            return Err(
                Failure::usage(format!("`{}` already holds a run", path.display())).hint(
                    "add `--resume` to continue it, or choose another folder with `output_dir=…`",
                ),
            );
        }
        Ok(())
    }

    /// Finds the run to continue: that in `path`, from its last checkpoint or from the one given.
    pub(super) fn to_resume(path: &Path, from: Option<&Path>) -> anyhow::Result<Resumed> {
        let record = RunRecord::read(path)?;
        let checkpoint = match from {
            Some(from) => Some(from.to_owned()),
            None => checkpoint::latest(&path.join(super::CHECKPOINTS))?,
        };
        if let Some(checkpoint) = checkpoint.as_ref().filter(|folder| !folder.is_dir()) {
            return Err(Failure::usage(format!(
                "there is no checkpoint `{}`",
                checkpoint.display()
            ))
            .hint("`--resume` alone takes the last one in the output folder")
            .into());
        }
        Ok(Resumed { checkpoint, record })
    }

    /// From now on the folder stays, whatever happens.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.lock = None;
        // What cannot be removed stays, harmlessly.
        let _ = fs_err::remove_file(self.path.join(LOCK));
        if !self.kept && !self.existed {
            let _ = fs_err::remove_file(self.path.join("energy.jsonl"));
            let _ = fs_err::remove_dir(&self.path);
        }
    }
}
