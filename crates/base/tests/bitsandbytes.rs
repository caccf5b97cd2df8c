//! Checkpoints of bitsandbytes: matrices as it stored them (`tests/fixtures/bnb`), whole models, and
//! what is damaged. Where `SPARSAM_SHARED` names a folder with models that bitsandbytes quantised and
//! dequantised again, those are checked too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_base::projection::{Frozen, Group};
use sparsam_base::tokenizer::Tokenizer;
use sparsam_base::weights::Weights;
use sparsam_kernels::cross_entropy::{IGNORE, Want, linear_cross_entropy};
use sparsam_kernels::{Documents, Weight};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor
        .to_dtype(DType::F32)
        .and_then(|t| t.flatten_all()?.to_vec1())
        .expect("numbers")
}

fn options(quantize: Quantize) -> LoadOptions {
    LoadOptions {
        quantize,
        dtype: DType::F32,
        max_length: 512,
    }
}

#[test]
fn matrices_are_what_bitsandbytes_makes_of_them() {
    for file in ["nf4", "nf4-dq", "int8"] {
        let path = fixtures().join(format!("bnb/{file}.safetensors"));
        let files = SafetensorsFiles::open(&[path]).expect(file);
        let mut checked = 0;
        for name in files
            .names()
            .filter_map(|name| name.strip_suffix(".dequantised"))
        {
            let weight = files.kept(&format!("{name}.weight")).expect(name);
            let weight = weight.expect("a quantised matrix");
            let expected = files.tensor(&format!("{name}.dequantised")).expect(name);
            let found = weight.dequantize().expect(name);
            assert_eq!(found.dims(), expected.dims());
            let in_bf16 = expected.dtype() == DType::BF16;
            for (ours, theirs) in numbers(&found).iter().zip(numbers(&expected)) {
                let ours = if in_bf16 {
                    half::bf16::from_f32(*ours).to_f32()
                } else {
                    *ours
                };
                assert!(
                    (ours - theirs).abs() <= theirs.abs() * 1e-6,
                    "{file}: {name}: {ours} and {theirs}"
                );
            }
            checked += 1;
        }
        assert!(checked >= 7, "{file}: {checked} matrices");
    }
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// The levels of FP4 (bitsandbytes, `functional.get_4bit_type("fp4")`): a sign, two bits of exponent, one
/// of mantissa, scaled to 1.
const FP4: [f32; 16] = [
    0.0,
    0.005_208_333_3,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    -0.0,
    -0.005_208_333_3,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

fn put(tensors: &mut Tensors, name: String, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) {
    tensors.insert(name, (dtype, shape.to_vec(), bytes));
}

/// Puts a matrix of the model as bitsandbytes would.
fn store(tensors: &mut Tensors, name: &str, weight: &Weight) {
    match weight {
        Weight::Nf4(weight) => {
            let (rows, columns) = weight.dims();
            let mut state = json!({"quant_type": "nf4", "blocksize": 64, "dtype": "float32",
                "shape": [rows, columns]});
            let packed = weight.packed().to_vec();
            put(
                tensors,
                name.to_owned(),
                Dtype::U8,
                &[packed.len(), 1],
                packed,
            );
            let levels = bytes(&sparsam_kernels::nf4::LEVELS);
            put(
                tensors,
                format!("{name}.quant_map"),
                Dtype::F32,
                &[16],
                levels,
            );
            let scales = format!("{name}.absmax");
            if let Some(nested) = weight.nested() {
                let count = nested.codes.len();
                put(tensors, scales, Dtype::U8, &[count], nested.codes.clone());
                let map = bytes(&sparsam_kernels::nf4::dynamic_map());
                put(
                    tensors,
                    format!("{name}.nested_quant_map"),
                    Dtype::F32,
                    &[256],
                    map,
                );
                let absmax = bytes(&nested.absmax);
                let count = [nested.absmax.len()];
                put(
                    tensors,
                    format!("{name}.nested_absmax"),
                    Dtype::F32,
                    &count,
                    absmax,
                );
                state["nested_blocksize"] = 256.into();
                state["nested_dtype"] = "float32".into();
                state["nested_offset"] = f64::from(nested.offset).into();
            } else {
                let absmax = bytes(weight.absmax());
                put(
                    tensors,
                    scales,
                    Dtype::F32,
                    &[weight.absmax().len()],
                    absmax,
                );
            }
            put_state(tensors, name, "nf4", &state);
        }
        Weight::Int8(weight) => {
            let (rows, columns) = weight.dims();
            let codes = weight
                .codes()
                .iter()
                .map(|code| code.cast_unsigned())
                .collect();
            put(tensors, name.to_owned(), Dtype::I8, &[rows, columns], codes);
            let module = name.strip_suffix(".weight").expect("a weight");
            let scales = bytes(weight.absmax());
            put(
                tensors,
                format!("{module}.SCB"),
                Dtype::F32,
                &[rows],
                scales,
            );
            put(
                tensors,
                format!("{module}.weight_format"),
                Dtype::U8,
                &[],
                vec![0],
            );
        }
        _ => panic!("a quantised matrix"),
    }
}

fn put_state(tensors: &mut Tensors, name: &str, kind: &str, state: &Value) {
    let text = state.to_string().into_bytes();
    let name = format!("{name}.quant_state.bitsandbytes__{kind}");
    put(tensors, name, Dtype::U8, &[text.len()], text);
}

/// The fixture `llama` with its projections quantised, as tensors of a checkpoint.
fn checkpoint(quantize: Quantize) -> (Tensors, Model) {
    let folder = fixtures().join("families/llama");
    let model = Model::from_folder(&folder, options(quantize)).expect("a model");
    let plain = SafetensorsFiles::in_folder(&folder).expect("weights");
    let mut tensors = Tensors::new();
    for name in plain.names() {
        let tensor = plain.tensor(name).expect(name);
        let values = bytes(&numbers(&tensor));
        put(
            &mut tensors,
            name.to_owned(),
            Dtype::F32,
            tensor.dims(),
            values,
        );
    }
    for projection in projections(&model) {
        store(
            &mut tensors,
            &format!("{}.weight", projection.name),
            &projection.weight,
        );
    }
    (tensors, model)
}

fn projections(model: &Model) -> impl Iterator<Item = &sparsam_base::projection::Projection> {
    let groups = model
        .blocks
        .iter()
        .flat_map(|b| [&b.qkv, &b.o, &b.gate_up, &b.down]);
    groups.flat_map(|group: &Group| &group.projections)
}

fn write(folder: &Path, tensors: &Tensors, quantization: &Value) {
    let text = std::fs::read_to_string(fixtures().join("families/llama/config.json"));
    let mut config: Value = serde_json::from_str(&text.expect("a file")).expect("JSON");
    config["quantization_config"] = quantization.clone();
    std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (
            name,
            TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor"),
        )
    });
    let bytes = safetensors::serialize(views, None).expect("serialised");
    std::fs::write(folder.join("model.safetensors"), bytes).expect("written");
}

