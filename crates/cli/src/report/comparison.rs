//! A comparison's folder as a report: its arms from `comparison.json`, the first run of each in full.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use sparsam_tracker::range::{Range, Span};

use super::Language;
use super::bars::Side;
use super::plots::Trade;
use crate::compare::bootstrap::Interval;
use crate::compare::file::slug;
use crate::compare::finding::Finding;
use crate::error::Failure;

/// The name of the file.
pub(crate) const FILE_NAME: &str = "comparison.json";

/// What the report needs of it.
#[derive(Debug, Deserialize)]
pub(super) struct Comparison {
    arms: Vec<Arm>,
    /// What follows.
    findings: Vec<Finding>,
}

#[derive(Debug, Deserialize)]
struct Arm {
    name: String,
    loss: Interval,
    energies_kwh: Vec<f64>,
    #[serde(default)]
    minutes_each: Vec<f64>,
    #[serde(default)]
    peak_memory_each: Vec<u64>,
    emissions_g: Span,
    published_bytes: Option<u64>,
}

/// The mean of some values and the ends of what was seen; nothing for none.
pub(crate) fn spread(values: &[f64]) -> Option<Range> {
    if values.is_empty() {
        return None;
    }
    Some(Range::new(
        values.iter().copied().fold(f64::INFINITY, f64::min),
        values.iter().sum::<f64>() / values.len() as f64,
        values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    ))
}

impl Comparison {
    /// That of a folder, where it holds one.
    ///
    /// # Errors
    /// A file that is something else.
    pub(super) fn of(folder: &Path) -> anyhow::Result<Option<Self>> {
        let path = folder.join(FILE_NAME);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs_err::read_to_string(&path)?;
        let comparison = serde_json::from_str(&text).map_err(|error| {
            Failure::run(format!(
                "`{}` is not the result of a comparison: {error}",
                path.display()
            ))
            .hint("`sparsam compare` writes it again without making its runs again")
        })?;
        Ok(Some(comparison))
    }

    /// The first run of each arm, under the arm's name.
    pub(super) fn runs(&self, folder: &Path) -> Vec<(String, PathBuf)> {
        let run = |arm: &Arm| {
            let place = folder.join("arms").join(slug(&arm.name)).join("1");
            (arm.name.clone(), place)
        };
        self.arms.iter().map(run).collect()
    }

    /// The arms: means over their repeats, of memory the most, with the least and the most.
    pub(super) fn sides(&self) -> Vec<Side> {
        let side = |arm: &Arm| {
            let peaks: Vec<f64> = arm.peak_memory_each.iter().map(|b| *b as f64).collect();
            Some(Side {
                name: arm.name.clone(),
                energy_kwh: spread(&arm.energies_kwh)?,
                emissions_g: Some(arm.emissions_g),
                minutes: spread(&arm.minutes_each).unwrap_or(Range::ZERO),
                // As the table has it: what a machine must have.
                memory: spread(&peaks).map(|range| Range::new(range.low, range.high, range.high)),
                published: arm.published_bytes.map(|bytes| bytes as f64),
            })
        };
        self.arms.iter().filter_map(side).collect()
    }

    /// Loss with its interval against energy with its spread.
    pub(super) fn trades(&self) -> Vec<Trade> {
        let trade = |arm: &Arm| {
            Some(Trade {
                name: arm.name.clone(),
                energy_kwh: spread(&arm.energies_kwh)?,
                loss: Range::new(arm.loss.low, arm.loss.mean, arm.loss.high),
            })
        };
        self.arms.iter().filter_map(trade).collect()
    }

    /// What follows, and what must not be compared.
    pub(super) fn advice(&self, language: Language) -> Vec<String> {
        let words = |finding: &Finding| finding.words(language);
        self.findings.iter().map(words).collect()
    }
}
