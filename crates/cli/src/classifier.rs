//! A classifier by the name a recipe or an argument gives its base: found, checked, loaded, with its classes.
//!
//! The same names as in [`opened`](crate::opened) mean the same models. The classes of an adapter stand in
//! `labels.json` beside it, in the form of transformers' configurations, since PEFT's own file has no place for
//! them; those of a whole model stand in its configuration.

use std::path::Path;

use anyhow::Context;
use candle_core::{DType, Device};
use serde_json::{Map, Value, json};
use sparsam_adapter::classify::init;
use sparsam_adapter::files::write_text;
use sparsam_adapter::peft::{self, Task, WEIGHTS_FILE};
use sparsam_base::chat_template::ChatTemplate;
use sparsam_base::classifier::Classifier;
use sparsam_base::config::ModelConfig;
use sparsam_base::encoder::config::{EncoderConfig, is_encoder, labels};
use sparsam_base::error::Error;
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_base::tokenizer::Tokenizer;
use sparsam_base::weights::Weights;
use sparsam_hub::Need;

use crate::device;
use crate::error::Failure;
use crate::from_hub::{self, Source, hub_name};
use crate::opened::{Opened, Place, find, hash, text_of, within};
use crate::plan::memory::Shape;

/// Name of the file with an adapter's classes.
pub(crate) const LABELS: &str = "labels.json";

/// Longest text where nothing is said, in tokens.
pub(crate) const LONGEST: usize = 512;

/// A base by its name, and how long the texts are.
#[derive(Clone, Copy)]
pub(crate) struct Named<'a> {
    /// `builtin:NAME`, a folder, or a name on the Hub.
    pub(crate) model: &'a str,
    /// Branch, tag or commit of a model on the Hub.
    pub(crate) revision: Option<&'a str>,
    /// The longest text, in tokens.
    pub(crate) max_length: usize,
}

/// How a classifier is kept, where, and with what seed its head begins.
pub(crate) struct Options<'a> {
    pub(crate) quantize: Quantize,
    pub(crate) dtype: Option<DType>,
    pub(crate) device: &'a Device,
    pub(crate) seed: u64,
}

/// What stands between texts and tokens of a classifier, without its weights.
pub(crate) struct Texts {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: ChatTemplate,
    /// The classes that the model's own configuration names.
    pub(crate) labels: Option<Vec<String>>,
    /// The longest text the model reads.
    pub(crate) context: usize,
    config: Config,
    place: String,
    hub: Option<Source>,
}

impl Texts {
    /// The shape of the model.
    pub(crate) fn shape(&self) -> Shape {
        match &self.config {
            Config::Encoder(config) => Shape::of_encoder(config),
            Config::Decoder(config) => Shape::of(config).classifier(),
        }
    }
}

enum Config {
    Encoder(EncoderConfig),
    Decoder(ModelConfig),
}

/// Whether a model can do nothing but classify.
pub(crate) fn is_an_encoder(named: &Named, quiet: bool) -> anyhow::Result<bool> {
    let (place, _) = placed(named, quiet)?;
    match find(&place)? {
        Place::Builtin(builtin) => Ok(is_encoder(builtin.config)?),
        // Formats of language models alone.
        Place::Gguf(_) => Ok(false),
        Place::Folder(folder) => Ok(is_encoder(&read_config(folder)?)
            .with_context(|| format!("`{}` cannot be used", folder.display()))?),
    }
}

fn placed(named: &Named, quiet: bool) -> anyhow::Result<(String, Option<Source>)> {
    let Some(name) = hub_name(named.model) else {
        return Ok((named.model.to_owned(), None));
    };
    let fetched = from_hub::model(name, named.revision, &Need::Model, quiet)?;
    let source = Source {
        commit: fetched.commit,
        license: fetched.license,
    };
    Ok((text_of(&fetched.folder)?.to_owned(), Some(source)))
}

fn read_config(folder: &Path) -> anyhow::Result<String> {
    let path = folder.join("config.json");
    Ok(std::fs::read_to_string(&path).map_err(|source| Error::Read { path, source })?)
}

