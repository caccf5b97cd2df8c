//! Damaged and foreign adapter folders: each is refused in one clear sentence with a useful hint.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use common::{F32, dora, family, fixtures};
use serde_json::{Value, json};
use sparsam_adapter::error::Error;
use sparsam_adapter::peft::{self, AdapterConfig, CONFIG_FILE, WEIGHTS_FILE};
use sparsam_adapter::trainable::Trainable;
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::weights::Weights;
use tempfile::TempDir;

/// A copy of an adapter of the fixtures that may be damaged.
fn copy() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        let from = fixtures().join("peft/lora-qv/final").join(file);
        std::fs::copy(from, folder.path().join(file)).expect("copied");
    }
    folder
}

/// Loads the folder and returns the message, in which the folder is `…`, and the hint.
#[track_caller]
fn refusal(folder: &Path) -> (String, String) {
    let mut model = family("llama", F32);
    let Err(error) = peft::load(folder, &mut model, 0) else {
        panic!("the folder was accepted")
    };
    let message = error
        .to_string()
        .replace(&format!("{}", folder.display()), "…");
    (message, error.hint().expect("a hint"))
}

fn change_config(folder: &Path, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = folder.join(CONFIG_FILE);
    let text = std::fs::read_to_string(&path).expect("read");
    let mut value: Value = serde_json::from_str(&text).expect("JSON");
    change(value.as_object_mut().expect("an object"));
    std::fs::write(&path, value.to_string()).expect("written");
}

fn change_tensors(folder: &Path, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
    let path = folder.join(WEIGHTS_FILE);
    let files = SafetensorsFiles::open(std::slice::from_ref(&path)).expect("opened");
    let names: Vec<String> = files.names().map(str::to_owned).collect();
    let tensor = |name: String| (name.clone(), files.tensor(&name).expect("a tensor"));
    let mut tensors = names.into_iter().map(tensor).collect();
    change(&mut tensors);
    sparsam_adapter::files::write_tensors(&path, &tensors).expect("written");
}

const Q_A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

#[test]
fn a_missing_file_is_named() {
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        let folder = copy();
        std::fs::remove_file(folder.path().join(file)).expect("removed");
        let (message, hint) = refusal(folder.path());
        assert!(
            message.starts_with(&format!("cannot read `…/{file}`: ")),
            "{message}"
        );
        assert_eq!(
            hint,
            "an adapter folder holds adapter_config.json and adapter_model.safetensors"
        );
    }
}

#[test]
fn a_truncated_file_is_refused_at_every_length() {
    let whole = std::fs::read(copy().path().join(WEIGHTS_FILE)).expect("read");
    let cuts = [0, 5, 8, 200, whole.len() / 2, whole.len() - 1];
    for length in cuts {
        let folder = copy();
        std::fs::write(folder.path().join(WEIGHTS_FILE), &whole[..length]).expect("written");
        let (message, hint) = refusal(folder.path());
        assert!(
            message.starts_with(&format!("`…/{WEIGHTS_FILE}` is cut short")),
            "{length}: {message}"
        );
        assert!(message.contains(&format!("{length} bytes")), "{message}");
        assert!(hint.starts_with("the file may be cut short"), "{hint}");
    }
}

#[test]
fn a_wrong_shape_names_the_tensor_and_both_shapes() {
    let folder = copy();
    change_tensors(folder.path(), |tensors| {
        let wrong = Tensor::zeros((4, 48), DType::F32, &Device::Cpu).expect("a tensor");
        tensors.insert(Q_A.to_owned(), wrong);
    });
    let (message, hint) = refusal(folder.path());
    assert_eq!(
        message,
        "adapter tensor `model.layers.0.self_attn.q_proj.lora_A.weight` has shape [4, 48], \
         expected [4, 32]"
    );
    assert_eq!(
        hint,
        "the adapter may have been trained on another base model"
    );
}

/// PEFT would take 8 for a missing alpha and compute something else without a word.
#[test]
fn a_missing_alpha_or_rank_is_never_guessed() {
    for key in ["lora_alpha", "r"] {
        let folder = copy();
        change_config(folder.path(), |config| {
            config.remove(key);
        });
        let (message, hint) = refusal(folder.path());
        assert_eq!(
            message,
            format!("`…/{CONFIG_FILE}`: setting `{key}` is missing")
        );
        assert!(
            hint.starts_with("add the value the adapter was trained with"),
            "{hint}"
        );
    }
}

