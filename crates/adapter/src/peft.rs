//! Adapter folders as PEFT writes and reads them: `adapter_config.json` and
//! `adapter_model.safetensors`.
//!
//! The configuration is written in the subset of keys that every PEFT of recent years knows, sorted,
//! since older versions refuse unknown keys. Tensors carry the prefix `base_model.model.` and no
//! adapter name. Reading is stricter than PEFT's: a tensor that belongs to nothing, or a branch without
//! its tensors, is an error, because PEFT would load it and leave the adapter without effect.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::Tensor;
use serde_json::{Map, Value, json};
use sparsam_base::error::Error as BaseError;
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::model::{EMBEDDING, HEAD};
use sparsam_base::network::Network;
use sparsam_base::weights::Weights;

use crate::error::{Error, Result};
use crate::files::{write_tensors, write_text};
use crate::lora::{Bias, Init, LoraConfig};
use crate::parts::Parts;
use crate::targets::ends_in;
use crate::targets::{ALL_LINEAR, Targets};
use crate::trainable::{CLASSIFIERS, Trainable};

/// Name of the file of settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the file of tensors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";

/// Settings that change what an adapter computes and that this version does not build.
const UNSUPPORTED: &[&str] = &[
    "alora_invocation_tokens",
    "arrow_config",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// Ways to start an adapter that take something out of the base's weights: the adapter is wrong on the
/// base as it is. Other ways only decide where training began.
const CHANGES_BASE: &[&str] = &["corda", "loftq", "lora_ga", "olora", "pissa"];

/// Settings of a PEFT folder and the base they name.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// The adapter's own settings.
    pub lora: LoraConfig,
    /// What the adapter was trained on.
    pub base_model_name_or_path: Option<String>,
    /// What it was trained for.
    pub task: Task,
}

/// What an adapter was trained for; PEFT's `task_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// `CAUSAL_LM`, and what is not said or another: the language model as it is.
    #[default]
    CausalLm,
    /// `SEQ_CLS`: a model with a head over classes.
    SequenceClassification,
}

/// Reads `adapter_config.json` of a folder.
///
/// # Errors
/// A missing or malformed file, or a setting that cannot be honoured.
pub fn read_config(folder: &Path) -> Result<AdapterConfig> {
    let path = folder.join(CONFIG_FILE);
    let text = fs_err::read_to_string(&path).map_err(Error::read(&path))?;
    let map: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|e| Error::file(&path, format!("is not a JSON object: {e}")))?;
    parse(&map).map_err(|error| match error {
        Error::Config { key, what } => {
            let hint = hint(&key, map.contains_key(&key));
            Error::Setting {
                path,
                key,
                what,
                hint,
            }
        }
        other => other,
    })
}

/// What to do about a setting that is missing or cannot be honoured.
fn hint(key: &str, given: bool) -> String {
    match key {
        "lora_alpha" | "r" if !given => {
            "add the value the adapter was trained with; another one would load and compute \
             something else"
                .to_owned()
        }
        "peft_type" => "only LoRA adapters, with rsLoRA and DoRA, are read".to_owned(),
        "init_lora_weights" => "convert it to a plain LoRA adapter with PEFT, \
             `save_pretrained(…, path_initial_model_for_weight_conversion=…)`"
            .to_owned(),
        key if UNSUPPORTED.contains(&key) => {
            "merge the adapter into its base with PEFT and load the merged model".to_owned()
        }
        _ => "the file may have been edited, copy it again from where it was trained".to_owned(),
    }
}

