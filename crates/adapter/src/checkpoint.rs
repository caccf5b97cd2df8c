//! Checkpoints: all a run needs to go on as if it had never stopped.
//!
//! ```text
//! checkpoints/step-000300/progress.json       counters and the position in the data
//! checkpoints/step-000300/state.safetensors   what is trained, with the optimiser's moments
//! checkpoints/step-000300/…                   what is trained in the form it is used in
//! checkpoints/best-000240.safetensors         what is trained at the best evaluation
//! ```
//!
//! The state has three tensors for each that is trained, all of them f32: `value.NAME`, `first.NAME` and `second.NAME`.
//! Where the optimiser keeps moments in eight bits, the latter two are u8 codes, and `first_absmax.NAME` and
//! `second_absmax.NAME` stand beside them.
//!
//! A checkpoint is written under another name, flushed, and renamed, so that one which has its name is
//! whole, whatever ended the program. The one before is removed only then.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::weights::Weights;
use sparsam_kernels::adamw::eight_bit::{EightBit, Map};

use crate::classes::ClassMetrics;
use crate::data::Position;
use crate::error::{Error, Result};
use crate::files::{write_tensors, write_text};
use crate::optimizer::{Moments, Optimizer};
use crate::trainable::Trainable;

const PROGRESS: &str = "progress.json";
const STATE: &str = "state.safetensors";
/// Layout of a checkpoint; another number is refused.
const FORMAT: u32 = 1;
/// Steps over which the training loss of the record is averaged.
const RECENT: usize = 20;

/// The best evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps made by then.
    pub step: usize,
    /// Mean loss per target, in nats.
    pub loss: f64,
    /// Of a classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub macro_f1: Option<f64>,
}

/// How far a run has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    format: u32,
    /// Optimiser steps made.
    pub step: usize,
    /// Where the next batch stands.
    pub position: Position,
    /// Batches of one pass over the data.
    pub batches_per_epoch: usize,
    /// Batches gone through, which is what dropout hangs on.
    pub micro_batches: u64,
    /// Tokens gone through.
    pub tokens: u64,
    /// Targets among them.
    pub trained_tokens: u64,
    /// Seconds spent in steps.
    pub train_seconds: f64,
    /// Loss on the evaluation data before the first step.
    pub loss_before: Option<f64>,
    /// The best measurement of the evaluation data since.
    pub best: Option<Best>,
    /// How well classes were told apart before the first step, of a classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes_before: Option<ClassMetrics>,
    /// The same at the best measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes_best: Option<ClassMetrics>,
    /// Evaluations in a row without improvement.
    pub without_gain: usize,
    /// Losses of the last steps.
    recent: VecDeque<f64>,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            format: FORMAT,
            step: 0,
            position: Position::default(),
            batches_per_epoch: 0,
            micro_batches: 0,
            tokens: 0,
            trained_tokens: 0,
            train_seconds: 0.0,
            loss_before: None,
            best: None,
            classes_before: None,
            classes_best: None,
            without_gain: 0,
            recent: VecDeque::new(),
        }
    }
}

impl Progress {
    /// Counts a step.
    pub(crate) fn stepped(&mut self, loss: f64, tokens: usize, targets: usize, seconds: f64) {
        self.step += 1;
        self.tokens += tokens as u64;
        self.trained_tokens += targets as u64;
        self.train_seconds += seconds;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(loss);
    }

    /// Passes over the data so far.
    pub fn epochs(&self) -> f64 {
        let share = self.position.batch as f64 / self.batches_per_epoch.max(1) as f64;
        self.position.epoch as f64 + share
    }

    /// Mean training loss of the last 20 steps, or of all where there are fewer. None before the first.
    pub fn recent_loss(&self) -> Option<f64> {
        let count = self.recent.len();
        (count > 0).then(|| self.recent.iter().sum::<f64>() / count as f64)
    }
}

