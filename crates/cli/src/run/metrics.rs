//! The curve of a run: one JSON line a step in `metrics.jsonl`, and the same for TensorBoard.
//!
//! Lines are written whole and flushed, so a killed run keeps its curve. A resumed run drops the lines
//! after its checkpoint, since those steps are made again.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::time::SystemTime;

use fs_err::{File, OpenOptions};
use serde_json::{Value, json};
use sparsam_adapter::train::{Evaluation, Step};
use sparsam_tracker::Live;

use crate::run_record::write_whole;
use crate::tensorboard::EventWriter;

pub(super) const FILE_NAME: &str = "metrics.jsonl";
pub(super) const TENSORBOARD: &str = "tensorboard";

/// Writes the curve.
pub(super) struct Metrics {
    file: File,
    events: Option<EventWriter>,
    every: usize,
}

impl Metrics {
    /// Opens the files of a run that has made `step` steps so far.
    pub(super) fn open(
        folder: &Path,
        step: usize,
        tensorboard: bool,
        every: usize,
    ) -> io::Result<Self> {
        let path = folder.join(FILE_NAME);
        if path.exists() {
            let kept = lines_up_to(&path, step)?;
            write_whole(&path, kept.as_bytes())?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let events = if tensorboard {
            let folder = folder.join(TENSORBOARD);
            Some(EventWriter::create(&folder, "sparsam", SystemTime::now())?)
        } else {
            None
        };
        Ok(Self {
            file,
            events,
            every,
        })
    }

    /// Writes a step, if its turn has come.
    pub(super) fn step(&mut self, step: &Step, live: &Live, grams: Option<f64>) -> io::Result<()> {
        if !step.step.is_multiple_of(self.every) {
            return Ok(());
        }
        let speed = step.tokens as f64 / step.seconds;
        let energy_wh = live.joules.central / 3600.0;
        self.line(&json!({
            "step": step.step,
            "epoch": step.epoch,
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "grad_norm": step.grad_norm,
            "tokens": step.tokens,
            "trained_tokens": step.trained_tokens,
            "seconds": step.seconds,
            "tokens_per_second": speed,
            "energy_wh": energy_wh,
            "emissions_g": grams,
        }))?;
        let mut values = vec![
            ("train/loss", step.loss),
            ("train/learning_rate", step.learning_rate),
            ("train/grad_norm", step.grad_norm),
            ("train/tokens_per_second", speed),
            ("energy/wh", energy_wh),
        ];
        values.extend(grams.map(|grams| ("energy/emissions_g", grams)));
        self.scalars(step.step, &values)
    }

    /// Writes an evaluation.
    pub(super) fn evaluation(&mut self, evaluation: &Evaluation) -> io::Result<()> {
        let Evaluation {
            step,
            loss,
            best,
            scores,
        } = *evaluation;
        if let Some((accuracy, macro_f1)) = scores {
            self.line(&json!({
                "step": step,
                "eval_loss": loss,
                "eval_accuracy": accuracy,
                "eval_macro_f1": macro_f1,
                "best": best,
            }))?;
            let values = [
                ("eval/loss", loss),
                ("eval/accuracy", accuracy),
                ("eval/macro_f1", macro_f1),
            ];
            return self.scalars(step, &values);
        }
        self.line(&json!({"step": step, "eval_loss": loss, "best": best}))?;
        self.scalars(
            step,
            &[("eval/loss", loss), ("eval/perplexity", loss.exp())],
        )
    }

    fn line(&mut self, value: &Value) -> io::Result<()> {
        // In one call, so that a killed program leaves no half of a line.
        self.file.write_all(format!("{value}\n").as_bytes())
    }

    fn scalars(&mut self, step: usize, values: &[(&str, f64)]) -> io::Result<()> {
        match &mut self.events {
            Some(events) => events.scalars(step as u64, SystemTime::now(), values),
            None => Ok(()),
        }
    }
}

/// The lines of steps up to `step`; a line cut short by a crash is dropped too.
fn lines_up_to(path: &Path, step: usize) -> io::Result<String> {
    let mut kept = String::new();
    for line in BufReader::new(File::open(path)?).lines() {
        let line = line?;
        let value: Value = serde_json::from_str(&line).unwrap_or_default();
        // A fresh start measures the evaluation data again.
        let stays = |at: u64| at <= step as u64 && (at > 0 || step > 0);
        if value["step"].as_u64().is_some_and(stays) {
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_drops_what_it_makes_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        let lines = "{\"step\":0,\"eval_loss\":2.0}\n{\"step\":1,\"loss\":1}\n\
                     {\"step\":2,\"loss\":1}\n{\"step\":3,\"lo";
        fs_err::write(&path, lines).unwrap();
        let mut metrics = Metrics::open(folder.path(), 1, false, 1).unwrap();
        let evaluation = Evaluation {
            step: 1,
            loss: 1.5,
            best: true,
            scores: None,
        };
        metrics.evaluation(&evaluation).unwrap();
        let expected = "{\"step\":0,\"eval_loss\":2.0}\n{\"step\":1,\"loss\":1}\n\
                        {\"step\":1,\"eval_loss\":1.5,\"best\":true}\n";
        assert_eq!(fs_err::read_to_string(&path).unwrap(), expected);
    }
}
