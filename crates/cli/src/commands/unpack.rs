//! `sparsam unpack`, and its opposite for those who build the program.

use std::io::Write;

use sparsam_base::builtin::pack;
use sparsam_base::error::Error;

use crate::args::{PackBuiltinArgs, UnpackArgs};
use crate::error::Failure;
use crate::opened::find_builtin;
use crate::speaker::notes;

/// Writes a built-in model as a Hugging Face folder.
pub(super) fn run(args: &UnpackArgs, quiet: bool) -> anyhow::Result<()> {
    find_builtin(&args.model)?
        .unpack(&args.output)
        .map_err(|error| match (&error, error.hint()) {
            // What was typed is at fault, not the run.
            (Error::Occupied { .. }, Some(hint)) => {
                anyhow::Error::new(Failure::usage(error.to_string()).hint(hint))
            }
            _ => error.into(),
        })?;
    writeln!(
        notes(quiet),
        "wrote `{}`: config.json, tokenizer.json and its settings, model.safetensors in f32, README.md",
        args.output.display()
    )?;
    Ok(())
}

/// Makes the assets of a built-in model of a Hugging Face folder.
pub(super) fn pack_builtin(args: &PackBuiltinArgs) -> anyhow::Result<()> {
    Ok(pack(&args.folder, &args.output)?)
}
