//! The adapter that a command is given: one, or several whose effects add up.

use std::path::{Path, PathBuf};

use sparsam_adapter::parts::Parts;
use sparsam_adapter::peft;
use tempfile::TempDir;

use crate::args::BaseArgs;
use crate::from_hub;

/// An adapter's folder, which is here as long as this is.
pub(crate) struct Adapter {
    folder: PathBuf,
    _room: Option<TempDir>,
}

impl Adapter {
    /// The adapter that is named, if one is; of several, their sum in a folder of its own.
    ///
    /// # Errors
    /// Adapters that cannot be had, or that do not add up.
    pub(crate) fn of(args: &BaseArgs, quiet: bool) -> anyhow::Result<Option<Self>> {
        let (folder, room) = match args.adapter.as_slice() {
            [] => return Ok(None),
            [one] => (from_hub::adapter(one, quiet)?, None),
            several => {
                let parts = combined(several, &vec![1.0; several.len()], quiet)?;
                let room = tempfile::tempdir()?;
                peft::save_parts(room.path(), &parts)?;
                (room.path().to_owned(), Some(room))
            }
        };
        Ok(Some(Self {
            folder,
            _room: room,
        }))
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The sum of adapters, each times its weight.
///
/// # Errors
/// Folders that are no adapters, or adapters that do not add up.
pub(crate) fn combined(
    adapters: &[PathBuf],
    weights: &[f64],
    quiet: bool,
) -> anyhow::Result<Parts> {
    let mut all = Vec::with_capacity(adapters.len());
    for (adapter, weight) in adapters.iter().zip(weights) {
        let folder = from_hub::adapter(adapter, quiet)?;
        all.push((Parts::read(&folder)?, *weight));
    }
    Ok(Parts::combine(&all)?)
}
