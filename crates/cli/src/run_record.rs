//! `run.json`: what was run, on what, with which result.
//!
//! One file a run, in the manner of PEFT's method comparison: the effective recipe, versions,
//! hashes of base and data, and all results, so that a figure can be traced and a run repeated.
//! It is written when the run begins and again whenever it changes, each time beside and then
//! renamed, so that it is whole at any moment.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sparsam_adapter::classes::ClassMetrics;
pub(crate) use sparsam_adapter::files::write_whole;
use sparsam_base::prefix::SharedPrefix;
use sparsam_tracker::journal;

use crate::error::Failure;
use crate::figures::{bytes, thousands};
use crate::machine::Platform;
use crate::recipe::{Method, Recipe};
use crate::run::{BudgetUse, Waited};

/// The name of the file in the run's folder.
pub(crate) const FILE_NAME: &str = "run.json";

/// The version of the layout below; raised when a reader would have to know.
pub(crate) const FORMAT: u32 = 1;

/// The candle release this binary computes with; kept equal to `Cargo.lock` by a test.
const CANDLE: &str = "0.11.1";

/// The error for a folder that holds no run.
pub(crate) fn no_run(folder: &Path) -> Failure {
    Failure::usage(format!(
        "`{}` is not the folder of a run: it has neither `{FILE_NAME}` nor `{}`",
        folder.display(),
        journal::FILE_NAME
    ))
    .hint("give the folder that `sparsam train` or `sparsam track` wrote")
}

/// The record of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// How the run stands.
    pub(crate) state: State,
    /// Begin of the first session, RFC 3339.
    pub(crate) started: String,
    /// End of the last session, RFC 3339.
    pub(crate) ended: Option<String>,
    /// Programs and libraries.
    pub(crate) versions: Versions,
    /// The machine.
    pub(crate) platform: Platform,
    /// Every key of the recipe as it was used.
    pub(crate) recipe: Recipe,
    /// The base model.
    pub(crate) base: Base,
    /// The training data.
    pub(crate) train_data: DataRecord,
    /// The evaluation data.
    pub(crate) eval_data: Option<DataRecord>,
    /// Numbers that are trained.
    pub(crate) trainable_parameters: u64,
    /// A held-out question, or the beginning of the data, for the card.
    pub(crate) example_prompt: Option<String>,
    /// The classes by number, of a classifier.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) labels: Vec<String>,
    /// What came out; `None` until the first step is done.
    pub(crate) results: Option<Results>,
    /// The tracker's energy record, as it is.
    pub(crate) energy: Option<serde_json::Value>,
    /// What was used of the budget, where the recipe has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) budget: Option<BudgetUse>,
    /// How it waited for a cleaner grid, where the recipe asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) waited: Option<Waited>,
    /// Files of the run, relative to its folder.
    pub(crate) files: Vec<FileRecord>,
}

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Begun; stays so if the process is killed.
    Running,
    /// Stopped by the user, with a checkpoint.
    Interrupted,
    /// Ended with an error.
    Failed,
    /// Went to its end, or stopped early as the recipe asked.
    Finished,
}

/// Programs and libraries that decide what a run computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Versions {
    pub(crate) sparsam: String,
    pub(crate) candle: String,
}

impl Versions {
    /// Those of this binary.
    pub(crate) fn here() -> Self {
        Self {
            sparsam: env!("CARGO_PKG_VERSION").to_owned(),
            candle: CANDLE.to_owned(),
        }
    }
}

/// The base model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Base {
    /// As the recipe names it.
    pub(crate) model: String,
    /// The commit, where it came from the Hub.
    pub(crate) revision: Option<String>,
    /// The licence on its card, where it came from the Hub.
    #[serde(default)]
    pub(crate) license: Option<String>,
    /// Such as `llama`.
    pub(crate) architecture: String,
    /// Numbers in the base.
    pub(crate) parameters: u64,
    /// BLAKE3 of the files with its weights, in the order of their names.
    pub(crate) blake3: String,
}

