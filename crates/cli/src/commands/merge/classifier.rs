//! `sparsam merge` on the adapter of a classifier: body, branches and head as one model, in f32.
//!
//! A classifier's files are not those of its base: the head is new, and an encoder's tensors get the names of the
//! model with a head. It is small enough to be made in memory.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::ops::ControlFlow;

use sparsam_adapter::classes::Prediction;
use sparsam_adapter::classify::classify;
use sparsam_adapter::merge::whole;
use sparsam_adapter::parts::Parts;
use sparsam_adapter::peft;
use sparsam_adapter::trainable::Trainable;
use sparsam_base::classifier::Classifier;
use sparsam_base::files::shards::{ShardWriter, Stored};
use sparsam_base::model::Quantize;

use super::{base_name, staged, told};
use crate::args::formats::MergeArgs;
use crate::base_files::{COMPANIONS, CONFIG};
use crate::classifier::{self, Named, Options, labels_of};
use crate::device::{self, Choice};
use crate::error::Failure;
use crate::figures::significant;
use crate::made_of;
use crate::opened::{Opened, find};
use crate::terminal::paint_stdout;

pub(super) fn run(args: &MergeArgs, parts: &Parts, quiet: bool) -> anyhow::Result<()> {
    if args.dequantized.is_some() || args.dtype.is_some() {
        return Err(
            Failure::usage("a classifier is merged in f32, into its base as it is")
                .hint("leave `--dequantized` and `--dtype` out")
                .into(),
        );
    }
    let base = base_name(args.base.as_deref(), &parts.config, &args.adapter)?;
    let labels = labels_of(&args.adapter)?;
    let mut opened = open(&base, &labels, quiet)?;
    let tensors = whole(&mut opened.model, parts)?;
    let staged = staged(&args.output)?;
    let mut writer = ShardWriter::new(staged.path(), args.max_shard_size)
        .noting(made_of::NOTE, &made_of::adapter(&args.adapter)?);
    let mut parameters = 0;
    for (name, tensor) in &tensors {
        let tensor = opened.model.as_stored(name, tensor)?;
        parameters += tensor.elem_count() as u64;
        writer.push(vec![Stored::of(name, &tensor)?])?;
    }
    let written = writer.finish(parameters)?;
    drop(tensors);
    let mut files = vec![CONFIG];
    let beside = find(&opened.place)?;
    let config = beside.companion(CONFIG)?.unwrap_or_default();
    let config = classifier::config(&config, &opened.model)?;
    staged.write(CONFIG, config.as_bytes())?;
    for name in COMPANIONS {
        if let Some(bytes) = beside.companion(name)? {
            staged.write(name, &bytes)?;
            files.push(name);
        }
    }
    staged.commit()?;

    let what = format!(
        "{} branches and a head over {} classes into {base}",
        parts.branches.len(),
        labels.len()
    );
    let mut text = told(&what, &args.output, &written, &files);
    if !args.no_drift {
        // What was written, not what is in memory.
        let folder = args.output.to_string_lossy();
        let merged = open(&folder, &labels, quiet)?;
        let found = answer(&merged, &mut Trainable::none(&merged.model), &args.prompt)?;
        let (mut adapted, _) = peft::load(&args.adapter, &mut opened.model, 0)?;
        let expected = answer(&opened, &mut adapted, &args.prompt)?;
        let pairs = expected.probabilities.iter().zip(&found.probabilities);
        let most = pairs.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        let same = if expected.answer() == found.answer() {
            "the same class"
        } else {
            "another class"
        };
        let _ = writeln!(
            text,
            "{}{} of a probability at most from base and adapter, {same}",
            paint_stdout().bold("drift      "),
            significant(f64::from(most), 2)
        );
    }
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// The classifier of a base or a folder, in f32.
fn open(model: &str, labels: &[String], quiet: bool) -> anyhow::Result<Opened<Classifier>> {
    let named = Named {
        model,
        revision: None,
        max_length: 0,
    };
    let texts = classifier::open_texts(&named, quiet)?;
    let named = Named {
        max_length: texts.context.min(classifier::LONGEST),
        ..named
    };
    let place = device::open(Choice::Cpu)?;
    let options = Options {
        quantize: Quantize::None,
        dtype: None,
        device: &place.device,
        seed: 0,
    };
    classifier::open(&named, texts, labels.to_vec(), &options)
}

fn answer(
    opened: &Opened<Classifier>,
    trainable: &mut Trainable,
    text: &str,
) -> anyhow::Result<Prediction> {
    let mut found = None;
    let each = &mut |_: usize, prediction: &Prediction| {
        found = Some(prediction.clone());
        ControlFlow::Continue(())
    };
    let (model, tokenizer) = (&opened.model, &opened.tokenizer);
    classify(
        model,
        trainable,
        tokenizer,
        &[text],
        classifier::LONGEST,
        each,
    )?;
    found.ok_or_else(|| anyhow::anyhow!("no text was classified"))
}
