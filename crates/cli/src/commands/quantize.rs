//! `sparsam quantize`: a model as a checkpoint that bitsandbytes loads, or as a file for llama.cpp.

use std::io::{self, Write};
use std::path::Path;

use sparsam_base::files::gguf_types::FileType;
use sparsam_base::files::gguf_writer::Meta;
use sparsam_base::model::Quantize;
use sparsam_base::quantize::{config, write};

use super::export::{model_file, new_file, wrote};
use super::merge::staged;
use crate::args::formats::{Goal, QuantizeArgs};
use crate::base_files::BaseFiles;
use crate::figures::{bytes, significant};
use crate::made_of;
use crate::terminal::paint_stdout;

pub(super) fn run(args: &QuantizeArgs) -> anyhow::Result<()> {
    match args.to {
        Goal::Checkpoint(quantize) => checkpoint(args, quantize),
        Goal::Gguf(file_type) => file(args, file_type),
    }
}

fn checkpoint(args: &QuantizeArgs, quantize: Quantize) -> anyhow::Result<()> {
    let base = BaseFiles::open(&args.model)?;
    let staged = staged(&args.output)?;
    let names = base.names();
    let weights = base.weights();
    let outcome = write(
        weights,
        &names,
        quantize,
        staged.path(),
        args.max_shard_size,
    )?;
    let dtype = weights.tensor("model.norm.weight")?.dtype();
    let config = config(&base.config_text, quantize, dtype)?;
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

fn file(args: &QuantizeArgs, file_type: FileType) -> anyhow::Result<()> {
    new_file(&args.output)?;
    let base = BaseFiles::open(&args.model)?;
    let mut entries = base.gguf_entries(&args.model)?;
    // A merged model stays what it was made of.
    let model = Path::new(&args.model);
    if model.is_dir()
        && let Some(adapter) = made_of::noted(model)?
    {
        entries.push((made_of::NOTE.to_owned(), Meta::Text(adapter)));
    }
    let names = base.names();
    let source = (base.weights(), names.as_slice());
    model_file(&args.output, source, &base, entries, file_type)?;

    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{}{} tensors as {}",
        paint_stdout().bold("quantised  "),
        names.len(),
        file_type.name()
    )?;
    wrote(&mut out, &args.output)
}