#[test]
fn values_that_cannot_be_meant_are_refused() {
    let cases = [
        ("r", json!(2.5), "is 2.5, not a whole number from 0 on"),
        ("r", json!(-4), "is -4, not a whole number from 0 on"),
        ("r", json!(0), "is 0, a rank is at least 1"),
        ("lora_alpha", json!("8"), "is \"8\", not a number"),
        ("lora_dropout", json!(1.5), "is 1.5, expected 0 up to 1"),
        (
            "use_rslora",
            json!("yes"),
            "is \"yes\", neither true nor false",
        ),
        ("use_dora", json!(1), "is 1, neither true nor false"),
        (
            "bias",
            json!("some"),
            "is `some`, expected `none`, `all` or `lora_only`",
        ),
        (
            "rank_pattern",
            json!({"q_proj": 1.5}),
            "is 1.5, not a whole number from 0 on",
        ),
        ("alpha_pattern", json!([3]), "is [3], not a map of numbers"),
        (
            "layers_to_transform",
            json!(-1),
            "is -1, not a whole number from 0 on",
        ),
        ("peft_type", json!("IA3"), "is not `LORA`"),
        (
            "use_qalora",
            json!(true),
            "is true, which this version cannot compute",
        ),
        (
            "init_lora_weights",
            json!("pissa_niter_4"),
            "is `pissa_niter_4`, which changes the base's weights",
        ),
    ];
    for (key, value, what) in cases {
        let folder = copy();
        change_config(folder.path(), |config| {
            config.insert(key.to_owned(), value);
        });
        let (message, hint) = refusal(folder.path());
        assert_eq!(
            message,
            format!("`…/{CONFIG_FILE}`: setting `{key}` {what}")
        );
        assert!(!hint.is_empty());
    }
}

#[test]
fn names_that_peft_would_not_apply_are_refused() {
    let folder = copy();
    change_tensors(folder.path(), |tensors| {
        let tensor = tensors.remove(Q_A).expect("the tensor");
        tensors.insert(Q_A.replace(".weight", ".default.weight"), tensor);
    });
    let (message, hint) = refusal(folder.path());
    assert_eq!(
        message,
        format!(
            "`…/{WEIGHTS_FILE}` holds a tensor \
             `base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight`, which carries \
             the name of an adapter in memory, `.default`"
        )
    );
    assert!(hint.contains("take `.default` out of every name"), "{hint}");

    let folder = copy();
    change_tensors(folder.path(), |tensors| {
        let tensor = tensors.remove(Q_A).expect("the tensor");
        tensors.insert(Q_A.replace("base_model.model.", ""), tensor);
    });
    let (message, hint) = refusal(folder.path());
    assert!(
        message.ends_with("which lacks the prefix `base_model.model.`"),
        "{message}"
    );
    assert!(hint.contains("put the prefix before every name"), "{hint}");
}

#[test]
fn missing_and_superfluous_tensors_are_named() {
    let folder = copy();
    change_tensors(folder.path(), |tensors| {
        tensors.remove(Q_A);
    });
    let (message, _) = refusal(folder.path());
    assert_eq!(
        message,
        "adapter tensor `model.layers.0.self_attn.q_proj.lora_A.weight` is not in the adapter's \
         file, though its settings name it"
    );
    // Magnitudes in a file whose settings do not say DoRA, and the other way round.
    let (magnitude, without) = (
        Q_A.replace("lora_A.weight", "lora_magnitude_vector"),
        copy(),
    );
    change_tensors(without.path(), |tensors| {
        let ones = Tensor::ones(32, DType::F32, &Device::Cpu).expect("a tensor");
        tensors.insert(magnitude, ones);
    });
    let (message, _) = refusal(without.path());
    assert!(
        message.contains("lora_magnitude_vector` belongs to nothing"),
        "{message}"
    );
    let folder = copy();
    change_config(folder.path(), |config| {
        config.insert("use_dora".to_owned(), json!(true));
    });
    let (message, _) = refusal(folder.path());
    assert!(
        message.contains("lora_magnitude_vector` is not in the adapter's file"),
        "{message}"
    );
}

/// A fresh DoRA adapter is written under PEFT's names with the norms of the base as magnitudes.
#[test]
fn dora_is_written_as_peft_names_it() -> Result<(), Error> {
    let mut model = family("llama", F32);
    let lora = sparsam_adapter::lora::LoraConfig {
        init: sparsam_adapter::lora::Init::Kaiming,
        ..dora()
    };
    let trainable = Trainable::lora(&mut model, &lora, 1)?;
    let config = AdapterConfig {
        lora,
        base_model_name_or_path: None,
        task: sparsam_adapter::peft::Task::CausalLm,
    };
    let folder = tempfile::tempdir().expect("a folder");
    peft::save(folder.path(), &trainable, &config)?;
    let text = std::fs::read_to_string(folder.path().join(CONFIG_FILE)).expect("read");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["use_dora"], json!(true));
    let files = SafetensorsFiles::open(&[folder.path().join(WEIGHTS_FILE)])?;
    let name = Q_A.replace("lora_A.weight", "lora_magnitude_vector");
    let magnitude = common::numbers(&files.tensor(&name)?);
    let weight = model.blocks[0].qkv.projections[0].weight.dequantize()?;
    let norms = common::numbers(&weight.sqr()?.sum(1)?.sqrt()?);
    assert_eq!(magnitude.len(), norms.len());
    for (magnitude, norm) in magnitude.iter().zip(&norms) {
        assert!(
            (magnitude - norm).abs() < 1e-6 * norm,
            "{magnitude} and {norm}"
        );
    }
    Ok(())
}
