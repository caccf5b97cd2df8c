//! GGUF files: the same model as from Hugging Face's files, the same tokens, and nothing but an error
//! from a file that is damaged or means harm.
//!
//! The files are written here, with candle's writer, from the models of `tests/fixtures`. Where
//! `SPARSAM_SHARED` names a folder with files of llama.cpp's own converter, those are checked too.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Tensor};
use serde_json::Value as Json;
use sparsam_base::error::Error;
use sparsam_base::files::gguf::GgufFile;
use sparsam_base::generate::{Sampling, generate};
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_base::projection::Frozen;
use sparsam_base::tokenizer::Tokenizer;
use sparsam_kernels::cross_entropy::{IGNORE, Want, linear_cross_entropy};
use sparsam_kernels::{Documents, Weight};

#[path = "common/gguf.rs"]
mod common;

use common::{Contents, family};

const OPTIONS: LoadOptions = LoadOptions {
    quantize: Quantize::None,
    dtype: DType::F32,
    max_length: 64,
};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("model.gguf")
    }

    fn write(&self, contents: &Contents) -> PathBuf {
        contents.write(&self.file());
        self.file()
    }
}

fn load(path: &Path) -> Model {
    let file = GgufFile::open(path).expect("a GGUF file");
    assert_eq!(file.config().unrecognised, [""; 0]);
    file.load(OPTIONS).expect("a model")
}

fn logits(model: &Model) -> Tensor {
    let ids: Vec<u32> = (0..40).map(|i| (i * 7 + 3) % 96).collect();
    let documents = Documents::from_lengths(&[25, 15]);
    model.logits(&ids, &documents, &mut Frozen).expect("logits")
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    let difference = (a - b).and_then(|d| d.abs()).and_then(|d| d.max_all());
    difference
        .and_then(|d| d.to_scalar())
        .expect("tensors of one shape")
}

#[test]
fn a_model_is_the_same_as_from_its_folder() {
    let place = Place::new();
    for name in [
        "llama",
        "llama-tied-bias",
        "mistral-head-dim",
        "qwen2",
        "qwen3",
    ] {
        let folder = Model::from_folder(&family(name), OPTIONS).expect(name);
        let path = place.write(&Contents::of_family(name, GgmlDType::F32));
        let file = load(&path);
        assert_eq!(file.parameters(), folder.parameters(), "{name}");
        // The base of the frequencies is f32 in the file.
        let off = difference(&logits(&file), &logits(&folder));
        assert!(off < 1e-6, "{name}: off by {off:e}");
    }
}

#[test]
fn frequencies_are_stretched_by_divisors_or_by_a_factor() {
    let place = Place::new();
    let folder = Model::from_folder(&family("llama3"), OPTIONS).expect("a model");
    let mut contents = Contents::of_family("llama3", GgmlDType::F32);
    let plain = load(&place.write(&contents));
    assert!(difference(&logits(&plain), &logits(&folder)) > 1e-3);
    // As llama.cpp's converter makes them: the frequencies without stretching over those with it.
    let (without, with) = (
        plain.config.inverse_frequencies(),
        folder.config.inverse_frequencies(),
    );
    let divisors: Vec<f32> = without
        .iter()
        .zip(&with)
        .map(|(a, b)| (a / b) as f32)
        .collect();
    let divisors = Tensor::new(divisors, &candle_core::Device::Cpu).expect("a tensor");
    let divisors = QTensor::quantize(&divisors, GgmlDType::F32).expect("stored");
    contents
        .tensors
        .insert("rope_freqs.weight".to_owned(), divisors);
    let stretched = load(&place.write(&contents));
    assert!(difference(&logits(&stretched), &logits(&folder)) < 1e-5);

    let folder = Model::from_folder(&family("llama-linear"), OPTIONS).expect("a model");
    let mut contents = Contents::of_family("llama-linear", GgmlDType::F32);
    let text = fs::read_to_string(family("llama-linear").join("config.json")).expect("a file");
    let config: Json = serde_json::from_str(&text).expect("JSON");
    let factor = config["rope_parameters"]["factor"]
        .as_f64()
        .expect("a factor");
    contents.set("llama.rope.scaling.factor", Value::F32(factor as f32));
    contents.set(
        "llama.rope.scaling.type",
        Value::String("linear".to_owned()),
    );
    let stretched = load(&place.write(&contents));
    assert!(difference(&logits(&stretched), &logits(&folder)) < 1e-6);
}