fn in_four_bits() -> Value {
    json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": false,
           "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true,
           "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": null})
}

fn logits(model: &Model) -> Vec<f32> {
    let ids: Vec<u32> = (0..40).map(|i| (i * 7 + 3) % 96).collect();
    let documents = Documents::from_lengths(&[25, 15]);
    numbers(&model.logits(&ids, &documents, &mut Frozen).expect("logits"))
}

#[test]
fn a_checkpoint_computes_what_the_model_quantised_here_computes() {
    let folder = tempfile::tempdir().expect("a folder");
    let plain = Model::from_folder(&fixtures().join("families/llama"), options(Quantize::None));
    let plain = logits(&plain.expect("a model"));
    for quantize in [Quantize::Nf4, Quantize::Nf4Double, Quantize::Int8] {
        let (tensors, model) = checkpoint(quantize);
        let config = match quantize {
            Quantize::Int8 => json!({"quant_method": "bitsandbytes", "load_in_8bit": true,
                "llm_int8_threshold": 6.0}),
            _ => in_four_bits(),
        };
        write(folder.path(), &tensors, &config);
        let loaded = Model::from_folder(folder.path(), options(Quantize::None)).expect("a model");
        assert_eq!(loaded.bytes(), model.bytes());
        assert!(loaded.config.unrecognised.is_empty());
        assert!(logits(&loaded) == logits(&model), "{quantize:?}");
        assert!(
            logits(&loaded) != plain,
            "{quantize:?}: nothing was quantised"
        );
        let error = Model::from_folder(folder.path(), options(Quantize::Nf4)).err();
        let error = error.expect("quantised already").to_string();
        assert!(error.ends_with("is so already"), "{error}");
    }
}

