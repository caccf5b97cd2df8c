//! `sparsam export`: an adapter, or the model it makes, in the formats of other programs.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use sparsam_adapter::export::{gguf, gguf_lora, mlx};
use sparsam_adapter::parts::Parts;
use sparsam_base::files::gguf_types::FileType;
use sparsam_base::files::gguf_vocabulary::CHAT_TEMPLATE;
use sparsam_base::files::gguf_writer::{Kind, Meta};
use sparsam_base::model::Quantize;
use sparsam_base::weights::Weights;

use super::merge::{TEMPLATE, base_name, staged};
use crate::args::formats::{ExportArgs, ExportFormat};
use crate::base_files::BaseFiles;
use crate::error::Failure;
use crate::figures::bytes;
use crate::made_of;
use crate::terminal::paint_stdout;

pub(super) fn run(args: &ExportArgs) -> anyhow::Result<()> {
    check(args)?;
    let file_type = args.file_type.unwrap_or(FileType::F16);
    let parts = Parts::read(&args.adapter)?;
    let name = base_name(args.base.as_deref(), &parts.config, &args.adapter)?;
    let base = BaseFiles::open(&name)?;
    // Refuses an adapter that does not fit the base, whatever the format.
    let merged = base.merged(&parts, Quantize::None, None)?;
    merged.check_shapes()?;
    let (what, files) = match args.format {
        ExportFormat::GgufLora => {
            gguf_lora::write(&args.output, &parts, &base.config, numbers(file_type)?)?;
            ("an adapter for llama.cpp", vec![args.output.clone()])
        }
        ExportFormat::Mlx => {
            let staged = staged(&args.output)?;
            mlx::write(staged.path(), &parts, &base.config, &name)?;
            staged.commit()?;
            let files = [mlx::WEIGHTS_FILE, mlx::CONFIG_FILE];
            let files = files.map(|file| args.output.join(file));
            ("an adapter for mlx-lm", files.to_vec())
        }
        ExportFormat::Gguf => {
            let mut entries = base.gguf_entries(&name)?;
            let adapter = Meta::Text(made_of::adapter(&args.adapter)?);
            entries.push((made_of::NOTE.to_owned(), adapter));
            with_template(&mut entries, &args.adapter)?;
            let source: (&dyn Weights, &[String]) = (&merged, merged.names());
            model_file(&args.output, source, &base, entries, file_type)?;
            ("a merged model for llama.cpp", vec![args.output.clone()])
        }
    };
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{}{what}: {} branches on {name}",
        paint_stdout().bold("exported   "),
        parts.branches.len()
    )?;
    for file in files {
        wrote(&mut out, &file)?;
    }
    Ok(())
}

/// Puts the template that an adapter was trained with in place of the base's, where it has one of its own.
fn with_template(entries: &mut Vec<(String, Meta)>, adapter: &Path) -> anyhow::Result<()> {
    let file = adapter.join(TEMPLATE);
    if file.exists() {
        let template = Meta::Text(fs_err::read_to_string(file)?);
        entries.retain(|(name, _)| name != CHAT_TEMPLATE);
        entries.push((CHAT_TEMPLATE.to_owned(), template));
    }
    Ok(())
}

/// The kind of an adapter's numbers.
fn numbers(file_type: FileType) -> Result<Kind, Failure> {
    match file_type {
        FileType::F32 => Ok(Kind::F32),
        FileType::F16 => Ok(Kind::F16),
        FileType::Bf16 => Ok(Kind::Bf16),
        blocks => Err(Failure::usage(format!(
            "an adapter is not stored in {}: its matrices are too narrow for blocks",
            blocks.name().to_lowercase()
        ))
        .hint("leave `--type` out for f16, or choose f32")),
    }
}

/// Refuses what the command line cannot mean.
fn check(args: &ExportArgs) -> Result<(), Failure> {
    match (args.format, args.file_type) {
        (ExportFormat::Mlx, Some(_)) => Err(Failure::usage(
            "`--type` is for GGUF, mlx adapters are written in f32",
        )
        .hint("leave `--type` out")),
        (ExportFormat::GgufLora, file_type) => {
            numbers(file_type.unwrap_or(FileType::F16))?;
            new_file(&args.output)
        }
        (ExportFormat::Gguf, _) => new_file(&args.output),
        _ => Ok(()),
    }
}

/// Refuses a file that is there already.
pub(super) fn new_file(path: &Path) -> Result<(), Failure> {
    if !path.exists() {
        return Ok(());
    }
    Err(
        Failure::usage(format!("`{}` is there already", path.display()))
            .hint("name a file that does not exist yet"),
    )
}

/// Writes a model as a GGUF file, which calls the model by its own name.
pub(super) fn model_file(
    path: &Path,
    source: (&dyn Weights, &[String]),
    base: &BaseFiles,
    entries: Vec<(String, Meta)>,
    file_type: FileType,
) -> anyhow::Result<()> {
    let title = path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(gguf::write(
        path,
        source,
        &base.config,
        &title,
        entries,
        file_type,
    )?)
}

/// Says that a file was written, and its size.
pub(super) fn wrote(out: &mut impl Write, file: &Path) -> anyhow::Result<()> {
    let size = file.metadata().context("cannot read what was written")?;
    writeln!(
        out,
        "{}{}, {}",
        paint_stdout().bold("wrote      "),
        file.display(),
        bytes(size.len())
    )?;
    Ok(())
}