#[test]
fn quantised_blocks_stay_as_they_are_and_compute_what_they_stand_for() {
    let place = Place::new();
    for kind in [GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::Q5_1] {
        let contents = Contents::of_family("llama", kind);
        let quantised = load(&place.write(&contents));
        let matrices = contents.tensors.values().filter(|t| t.rank() == 2);
        let stored: usize = matrices.map(QTensor::storage_size_in_bytes).sum();
        assert_eq!(quantised.bytes(), stored, "{kind:?}");
        assert!(matches!(quantised.embedding, Weight::Ggml(_)));
        let expanded = load(&place.write(&contents.expanded()));
        assert_eq!(
            difference(&logits(&quantised), &logits(&expanded)),
            0.0,
            "{kind:?}"
        );
    }
}

#[test]
fn plain_numbers_keep_their_type_unless_another_is_asked_for() {
    let place = Place::new();
    let path = place.write(&Contents::of_family("qwen2", GgmlDType::F16));
    let open = || GgufFile::open(&path).expect("a file");
    let dtype = |model: &Model| match &model.blocks[0].down.projections[0].weight {
        Weight::Dense(tensor) => tensor.dtype(),
        _ => panic!("a plain matrix"),
    };
    assert_eq!(dtype(&open().load(OPTIONS).expect("a model")), DType::F16);
    let asked = open().with_dtype(Some(DType::BF16)).load(OPTIONS);
    assert_eq!(dtype(&asked.expect("a model")), DType::BF16);

    let nf4 = LoadOptions {
        quantize: Quantize::Nf4,
        ..OPTIONS
    };
    let model = open().load(nf4).expect("a model");
    assert!(matches!(
        model.blocks[0].down.projections[0].weight,
        Weight::Nf4(_)
    ));
    let path = place.write(&Contents::of_family("qwen2", GgmlDType::Q8_0));
    let error = GgufFile::open(&path).expect("a file").load(nf4).err();
    let error = error.expect("quantised already");
    assert!(matches!(error, Error::Quantized { .. }), "{error}");
}

#[test]
fn the_tokenizer_comes_with_the_file() {
    let place = Place::new();
    let mut contents = Contents::of_family("llama", GgmlDType::F32);
    let template = "{{ messages[0].content }}";
    contents.set(
        "tokenizer.chat_template",
        Value::String(template.to_owned()),
    );
    let tokenizer = GgufFile::open(&place.write(&contents))
        .expect("a file")
        .tokenizer()
        .expect("a tokenizer");
    let id = |text: &str| tokenizer.token_id(text).expect(text);
    assert_eq!(
        tokenizer.encode("the thing</s>", true).expect("ids"),
        [
            1,
            id("▁"),
            id("t"),
            id("he"),
            id("▁"),
            id("th"),
            id("i"),
            id("n"),
            id("g"),
            2
        ]
    );
    let ids = tokenizer.encode("a b ~", false).expect("ids");
    assert_eq!(ids.last(), Some(&0), "what no token stands for");
    assert_eq!(tokenizer.decode(&ids[..4], true).expect("text"), "a b");
    assert_eq!(tokenizer.bos(), Some((1, "<s>")));
    assert_eq!(tokenizer.end_ids(), [2]);
    assert_eq!(tokenizer.chat_template(), Some(template));
    assert!(tokenizer.check_fits(96).is_ok());
}

#[track_caller]
fn refused(path: &Path, names: &str) {
    let error = match GgufFile::open(path) {
        Err(error) => error,
        Ok(file) => match file.load(OPTIONS) {
            Err(error) => error,
            Ok(_) => match file.tokenizer() {
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains(names) && error.hint().is_some(), "{text}");
                    return;
                }
                Ok(_) => panic!("`{names}` was accepted"),
            },
        },
    };
    let text = error.to_string();
    assert!(text.contains(names), "{text}");
    assert!(error.hint().is_some(), "{text}");
}

