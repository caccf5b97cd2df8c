//! Generation with a cache against the model's own logits, on the seeded models of `tests/fixtures`
//! and, where `SPARSAM_SHARED` names a folder with trained ones, against what transformers made of
//! those.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{D, DType};
use serde_json::Value;
use sparsam_base::error::Error;
use sparsam_base::generate::{Sampling, generate};
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_base::projection::Frozen;
use sparsam_base::tokenizer::Tokenizer;
use sparsam_kernels::Documents;
use sparsam_kernels::cross_entropy::{IGNORE, Want, linear_cross_entropy};

const FAMILIES: [&str; 17] = [
    "gemma",
    "gemma2",
    "gemma3",
    "granite",
    "llama",
    "llama-linear",
    "llama-tied-bias",
    "llama3",
    "mistral",
    "mistral-head-dim",
    "olmo2",
    "phi3",
    "phi3-long",
    "qwen2",
    "qwen3",
    "sharded",
    "smollm3",
];

fn load(folder: &Path, quantize: Quantize, max_length: usize) -> Model {
    let options = LoadOptions {
        quantize,
        dtype: DType::F32,
        max_length,
    };
    Model::from_folder(folder, options).expect("a model")
}

fn family(name: &str, max_length: usize) -> Model {
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/families");
    load(&families.join(name), Quantize::None, max_length)
}

fn prompts(model: &Model) -> Vec<Vec<u32>> {
    let vocabulary = model.config.vocab_size;
    let prompt = |length: usize, step: usize| {
        let ids = (0..length).map(|i| (i * step + 3) % vocabulary);
        ids.map(|id| id as u32).collect()
    };
    vec![prompt(1, 5), prompt(11, 7), prompt(4, 11)]
}

fn greedy(tokens: usize) -> Sampling {
    Sampling {
        max_new_tokens: tokens,
        temperature: 0.0,
        top_p: None,
        seed: 0,
    }
}

fn answers(model: &Model, prompts: &[Vec<u32>], ends: &[u32], how: &Sampling) -> Vec<Vec<u32>> {
    let mut told = vec![Vec::new(); prompts.len()];
    let answers = generate(model, &mut Frozen, prompts, ends, how, &mut |prompt, id| {
        told[prompt].push(id);
        ControlFlow::Continue(())
    })
    .expect("answers");
    assert_eq!(told, answers, "what is told is what is returned");
    answers
}

/// The whole text through the model for every token.
fn without_cache(model: &Model, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..tokens {
        let documents = Documents::single(ids.len());
        let logits = model.logits(&ids, &documents, &mut Frozen).expect("logits");
        let last = logits.get(ids.len() - 1).expect("the last row");
        let id = last.argmax(D::Minus1).and_then(|id| id.to_scalar::<u32>());
        ids.push(id.expect("an id"));
    }
    ids.split_off(prompt.len())
}

#[test]
fn a_cache_changes_no_answer_in_any_family() {
    for name in FAMILIES {
        let model = family(name, 64);
        let prompts = prompts(&model);
        let together = answers(&model, &prompts, &[], &greedy(24));
        for (prompt, answer) in prompts.iter().zip(&together) {
            assert_eq!(answer, &without_cache(&model, prompt, 24), "{name}");
            let alone = answers(&model, std::slice::from_ref(prompt), &[], &greedy(24));
            assert_eq!(answer, &alone[0], "{name}: alone");
        }
    }
}

#[test]
fn a_seed_gives_the_same_answers_again() {
    let model = family("llama", 64);
    let prompts = prompts(&model);
    let how = Sampling {
        temperature: 1.0,
        top_p: Some(0.9),
        seed: 7,
        ..greedy(16)
    };
    let first = answers(&model, &prompts, &[], &how);
    assert_eq!(first, answers(&model, &prompts, &[], &how));
    assert_eq!(
        first[..2],
        answers(&model, &prompts[..2], &[], &how)[..],
        "another prompt in the batch changes nothing"
    );
    let other = Sampling { seed: 8, ..how };
    assert_ne!(first, answers(&model, &prompts, &[], &other));
    let twice = answers(&model, &[prompts[1].clone(), prompts[1].clone()], &[], &how);
    assert_ne!(
        twice[0], twice[1],
        "each prompt has random numbers of its own"
    );
}

