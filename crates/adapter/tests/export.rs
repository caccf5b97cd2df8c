//! Exported adapters and models, read back and computed with as the programs they are for do.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value as Meta};
use candle_core::{Device, Tensor};
use common::{F32, fixtures, numbers};
use serde_json::Value;
use sparsam_adapter::export::{gguf, gguf_lora, mlx};
use sparsam_adapter::merge::Merged;
use sparsam_adapter::parts::Parts;
use sparsam_adapter::targets::Targets;
use sparsam_base::config::ModelConfig;
use sparsam_base::files::gguf_types::FileType;
use sparsam_base::files::gguf_vocabulary::vocabulary;
use sparsam_base::files::gguf_writer::Kind;
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::model::{Model, Quantize};
use sparsam_base::tokenizer::Tokenizer;
use sparsam_base::weights::Weights;

const PLAIN: [&str; 5] = [
    "all-linear",
    "lora-qv",
    "patterns",
    "regex-exclude",
    "rslora",
];

fn parts(case: &str) -> Parts {
    Parts::read(&fixtures().join("peft").join(case).join("final")).expect(case)
}

fn base_of(case: &str) -> PathBuf {
    let text = fs::read_to_string(fixtures().join("peft/reference.json")).expect("reference");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    fixtures().join(value["cases"][case]["base"].as_str().expect("a base"))
}

fn config(base: &Path) -> ModelConfig {
    let text = fs::read_to_string(base.join("config.json")).expect("a configuration");
    ModelConfig::parse(&text).expect("understood")
}

/// Every tensor of a GGUF file, and its header.
fn read(path: &Path) -> (BTreeMap<String, Tensor>, Content) {
    let mut file = fs::File::open(path).expect("a file");
    let content = Content::read(&mut file).expect("a GGUF file");
    let names: Vec<String> = content.tensor_infos.keys().cloned().collect();
    let tensors = names.into_iter().map(|name| {
        let tensor = content
            .tensor(&mut file, &name, &Device::Cpu)
            .expect("a tensor");
        (name, tensor.dequantize(&Device::Cpu).expect("numbers"))
    });
    (tensors.collect(), content)
}

/// The rows of q or k brought back from GGUF's order, written out anew: pairs of neighbours become
/// halves.
fn halves(tensor: &Tensor, heads: usize) -> Tensor {
    let (rows, columns) = tensor.dims2().expect("a matrix");
    tensor
        .reshape((heads, rows / heads / 2, 2, columns))
        .and_then(|t| t.transpose(1, 2)?.contiguous()?.reshape((rows, columns)))
        .expect("reordered")
}

fn heads(config: &ModelConfig, module: &str) -> Option<usize> {
    match (config.family.as_str(), module.rsplit('.').next()?) {
        ("llama" | "mistral", "q_proj") => Some(config.num_attention_heads),
        ("llama" | "mistral", "k_proj") => Some(config.num_key_value_heads),
        _ => None,
    }
}

#[track_caller]
fn assert_close(what: &str, one: &Tensor, other: &Tensor, tolerance: f32) {
    assert_eq!(one.dims(), other.dims(), "{what}");
    for (x, y) in numbers(one).into_iter().zip(numbers(other)) {
        assert!((x - y).abs() <= tolerance, "{what}: {x} and {y}");
    }
}

