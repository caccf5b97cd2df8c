//! Adapters on a GGUF file whose matrices stay in their blocks.

mod common;

#[path = "../../base/tests/common/gguf.rs"]
mod gguf;

use std::path::Path;

use candle_core::quantized::GgmlDType;
use common::{F32, Texts, assert_near, dora, gradients, lora, texts};
use gguf::Contents;
use sparsam_adapter::lora::{Init, LoraConfig};
use sparsam_adapter::optimizer::Optimizer;
use sparsam_adapter::pass::{differentiate, evaluate};
use sparsam_adapter::peft::{self, AdapterConfig};
use sparsam_adapter::trainable::Trainable;
use sparsam_base::files::gguf::GgufFile;
use sparsam_base::model::Model;
use sparsam_base::stack::Checkpointing;
use sparsam_kernels::Weight;
use sparsam_kernels::adamw::AdamW;

fn load(contents: &Contents, path: &Path) -> Model {
    contents.write(path);
    let file = GgufFile::open(path).expect("a file");
    file.load(F32).expect("a model")
}

/// A model in blocks of eight bits, and the same numbers in f32.
fn pair() -> (Model, Model) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let contents = Contents::of_family("llama", GgmlDType::Q8_0);
    (load(&contents, &path), load(&contents.expanded(), &path))
}

#[test]
fn gradients_are_those_on_the_expanded_model() {
    let batch = Texts::new(&texts(&[21, 9, 30]));
    for config in [lora(), dora()] {
        let (mut blocks, mut plain) = pair();
        let on = |model: &mut Model| {
            let mut trainable = Trainable::lora(model, &config, 3).expect("trainable");
            let scale = 1.0 / batch.count();
            let loss = differentiate(
                model,
                &mut trainable,
                batch.input(),
                scale,
                Checkpointing::Off,
            );
            (loss.expect("a loss").sum, gradients(&trainable))
        };
        let (found, expected) = (on(&mut blocks), on(&mut plain));
        assert!((found.0 - expected.0).abs() < 1e-6 * expected.0);
        assert_near("gradients", &found.1, &expected.1, 1e-6);
    }
}

#[test]
fn an_adapter_learns_on_blocks_that_stay_and_is_applied_to_them_again() {
    let (mut model, _) = pair();
    let before = model.bytes();
    let config = LoraConfig {
        init: Init::Kaiming,
        ..lora()
    };
    let batch = Texts::new(&texts(&[21, 9, 30]));
    let mut trainable = Trainable::lora(&mut model, &config, 3).expect("trainable");
    let mut optimizer = Optimizer::new(&trainable, AdamW::default(), None).expect("one");
    let mut losses = Vec::new();
    for _ in 0..40 {
        let scale = 1.0 / batch.count();
        let loss = differentiate(
            &model,
            &mut trainable,
            batch.input(),
            scale,
            Checkpointing::Blocks,
        );
        losses.push(loss.expect("a loss").sum);
        optimizer.step(&trainable, 1e-2).expect("an update");
    }
    let last = evaluate(&model, &mut trainable, batch.input()).expect("a loss");
    assert!(last.sum < 0.8 * losses[0], "{} to {}", losses[0], last.sum);
    assert_eq!(model.bytes(), before);
    for group in model.blocks.iter().map(|block| &block.qkv) {
        let kept = |weight: &Weight| matches!(weight, Weight::Ggml(_));
        assert!(group.projections.iter().all(|p| kept(&p.weight)));
    }

    let folder = tempfile::tempdir().expect("a folder");
    let saved = AdapterConfig {
        lora: config,
        base_model_name_or_path: Some("model.gguf".to_owned()),
        task: peft::Task::CausalLm,
    };
    peft::save(folder.path(), &trainable, &saved).expect("saved");
    let (mut again, _) = pair();
    let (mut loaded, _) = peft::load(folder.path(), &mut again, 0).expect("loaded");
    let found = evaluate(&again, &mut loaded, batch.input()).expect("a loss");
    assert_eq!(found.sum, last.sum);
}

#[test]
fn a_head_that_is_saved_whole_becomes_the_model_s_own() {
    let (mut model, mut plain) = pair();
    let config = LoraConfig {
        modules_to_save: vec!["lm_head".to_owned(), "embed_tokens".to_owned()],
        ..lora()
    };
    let batch = Texts::new(&texts(&[21, 9]));
    let on = |model: &mut Model| {
        let mut trainable = Trainable::lora(model, &config, 3).expect("trainable");
        let scale = 1.0 / batch.count();
        differentiate(
            model,
            &mut trainable,
            batch.input(),
            scale,
            Checkpointing::Off,
        )
        .expect("a loss");
        gradients(&trainable)
    };
    assert_near("gradients", &on(&mut model), &on(&mut plain), 1e-6);
    assert!(matches!(model.head, Weight::Dense(_)));
}

#[test]
fn training_all_of_it_is_refused() {
    let (mut model, _) = pair();
    assert!(Trainable::full(&mut model).is_err());
}