#[test]
fn end_ids_the_caller_and_the_models_length_stop_an_answer() {
    let model = family("qwen3", 20);
    let prompts = prompts(&model);
    let full = answers(&model, &prompts, &[], &greedy(100));
    for (prompt, answer) in prompts.iter().zip(&full) {
        assert_eq!(prompt.len() + answer.len(), 20);
    }
    let end = full[1][5];
    let ended = answers(&model, &prompts, &[end], &greedy(100));
    for (full, ended) in full.iter().zip(&ended) {
        let length = full.iter().position(|id| *id == end);
        assert_eq!(ended, &full[..length.unwrap_or(full.len())]);
    }
    assert!(ended[1].len() <= 5);

    let mut count = 0;
    let stopped = generate(
        &model,
        &mut Frozen,
        &prompts,
        &[],
        &greedy(100),
        &mut |_, _| {
            count += 1;
            if count == 4 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    );
    let lengths: Vec<usize> = stopped.expect("answers").iter().map(Vec::len).collect();
    assert_eq!(lengths, [2, 1, 1]);
}

#[test]
fn a_prompt_that_is_empty_or_too_long_is_an_error() {
    let model = family("llama", 8);
    for (prompt, words) in [(vec![], "empty"), (vec![1; 8], "no room")] {
        let error = generate(
            &model,
            &mut Frozen,
            &[vec![1], prompt],
            &[],
            &greedy(4),
            &mut |_, _| ControlFlow::Continue(()),
        )
        .expect_err("it cannot be continued");
        assert!(matches!(error, Error::Generation { .. }));
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(answers(&model, &[vec![1]], &[], &greedy(0)), [[0u32; 0]]);
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

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("a list").iter();
    ids.map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// Mean loss of a text: documents end at `<|endoftext|>`, BOS before each, 256 tokens at most.
fn loss(model: &Model, tokenizer: &Tokenizer, text: &str) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for part in text.split("<|endoftext|>").map(str::trim) {
        if part.is_empty() {
            continue;
        }
        let mut ids = vec![tokenizer.bos().expect("BOS").0];
        ids.extend(tokenizer.encode(part, false).expect("ids"));
        ids.truncate(256);
        let mut targets = ids[1..].to_vec();
        targets.push(IGNORE);
        let documents = Documents::single(ids.len());
        let x = model.hidden(&ids, &documents, &mut Frozen).expect("states");
        let (x, _) = model.head_input(&x).expect("normalised");
        let loss = linear_cross_entropy(&x, &model.head, &targets, Want::default());
        let loss = loss.expect("a loss");
        sum += loss.sum;
        count += loss.targets;
    }
    sum / count as f64
}

#[test]
fn trained_models_write_and_weigh_as_in_transformers() {
    let Some(data) = shared() else { return };
    let reference = json(&data.join("models/reference.json"));
    let text = |file: &str| fs::read_to_string(data.join("datasets").join(file)).expect("a text");
    let stories = text("tinystories/tinystories_sample.txt");
    let texts = [
        ("loss:tinystories_sample", stories.clone()),
        (
            "loss:tinyshakespeare_first20k",
            text("tinyshakespeare/first20k.txt"),
        ),
    ];
    for (name, expected) in reference.as_object().expect("models") {
        let folder = data.join("models").join(name);
        let model = load(&folder, Quantize::None, 256);
        let tokenizer = Tokenizer::from_dir(&folder).expect("a tokenizer");
        for (key, text) in &texts {
            let mean = loss(&model, &tokenizer, text);
            let expected = expected[key]["mean_loss"].as_f64().expect("a loss");
            assert!((mean - expected).abs() < 1e-4, "{name} {key}: {mean}");
        }
        for (key, expected) in expected.as_object().expect("checks") {
            if let Some(prompt) = key.strip_prefix("greedy40:") {
                let prompt_ids = tokenizer.encode(prompt, true).expect("ids");
                assert_eq!(prompt_ids, ids(&expected["prompt_ids"]), "{name} {key}");
                let answer =
                    answers(&model, std::slice::from_ref(&prompt_ids), &[], &greedy(40)).remove(0);
                assert_eq!(answer, ids(&expected["new_ids"]), "{name} {key}");
                let mut text = prompt.to_owned();
                let mut stream = tokenizer.stream_after(&prompt_ids);
                for id in answer {
                    text.extend(stream.push(id).expect("text"));
                }
                text.extend(stream.finish().expect("text"));
                assert_eq!(text, expected["text"].as_str().expect("text"), "{name}");
            }
        }
    }

    let folder = data.join("models/stories260K");
    let tokenizer = Tokenizer::from_dir(&folder).expect("a tokenizer");
    let reference = json(&data.join("bnb4/reference.json"));
    for (key, quantize) in [
        ("stories260K-nf4", Quantize::Nf4),
        ("stories260K-nf4-dq", Quantize::Nf4Double),
    ] {
        let mean = loss(&load(&folder, quantize, 256), &tokenizer, &stories);
        let expected = reference[key]["mean_loss_tinystories_sample"].as_f64();
        let expected = expected.expect("a loss");
        assert!((mean - expected).abs() < 1e-4, "{key}: {mean}");
    }
}