/// Four bits with levels, blocks and a type of the bytes of their own.
#[test]
fn levels_and_blocks_are_those_of_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut tensors, _) = checkpoint(Quantize::Nf4);
    let name = "model.layers.1.mlp.up_proj.weight";
    tensors.retain(|other, _| !other.starts_with(name));
    let (rows, columns) = (64, 32);
    let packed: Vec<u8> = (0..rows * columns / 2)
        .map(|i| (i * 37 % 256) as u8)
        .collect();
    let scales: Vec<f32> = (0..rows * columns / 128)
        .map(|i| 0.1 + i as f32 * 0.05)
        .collect();
    // Some checkpoints keep the bytes as bf16, two and two.
    put(
        &mut tensors,
        name.to_owned(),
        Dtype::BF16,
        &[packed.len() / 2, 1],
        packed.clone(),
    );
    put(
        &mut tensors,
        format!("{name}.quant_map"),
        Dtype::F32,
        &[16],
        bytes(&FP4),
    );
    put(
        &mut tensors,
        format!("{name}.absmax"),
        Dtype::F32,
        &[scales.len()],
        bytes(&scales),
    );
    let state = json!({"quant_type": "fp4", "blocksize": 128, "dtype": "bfloat16",
        "shape": [rows, columns]});
    put_state(&mut tensors, name, "fp4", &state);
    write(folder.path(), &tensors, &in_four_bits());
    let model = Model::from_folder(folder.path(), options(Quantize::None)).expect("a model");
    let weight = projections(&model).find(|p| name.starts_with(&format!("{}.", p.name)));
    let found = weight
        .expect("the projection")
        .weight
        .dequantize()
        .expect("numbers");
    for (i, found) in numbers(&found).into_iter().enumerate() {
        let code = if i % 2 == 0 {
            packed[i / 2] >> 4
        } else {
            packed[i / 2] & 15
        };
        assert_eq!(
            found,
            FP4[usize::from(code)] * scales[i / 128],
            "number {i}"
        );
    }
}

/// Something done to a stored tensor.
type Damage = fn(&mut (Dtype, Vec<usize>, Vec<u8>));

#[test]
fn what_is_damaged_or_not_bitsandbytes_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let name = "model.layers.0.self_attn.q_proj.weight";
    let refused = |tensors: &Tensors, config: &Value, words: &str| {
        write(folder.path(), tensors, config);
        let Err(error) = Model::from_folder(folder.path(), options(Quantize::None)) else {
            panic!("`{words}` was accepted")
        };
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.hint().is_some(), "{error}");
    };
    let (whole, _) = checkpoint(Quantize::Nf4Double);
    let nan: Damage = |(_, _, bytes)| bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let cut: Damage = |(_, shape, bytes)| {
        bytes.truncate(bytes.len() / 2 / 4 * 4);
        shape[0] /= 2;
    };
    let text: Damage = |(_, _, bytes)| bytes.fill(b'[');
    for (suffix, damage) in [
        ("", cut),
        (".absmax", cut),
        (".quant_map", cut),
        (".quant_map", nan),
        (".nested_absmax", nan),
        (".nested_quant_map", cut),
        (".quant_state.bitsandbytes__nf4", text),
    ] {
        let mut tensors = whole.clone();
        let name = format!("{name}{suffix}");
        damage(tensors.get_mut(&name).expect(&name));
        let words = if suffix == ".absmax" {
            "self_attn.q_proj.weight"
        } else {
            name.as_str()
        };
        refused(&tensors, &in_four_bits(), words);
        if suffix.is_empty() || suffix.starts_with(".quant_state") {
            continue;
        }
        tensors.remove(&name);
        refused(&tensors, &in_four_bits(), &name);
    }
    for (key, value) in [
        ("shape", json!([u64::MAX, u64::MAX])),
        ("shape", json!([32])),
        ("blocksize", json!(0)),
        ("nested_blocksize", json!(-1)),
        ("nested_offset", json!("x")),
        ("quant_type", json!("int3")),
    ] {
        let mut tensors = whole.clone();
        let state = &tensors[&format!("{name}.quant_state.bitsandbytes__nf4")].2;
        let mut state: Value = serde_json::from_slice(state).expect("JSON");
        state[key] = value;
        put_state(&mut tensors, name, "nf4", &state);
        refused(&tensors, &in_four_bits(), name);
    }
    for (config, key) in [
        (
            json!({"quant_method": "gptq", "bits": 4}),
            "quantization_config.quant_method",
        ),
        (json!({"bits": 4}), "quantization_config.quant_method"),
        (
            json!({"load_in_4bit": true, "bnb_4bit_quant_type": "af4"}),
            "quantization_config.bnb_4bit_quant_type",
        ),
    ] {
        refused(&whole, &config, key);
    }
    let (mut tensors, _) = checkpoint(Quantize::Int8);
    let format = "model.layers.0.self_attn.q_proj.weight_format";
    put(&mut tensors, format.to_owned(), Dtype::U8, &[], vec![2]);
    refused(&tensors, &json!({"load_in_8bit": true}), format);
}

