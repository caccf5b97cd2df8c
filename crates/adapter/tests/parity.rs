//! Gradients against PyTorch and training against PEFT, on the seeded models of `tests/fixtures`.

mod common;

use std::path::{Path, PathBuf};

use common::{F32, Texts, WAYS, fixtures, model, numbers};
use serde_json::Value;
use sparsam_adapter::optimizer::Optimizer;
use sparsam_adapter::pass::{differentiate, evaluate};
use sparsam_adapter::peft;
use sparsam_adapter::trainable::Trainable;
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::model::{LoadOptions, Model};
use sparsam_base::stack::Checkpointing;
use sparsam_base::weights::Weights;
use sparsam_kernels::adamw::AdamW;

fn check_gradients(family: &str, checkpointing: Checkpointing) {
    let folder = fixtures().join("families").join(family);
    let expected =
        SafetensorsFiles::open(&[folder.join("expected.safetensors")]).expect("expectations");
    let text = |i| {
        let ids: Vec<i64> = expected
            .tensor(&format!("input_ids.{i}"))
            .and_then(|t| Ok(t.to_vec1()?))
            .expect("ids");
        ids.iter().map(|id| *id as u32).collect::<Vec<_>>()
    };
    let texts = Texts::new(&[text(0), text(1)]);
    let options = LoadOptions {
        max_length: 64,
        ..F32
    };
    let mut model = Model::from_folder(&folder, options).expect("a model");
    let mut trainable = Trainable::full(&mut model).expect("trainable");
    let scale = 1.0 / texts.count();
    differentiate(&model, &mut trainable, texts.input(), scale, checkpointing).expect("gradients");
    let mut checked = 0;
    for name in expected
        .names()
        .filter_map(|name| name.strip_prefix("grad."))
    {
        let expected = numbers(
            &expected
                .tensor(&format!("grad.{name}"))
                .expect("a gradient"),
        );
        let ours = numbers(&trainable.registry().get(name).expect(name).grad);
        let size = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (ours, theirs) in ours.iter().zip(&expected) {
            assert!(
                (ours - theirs).abs() < 2e-5 * size + 1e-7,
                "{family}: {name}: {ours} and {theirs}"
            );
        }
        checked += 1;
    }
    assert!(checked >= 6, "{family}: {checked} gradients were checked");
}

#[test]
fn gradients_equal_those_of_pytorch() {
    for family in [
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
        "smollm3",
    ] {
        check_gradients(family, Checkpointing::Off);
    }
}

#[test]
fn checkpointing_gives_the_same_bits() {
    for family in ["llama-tied-bias", "qwen3", "gemma2", "olmo2", "phi3"] {
        check_gradients(family, Checkpointing::Units);
        check_gradients(family, Checkpointing::Blocks);
    }
}

fn ids(value: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(value.clone()).expect("lists of ids")
}

fn losses(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).expect("a list of losses")
}

/// Trains as the reference did and compares every loss, the tensors and the reloaded adapter.
fn check_training(base: &Path, case: &Path, texts: &Texts, expected: &Value, tolerance: f64) {
    let name = case.display();
    let mut base_model = model(base);
    let (mut trainable, config) =
        peft::load(&case.join("initial"), &mut base_model, 0).expect("an adapter");
    assert_eq!(
        trainable.parameters() as u64,
        expected["trainable"].as_u64().expect("a count"),
        "{name}"
    );
    let settings = AdamW::default();
    let mut optimizer = Optimizer::new(&trainable, settings, None).expect("an optimiser");
    for (step, expected) in losses(&expected["loss_before_each_update"])
        .iter()
        .enumerate()
    {
        let loss = differentiate(
            &base_model,
            &mut trainable,
            texts.input(),
            1.0 / texts.count(),
            WAYS[step % WAYS.len()],
        )
        .expect("a step");
        let mean = loss.sum / texts.count();
        assert!(
            (mean - expected).abs() < tolerance * expected,
            "{name}: step {step}: {mean}, expected {expected}"
        );
        optimizer.step(&trainable, 5e-3).expect("an update");
    }
    let mut fresh = model(base);
    let (finished, _) =
        peft::load(&case.join("final"), &mut fresh, 0).expect("the trained adapter");
    for (tensor, trained) in finished.registry() {
        let (theirs, ours) = (
            numbers(&trained.value),
            numbers(&trainable.registry()[tensor].value),
        );
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!(
                (ours - theirs).abs() < 1e-3,
                "{name}: {tensor}: {ours} and {theirs}"
            );
        }
    }
    // What is written here reads back as the same bits, and gives the reference's loss.
    let folder = tempfile::tempdir().expect("a folder");
    peft::save(folder.path(), &finished, &config).expect("written");
    let mut again = model(base);
    let (mut reloaded, read) = peft::load(folder.path(), &mut again, 1).expect("read back");
    assert_eq!(read, config, "{name}");
    for (tensor, trained) in finished.registry() {
        assert_eq!(
            numbers(&trained.value),
            numbers(&reloaded.registry()[tensor].value),
            "{name}: {tensor}"
        );
    }
    let loss = evaluate(&again, &mut reloaded, texts.input())
        .expect("a loss")
        .sum
        / texts.count();
    let expected = expected["reloaded_loss"].as_f64().expect("a loss");
    assert!(
        (loss - expected).abs() < tolerance * expected,
        "{name}: reloaded {loss}, expected {expected}"
    );
}

#[test]
fn training_equals_that_of_peft() {
    let folder = fixtures().join("peft");
    let text = std::fs::read_to_string(folder.join("reference.json")).expect("the reference");
    let reference: Value = serde_json::from_str(&text).expect("JSON");
    let texts = Texts::new(&ids(&reference["input_ids"]));
    for (name, expected) in reference["cases"].as_object().expect("cases") {
        let base = fixtures().join(expected["base"].as_str().expect("a base"));
        check_training(&base, &folder.join(name), &texts, expected, 1e-5);
    }
}

/// The adapters that PEFT trained on a real model, where the folder of reference material is at hand.
#[test]
fn training_on_a_real_model_equals_that_of_peft() {
    let Some(shared) = std::env::var_os("SPARSAM_SHARED").map(PathBuf::from) else {
        return;
    };
    let folder = shared.join("data/peft_reference");
    let text = std::fs::read_to_string(folder.join("reference.json")).expect("the reference");
    let reference: Value = serde_json::from_str(&text).expect("JSON");
    let texts = Texts::new(&ids(&reference["input_ids_4x128"]));
    let base = shared.join("data/models/stories260K");
    for name in [
        "lora-qv-r8",
        "lora-all-r4",
        "rslora-all-r8",
        "rankpattern",
        "dora-qv-r8",
    ] {
        check_training(&base, &folder.join(name), &texts, &reference[name], 1e-4);
    }
}
