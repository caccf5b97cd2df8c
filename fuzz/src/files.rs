//! What must hold of the readers of model files, whatever a file holds: an answer or an error, in bounded memory,
//! and never a panic.

use std::fs;
use std::path::Path;

use sparsam_adapter::parts::Parts;
use sparsam_adapter::peft;
use sparsam_base::config::ModelConfig;
use sparsam_base::files::gguf::GgufFile;
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::model::{EMBEDDING, HEAD};
use sparsam_base::weights::Weights;

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("written");
}

/// A GGUF file: its header, its tokenizer, and those of its tensors that a model begins with.
pub fn gguf(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    write(&path, bytes);
    let Ok(file) = GgufFile::open(&path) else {
        return;
    };
    let _ = file.tokenizer();
    let _ = file.note("sparsam.adapter_blake3");
    for name in [EMBEDDING, HEAD, "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"] {
        if file.contains(name) {
            let _ = file.kept(name);
            let _ = file.tensor(name);
        }
    }
}

/// A checkpoint in shards: the first byte says whether the rest is the index beside a sound shard, a shard, or the
/// model's configuration.
pub fn safetensors(bytes: &[u8]) {
    const SHARD: &[u8] = include_bytes!("../seeds/safetensors/shard");
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    if kind % 3 == 2 {
        if let Ok(text) = std::str::from_utf8(rest) {
            let _ = ModelConfig::parse(text);
        }
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    if kind % 3 == 0 {
        write(&folder.path().join("model.safetensors.index.json"), rest);
        write(&folder.path().join("a.safetensors"), &SHARD[1..]);
    } else {
        write(&folder.path().join("model.safetensors"), rest);
    }
    let Ok(files) = SafetensorsFiles::in_folder(folder.path()) else {
        return;
    };
    let _ = files.note("format");
    let names: Vec<String> = files.names().take(8).map(str::to_owned).collect();
    for name in names {
        let _ = files.shape(&name);
        let _ = files.tensor(&name);
    }
}

/// The settings of an adapter, alone and beside a sound file of tensors.
pub fn adapter_config(bytes: &[u8]) {
    const TENSORS: &[u8] = include_bytes!("../../tests/fixtures/peft/lora-qv/final/adapter_model.safetensors");
    let folder = tempfile::tempdir().expect("a folder");
    write(&folder.path().join(peft::CONFIG_FILE), bytes);
    let Ok(config) = peft::read_config(folder.path()) else {
        return;
    };
    let _ = config.lora.branch("model.layers.0.self_attn.q_proj");
    write(&folder.path().join(peft::WEIGHTS_FILE), TENSORS);
    let _ = Parts::of_any(folder.path());
}