#[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
fn shared() -> Option<PathBuf> {
    let folder =
        std::env::var_os("SPARSAM_SHARED").map(|folder| PathBuf::from(folder).join("data"));
    if folder.is_none() {
        eprintln!("skipped: SPARSAM_SHARED is not set");
    }
    folder
}

#[test]
fn models_that_bitsandbytes_quantised_are_what_it_dequantised() {
    let Some(data) = shared() else { return };
    let text = data.join("datasets/tinystories/tinystories_sample.txt");
    let text = std::fs::read_to_string(text).expect("a text");
    let reference = std::fs::read(data.join("bnb4/reference.json")).expect("a file");
    let reference: Value = serde_json::from_slice(&reference).expect("JSON");
    for name in ["stories260K-nf4", "stories260K-nf4-dq"] {
        let folder = data.join("bnb4").join(name);
        let model = Model::from_folder(&folder, options(Quantize::None)).expect(name);
        let expected = [folder.join("expected_dequantised.safetensors")];
        let expected = SafetensorsFiles::open(&expected).expect(name);
        let mut quantised = 0;
        for projection in projections(&model) {
            assert!(
                matches!(projection.weight, Weight::Nf4(_)),
                "{}",
                projection.name
            );
            let theirs = expected
                .tensor(&format!("{}.weight", projection.name))
                .expect(name);
            let ours = projection.weight.dequantize().expect("numbers");
            assert!(
                numbers(&ours) == numbers(&theirs),
                "{name}: {}",
                projection.name
            );
            quantised += 1;
        }
        assert_eq!(Value::from(quantised), reference[name]["linear4bit_layers"]);
        let tokenizer = Tokenizer::from_dir(&folder).expect("a tokenizer");
        let (mut sum, mut count) = (0.0, 0);
        for part in text
            .split("<|endoftext|>")
            .map(str::trim)
            .filter(|p| !p.is_empty())
        {
            let mut ids = tokenizer.encode(part, true).expect("ids");
            ids.truncate(256);
            let documents = Documents::single(ids.len());
            let x = model.hidden(&ids, &documents, &mut Frozen).expect("states");
            let x = model.head_input(&x).expect("states").0;
            let mut targets = ids[1..].to_vec();
            targets.push(IGNORE);
            let loss = linear_cross_entropy(&x, &model.head, &targets, Want::default());
            let loss = loss.expect("a loss");
            sum += loss.sum;
            count += loss.targets;
        }
        let expected = reference[name]["mean_loss_tinystories_sample"].as_f64();
        let found = sum / count as f64;
        assert!(
            (found - expected.expect("a loss")).abs() < 1e-5,
            "{name}: {found}"
        );
    }
}
