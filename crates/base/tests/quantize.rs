//! Quantised checkpoints against bitsandbytes' own: names, types, shapes and bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::Value;
use sparsam_base::error::{Error, Result};
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::files::shards::Stored;
use sparsam_base::model::Quantize;
use sparsam_base::quantize::{Outcome, config, quantized, stored, write};
use sparsam_base::weights::Weights;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// Everything a file holds.
fn read(path: &Path) -> BTreeMap<String, Stored> {
    let bytes = fs::read(path).expect("a file");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let stored = Stored {
                name: name.clone(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: view.data().to_vec(),
            };
            (name, stored)
        })
        .collect()
}

fn matrix(stored: &Stored) -> Tensor {
    let dtype = match stored.dtype {
        Dtype::BF16 => DType::BF16,
        _ => DType::F32,
    };
    Tensor::from_raw_buffer(&stored.bytes, dtype, &stored.shape, &Device::Cpu).expect("a matrix")
}

#[test]
fn a_matrix_is_stored_under_the_names_types_and_shapes_of_bitsandbytes() {
    let matrices = read(&fixtures().join("bnb/matrices.safetensors"));
    for (file, quantize) in [
        ("nf4", Quantize::Nf4),
        ("nf4-dq", Quantize::Nf4Double),
        ("int8", Quantize::Int8),
    ] {
        let expected = read(&fixtures().join(format!("bnb/{file}.safetensors")));
        let mut compared = 0;
        for (name, numbers) in &matrices {
            let tensor = matrix(numbers);
            let name = format!("{name}.weight");
            let weight = quantized(&name, &tensor, quantize).expect("quantised");
            for ours in stored(&name, &weight, tensor.dtype()).expect("stored") {
                if ours.name.ends_with("weight_format") {
                    assert_eq!((ours.shape.len(), &ours.bytes), (0, &vec![0]));
                    continue;
                }
                let theirs = &expected[&ours.name];
                assert_eq!(ours.dtype, theirs.dtype, "{}", ours.name);
                assert_eq!(ours.shape, theirs.shape, "{}", ours.name);
                assert_same(&ours, theirs);
                compared += 1;
            }
        }
        assert!(compared >= 16, "{file}: {compared} tensors");
    }
}

/// Bytes are equal; codes of int8 may differ on an exact half.
fn assert_same(ours: &Stored, theirs: &Stored) {
    let name = &ours.name;
    if ours.dtype == Dtype::I8 {
        let pairs = ours.bytes.iter().zip(&theirs.bytes);
        let apart = pairs.filter(|(one, other)| one != other).count();
        assert!(apart <= 1, "{name}: {apart} codes");
    } else {
        assert_eq!(ours.bytes, theirs.bytes, "{name}");
    }
}

fn quantize(from: &Path, to: Quantize, folder: &Path) -> Outcome {
    let files = SafetensorsFiles::in_folder(from).expect("weights");
    let names: Vec<String> = files.names().map(str::to_owned).collect();
    write(&files, &names, to, folder, 1 << 30).expect("written")
}

#[test]
fn a_model_keeps_embedding_head_and_norms_as_they_are() {
    let from = fixtures().join("families/bf16");
    let before = read(&from.join("model.safetensors"));
    for (to, error) in [
        (Quantize::Int8, 0.01),
        (Quantize::Nf4, 0.12),
        (Quantize::Nf4Double, 0.12),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let outcome = quantize(&from, to, folder.path());
        assert_eq!(outcome.quantized, 14, "seven in each of two blocks");
        assert!(outcome.relative_error > error / 10.0, "{outcome:?}");
        assert!(outcome.relative_error < error, "{outcome:?}");
        let after = read(&folder.path().join("model.safetensors"));
        for name in [
            "model.embed_tokens.weight",
            "lm_head.weight",
            "model.norm.weight",
        ] {
            assert_eq!(after[name], before[name], "{name}");
        }
        let state = "model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4";
        match after.get(state) {
            Some(state) => {
                let text = String::from_utf8_lossy(&state.bytes);
                let begins = "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \
                              \"shape\": [64, 32]";
                assert!(text.starts_with(begins), "{text}");
            }
            None => assert_eq!(to, Quantize::Int8),
        }
        let text = fs::read_to_string(from.join("config.json")).expect("read");
        let config: Value =
            serde_json::from_str(&config(&text, to, DType::BF16).expect("made")).expect("JSON");
        let quantization = &config["quantization_config"];
        assert_eq!(quantization["quant_method"], "bitsandbytes");
        assert_eq!(quantization["load_in_8bit"], to == Quantize::Int8);
        assert_eq!(
            quantization["bnb_4bit_use_double_quant"],
            to == Quantize::Nf4Double
        );
        assert_eq!(config["hidden_size"], 32);
    }
}

#[test]
fn what_holds_no_blocks_is_refused() {
    struct Nothing;
    impl Weights for Nothing {
        fn contains(&self, _: &str) -> bool {
            false
        }
        fn tensor(&self, name: &str) -> Result<Tensor> {
            Err(Error::Weight {
                name: name.to_owned(),
                what: "is not here".to_owned(),
            })
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    assert!(write(&Nothing, &[], Quantize::Nf4, folder.path(), 1).is_err());
}

/// With `SPARSAM_SHARED`: a trained model, against the checkpoint that bitsandbytes made of it.
#[test]
fn a_trained_model_gives_the_checkpoint_of_bitsandbytes() {
    let Some(shared) = std::env::var_os("SPARSAM_SHARED").map(PathBuf::from) else {
        return;
    };
    for (name, to) in [
        ("stories260K-nf4", Quantize::Nf4),
        ("stories260K-nf4-dq", Quantize::Nf4Double),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        quantize(&shared.join("data/models/stories260K"), to, folder.path());
        let ours = read(&folder.path().join("model.safetensors"));
        let theirs = shared.join("data/bnb4").join(name);
        let expected = read(&theirs.join("model.safetensors"));
        assert!(ours.keys().eq(expected.keys()), "{name}: names");
        for (ours, theirs) in ours.values().zip(expected.values()) {
            assert_eq!(ours, theirs, "{name}: {}", ours.name);
        }
        let read_config = |folder: &Path| -> Value {
            let text = fs::read_to_string(folder.join("config.json")).expect("read");
            serde_json::from_str(&text).expect("JSON")
        };
        let base = shared.join("data/models/stories260K/config.json");
        let text = fs::read_to_string(base).expect("read");
        let config: Value =
            serde_json::from_str(&config(&text, to, DType::F32).expect("made")).expect("JSON");
        assert_eq!(
            config["quantization_config"],
            read_config(&theirs)["quantization_config"]
        );
    }
}
