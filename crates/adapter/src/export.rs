//! Adapters and merged models in the formats of other programs.
//!
//! One file for each format. What a format cannot hold is refused with its reason before anything is
//! written: a file that loads and computes something else is worse than none.

pub mod gguf;
pub mod gguf_lora;
pub mod mlx;

use crate::error::{Error, Result};
use crate::parts::Parts;

/// An adapter that a format cannot hold.
pub(crate) fn cannot(format: &str, what: &str, hint: &str) -> Error {
    Error::Format {
        what: format!("{format} cannot hold {what}"),
        hint: hint.to_owned(),
    }
}

/// Refuses everything but low-rank branches.
///
/// # Errors
/// DoRA, saved modules, biases.
pub(crate) fn only_branches(format: &str, parts: &Parts) -> Result<()> {
    let merge = "merge it with `sparsam merge`, or export the merged model with `--format gguf`";
    if parts.config.lora.use_dora {
        let what =
            "a DoRA adapter: its rows are rescaled after the sum, which no low-rank matrix can say";
        return Err(cannot(format, what, merge));
    }
    if let Some(name) = parts.whole.keys().next() {
        let what = format!("a parameter that was trained whole, `{name}`");
        return Err(cannot(format, &what, merge));
    }
    Ok(())
}
