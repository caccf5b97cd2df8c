//! `sparsam merge`: an adapter and its base as one model, and how far it lies from what was trained.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;

use candle_core::{DType, Tensor};
use sparsam_adapter::merge::{Drift, drift, write};
use sparsam_adapter::parts::Parts;
use sparsam_adapter::peft::{self, AdapterConfig, Task};
use sparsam_adapter::trainable::Trainable;
use sparsam_base::files::shards::Written;
use sparsam_base::files::staged::Staged;
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_base::tokenizer::Tokenizer;
use sparsam_kernels::Documents;

use crate::args::formats::MergeArgs;
use crate::base_files::BaseFiles;
use crate::error::Failure;
use crate::figures::{bytes, significant};
use crate::made_of;
use crate::run::quantize_of;
use crate::run_record::RunRecord;
use crate::speaker::notes;
use crate::terminal::paint_stdout;

mod classifier;

/// Beside the adapter, the template it was trained with where that is not the base's own.
pub(super) const TEMPLATE: &str = "chat_template.jinja";

pub(super) fn run(args: &MergeArgs, quiet: bool) -> anyhow::Result<()> {
    let mut notes = notes(quiet);
    let parts = Parts::of_any(&args.adapter)?;
    if parts.config.task == Task::SequenceClassification {
        return classifier::run(args, &parts, quiet);
    }
    let base_name = base_name(args.base.as_deref(), &parts.config, &args.adapter)?;
    let base = BaseFiles::open(&base_name)?;
    let trained_through = RunRecord::beside(&args.adapter)?
        .map_or(Quantize::None, |record| quantize_of(&record.recipe));
    let through = match args.dequantized {
        None => Quantize::None,
        Some(Some(named)) => named,
        Some(None) if trained_through != Quantize::None => trained_through,
        Some(None) => return Err(no_quantisation(&args.adapter)),
    };
    let merged = base.merged(&parts, through, args.dtype)?;

    let staged = staged(&args.output)?;
    let adapter = made_of::adapter(&args.adapter)?;
    let written = write(
        &merged,
        staged.path(),
        args.max_shard_size,
        &[(made_of::NOTE, &adapter)],
        &mut |_, _| (),
    )?;
    let mut files = base.write_companions(&staged, &merged.config(&base.config_text)?)?;
    let template = args.adapter.join(TEMPLATE);
    if template.exists() {
        staged.write(TEMPLATE, &fs_err::read(&template)?)?;
        if !files.contains(&TEMPLATE) {
            files.push(TEMPLATE);
        }
    }
    staged.commit()?;

    let what = format!(
        "{} branches and {} whole tensors into {base_name}, {}",
        parts.branches.len(),
        parts.whole.len(),
        kind(through)
    );
    let text = told(&what, &args.output, &written, &files);
    io::stdout().lock().write_all(text.as_bytes())?;
    if args.no_drift {
        return Ok(());
    }
    let Some(tokenizer) = base.tokenizer()? else {
        writeln!(
            notes,
            "note: the base has no tokenizer, so that drift cannot be measured"
        )?;
        return Ok(());
    };
    let trained = if through == Quantize::None {
        trained_through
    } else {
        through
    };
    let text = drifts(args, &base, &parts, &tokenizer, (trained, through))?;
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// What was merged and what was written, a line each.
fn told(what: &str, output: &Path, written: &Written, files: &[&str]) -> String {
    let paint = paint_stdout();
    format!(
        "{}{what}\n{}{}: {} in {} tensors, {} and {}\n",
        paint.bold("merged     "),
        paint.bold("wrote      "),
        output.display(),
        bytes(written.bytes),
        written.tensors,
        written.files.join(", "),
        files.join(", ")
    )
}

/// The base named on the command line, else by the adapter.
pub(super) fn base_name(
    given: Option<&str>,
    config: &AdapterConfig,
    adapter: &Path,
) -> anyhow::Result<String> {
    let named = config.base_model_name_or_path.as_deref();
    match given.or(named).filter(|name| !name.is_empty()) {
        Some(name) => Ok(name.to_owned()),
        None => Err(Failure::usage(format!(
            "the adapter `{}` does not name its base model",
            adapter.display()
        ))
        .hint("name it with `--base`")
        .into()),
    }
}

/// Begins the folder to write; that it is there already is the fault of what was typed.
pub(super) fn staged(output: &Path) -> anyhow::Result<Staged> {
    Staged::begin(output).map_err(|error| match (&error, error.hint()) {
        (sparsam_base::error::Error::Occupied { .. }, Some(hint)) => {
            Failure::usage(error.to_string()).hint(hint).into()
        }
        _ => error.into(),
    })
}

fn no_quantisation(adapter: &Path) -> anyhow::Error {
    Failure::usage(format!(
        "nothing says how the base of `{}` was quantised: there is no run.json of a quantised run \
         beside it",
        adapter.display()
    ))
    .hint("say it, `--dequantized=nf4`, or leave `--dequantized` out")
    .into()
}

fn kind(through: Quantize) -> &'static str {
    match through {
        Quantize::None => "as it was before quantisation",
        Quantize::Int8 => "as int8 has left it",
        Quantize::Nf4 => "as NF4 has left it",
        Quantize::Nf4Double => "as NF4 with double quantisation has left it",
    }
}