#[test]
fn what_would_change_the_computation_is_named() {
    let place = Place::new();
    for (key, value) in [
        ("general.architecture", Value::String("gemma3".to_owned())),
        ("general.type", Value::String("adapter".to_owned())),
        ("split.count", Value::U16(3)),
        ("llama.expert_count", Value::U32(8)),
        ("llama.attention.causal", Value::Bool(false)),
        ("llama.attention.sliding_window", Value::U32(16)),
        ("llama.final_logit_softcapping", Value::F32(30.0)),
        ("llama.rope.scaling.type", Value::String("yarn".to_owned())),
        ("llama.rope.dimension_count", Value::U32(4)),
        ("llama.attention.head_count", Value::U32(3)),
        ("llama.block_count", Value::U32(0x7fff_ffff)),
        ("llama.embedding_length", Value::U32(64)),
        (
            "llama.feed_forward_length",
            Value::Array(vec![Value::U32(64), Value::U32(32)]),
        ),
        ("general.alignment", Value::U32(0)),
        ("tokenizer.ggml.model", Value::String("t5".to_owned())),
        ("tokenizer.ggml.scores", Value::Array(vec![Value::F32(0.0)])),
        ("tokenizer.ggml.bos_token_id", Value::U32(96)),
    ] {
        let mut contents = Contents::of_family("llama", GgmlDType::Q8_0);
        contents.set(key, value);
        // An impossible shape shows at the first tensor that does not have it.
        let named = match key {
            "llama.embedding_length" => "model.embed_tokens.weight",
            "general.type" | "split.count" => "model.gguf",
            key => key,
        };
        refused(&place.write(&contents), named);
    }
    for name in [
        "blk.0.attn_qkv.weight",
        "blk.2.attn_q.weight",
        "mm.0.weight",
    ] {
        let mut contents = Contents::of_family("llama", GgmlDType::Q8_0);
        let other = Contents::of_family("llama", GgmlDType::Q8_0);
        let tensor = other.tensors.into_values().next().expect("a tensor");
        contents.tensors.insert(name.to_owned(), tensor);
        refused(&place.write(&contents), name);
    }
    let mut contents = Contents::of_family("llama", GgmlDType::Q8_0);
    contents.tensors.remove("blk.1.ffn_up.weight");
    refused(&place.write(&contents), "blk.1.ffn_up.weight");
}

#[test]
fn a_key_or_a_tensor_that_is_there_twice_is_named() {
    let place = Place::new();
    let mut contents = Contents::of_family("llama", GgmlDType::Q8_0);
    contents
        .metadata
        .push(("llama.block_count".to_owned(), Value::U32(3)));
    refused(&place.write(&contents), "`llama.block_count` twice");

    let contents = Contents::of_family("llama", GgmlDType::Q8_0);
    let mut bytes = fs::read(place.write(&contents)).expect("bytes");
    let (from, to) = (b"blk.0.attn_v.weight", b"blk.0.attn_q.weight");
    let at = bytes.windows(from.len()).position(|window| window == from);
    let at = at.expect("its name");
    bytes[at..at + to.len()].copy_from_slice(to);
    fs::write(place.file(), bytes).expect("written");
    refused(&place.file(), "`blk.0.attn_q.weight` twice");
}