/// A data set as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DataRecord {
    /// As the recipe names it.
    pub(crate) path: PathBuf,
    /// The commit, where it came from the Hub.
    #[serde(default)]
    pub(crate) revision: Option<String>,
    /// The split, where it came from the Hub.
    #[serde(default)]
    pub(crate) split: Option<String>,
    /// The form of its rows, such as `prompt_completion`.
    pub(crate) format: String,
    /// BLAKE3 of the file, or of the folder's files in the order of their names.
    pub(crate) blake3: String,
    /// Rows that are trained on or evaluated.
    pub(crate) examples: u64,
    /// Tokens in them.
    pub(crate) tokens: u64,
    /// Tokens that are targets.
    pub(crate) trained_tokens: u64,
    /// Examples cut to `max_length`.
    pub(crate) truncated: u64,
    /// Rows left out, such as those in which nothing is trained.
    pub(crate) skipped: u64,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// The held-out data before the first step.
    pub(crate) before: Option<Quality>,
    /// The held-out data with the adapter that was kept.
    pub(crate) after: Option<Quality>,
    /// Mean loss per trained token over the last 20 steps.
    pub(crate) train_loss: Option<f64>,
    /// Optimiser steps.
    pub(crate) steps: u64,
    /// The step whose adapter was kept.
    pub(crate) best_step: u64,
    /// Passes over the data.
    pub(crate) epochs: f64,
    /// Tokens gone through in training.
    pub(crate) tokens: u64,
    /// Of those, targets.
    pub(crate) trained_tokens: u64,
    /// Tokens gone through per second of training; evaluation and saving not counted.
    pub(crate) tokens_per_second: f64,
    /// Seconds of training.
    pub(crate) train_seconds: f64,
    /// Seconds of the whole run, all sessions.
    pub(crate) total_seconds: f64,
    /// The most memory the process held, in bytes.
    pub(crate) peak_memory_bytes: Option<u64>,
    /// The most of a GPU's memory that its tensors held, in bytes, where it computed on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peak_gpu_memory_bytes: Option<u64>,
    /// How well classes are told apart, of a classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) classes: Option<Classified>,
    /// What was computed once, where nothing is trained in the lower blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) prefix: Option<PrefixUse>,
}

/// What the blocks below the lowest trained one made of texts, computed once and read back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PrefixUse {
    /// How many blocks these are.
    pub(crate) blocks: u64,
    /// Tokens computed through them.
    pub(crate) computed_tokens: u64,
    /// Tokens read back instead.
    pub(crate) reused_tokens: u64,
    /// Texts that were kept, and the bytes they took.
    pub(crate) documents: u64,
    pub(crate) bytes: u64,
    /// Why no more was kept, if that was so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) full: Option<String>,
}

impl PrefixUse {
    /// What was made of it so far.
    pub(crate) fn of(prefix: &SharedPrefix) -> Self {
        let prefix = prefix.lock();
        let counts = prefix.counts();
        Self {
            blocks: prefix.lowest() as u64,
            computed_tokens: counts.computed,
            reused_tokens: counts.reused,
            documents: counts.documents,
            bytes: counts.bytes,
            full: prefix.full().map(str::to_owned),
        }
    }

    /// A line on it.
    pub(crate) fn words(&self) -> String {
        let all = (self.computed_tokens + self.reused_tokens).max(1) as f64;
        let full = self.full.as_deref();
        let full = full.map_or_else(String::new, |full| format!("; no more, as {full}"));
        format!(
            "{} blocks computed once for {} texts, read back for {:.0} % of tokens; {} kept{full}",
            self.blocks,
            thousands(self.documents),
            100.0 * self.reused_tokens as f64 / all,
            bytes(self.bytes),
        )
    }
}

