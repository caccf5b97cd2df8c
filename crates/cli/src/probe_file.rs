//! The logits that a trained adapter gave a probe prompt, beside it in `probe.json`: whoever has the adapter and a
//! base can tell later, and elsewhere, whether together they still compute what was trained.

use std::path::Path;

use anyhow::Context;
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use sparsam_adapter::files::write_text;
use sparsam_adapter::trainable::Trainable;
use sparsam_base::model::Model;
use sparsam_base::tokenizer::Tokenizer;
use sparsam_kernels::Documents;

/// Its name.
pub(crate) const FILE_NAME: &str = "probe.json";

/// What is probed unless told otherwise: prose, a name, a number, a question, code and another
/// language.
pub(crate) const PROMPT: &str = "The old lime tree in front of the town hall was planted in 1887. \
    Question: how old is it? Wie alt ist die Linde? def age(year): return 2025 - year";

/// Positions that are kept, evenly from the last one back.
const POSITIONS: usize = 8;
/// The likeliest tokens that are kept of each.
const TOKENS: usize = 8;

/// A prompt and some of its logits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProbeFile {
    /// The text.
    pub(crate) prompt: String,
    /// Its tokens.
    pub(crate) ids: Vec<u32>,
    /// Logits by position, the last one first.
    pub(crate) positions: Vec<Position>,
}

/// The likeliest tokens at a position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Which token comes before them, from 0.
    pub(crate) after: usize,
    /// Tokens and their logits, the likeliest first.
    pub(crate) logits: Vec<(u32, f32)>,
}

/// The tokens of the prompt, as many as the model reads; none where there is none.
fn ids(tokenizer: &Tokenizer, longest: usize) -> anyhow::Result<Vec<u32>> {
    let mut ids = tokenizer.encode(PROMPT, true)?;
    ids.truncate(longest);
    Ok(ids)
}

/// Logits of `ids`, a row for each, in the host's memory.
fn logits(model: &Model, trainable: &mut Trainable, ids: &[u32]) -> anyhow::Result<Vec<Vec<f32>>> {
    let logits: Tensor = model.logits(ids, &Documents::single(ids.len()), trainable)?;
    Ok(logits.to_device(&Device::Cpu)?.to_vec2()?)
}

impl ProbeFile {
    /// Computes the logits of the prompt.
    ///
    /// # Errors
    /// A tokenizer that cannot take it, an operation on tensors that failed.
    pub(crate) fn make(
        model: &Model,
        trainable: &mut Trainable,
        tokenizer: &Tokenizer,
        longest: usize,
    ) -> anyhow::Result<Option<Self>> {
        let ids = ids(tokenizer, longest)?;
        if ids.is_empty() {
            return Ok(None);
        }
        trainable.set_training(None);
        let logits = logits(model, trainable, &ids)?;
        let step = (ids.len() / POSITIONS).max(1);
        let positions = (0..ids.len()).rev().step_by(step).take(POSITIONS);
        let positions = positions.map(|after| Position {
            after,
            logits: likeliest(&logits[after]),
        });
        Ok(Some(Self {
            prompt: PROMPT.to_owned(),
            positions: positions.collect(),
            ids,
        }))
    }

    /// The file beside an adapter, where there is one.
    ///
    /// # Errors
    /// A file that cannot be read or holds something else.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Option<Self>> {
        let path = folder.join(FILE_NAME);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs_err::read_to_string(&path)?;
        let probe = serde_json::from_str(&text)
            .with_context(|| format!("`{}` cannot be used", path.display()))?;
        Ok(Some(probe))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        Ok(write_text(&folder.join(FILE_NAME), &format!("{text}\n"))?)
    }

    /// The largest difference between what is stored and what `model` computes; none where the tokens of the
    /// prompt are others or beyond its vocabulary.
    ///
    /// # Errors
    /// As [`ProbeFile::make`].
    pub(crate) fn differs(
        &self,
        model: &Model,
        trainable: &mut Trainable,
        tokenizer: &Tokenizer,
    ) -> anyhow::Result<Option<f64>> {
        if self.ids != ids(tokenizer, self.ids.len())? || self.ids.is_empty() {
            return Ok(None);
        }
        trainable.set_training(None);
        let logits = logits(model, trainable, &self.ids)?;
        let mut largest = 0f64;
        for position in &self.positions {
            for (token, stored) in &position.logits {
                let row = logits.get(position.after);
                let Some(found) = row.and_then(|row| row.get(*token as usize)) else {
                    return Ok(None);
                };
                largest = largest.max(f64::from((found - stored).abs()));
            }
        }
        Ok(Some(largest))
    }
}

fn likeliest(logits: &[f32]) -> Vec<(u32, f32)> {
    let mut tokens: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    tokens.truncate(TOKENS);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_the_first_of_equals() {
        let logits = [0.5, 2.0, -1.0, 2.0, 1.0];
        let expected = [(1, 2.0), (3, 2.0), (4, 1.0), (0, 0.5), (2, -1.0)];
        assert_eq!(likeliest(&logits), expected);
        assert_eq!(likeliest(&vec![0.0; 100]).len(), TOKENS);
    }
}
