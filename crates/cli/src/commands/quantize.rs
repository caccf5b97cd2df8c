//! `sparsam quantize`: a model as a checkpoint that bitsandbytes loads.

use std::io::{self, Write};

use sparsam_base::quantize::{config, write};

use super::merge::staged;
use crate::args::formats::QuantizeArgs;
use crate::base_files::BaseFiles;
use crate::figures::{bytes, significant};
use crate::terminal::paint_stdout;

pub(super) fn run(args: &QuantizeArgs) -> anyhow::Result<()> {
    let base = BaseFiles::open(&args.model)?;
    let staged = staged(&args.output)?;
    let names = base.names();
    let weights = base.weights();
    let outcome = write(weights, &names, args.to, staged.path(), args.max_shard_size)?;
    let dtype = weights.tensor("model.norm.weight")?.dtype();
    let config = config(&base.config_text, args.to, dtype)?;
    let files = base.write_companions(&staged, &config)?;
    staged.commit()?;

    let paint = paint_stdout();
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{}{} of {} tensors, with an error of {} of their magnitude",
        paint.bold("quantised  "),
        outcome.quantized,
        names.len(),
        significant(outcome.relative_error, 2)
    )?;
    writeln!(
        out,
        "{}{}: {}, {} and {}",
        paint.bold("wrote      "),
        args.output.display(),
        bytes(outcome.written.bytes),
        outcome.written.files.join(", "),
        files.join(", ")
    )?;
    Ok(())
}