/// How well a classifier tells the classes of held-out data apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Classified {
    /// Before the first step.
    pub(crate) before: Option<ClassMetrics>,
    /// With what was kept.
    pub(crate) after: ClassMetrics,
}

/// How good the model is on held-out data.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Quality {
    /// Mean loss per target token, in nats.
    pub(crate) loss: f64,
    /// Share of answers that are exactly right, 0 to 1.
    pub(crate) exact_match: Option<f64>,
    /// How many answers were written.
    pub(crate) answers: Option<u64>,
}

impl Quality {
    /// e to the loss.
    pub(crate) fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// A file of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    /// Relative to the run's folder.
    pub(crate) path: PathBuf,
    /// What it is, in a few words.
    pub(crate) what: String,
    /// Its size.
    pub(crate) bytes: u64,
}

impl RunRecord {
    /// Writes the record into the run's folder.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        write_whole(&folder.join(FILE_NAME), text.as_bytes())
    }

    /// The size of the weights that are published.
    pub(crate) fn published_bytes(&self) -> Option<u64> {
        let name = match self.recipe.method {
            Method::Lora => "adapter_model.safetensors",
            Method::Full => "model.safetensors",
        };
        let file = self
            .files
            .iter()
            .find(|file| file.path == Path::new(name))?;
        Some(file.bytes)
    }

    /// Reads the record of the run that has left an adapter in `folder`, if there is one.
    pub(crate) fn beside(folder: &Path) -> Result<Option<Self>, Failure> {
        if folder.join(FILE_NAME).exists() {
            Self::read(folder).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Reads the record of the run in `folder`.
    pub(crate) fn read(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join(FILE_NAME);
        let text = fs_err::read_to_string(&path).map_err(|error| {
            Failure::usage(format!(
                "cannot read `{}`: {}",
                path.display(),
                crate::error::io_reason(&error)
            ))
            .hint("give the `output_dir` of a run of `sparsam train`")
        })?;
        serde_json::from_str(&text).map_err(|error| {
            Failure::run(format!("`{}` is not a run record: {error}", path.display()))
                .hint("it may have been written by another version of sparsam")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> RunRecord {
        RunRecord {
            format: FORMAT,
            state: State::Finished,
            started: "2026-01-01T10:00:00Z".to_owned(),
            ended: Some("2026-01-01T10:02:00Z".to_owned()),
            versions: Versions::here(),
            platform: Platform::here("cpu"),
            recipe: Recipe::default(),
            base: Base {
                model: "builtin:sprout".to_owned(),
                revision: None,
                license: None,
                architecture: "llama".to_owned(),
                parameters: 3_000_000,
                blake3: "00".to_owned(),
            },
            train_data: DataRecord {
                path: PathBuf::from("train.jsonl"),
                revision: None,
                split: None,
                format: "text".to_owned(),
                blake3: "11".to_owned(),
                examples: 10,
                tokens: 100,
                trained_tokens: 50,
                truncated: 1,
                skipped: 0,
            },
            eval_data: None,
            trainable_parameters: 1_000,
            example_prompt: None,
            labels: Vec::new(),
            results: None,
            energy: Some(serde_json::json!({"anything": [1, 2.5]})),
            budget: None,
            waited: None,
            files: Vec::new(),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        record().write(folder.path()).unwrap();
        let mut changed = record();
        changed.state = State::Interrupted;
        changed.write(folder.path()).unwrap();
        assert_eq!(RunRecord::read(folder.path()).unwrap(), changed);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_without_a_run_is_explained() {
        let folder = tempfile::tempdir().unwrap();
        let failure = RunRecord::read(folder.path()).unwrap_err();
        assert!(failure.to_string().contains("there is no such file"));
    }

    #[test]
    fn candle_is_the_one_in_the_lock_file() {
        let lock = include_str!("../../../Cargo.lock");
        let entry = format!("name = \"candle-core\"\nversion = \"{CANDLE}\"");
        assert!(lock.contains(&entry));
    }
}