#[test]
fn llama_cpp_computes_the_same_change_of_every_weight() {
    for case in PLAIN {
        let (parts, config) = (parts(case), config(&base_of(case)));
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("adapter.gguf");
        gguf_lora::write(&path, &parts, &config, Kind::F32).expect(case);
        let (tensors, content) = read(&path);
        let text = |key: &str| content.metadata[key].to_string().expect(key).clone();
        assert_eq!(text("general.type"), "adapter");
        assert_eq!(text("general.architecture"), "llama");
        assert_eq!(text("adapter.type"), "lora");
        let Meta::F32(alpha) = content.metadata["adapter.lora.alpha"] else {
            panic!("{case}: alpha is no f32");
        };
        assert_eq!(tensors.len(), 2 * parts.branches.len(), "{case}");
        for (module, branch) in &parts.branches {
            let layer = module.split('.').nth(2).expect("a layer");
            let short = match module.rsplit('.').next().expect("a name") {
                "q_proj" => "attn_q",
                "k_proj" => "attn_k",
                "v_proj" => "attn_v",
                "o_proj" => "attn_output",
                "gate_proj" => "ffn_gate",
                "up_proj" => "ffn_up",
                _ => "ffn_down",
            };
            let name = format!("blk.{layer}.{short}.weight");
            let a = &tensors[&format!("{name}.lora_a")];
            let b = &tensors[&format!("{name}.lora_b")];
            // llama.cpp: scale = alpha / rank, the rank being the rows of A.
            let scale = f64::from(alpha) / a.dims()[0] as f64;
            let mut change = (b.matmul(a).expect("a product") * scale).expect("scaled");
            if let Some(heads) = heads(&config, module) {
                change = halves(&change, heads);
            }
            assert_close(module, &change, &branch.change().expect("a change"), 1e-6);
        }
    }
}