/// The checkpoint with the most steps in a folder of checkpoints.
///
/// # Errors
/// The folder exists and cannot be read.
pub fn latest(checkpoints: &Path) -> Result<Option<PathBuf>> {
    if !checkpoints.is_dir() {
        return Ok(None);
    }
    Ok(numbered(checkpoints, "step-")?.pop().map(|(_, path)| path))
}

/// Entries named with a prefix and a number, by number.
fn numbered(folder: &Path, prefix: &str) -> Result<Vec<(usize, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder).map_err(Error::read(folder))? {
        let path = entry.map_err(Error::read(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name
            .and_then(|name| name.strip_prefix(prefix))
            .and_then(|rest| rest.trim_end_matches(".safetensors").parse().ok());
        found.extend(number.map(|number| (number, path)));
    }
    found.sort();
    Ok(found)
}

fn step_name(step: usize) -> String {
    format!("step-{step:06}")
}

fn best_path(checkpoints: &Path, step: usize) -> PathBuf {
    checkpoints.join(format!("best-{step:06}.safetensors"))
}

/// Writes a checkpoint and removes those it replaces.
///
/// # Errors
/// A file cannot be written; what was there before is then untouched.
pub(crate) fn write(
    checkpoints: &Path,
    progress: &Progress,
    trainable: &Trainable,
    optimizer: &Optimizer,
    export: &dyn Fn(&Trainable, &Path) -> Result<()>,
) -> Result<()> {
    fs_err::create_dir_all(checkpoints).map_err(Error::write(checkpoints))?;
    let place = checkpoints.join(step_name(progress.step));
    let beside = tempfile::Builder::new()
        .prefix(".writing-")
        .tempdir_in(checkpoints)
        .map_err(Error::write(&place))?;
    let mut tensors = BTreeMap::new();
    for (name, trained) in trainable.registry() {
        tensors.insert(format!("value.{name}"), trained.value.clone());
    }
    for (name, moments) in optimizer.moments() {
        let mut put = |what: &str, tensor: &Tensor| {
            tensors.insert(format!("{what}.{name}"), tensor.clone());
        };
        match moments {
            Moments::F32(first, second) => {
                put("first", first);
                put("second", second);
            }
            Moments::EightBit(first, second) => {
                put("first", first.codes());
                put("first_absmax", first.absmax());
                put("second", second.codes());
                put("second_absmax", second.absmax());
            }
        }
    }
    write_tensors(&beside.path().join(STATE), &tensors)?;
    let text = serde_json::to_string_pretty(progress)
        .map_err(|e| Error::file(&place, format!("cannot be made: {e}")))?;
    write_text(&beside.path().join(PROGRESS), &format!("{text}\n"))?;
    export(trainable, beside.path())?;
    if place.exists() {
        fs_err::remove_dir_all(&place).map_err(Error::write(&place))?;
    }
    make_readable(beside.path()).map_err(Error::write(&place))?;
    fs_err::rename(beside.keep(), &place).map_err(Error::write(&place))?;
    for (step, path) in numbered(checkpoints, "step-")? {
        if step != progress.step {
            fs_err::remove_dir_all(&path).map_err(Error::write(&path))?;
        }
    }
    for (step, path) in numbered(checkpoints, "best-")? {
        if progress.best.is_none_or(|best| best.step != step) {
            fs_err::remove_file(&path).map_err(Error::write(&path))?;
        }
    }
    Ok(())
}

/// Temporary folders are private; a checkpoint should be readable as any other folder.
fn make_readable(folder: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs_err::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    }
    let _ = folder;
    Ok(())
}