/// A header of version 3 with one tensor of one dimension.
fn header(name: &str, length: u64, kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend((name.len() as u64).to_le_bytes());
    bytes.extend(name.as_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

#[test]
fn absurd_counts_and_places_are_refused_before_memory_is_taken() {
    let place = Place::new();
    let write = |bytes: Vec<u8>| {
        fs::write(place.file(), bytes).expect("written");
        place.file()
    };
    refused(&write(Vec::new()), "does not begin with `GGUF`");
    refused(&write(b"GGUF".to_vec()), "cut short");
    refused(&write(b"GGUF\0\0\0\x03".to_vec()), "big-endian");
    for at in [8, 16] {
        let mut bytes = header("x", 32, 0, 0);
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        refused(&write(bytes), "would hold");
    }
    refused(&write(header("x", u64::MAX, 0, 0)), "`x` cannot have shape");
    refused(&write(header("x", 1 << 60, 0, 0)), "`x` reaches past");
    refused(&write(header("x", 0, 0, 0)), "`x` cannot have shape");
    refused(&write(header("x", 33, 8, 0)), "`x` cannot have shape");
    refused(&write(header("x", 32, 0, u64::MAX)), "`x` reaches past");
    refused(&write(header("x", 256, 23, 0)), "`x` as IQ4_XS");
    refused(&write(header("x", 32, 999, 0)), "unknown type 999");
    // A list of 2^60 texts, and one text that is longer than the file.
    let list = |count: u64, length: u64| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend([0u64, 1, 1].map(u64::to_le_bytes).concat());
        bytes.extend(b"k");
        bytes.extend([9u32, 8].map(u32::to_le_bytes).concat());
        bytes.extend([count, length].map(u64::to_le_bytes).concat());
        bytes
    };
    refused(&write(list(1 << 60, 0)), "cut short");
    refused(&write(list(1, 1 << 60)), "cut short");

    // Two tensors at one place.
    let contents = Contents::of_family("llama", GgmlDType::Q8_0);
    let mut bytes = fs::read(place.write(&contents)).expect("bytes");
    let name = b"blk.0.attn_v.weight";
    let at = bytes.windows(name.len()).position(|window| window == name);
    let offset = at.expect("its name") + name.len() + 4 + 16 + 4;
    bytes[offset..offset + 8].fill(0);
    refused(&write(bytes), "lie upon each other");
}

/// Opens a damaged file and, where that goes well, reads all of it. Whatever happens is fine but a
/// panic.
fn try_all(path: &Path) -> bool {
    GgufFile::open(path).is_ok_and(|file| {
        let tokenizer = file.tokenizer().is_ok();
        file.load(OPTIONS).is_ok() && tokenizer
    })
}

#[test]
fn no_cut_and_no_changed_byte_makes_it_panic() {
    let place = Place::new();
    let contents = Contents::of_family("llama", GgmlDType::Q8_0);
    let bytes = fs::read(place.write(&contents)).expect("bytes");
    assert!(try_all(&place.file()));
    for length in (0..bytes.len()).step_by(37) {
        fs::write(place.file(), &bytes[..length]).expect("written");
        assert!(GgufFile::open(&place.file()).is_err(), "{length} bytes");
    }
    let last = b"token_embd.weight";
    let header = bytes.windows(last.len()).position(|window| window == last);
    let header = header.expect("the last name") + last.len() + 32;
    let mut accepted = 0;
    // Three is prime to the width of every field, so that all their bytes have their turn.
    for at in (0..header).step_by(3) {
        let mut bytes = bytes.clone();
        bytes[at] ^= if at % 2 == 0 { 0xff } else { 0x01 };
        fs::write(place.file(), &bytes).expect("written");
        accepted += usize::from(try_all(&place.file()));
    }
    // Some changes are harmless, in the text of a token say.
    assert!(accepted > 0 && accepted < header, "{accepted} accepted");
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

fn continuation(model: &Model, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let sampling = Sampling {
        max_new_tokens: tokens,
        temperature: 0.0,
        top_p: None,
        seed: 0,
    };
    let prompts = [prompt.to_vec()];
    let answers = generate(model, &mut Frozen, &prompts, &[], &sampling, &mut |_, _| {
        ControlFlow::Continue(())
    });
    answers.expect("an answer").remove(0)
}

/// Mean loss by the protocol of the shared reference: parts of a text, BOS first, at most 256 ids.
fn mean_loss(model: &Model, tokenizer: &Tokenizer, text: &str) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for part in text.split("<|endoftext|>").map(str::trim) {
        if part.is_empty() {
            continue;
        }
        let mut ids = tokenizer.encode(part, true).expect("ids");
        ids.truncate(256);
        let documents = Documents::single(ids.len());
        let x = model.hidden(&ids, &documents, &mut Frozen).expect("states");
        let (x, _) = model.head_input(&x).expect("normalised");
        let mut targets = ids[1..].to_vec();
        targets.push(IGNORE);
        let loss = linear_cross_entropy(&x, &model.head, &targets, Want::default()).expect("loss");
        sum += loss.sum;
        count += loss.targets;
    }
    sum / count as f64
}

#[test]
fn files_of_llama_cpp_s_converter_answer_as_the_model_they_were_made_of() {
    let Some(data) = shared() else { return };
    let reference = fs::read_to_string(data.join("models/reference.json")).expect("a file");
    let reference: Json = serde_json::from_str(&reference).expect("JSON");
    let reference = &reference["stories260K"];
    let sample = data.join("datasets/tinystories/tinystories_sample.txt");
    let text = fs::read_to_string(sample).expect("a text");
    let own = Tokenizer::from_dir(&data.join("models/stories260K")).expect("a tokenizer");
    for (name, tolerance) in [
        ("stories260K-f16.gguf", 1e-3),
        ("stories260K-q8_0.gguf", 5e-3),
    ] {
        let path = data.join("gguf").join(name);
        let file = GgufFile::open(&path).expect(name);
        let tokenizer = file.tokenizer().expect(name);
        assert_eq!(
            tokenizer.encode(&text, true).expect("ids"),
            own.encode(&text, true).expect("ids"),
            "{name}"
        );
        let options = LoadOptions {
            max_length: 512,
            ..OPTIONS
        };
        let model = file.load(options).expect(name);
        let length = fs::metadata(&path).expect("a file").len();
        assert!((model.bytes() as u64) < length, "{name}: grew in memory");
        for prompt in ["Once upon a time", "One day, a little girl named Lily"] {
            let expected = &reference[format!("greedy40:{prompt}")];
            let ids = tokenizer.encode(prompt, true).expect("ids");
            let new = continuation(&model, &ids, 40);
            let text = tokenizer.decode(&[ids, new].concat(), true).expect("text");
            assert_eq!(Json::from(text), expected["text"], "{name}");
        }
        let expected = reference["loss:tinystories_sample"]["mean_loss"].as_f64();
        let (expected, found) = (
            expected.expect("a loss"),
            mean_loss(&model, &tokenizer, &text),
        );
        assert!(
            (found - expected).abs() < tolerance,
            "{name}: {found}, expected {expected}"
        );
    }
}
