//! What a run leaves besides its records: the adapter, or the whole model.

use std::iter;
use std::path::Path;

use anyhow::Context;
use sparsam_adapter::error::Error;
use sparsam_adapter::files::{write_tensors, write_text};
use sparsam_adapter::peft::{self, AdapterConfig};
use sparsam_adapter::trainable::{Trainable, Trained};

use super::learned::Learned;

use crate::base_files::{COMPANIONS, CONFIG};
use crate::classifier;
use crate::opened::find;
use crate::probe_file;
use crate::recipe::Method;
use crate::run_record::{FileRecord, RunRecord, write_whole};

/// Weights of a model that was trained whole.
const MODEL: &str = "model.safetensors";

/// The chat template, where the run used another than the model's own.
const TEMPLATE: &str = "chat_template.jinja";

/// Writes the result of a run into its folder.
pub(super) fn write(
    folder: &Path,
    base: &str,
    trainable: &Trainable,
    model: &Learned,
    adapter: Option<&AdapterConfig>,
    template: Option<&str>,
    labels: &[String],
) -> anyhow::Result<()> {
    if let Some(config) = adapter {
        peft::save(folder, trainable, config)?;
        classifier::write_labels(folder, labels)?;
    } else {
        whole_model(folder, base, trainable, model)?;
        if let Learned::Classes(model) = model {
            let path = folder.join(CONFIG);
            write_text(&path, &classifier::config(&fs_err::read(&path)?, model)?)?;
        }
    }
    if let Some(template) = template {
        write_text(&folder.join(TEMPLATE), template)?;
    }
    Ok(())
}

/// The model's weights in f32, the type they were trained in, with the base's own configuration and
/// tokenizer beside them.
fn whole_model(
    folder: &Path,
    base: &str,
    trainable: &Trainable,
    model: &Learned,
) -> anyhow::Result<()> {
    let stored = |(name, trained): (&String, &Trained)| {
        Ok((name.clone(), model.as_stored(name, &trained.value)?))
    };
    let tensors = trainable.registry().iter().map(stored);
    let tensors = tensors.collect::<sparsam_base::error::Result<_>>()?;
    write_tensors(&folder.join(MODEL), &tensors)?;
    for name in iter::once(&CONFIG).chain(COMPANIONS) {
        if let Some(bytes) = find(base)?.companion(name)? {
            companion(folder, name, bytes)?;
        }
    }
    Ok(())
}

fn companion(folder: &Path, name: &str, mut bytes: Vec<u8>) -> anyhow::Result<()> {
    if name == CONFIG {
        bytes = in_f32(&bytes).context("the base's config.json cannot be copied")?;
    }
    let path = folder.join(name);
    write_whole(&path, &bytes).map_err(|source| Error::Io {
        verb: "write",
        path,
        source,
    })?;
    Ok(())
}

/// A configuration that names f32 as the type of its weights, under whichever key it uses.
fn in_f32(config: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut config: serde_json::Value = serde_json::from_slice(config)?;
    for key in ["dtype", "torch_dtype"] {
        if let Some(value) = config.get_mut(key) {
            *value = "float32".into();
        }
    }
    let mut text = serde_json::to_vec_pretty(&config)?;
    text.push(b'\n');
    Ok(text)
}

/// The files of a run that are there, in the order in which they matter.
pub(super) fn list(folder: &Path, record: &RunRecord) -> Vec<FileRecord> {
    let (weights, config) = match record.recipe.method {
        Method::Lora => (peft::WEIGHTS_FILE, peft::CONFIG_FILE),
        Method::Full => (MODEL, "config.json"),
    };
    let named = [
        (weights, "what was trained"),
        (config, "its settings"),
        (classifier::LABELS, "the classes it tells apart"),
        (TEMPLATE, "the chat template it was trained with"),
        (probe_file::FILE_NAME, "some of its logits, for `verify`"),
        (crate::cards::FILE_NAME, "its model card"),
        (crate::run_record::FILE_NAME, "the record of this run"),
        (super::metrics::FILE_NAME, "the curve, a line a step"),
        ("energy.jsonl", "every reading of the meters"),
    ];
    let there = named.into_iter().filter_map(|(name, what)| {
        let metadata = folder.join(name).metadata().ok()?;
        Some(FileRecord {
            path: name.into(),
            what: what.to_owned(),
            bytes: metadata.len(),
        })
    });
    there.collect()
}