fn parse(map: &Map<String, Value>) -> Result<AdapterConfig> {
    let get = |key: &str| map.get(key).filter(|value| !value.is_null());
    if get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return Err(Error::config("peft_type", "is not `LORA`"));
    }
    for key in UNSUPPORTED {
        if let Some(value) = get(key)
            && !matches!(value, Value::Bool(false))
            && value.as_object().is_none_or(|map| !map.is_empty())
        {
            return Err(Error::config(
                key,
                format!("is {value}, which this version cannot compute"),
            ));
        }
    }
    if let Some(Value::String(init)) = get("init_lora_weights")
        && CHANGES_BASE.iter().any(|way| init.starts_with(way))
    {
        let what = format!("is `{init}`, which changes the base's weights");
        return Err(Error::config("init_lora_weights", what));
    }
    let number = |key: &str, value: &Value| {
        let found = || Error::config(key, format!("is {value}, not a number"));
        value.as_f64().ok_or_else(found)
    };
    let whole = |key: &str, value: &Value| {
        let found = || Error::config(key, format!("is {value}, not a whole number from 0 on"));
        value.as_u64().map(|value| value as usize).ok_or_else(found)
    };
    let flag = |key: &str| match get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(value) => Err(Error::config(
            key,
            format!("is {value}, neither true nor false"),
        )),
    };
    let needed = |key: &str| get(key).ok_or_else(|| Error::config(key, "is missing"));
    let targets = |key: &str| -> Result<Option<Targets>> {
        get(key)
            .map(|value| serde_json::from_value(value.clone()))
            .transpose()
            .map_err(|_| Error::config(key, "is neither a list of names nor a text"))
    };
    let strings = |key: &str| -> Result<Vec<String>> {
        match get(key) {
            None => Ok(Vec::new()),
            Some(Value::String(one)) => Ok(vec![one.clone()]),
            Some(value) => serde_json::from_value(value.clone())
                .map_err(|_| Error::config(key, "is not a list of names")),
        }
    };
    let pattern = |key: &str| match get(key) {
        None => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map.clone()),
        Some(value) => Err(Error::config(
            key,
            format!("is {value}, not a map of numbers"),
        )),
    };
    let Some(target_modules) = targets("target_modules")? else {
        return Err(Error::config("target_modules", "is missing"));
    };
    let bias = match get("bias").and_then(Value::as_str) {
        None | Some("none") => Bias::None,
        Some("all") => Bias::All,
        Some("lora_only") => Bias::LoraOnly,
        Some(other) => {
            let what = format!("is `{other}`, expected `none`, `all` or `lora_only`");
            return Err(Error::config("bias", what));
        }
    };
    let layers_to_transform = match get("layers_to_transform") {
        None => None,
        Some(one @ Value::Number(_)) => Some(vec![whole("layers_to_transform", one)?]),
        Some(value) => Some(
            serde_json::from_value(value.clone())
                .map_err(|_| Error::config("layers_to_transform", "is not a list of numbers"))?,
        ),
    };
    let task = match get("task_type").and_then(Value::as_str) {
        Some("SEQ_CLS") => Task::SequenceClassification,
        _ => Task::CausalLm,
    };
    let mut modules_to_save = strings("modules_to_save")?;
    if task == Task::SequenceClassification {
        with_classifiers(&mut modules_to_save);
    }
    let lora = LoraConfig {
        r: whole("r", needed("r")?)?,
        lora_alpha: number("lora_alpha", needed("lora_alpha")?)?,
        lora_dropout: match get("lora_dropout") {
            Some(value) => number("lora_dropout", value)?,
            None => 0.0,
        },
        target_modules,
        exclude_modules: targets("exclude_modules")?,
        use_rslora: flag("use_rslora")?,
        use_dora: flag("use_dora")?,
        rank_pattern: pattern("rank_pattern")?
            .into_iter()
            .map(|(module, rank)| Ok((module, whole("rank_pattern", &rank)?)))
            .collect::<Result<_>>()?,
        alpha_pattern: pattern("alpha_pattern")?
            .into_iter()
            .map(|(module, alpha)| Ok((module, number("alpha_pattern", &alpha)?)))
            .collect::<Result<_>>()?,
        layers_to_transform,
        layers_pattern: strings("layers_pattern")?,
        modules_to_save,
        bias,
        init: Init::Kaiming,
    };
    lora.check()?;
    let base = get("base_model_name_or_path")
        .and_then(Value::as_str)
        .map(str::to_owned);
    Ok(AdapterConfig {
        lora,
        base_model_name_or_path: base,
        task,
    })
}