/// The drift of either way to merge from base and adapter as trained.
fn drifts(
    args: &MergeArgs,
    base: &BaseFiles,
    parts: &Parts,
    tokenizer: &Tokenizer,
    (trained, written): (Quantize, Quantize),
) -> anyhow::Result<String> {
    let ids = tokenizer.encode(&args.prompt, true)?;
    if ids.is_empty() || ids.len() > base.config.max_position_embeddings {
        return Err(Failure::usage(format!(
            "the probe prompt has {} tokens, the model reads 1 to {}",
            ids.len(),
            base.config.max_position_embeddings
        ))
        .hint("give another text with `--prompt`")
        .into());
    }
    let dtype = in_memory(base)?;
    let options = |quantize| LoadOptions {
        quantize,
        dtype,
        max_length: ids.len(),
    };
    let reference = {
        let mut model = Model::load(base.config.clone(), base.weights(), options(trained))?;
        let (mut hook, _) = peft::load(&args.adapter, &mut model, 0)?;
        hook.set_training(None);
        logits(&model, &ids, &mut hook)?
    };
    let mut ways = vec![Quantize::None];
    if trained != Quantize::None {
        ways.push(trained);
    }
    let mut text = format!(
        "{} of the logits from base and adapter{}, on {} tokens\n",
        paint_stdout().bold("drift     "),
        match trained {
            Quantize::None => "",
            _ => " as trained",
        },
        ids.len()
    );
    for way in ways {
        let merged = base.merged(parts, way, args.dtype)?;
        let config = base.merged_config(parts);
        let model = Model::load(config, &merged, options(Quantize::None))?;
        let found = logits(&model, &ids, &mut Trainable::none(&model))?;
        let written = if way == written { "  (written)" } else { "" };
        let _ = writeln!(
            text,
            "  {:<46} {}{written}",
            format!("base {}", kind(way)),
            said(&drift(&reference, &found)?)
        );
    }
    Ok(text)
}

fn said(drift: &Drift) -> String {
    format!(
        "largest {}, mean {}, KL {} nats, same first choice {} of {}",
        significant(drift.largest, 2),
        significant(drift.mean, 2),
        significant(drift.divergence.max(0.0), 2),
        drift.same_choice,
        drift.tokens
    )
}

/// The type in which a model is computed with: bf16 where it is stored so, as f32 would need twice the
/// memory.
fn in_memory(base: &BaseFiles) -> anyhow::Result<DType> {
    let norm = base.weights().tensor("model.norm.weight")?;
    Ok(match norm.dtype() {
        DType::BF16 => DType::BF16,
        _ => DType::F32,
    })
}

fn logits(model: &Model, ids: &[u32], hook: &mut Trainable) -> anyhow::Result<Tensor> {
    Ok(model.logits(ids, &Documents::single(ids.len()), hook)?)
}
