//! `held_out.json`: the evaluation of what was kept, batch by batch and answer by answer. The record has
//! the means; from this file their spread can be judged, and two runs be compared on the same rows.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sparsam_adapter::evaluate::BatchLoss;

use crate::run_record::write_whole;

/// The name of the file in the run's folder.
pub(crate) const FILE_NAME: &str = "held_out.json";

/// What was measured on held-out data.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct HeldOut {
    /// Of each batch before the first step: the sum of the loss in nats, and the number of targets.
    #[serde(default)]
    pub(crate) before: Vec<(f64, usize)>,
    /// The same with what was kept.
    #[serde(default)]
    pub(crate) after: Vec<(f64, usize)>,
    /// Whether each answer was right, with what was kept; empty where none were counted.
    #[serde(default)]
    pub(crate) exact: Vec<bool>,
    /// Of each text that is classified: its class and what it was given, with what was kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) classes: Vec<(u32, u32)>,
}

/// Losses in the form of the file.
pub(super) fn pairs(losses: &[BatchLoss]) -> Vec<(f64, usize)> {
    losses.iter().map(|loss| (loss.sum, loss.targets)).collect()
}

impl HeldOut {
    /// What an earlier session of the run left, or nothing.
    pub(crate) fn read(folder: &Path) -> Self {
        let text = fs_err::read(folder.join(FILE_NAME)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        write_whole(&folder.join(FILE_NAME), &serde_json::to_vec(self)?)
    }
}