/// Restores what is trained and the optimiser from a checkpoint, and says how far it had come.
///
/// # Errors
/// A checkpoint that is damaged, of another version, of another run, or with moments of another type.
pub fn restore(
    checkpoint: &Path,
    trainable: &mut Trainable,
    optimizer: &mut Optimizer,
) -> Result<Progress> {
    let path = checkpoint.join(PROGRESS);
    let text = fs_err::read_to_string(&path).map_err(Error::read(&path))?;
    let progress: Progress = serde_json::from_str(&text)
        .map_err(|e| Error::file(&path, format!("is not a checkpoint's: {e}")))?;
    if progress.format != FORMAT {
        return Err(Error::file(
            &path,
            format!(
                "has layout {}, this version reads {FORMAT}",
                progress.format
            ),
        ));
    }
    let state = checkpoint.join(STATE);
    let files = SafetensorsFiles::open(std::slice::from_ref(&state))?;
    let names: Vec<String> = trainable.registry().keys().cloned().collect();
    let stored = files.names().filter(|name| name.starts_with("value."));
    let stored = stored.count();
    if stored != names.len() {
        let what = format!("holds {stored} tensors, this recipe trains {}", names.len());
        return Err(Error::file(&state, what));
    }
    of_the_same_type(&state, &files, optimizer)?;
    let mut moments = BTreeMap::new();
    for name in names {
        trainable.set(&name, &files.tensor(&format!("value.{name}"))?)?;
        moments.insert(name.clone(), stored_moments(&files, &name)?);
    }
    optimizer.restore(progress.step, moments)?;
    Ok(progress)
}

/// Refuses moments that are kept otherwise than the optimiser keeps them: to round them, or to go on with rounded
/// ones, would be another run.
fn of_the_same_type(state: &Path, files: &SafetensorsFiles, optimizer: &Optimizer) -> Result<()> {
    for (name, moments) in optimizer.moments() {
        let (there, here, began) = match (has_eight_bits(files, name), moments) {
            (true, Moments::F32(..)) => ("eight bits", "f32", "adamw_8bit"),
            (false, Moments::EightBit(..)) => ("f32", "eight bits", "adamw"),
            _ => continue,
        };
        let path = state.display();
        return Err(Error::training(
            format!("`{path}` has the optimiser's moments in {there}, this recipe wants {here}"),
            format!("go on with `optim: {began}`, as the run began, or begin a new one"),
        ));
    }
    Ok(())
}

fn has_eight_bits(files: &SafetensorsFiles, name: &str) -> bool {
    files.contains(&format!("first_absmax.{name}"))
}

fn stored_moments(files: &SafetensorsFiles, name: &str) -> Result<Moments> {
    let part = |what: &str| files.tensor(&format!("{what}.{name}"));
    if !has_eight_bits(files, name) {
        return Ok(Moments::F32(part("first")?, part("second")?));
    }
    let moment = |map: Map, codes: &str, absmax: &str| {
        EightBit::from_parts(map, part(codes)?, part(absmax)?).map_err(|error| {
            let what = format!("has no fitting state in the checkpoint: {error}");
            Error::weight(name, what)
        })
    };
    Ok(Moments::EightBit(
        moment(Map::Signed, "first", "first_absmax")?,
        moment(Map::Unsigned, "second", "second_absmax")?,
    ))
}

/// Writes what is trained at the lowest evaluation loss so far.
pub(crate) fn write_best(checkpoints: &Path, step: usize, trainable: &Trainable) -> Result<()> {
    fs_err::create_dir_all(checkpoints).map_err(Error::write(checkpoints))?;
    let values: BTreeMap<String, Tensor> = trainable
        .registry()
        .iter()
        .map(|(name, trained)| (name.clone(), trained.value.clone()))
        .collect();
    write_tensors(&best_path(checkpoints, step), &values)
}

/// Restores what [`write_best`] wrote.
pub(crate) fn restore_best(
    checkpoints: &Path,
    step: usize,
    trainable: &mut Trainable,
) -> Result<()> {
    let files = SafetensorsFiles::open(&[best_path(checkpoints, step)])?;
    let names: Vec<String> = trainable.registry().keys().cloned().collect();
    for name in names {
        trainable.set(&name, &files.tensor(&name)?)?;
    }
    Ok(())
}