/// Adds the heads that PEFT trains whole on any classifier, as it does itself.
pub fn with_classifiers(modules_to_save: &mut Vec<String>) {
    for head in CLASSIFIERS {
        if !modules_to_save.iter().any(|module| module == head) {
            modules_to_save.push(head.to_owned());
        }
    }
}

/// Loads an adapter folder onto a model.
///
/// # Errors
/// A malformed folder, or tensors that do not fit the model and the settings one to one.
pub fn load(
    folder: &Path,
    model: &mut impl Network,
    seed: u64,
) -> Result<(Trainable, AdapterConfig)> {
    let config = read_config(folder)?;
    let mut trainable = Trainable::lora(model, &config.lora, seed)?;
    let path = folder.join(WEIGHTS_FILE);
    let files = open_weights(&path)?;
    let mut missing: BTreeSet<String> = trainable.registry().keys().cloned().collect();
    for stored in files.names() {
        let name = registry_name(&path, stored)?;
        trainable.set(&name, &files.tensor(stored)?)?;
        missing.remove(&name);
    }
    match missing.into_iter().next() {
        Some(name) => Err(Error::weight(
            &name,
            "is not in the adapter's file, though its settings name it",
        )),
        None => Ok((trainable, config)),
    }
}

/// Opens an adapter's file of tensors.
pub(crate) fn open_weights(path: &Path) -> Result<SafetensorsFiles> {
    SafetensorsFiles::open(&[path.to_owned()]).map_err(|error| match error {
        BaseError::Read { path, source } => Error::read(&path)(source),
        other => other.into(),
    })
}

/// Name in the registry of a tensor stored under `stored`.
pub(crate) fn registry_name(path: &Path, stored: &str) -> Result<String> {
    let wrong = |what: &str, hint: &str| Error::Name {
        path: path.to_owned(),
        name: stored.to_owned(),
        what: what.to_owned(),
        hint: hint.to_owned(),
    };
    let Some(name) = stored.strip_prefix(PREFIX) else {
        return Err(wrong(
            "which lacks the prefix `base_model.model.`",
            "PEFT would load the file without effect, put the prefix before every name",
        ));
    };
    if name.ends_with(".default.weight") || name.ends_with(".default") {
        return Err(wrong(
            "which carries the name of an adapter in memory, `.default`",
            "take `.default` out of every name, or save it again with PEFT's `save_pretrained`",
        ));
    }
    Ok(name.replace(".base_layer.", "."))
}

/// Name a registry entry is stored under. A bias of an adapted module is stored behind `base_layer`,
/// as PEFT names it.
fn stored_name(name: &str, adapted: &[&str]) -> String {
    match name.strip_suffix(".bias") {
        Some(module) if adapted.contains(&module) => format!("{PREFIX}{module}.base_layer.bias"),
        _ => format!("{PREFIX}{name}"),
    }
}

/// Writes an adapter folder's two files, each beside its place first and then renamed.
///
/// # Errors
/// A folder that cannot be written.
pub fn save(folder: &Path, trainable: &Trainable, config: &AdapterConfig) -> Result<()> {
    let adapted = trainable.adapted();
    let tensors: BTreeMap<String, Tensor> = trainable
        .registry()
        .iter()
        .map(|(name, trained)| (stored_name(name, &adapted), trained.value.clone()))
        .collect();
    fs_err::create_dir_all(folder).map_err(Error::write(folder))?;
    write_tensors(&folder.join(WEIGHTS_FILE), &tensors)?;
    write_text(&folder.join(CONFIG_FILE), &config_text(config, &adapted))
}