#[test]
fn mlx_computes_the_same_change_of_every_weight() {
    for case in PLAIN.into_iter().chain(["layers-to-transform"]) {
        let (parts, config) = (parts(case), config(&base_of(case)));
        let folder = tempfile::tempdir().expect("a folder");
        mlx::write(folder.path(), &parts, &config, "base").expect(case);
        let text = fs::read_to_string(folder.path().join(mlx::CONFIG_FILE)).expect("read");
        let settings: Value = serde_json::from_str(&text).expect("JSON");
        let lora = &settings["lora_parameters"];
        let scale = lora["scale"].as_f64().expect("a scale");
        let rank = lora["rank"].as_u64().expect("a rank") as usize;
        let first =
            config.num_hidden_layers - settings["num_layers"].as_u64().expect("a number") as usize;
        let keys: Vec<&str> = lora["keys"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|key| key.as_str().expect("a text"))
            .collect();
        let path = folder.path().join(mlx::WEIGHTS_FILE);
        let files = SafetensorsFiles::open(&[path]).expect("opened");
        assert_eq!(files.names().len(), 2 * parts.branches.len(), "{case}");
        for (module, branch) in &parts.branches {
            let rest = module.strip_prefix("model.layers.").expect("a layer");
            let (layer, key) = rest.split_once('.').expect("a module");
            assert!(
                layer.parse::<usize>().expect("a number") >= first,
                "{module}"
            );
            assert!(keys.contains(&key), "{module}");
            let tensor = |part: &str| files.tensor(&format!("{module}.{part}")).expect(part);
            let (a, b) = (tensor("lora_a"), tensor("lora_b"));
            assert_eq!(a.dims()[1], rank, "mlx-lm makes all branches of one rank");
            assert_eq!(b.dims()[0], rank);
            // (x A) B · scale is x Δᵀ.
            let change = (a.matmul(&b).expect("a product") * scale).expect("scaled");
            let change = change.t().and_then(|t| t.contiguous()).expect("transposed");
            assert_close(module, &change, &branch.change().expect("a change"), 1e-6);
        }
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    for (case, reason) in [
        ("dora", "a DoRA adapter"),
        ("save-lm-head", "`lm_head.weight`"),
        ("save-embeddings", "`model.embed_tokens.weight`"),
        ("bias-all", ".bias`"),
    ] {
        let (parts, config) = (parts(case), config(&base_of(case)));
        let path = folder.path().join("adapter.gguf");
        let error = gguf_lora::write(&path, &parts, &config, Kind::F16).expect_err(case);
        assert!(error.to_string().contains(reason), "{case}: {error}");
        assert!(error.hint().expect("a hint").contains("merge"), "{case}");
        let error = mlx::write(folder.path(), &parts, &config, "base").expect_err(case);
        assert!(error.to_string().contains(reason), "{case}: {error}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 0);
}

#[test]
fn alpha_of_zero_stays_without_effect() {
    let mut parts = parts("lora-qv");
    parts.config.lora.lora_alpha = 0.0;
    for branch in parts.branches.values_mut() {
        branch.scale = 0.0;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.gguf");
    gguf_lora::write(&path, &parts, &config(&base_of("lora-qv")), Kind::F32).expect("written");
    let (tensors, content) = read(&path);
    // llama.cpp takes an alpha of 0 for a scale of 1.
    assert!(matches!(
        content.metadata["adapter.lora.alpha"],
        Meta::F32(1.0)
    ));
    for (name, tensor) in tensors.iter().filter(|(name, _)| name.ends_with("lora_b")) {
        assert!(numbers(tensor).iter().all(|value| *value == 0.0), "{name}");
    }
}

#[test]
fn a_merged_model_in_gguf_holds_the_merged_weights() {
    for (case, kind, tolerance) in [
        ("all-linear", FileType::F32, 0.0),
        ("all-linear", FileType::F16, 1e-3),
        ("all-linear", FileType::Q8_0, 5e-3),
        ("all-linear", FileType::Q6K, 2e-2),
        ("all-linear", FileType::Q4KM, 8e-2),
        ("dora", FileType::F32, 0.0),
        ("save-lm-head", FileType::F32, 0.0),
    ] {
        let base = base_of(case);
        let (parts, config) = (parts(case), config(&base));
        let files = SafetensorsFiles::in_folder(&base).expect("weights");
        let names: Vec<String> = files.names().map(str::to_owned).collect();
        let tied = config.tie_word_embeddings;
        let merged = Merged::new(&files, names, tied, &parts, Quantize::None, None).expect(case);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        gguf::write(
            &path,
            (&merged, merged.names()),
            &config,
            "tiny",
            Vec::new(),
            kind,
        )
        .expect(case);
        let (tensors, content) = read(&path);
        let number = |key: &str| content.metadata[key].to_u32().expect(key) as usize;
        let architecture = content.metadata["general.architecture"]
            .to_string()
            .expect("a text");
        let of_model = |key: &str| number(&format!("{architecture}.{key}"));
        assert_eq!(of_model("block_count"), config.num_hidden_layers);
        assert_eq!(
            of_model("attention.head_count_kv"),
            config.num_key_value_heads
        );
        assert_eq!(of_model("rope.dimension_count"), config.head_dim);

        let options = sparsam_base::model::LoadOptions { ..F32 };
        let mut untied = config.clone();
        untied.tie_word_embeddings &= !parts.unties();
        let model = Model::load(untied, &merged, options).expect("a model");
        let mut compared = 0;
        for (layer, block) in model.blocks.iter().enumerate() {
            for (projection, short) in block
                .qkv
                .projections
                .iter()
                .zip(["attn_q", "attn_k", "attn_v"])
                .chain(block.down.projections.iter().zip(["ffn_down"]))
            {
                let mut stored = tensors[&format!("blk.{layer}.{short}.weight")].clone();
                if let Some(heads) = heads(&config, &projection.name) {
                    stored = halves(&stored, heads);
                }
                let weight = projection.weight.dequantize().expect("numbers");
                assert_close(&projection.name, &stored, &weight, tolerance);
                if let Some(bias) = &projection.bias {
                    let stored = &tensors[&format!("blk.{layer}.{short}.bias")];
                    let mut stored = stored.unsqueeze(1).expect("a matrix");
                    if let Some(heads) = heads(&config, &projection.name) {
                        stored = halves(&stored, heads);
                    }
                    let bias = bias.unsqueeze(1).expect("a matrix");
                    assert_close(&projection.name, &stored, &bias, 0.0);
                }
                compared += 1;
            }
        }
        assert_eq!(compared, 4 * config.num_hidden_layers);
        let untied = !config.tie_word_embeddings || parts.unties();
        assert_eq!(tensors.contains_key("output.weight"), untied, "{case}");
        let tensors_of_model = merged.names().len();
        assert_eq!(tensors.len(), tensors_of_model, "{case}");
    }
}

#[test]
fn models_that_llama_cpp_would_compute_differently_are_refused() {
    // A window of 8 tokens, which llama.cpp's `llama` does not know.
    let base = fixtures().join("families/mistral");
    let config = config(&base);
    let files = SafetensorsFiles::in_folder(&base).expect("weights");
    let names: Vec<String> = files.names().map(str::to_owned).collect();
    let parts = parts("lora-qv");
    let merged = Merged::new(&files, names, false, &parts, Quantize::None, None).expect("merged");
    let path = Path::new("never-written.gguf");
    let error = gguf::write(
        path,
        (&merged, merged.names()),
        &config,
        "x",
        Vec::new(),
        FileType::F32,
    )
    .expect_err("refused");
    assert!(error.to_string().contains("see 8 of"), "{error}");
    assert!(!path.exists());
}

/// With `SPARSAM_SHARED`: the whole file that llama.cpp's converter made of a trained model, header and
/// tensors, to the bit.
#[test]
fn a_model_without_change_is_what_llama_cpp_converts() {
    let Some(shared) = std::env::var_os("SPARSAM_SHARED").map(PathBuf::from) else {
        return;
    };
    let base = shared.join("data/models/stories260K");
    let config = config(&base);
    let mut parts = parts("lora-qv");
    parts.branches.clear();
    parts.config.lora.target_modules = Targets::List(vec!["nothing".to_owned()]);
    let files = SafetensorsFiles::in_folder(&base).expect("weights");
    let names: Vec<String> = files.names().map(str::to_owned).collect();
    let merged = Merged::new(&files, names, true, &parts, Quantize::None, None).expect("merged");
    let tokenizer = Tokenizer::from_dir(&base).expect("a tokenizer");
    let json = fs::read(base.join("tokenizer.json")).expect("read");
    let entries = vocabulary(&json, &tokenizer, config.vocab_size).expect("a vocabulary");
    for (name, kind) in [("f16", FileType::F16), ("q8_0", FileType::Q8_0)] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        let title = "stories260K";
        gguf::write(
            &path,
            (&merged, merged.names()),
            &config,
            title,
            entries.clone(),
            kind,
        )
        .expect("written");
        let theirs = shared.join(format!("data/gguf/stories260K-{name}.gguf"));
        let (mut our_file, mut their_file) = (
            fs::File::open(&path).expect("a file"),
            fs::File::open(theirs).expect("a file"),
        );
        let ours = Content::read(&mut our_file).expect("a GGUF file");
        let theirs = Content::read(&mut their_file).expect("a GGUF file");
        for (key, value) in &theirs.metadata {
            // How many parameters there are, in words.
            if key == "general.size_label" {
                continue;
            }
            let found = ours.metadata.get(key);
            assert_eq!(
                format!("{found:?}"),
                format!("{:?}", Some(value)),
                "{name}: {key}"
            );
        }
        assert_eq!(ours.tensor_infos.len(), theirs.tensor_infos.len(), "{name}");
        for tensor in theirs.tensor_infos.keys() {
            let one = ours
                .tensor(&mut our_file, tensor, &Device::Cpu)
                .expect(tensor);
            let other = theirs
                .tensor(&mut their_file, tensor, &Device::Cpu)
                .expect(tensor);
            assert_eq!(one.dtype(), other.dtype(), "{name}: {tensor}");
            assert_eq!(one.shape(), other.shape(), "{name}: {tensor}");
            let bytes =
                |tensor: &candle_core::quantized::QTensor| tensor.data().expect("bytes").to_vec();
            assert!(bytes(&one) == bytes(&other), "{name}: bytes of {tensor}");
        }
    }
}
