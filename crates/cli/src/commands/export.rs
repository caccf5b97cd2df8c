//! `sparsam export`: an adapter, or the model it makes, in the formats of other programs.

use std::io::{self, Write};

use anyhow::Context;
use sparsam_adapter::export::{gguf, gguf_lora, mlx};
use sparsam_adapter::parts::Parts;
use sparsam_base::files::gguf_vocabulary::vocabulary;
use sparsam_base::files::gguf_writer::Kind;
use sparsam_base::model::Quantize;

use super::merge::{base_name, staged};
use crate::args::formats::{ExportArgs, ExportFormat, NumberKind};
use crate::base_files::BaseFiles;
use crate::error::Failure;
use crate::figures::bytes;
use crate::terminal::paint_stdout;

pub(super) fn run(args: &ExportArgs) -> anyhow::Result<()> {
    let kind = match args.kind.unwrap_or(NumberKind::F16) {
        NumberKind::F32 => Kind::F32,
        NumberKind::F16 => Kind::F16,
        NumberKind::Bf16 => Kind::Bf16,
        NumberKind::Q8_0 => Kind::Q8_0,
    };
    check(args)?;
    let parts = Parts::read(&args.adapter)?;
    let name = base_name(args.base.as_deref(), &parts.config, &args.adapter)?;
    let base = BaseFiles::open(&name)?;
    // Refuses an adapter that does not fit the base, whatever the format.
    let merged = base.merged(&parts, Quantize::None, None)?;
    merged.check_shapes()?;
    let (what, files) = match args.format {
        ExportFormat::GgufLora => {
            gguf_lora::write(&args.output, &parts, &base.config, kind)?;
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
            let tokenizer = base.tokenizer()?.zip(base.companion("tokenizer.json")?);
            let Some((tokenizer, json)) = tokenizer else {
                return Err(Failure::run(format!(
                    "`{name}` has no tokenizer.json, which is part of a GGUF file"
                ))
                .hint("put the model's tokenizer.json beside its weights")
                .into());
            };
            let rows = base.config.vocab_size;
            let vocabulary = vocabulary(&json, &tokenizer, rows)?;
            let title = title(args);
            gguf::write(
                &args.output,
                &merged,
                &base.config,
                &title,
                vocabulary,
                kind,
            )?;
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
        let size = file.metadata().context("cannot read what was written")?;
        writeln!(
            out,
            "{}{}, {}",
            paint_stdout().bold("wrote      "),
            file.display(),
            bytes(size.len())
        )?;
    }
    Ok(())
}

/// Refuses what the command line cannot mean.
fn check(args: &ExportArgs) -> Result<(), Failure> {
    match (args.format, args.kind) {
        (ExportFormat::Mlx, Some(_)) => Err(Failure::usage(
            "`--type` is for GGUF, mlx adapters are written in f32",
        )
        .hint("leave `--type` out")),
        (ExportFormat::GgufLora, Some(NumberKind::Q8_0)) => Err(Failure::usage(
            "an adapter is not stored in q8_0: its matrices are too narrow for blocks of 32",
        )
        .hint("leave `--type` out for f16, or choose f32")),
        (ExportFormat::Gguf | ExportFormat::GgufLora, _) if args.output.exists() => Err(
            Failure::usage(format!("`{}` is there already", args.output.display()))
                .hint("name a file that does not exist yet"),
        ),
        _ => Ok(()),
    }
}

/// What a merged model calls itself: the name of its file.
fn title(args: &ExportArgs) -> String {
    let stem = args.output.file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}
