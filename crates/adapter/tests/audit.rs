//! The audit finds every trained tensor learning and every frozen one untouched, and finds out defects.

mod common;

use common::{F32, Texts, dora, family, lora, texts};
use sparsam_adapter::audit::{Audit, audit};
use sparsam_adapter::lora::{Bias, Init, LoraConfig};
use sparsam_adapter::targets::Targets;
use sparsam_adapter::trainable::Trainable;
use sparsam_base::model::{EMBEDDING, HEAD, LoadOptions, Model, Quantize};

fn run(model: &Model, trainable: &mut Trainable) -> Audit {
    let batch = Texts::new(&texts(&[17, 6, 25]));
    let audit = audit(model, trainable, batch.input()).expect("an audit");
    for (name, trained) in trainable.registry() {
        assert!(
            common::numbers(&trained.grad)
                .iter()
                .all(|grad| *grad == 0.0),
            "{name}: the audit leaves a gradient"
        );
    }
    audit
}

fn on(family_name: &str, quantize: Quantize, config: &LoraConfig) -> (Audit, usize) {
    let mut model = family(family_name, LoadOptions { quantize, ..F32 });
    let mut trainable = Trainable::lora(&mut model, config, 5).expect("trainable");
    let audit = run(&model, &mut trainable);
    audit.verdict().expect("a sound run");
    assert!(audit.loss > 0.0 && audit.frozen_bytes > 0);
    (audit, trainable.adapted().len())
}

/// `llama-tied-bias`: per layer 7 weights, 7 biases, 2 norms; embedding, last norm.
const TENSORS: usize = 2 * 16 + 2;

#[test]
fn every_branch_learns_and_the_base_is_left_alone() {
    for quantize in [
        Quantize::None,
        Quantize::Int8,
        Quantize::Nf4,
        Quantize::Nf4Double,
    ] {
        let (audit, adapted) = on("llama-tied-bias", quantize, &lora());
        assert_eq!((adapted, audit.frozen), (14, TENSORS));
        assert_eq!(audit.gradients.len(), 2 * adapted);
        assert!(audit.waiting.is_empty());
        let (audit, adapted) = on("llama-tied-bias", quantize, &dora());
        assert_eq!(
            (audit.gradients.len(), audit.frozen),
            (3 * adapted, TENSORS)
        );
    }
}

#[test]
fn a_fresh_adapter_waits_for_b() {
    for config in [lora(), dora()] {
        let config = LoraConfig {
            init: Init::Kaiming,
            ..config
        };
        let (audit, adapted) = on("qwen3", Quantize::None, &config);
        assert_eq!(audit.waiting.len(), adapted);
        assert!(
            audit
                .waiting
                .iter()
                .all(|name| name.ends_with(".lora_A.weight"))
        );
    }
}

#[test]
fn saved_modules_and_biases_learn_and_count_as_trained() {
    let config = LoraConfig {
        target_modules: Targets::List(vec!["q_proj".to_owned()]),
        modules_to_save: vec!["lm_head".to_owned(), "embed_tokens".to_owned()],
        bias: Bias::All,
        ..lora()
    };
    let (audit, adapted) = on("llama-tied-bias", Quantize::None, &config);
    assert_eq!(audit.gradients.len(), 2 * adapted + 14 + 2);
    assert!(audit.gradients[HEAD] > 0.0 && audit.gradients[EMBEDDING] > 0.0);
    assert_eq!(audit.frozen, TENSORS - 14 - 1);
    // A tied head that parts from a saved embedding stays, frozen.
    let config = LoraConfig {
        modules_to_save: vec!["embed_tokens".to_owned()],
        bias: Bias::None,
        ..config
    };
    let (audit, _) = on("llama-tied-bias", Quantize::None, &config);
    assert_eq!(audit.frozen, TENSORS);
    assert!(!audit.gradients.contains_key(HEAD));
}

#[test]
fn full_training_leaves_nothing_frozen() {
    for name in ["llama", "llama-tied-bias", "qwen3", "smollm3"] {
        let mut model = family(name, F32);
        let mut trainable = Trainable::full(&mut model).expect("trainable");
        let audit = run(&model, &mut trainable);
        audit.verdict().expect("a sound run");
        assert_eq!((audit.frozen, audit.frozen_bytes), (0, 0), "{name}");
        assert!(audit.gradients.values().all(|gradient| *gradient > 0.0));
    }
}

/// A batch without a target teaches nothing, and the audit says so.
#[test]
fn tensors_that_learn_nothing_are_named() {
    let mut model = family("llama", F32);
    let mut trainable = Trainable::lora(&mut model, &lora(), 5).expect("trainable");
    let batch = Texts::new(&[vec![5], vec![9]]);
    let audit = audit(&model, &mut trainable, batch.input()).expect("an audit");
    assert_eq!(audit.silent.len(), trainable.registry().len());
    let error = audit.verdict().expect_err("nothing learns");
    assert_eq!(
        error.to_string(),
        "`model.layers.0.mlp.down_proj.lora_A.weight` is to be trained but gets no gradient \
         (28 such tensors)"
    );
    assert!(error.hint().is_some_and(|hint| hint.contains("masked")));
}
