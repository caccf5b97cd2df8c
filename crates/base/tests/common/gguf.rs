//! Writes models of `tests/fixtures/families` as GGUF files, as llama.cpp's converter would, with
//! candle's writer.

#![allow(dead_code, reason = "no test needs all of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde_json::Value as Json;
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::weights::Weights;

/// Metadata and tensors of a file to be written.
pub(crate) struct Contents {
    pub(crate) metadata: Vec<(String, Value)>,
    pub(crate) tensors: BTreeMap<String, QTensor>,
}

pub(crate) fn family(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/families")
        .join(name)
}

impl Contents {
    /// A family's fixture with its matrices stored as `kind` and its vectors in f32.
    pub(crate) fn of_family(name: &str, kind: GgmlDType) -> Self {
        let folder = family(name);
        let config: Json =
            serde_json::from_slice(&std::fs::read(folder.join("config.json")).expect("a file"))
                .expect("JSON");
        let weights = SafetensorsFiles::in_folder(&folder).expect("weights");
        let architecture = match config["model_type"].as_str().expect("a family") {
            "mistral" => "llama",
            other => other,
        };
        let mut tensors = BTreeMap::new();
        for name in weights.names() {
            let mut tensor = weights.tensor(name).expect(name);
            if architecture == "llama" {
                let heads = if name.contains("q_proj") {
                    &config["num_attention_heads"]
                } else if name.contains("k_proj") {
                    &config["num_key_value_heads"]
                } else {
                    &Json::Null
                };
                if let Some(heads) = heads.as_u64() {
                    tensor = interleaved(&tensor, heads as usize);
                }
            }
            let kind = if tensor.rank() == 2 {
                kind
            } else {
                GgmlDType::F32
            };
            let stored = QTensor::quantize(&tensor, kind).expect("quantised");
            tensors.insert(gguf_name(name), stored);
        }
        Self {
            metadata: metadata(&config, architecture),
            tensors,
        }
    }

    /// The same numbers, every tensor in f32.
    pub(crate) fn expanded(&self) -> Self {
        let expand = |tensor: &QTensor| {
            let plain = tensor.dequantize(&Device::Cpu).expect("numbers");
            QTensor::quantize(&plain, GgmlDType::F32).expect("stored")
        };
        let tensors = self.tensors.iter();
        Self {
            metadata: self.metadata.clone(),
            tensors: tensors.map(|(name, t)| (name.clone(), expand(t))).collect(),
        }
    }

    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.metadata.retain(|(known, _)| known != key);
        self.metadata.push((key.to_owned(), value));
    }

    pub(crate) fn write(&self, path: &Path) {
        let metadata: Vec<_> = self.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let tensors: Vec<_> = self.tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let mut file = std::fs::File::create(path).expect("a file");
        gguf_file::write(&mut file, &metadata, &tensors).expect("written");
    }
}

/// Rows in the order of llama.cpp: `[heads, 2, half, …]` becomes `[heads, half, 2, …]`.
fn interleaved(tensor: &Tensor, heads: usize) -> Tensor {
    let dims = tensor.dims().to_vec();
    let half = dims[0] / heads / 2;
    let rest: usize = dims[1..].iter().product();
    tensor
        .reshape((heads, 2, half, rest))
        .and_then(|t| t.transpose(1, 2))
        .and_then(|t| t.contiguous())
        .and_then(|t| t.reshape(dims))
        .expect("reordered")
}

fn gguf_name(name: &str) -> String {
    let parts = [
        ("model.embed_tokens", "token_embd"),
        ("lm_head", "output"),
        ("model.norm", "output_norm"),
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    parts.iter().fold(name.to_owned(), |name, (theirs, ours)| {
        name.replace(theirs, ours)
    })
}

fn metadata(config: &Json, architecture: &str) -> Vec<(String, Value)> {
    let number = |key: &str| config[key].as_u64().map(|n| Value::U32(n as u32));
    let real = |key: &str| config[key].as_f64().map(|n| Value::F32(n as f32));
    let theta = config["rope_parameters"]["rope_theta"].as_f64();
    let keys = [
        ("block_count", number("num_hidden_layers")),
        ("context_length", number("max_position_embeddings")),
        ("embedding_length", number("hidden_size")),
        ("feed_forward_length", number("intermediate_size")),
        ("attention.head_count", number("num_attention_heads")),
        ("attention.head_count_kv", number("num_key_value_heads")),
        ("attention.key_length", number("head_dim")),
        ("attention.value_length", number("head_dim")),
        ("attention.layer_norm_rms_epsilon", real("rms_norm_eps")),
        (
            "rope.freq_base",
            real("rope_theta").or_else(|| theta.map(|n| Value::F32(n as f32))),
        ),
        ("vocab_size", number("vocab_size")),
    ];
    let text = |text: &str| Value::String(text.to_owned());
    let mut list = vec![
        ("general.architecture".to_owned(), text(architecture)),
        ("general.type".to_owned(), text("model")),
    ];
    for (key, value) in keys {
        let key = format!("{architecture}.{key}");
        list.extend(value.map(|value| (key, value)));
    }
    list.extend(tokenizer());
    list
}

/// 96 tokens: three special ones, the space, letters and signs, and two joined ones.
fn tokenizer() -> Vec<(String, Value)> {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>", "▁"].map(str::to_owned).into();
    tokens.extend((b'!'..=b'z').map(|byte| char::from(byte).to_string()));
    tokens.extend(["he", "th"].map(str::to_owned));
    let count = tokens.len();
    assert_eq!(count, 96);
    let types = (0..count).map(|id| Value::I32([2, 3, 3].get(id).copied().unwrap_or(1)));
    // "he" is joined before "th".
    let scores = (0..count).map(|id| Value::F32(if id == 94 { -1.0 } else { -2.0 }));
    let entries = [
        ("model", Value::String("llama".to_owned())),
        ("types", Value::Array(types.collect())),
        ("scores", Value::Array(scores.collect())),
        (
            "tokens",
            Value::Array(tokens.into_iter().map(Value::String).collect()),
        ),
        ("bos_token_id", Value::U32(1)),
        ("eos_token_id", Value::U32(2)),
        ("unknown_token_id", Value::U32(0)),
        ("add_bos_token", Value::Bool(true)),
    ];
    let key = |key: &str| match key {
        "types" => "tokenizer.ggml.token_type".to_owned(),
        key => format!("tokenizer.ggml.{key}"),
    };
    entries.map(|(name, value)| (key(name), value)).into()
}