/// Writes an adapter of plain branches, as [`save`] writes one that is trained.
///
/// # Errors
/// A folder that cannot be written.
pub fn save_parts(folder: &Path, parts: &Parts) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for (module, branch) in &parts.branches {
        tensors.insert(format!("{PREFIX}{module}.lora_A.weight"), branch.a.clone());
        tensors.insert(format!("{PREFIX}{module}.lora_B.weight"), branch.b.clone());
    }
    let adapted: Vec<&str> = parts.branches.keys().map(String::as_str).collect();
    fs_err::create_dir_all(folder).map_err(Error::write(folder))?;
    write_tensors(&folder.join(WEIGHTS_FILE), &tensors)?;
    write_text(
        &folder.join(CONFIG_FILE),
        &config_text(&parts.config, &adapted),
    )
}

/// `adapter_config.json`, keys sorted, indented by two, as PEFT writes it.
fn config_text(config: &AdapterConfig, adapted: &[&str]) -> String {
    let lora = &config.lora;
    // PEFT stores `all-linear` as the names it stands for.
    let target_modules = match &lora.target_modules {
        // Of a classifier, PEFT stores whole paths: its last names would mean the head's modules too.
        Targets::Text(text)
            if text == ALL_LINEAR && config.task == Task::SequenceClassification =>
        {
            json!(adapted)
        }
        Targets::Text(text) if text == ALL_LINEAR => {
            let mut names: Vec<&str> = adapted
                .iter()
                .filter_map(|m| m.rsplit('.').next())
                .collect();
            names.sort_unstable();
            names.dedup();
            json!(names)
        }
        other => json!(other),
    };
    let optional = |list: &[String]| {
        if list.is_empty() {
            Value::Null
        } else {
            json!(list)
        }
    };
    let number = |value: f64| {
        if value.fract() == 0.0 {
            json!(value as i64)
        } else {
            json!(value)
        }
    };
    let entries = [
        (
            "alpha_pattern",
            lora.alpha_pattern
                .iter()
                .map(|(k, v)| (k.clone(), number(*v)))
                .collect(),
        ),
        (
            "base_model_name_or_path",
            json!(config.base_model_name_or_path),
        ),
        ("bias", json!(lora.bias)),
        ("exclude_modules", json!(lora.exclude_modules)),
        ("fan_in_fan_out", json!(false)),
        ("inference_mode", json!(true)),
        ("init_lora_weights", json!(true)),
        ("layers_pattern", optional(&lora.layers_pattern)),
        ("layers_to_transform", json!(lora.layers_to_transform)),
        ("lora_alpha", number(lora.lora_alpha)),
        ("lora_dropout", json!(lora.lora_dropout)),
        ("modules_to_save", optional(&lora.modules_to_save)),
        ("peft_type", json!("LORA")),
        ("r", json!(lora.r)),
        ("rank_pattern", json!(lora.rank_pattern)),
        ("revision", Value::Null),
        ("target_modules", target_modules),
        (
            "task_type",
            match config.task {
                Task::CausalLm => json!("CAUSAL_LM"),
                Task::SequenceClassification => json!("SEQ_CLS"),
            },
        ),
        ("use_dora", json!(lora.use_dora)),
        ("use_rslora", json!(lora.use_rslora)),
    ];
    let map: Map<String, Value> = entries
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v))
        .collect();
    format!("{:#}\n", Value::Object(map))
}

/// Whether a registry name is a parameter of a module that PEFT saves whole beside an adapter: embedding and head,
/// and of a classifier what `modules_to_save` names.
pub(crate) fn is_saved_module(name: &str, config: &AdapterConfig) -> bool {
    if name == EMBEDDING || name == HEAD {
        return true;
    }
    let path = name.rsplit_once('.').map_or(name, |(path, _)| path);
    config.task == Task::SequenceClassification
        && config.lora.modules_to_save.iter().any(|saved| {
            let head = path.split('.').next();
            head == Some(saved.as_str()) || ends_in(path, saved)
        })
}