/// Opens a classifier's tokenizer and configuration.
///
/// # Errors
/// A name that means nothing here, files that are missing or damaged, a `max_length` beyond the model's context.
pub(crate) fn open_texts(named: &Named, quiet: bool) -> anyhow::Result<Texts> {
    let (place, hub) = placed(named, quiet)?;
    let (text, tokenizer) = match find(&place)? {
        Place::Builtin(builtin) => (builtin.config.to_owned(), builtin.tokenizer()?),
        Place::Folder(folder) => (read_config(folder)?, Tokenizer::from_dir(folder)?),
        Place::Gguf(path) => {
            return Err(Failure::usage(format!(
                "`{}` is a GGUF file, which cannot be made a classifier",
                path.display()
            ))
            .hint("name the model's folder in Hugging Face's layout")
            .into());
        }
    };
    let unusable = || format!("`{}` cannot be used", named.model);
    let (config, vocabulary, context) = if is_encoder(&text).with_context(unusable)? {
        let config = EncoderConfig::parse(&text).with_context(unusable)?;
        let (vocabulary, context) = (config.vocab_size, config.max_length);
        (Config::Encoder(config), vocabulary, context)
    } else {
        let mut config = ModelConfig::parse(&text).with_context(unusable)?;
        let (vocabulary, context) = (config.vocab_size, config.max_position_embeddings);
        // Its head over the vocabulary is not used, and need not be there.
        config.tie_word_embeddings = true;
        (Config::Decoder(config), vocabulary, context)
    };
    within(named.model, named.max_length, context)?;
    tokenizer.check_fits(vocabulary)?;
    let family = match &config {
        Config::Encoder(config) => &config.family,
        Config::Decoder(config) => &config.family,
    };
    let template = ChatTemplate::for_model(&tokenizer, family)?;
    Ok(Texts {
        tokenizer,
        template,
        labels: labels(&text)?,
        context,
        config,
        place,
        hub,
    })
}

/// Loads a classifier over `labels`.
///
/// # Errors
/// Weights that are missing, damaged or of another model, or that do not fit on the device.
pub(crate) fn open(
    named: &Named,
    texts: Texts,
    labels: Vec<String>,
    options: &Options,
) -> anyhow::Result<Opened<Classifier>> {
    let load = LoadOptions {
        quantize: options.quantize,
        dtype: options.dtype.unwrap_or(DType::F32),
        max_length: named.max_length,
    };
    let compute = options.dtype.unwrap_or(DType::BF16);
    let init = init(options.seed);
    let make = |config: Config, weights: &dyn Weights| -> anyhow::Result<Classifier> {
        Ok(match config {
            Config::Encoder(config) => Classifier::encoder(config, weights, load, labels, &init)?,
            Config::Decoder(config) => {
                let loaded = Model::load_to(config, weights, load, options.device, compute);
                let model = device::placed(loaded, named.model, options.device)?;
                Classifier::decoder(model, Some(weights), labels, &init)?
            }
        })
    };
    let (mut model, blake3) = match find(&texts.place)? {
        Place::Builtin(builtin) => {
            let model = make(texts.config, &builtin.tensors()?)?;
            (model, blake3::hash(builtin.weights))
        }
        Place::Folder(folder) => {
            let files = SafetensorsFiles::in_folder(folder)?;
            (make(texts.config, &files)?, hash(files.paths())?)
        }
        Place::Gguf(_) => anyhow::bail!("a GGUF file was opened as a classifier"),
    };
    device::put(&mut model, named.model, options.device, compute)?;
    Ok(Opened {
        parameters: model.parameters(),
        architecture: model.family().to_owned(),
        model,
        tokenizer: texts.tokenizer,
        template: texts.template,
        blake3: blake3.to_hex().to_string(),
        place: texts.place,
        hub: texts.hub,
    })
}

/// `id2label` and `label2id` as transformers' configurations have them.
pub(crate) fn numbered(labels: &[String]) -> (Value, Value) {
    let by_number = labels.iter().enumerate();
    let id2label: Map<String, Value> = by_number
        .clone()
        .map(|(number, label)| (number.to_string(), json!(label)))
        .collect();
    let label2id: Map<String, Value> = by_number
        .map(|(number, label)| (label.clone(), json!(number)))
        .collect();
    (id2label.into(), label2id.into())
}

