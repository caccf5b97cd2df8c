//! Adapter folders as PEFT writes and reads them: `adapter_config.json` and
//! `adapter_model.safetensors`.
//!
//! The configuration is written in the subset of keys that every PEFT of recent years knows, sorted,
//! since older versions refuse unknown keys. Tensors carry the prefix `base_model.model.` and no
//! adapter name. Reading is stricter than PEFT's: a tensor that belongs to nothing, or a branch without
//! its tensors, is an error, because PEFT would load it and leave the adapter without effect.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::model::{EMBEDDING, HEAD, Model};
use sparsam_base::weights::Weights;

use crate::error::{Error, Result};
use crate::lora::{Bias, Init, LoraConfig};
use crate::targets::{ALL_LINEAR, Targets};
use crate::trainable::Trainable;

/// Name of the file of settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the file of tensors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";

/// Settings that change what an adapter computes and that this version does not build.
const UNSUPPORTED: &[&str] = &[
    "alora_invocation_tokens",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
];

/// Settings of a PEFT folder and the base they name.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// The adapter's own settings.
    pub lora: LoraConfig,
    /// What the adapter was trained on.
    pub base_model_name_or_path: Option<String>,
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
    let number = |key: &str| {
        get(key)
            .and_then(Value::as_f64)
            .ok_or_else(|| Error::config(key, "is missing or not a number"))
    };
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
    let pattern = |key: &str| -> Result<BTreeMap<String, f64>> {
        let value = get(key).cloned().unwrap_or_else(|| json!({}));
        serde_json::from_value(value).map_err(|_| Error::config(key, "is not a map of numbers"))
    };
    let Some(target_modules) = targets("target_modules")? else {
        return Err(Error::config("target_modules", "is missing"));
    };
    let bias = match get("bias").and_then(Value::as_str) {
        None | Some("none") => Bias::None,
        Some("all") => Bias::All,
        Some("lora_only") => Bias::LoraOnly,
        Some(other) => return Err(Error::config("bias", format!("is `{other}`"))),
    };
    let layers_to_transform = match get("layers_to_transform") {
        None => None,
        Some(Value::Number(one)) => Some(vec![one.as_u64().unwrap_or(0) as usize]),
        Some(value) => Some(
            serde_json::from_value(value.clone())
                .map_err(|_| Error::config("layers_to_transform", "is not a list of numbers"))?,
        ),
    };
    let lora = LoraConfig {
        r: number("r")? as usize,
        lora_alpha: number("lora_alpha")?,
        lora_dropout: get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0),
        target_modules,
        exclude_modules: targets("exclude_modules")?,
        use_rslora: get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        rank_pattern: pattern("rank_pattern")?
            .into_iter()
            .map(|(k, v)| (k, v as usize))
            .collect(),
        alpha_pattern: pattern("alpha_pattern")?,
        layers_to_transform,
        layers_pattern: strings("layers_pattern")?,
        modules_to_save: strings("modules_to_save")?,
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
    })
}

/// Loads an adapter folder onto a model.
///
/// # Errors
/// A malformed folder, or tensors that do not fit the model and the settings one to one.
pub fn load(folder: &Path, model: &mut Model, seed: u64) -> Result<(Trainable, AdapterConfig)> {
    let config = read_config(folder)?;
    let mut trainable = Trainable::lora(model, &config.lora, seed)?;
    let files = SafetensorsFiles::open(&[folder.join(WEIGHTS_FILE)])?;
    let mut missing: BTreeSet<String> = trainable.registry().keys().cloned().collect();
    for stored in files.names() {
        let name = registry_name(stored)?;
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

/// Name in the registry of a tensor stored under `stored`.
fn registry_name(stored: &str) -> Result<String> {
    let Some(name) = stored.strip_prefix(PREFIX) else {
        return Err(Error::weight(
            stored,
            "lacks the prefix `base_model.model.`, PEFT would not apply it",
        ));
    };
    Ok(name
        .replace(".base_layer.", ".")
        .replace(".default.weight", ".weight"))
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

/// `adapter_config.json`, keys sorted, indented by two, as PEFT writes it.
fn config_text(config: &AdapterConfig, adapted: &[&str]) -> String {
    let lora = &config.lora;
    // PEFT stores `all-linear` as the names it stands for.
    let target_modules = match &lora.target_modules {
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
        ("task_type", json!("CAUSAL_LM")),
        ("use_dora", json!(false)),
        ("use_rslora", json!(lora.use_rslora)),
    ];
    let map: Map<String, Value> = entries
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v))
        .collect();
    format!("{:#}\n", Value::Object(map))
}

/// Writes tensors as one safetensors file, beside its place first and then renamed.
///
/// # Errors
/// A file that cannot be written.
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let mut buffers = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        buffers.push((name, tensor.dims().to_vec(), bytes));
    }
    let mut views = Vec::with_capacity(buffers.len());
    for (name, shape, bytes) in &buffers {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes)
                .map_err(|e| Error::weight(name, format!("cannot be stored: {e}")))?;
        views.push((name.as_str(), view));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|e| Error::file(path, format!("cannot be made: {e}")))?;
    write_bytes(path, &bytes)
}

/// Writes a text file, beside its place first and then renamed.
///
/// # Errors
/// A file that cannot be written.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    write_bytes(path, text.as_bytes())
}

fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write as _;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(Error::write(path))?;
    file.write_all(bytes).map_err(Error::write(path))?;
    file.as_file().sync_all().map_err(Error::write(path))?;
    file.persist(path)
        .map_err(|e| Error::write(path)(e.error))?;
    Ok(())
}

/// Whether a registry name is one of the base's whole modules that PEFT saves beside an adapter.
pub fn is_saved_module(name: &str) -> bool {
    name == EMBEDDING || name == HEAD
}