/// Writes the classes beside an adapter, where there are any.
pub(crate) fn write_labels(folder: &Path, labels: &[String]) -> sparsam_adapter::error::Result<()> {
    if labels.is_empty() {
        return Ok(());
    }
    let (id2label, label2id) = numbered(labels);
    let value = json!({"id2label": id2label, "label2id": label2id});
    write_text(&folder.join(LABELS), &format!("{value:#}\n"))
}

/// The classes beside an adapter, where the file is there.
///
/// # Errors
/// A file that cannot be read or holds something else.
pub(crate) fn read_labels(folder: &Path) -> anyhow::Result<Option<Vec<String>>> {
    let path = folder.join(LABELS);
    if !path.exists() {
        return Ok(None);
    }
    let text = fs_err::read_to_string(&path)?;
    let found = labels(&text).with_context(|| format!("`{}` cannot be used", path.display()))?;
    found.map(Some).ok_or_else(|| {
        Failure::run(format!("`{}` names no classes", path.display()))
            .hint("copy it again from where the adapter was trained")
            .into()
    })
}

/// The classes of an adapter: those that were written beside it, else as many numbers as its head has rows.
pub(crate) fn labels_of(folder: &Path) -> anyhow::Result<Vec<String>> {
    let config = peft::read_config(folder)?;
    if config.task != Task::SequenceClassification {
        return Err(Failure::usage(format!(
            "`{}` is the adapter of a language model, not of a classifier",
            folder.display()
        ))
        .hint("`sparsam generate` and `sparsam chat` use it")
        .into());
    }
    if let Some(labels) = read_labels(folder)? {
        return Ok(labels);
    }
    let files = SafetensorsFiles::open(&[folder.join(WEIGHTS_FILE)])?;
    let heads = [
        "classifier.weight",
        "classifier.out_proj.weight",
        "score.weight",
    ];
    let head = heads
        .iter()
        .map(|head| format!("base_model.model.{head}"))
        .find(|name| files.contains(name));
    let Some(head) = head else {
        return Err(
            Failure::run(format!("`{}` holds no head over classes", folder.display()))
                .hint("train it again, or copy it from where it was trained")
                .into(),
        );
    };
    let classes = files.tensor(&head)?.dim(0)?;
    Ok((0..classes).map(|class| format!("LABEL_{class}")).collect())
}

/// A base's configuration as that of a classifier in f32: its classes, and which class of transformers loads it.
///
/// # Errors
/// A text that is not a JSON object.
pub(crate) fn config(base: &[u8], model: &Classifier) -> anyhow::Result<String> {
    let mut config: Value = serde_json::from_slice(base).context("the base's config.json")?;
    for key in ["dtype", "torch_dtype"] {
        if let Some(value) = config.get_mut(key) {
            *value = "float32".into();
        }
    }
    let (id2label, label2id) = numbered(&model.labels);
    config["id2label"] = id2label;
    config["label2id"] = label2id;
    config["problem_type"] = "single_label_classification".into();
    if let Some(class) = architecture(model) {
        config["architectures"] = json!([class]);
    }
    Ok(format!("{config:#}\n"))
}

/// The class of transformers that loads a whole classifier.
fn architecture(model: &Classifier) -> Option<String> {
    let name = match model.family() {
        "bert" => "Bert",
        "distilbert" => "DistilBert",
        "roberta" => "Roberta",
        "xlm-roberta" => "XLMRoberta",
        "modernbert" => "ModernBert",
        "gemma" => "Gemma",
        "gemma2" => "Gemma2",
        "gemma3_text" => "Gemma3Text",
        "llama" => "Llama",
        "mistral" => "Mistral",
        "phi3" => "Phi3",
        "qwen2" => "Qwen2",
        "qwen3" => "Qwen3",
        "smollm3" => "SmolLM3",
        _ => return None,
    };
    Some(format!("{name}ForSequenceClassification"))
}
