//! Other ways to begin and to update an adapter, against PEFT's: PiSSA and LoRA+, with weight decay and clipping.

mod common;

use std::collections::BTreeMap;

use common::{F32, Texts, fixtures, model, numbers};
use serde_json::Value;
use sparsam_adapter::lora::{Bias, LoraConfig};
use sparsam_adapter::optimizer::Optimizer;
use sparsam_adapter::parts::Parts;
use sparsam_adapter::pass::{differentiate, evaluate};
use sparsam_adapter::peft::{self, AdapterConfig};
use sparsam_adapter::targets::{ALL_LINEAR, Targets};
use sparsam_adapter::trainable::Trainable;
use sparsam_base::model::{Model, Quantize};
use sparsam_base::stack::Checkpointing;
use sparsam_kernels::adamw::AdamW;

fn reference() -> Value {
    let text = std::fs::read_to_string(fixtures().join("ways/reference.json")).expect("reference");
    serde_json::from_str(&text).expect("JSON")
}

fn texts(reference: &Value) -> Texts {
    let ids: Vec<Vec<u32>> = serde_json::from_value(reference["input_ids"].clone()).expect("ids");
    Texts::new(&ids)
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// Trains as the reference did and compares every loss and every norm.
fn check(name: &str, base: &mut Model, trainable: &mut Trainable) {
    let reference = reference();
    let case = &reference["cases"][name];
    let texts = texts(&reference);
    let settings = AdamW {
        weight_decay: number(&reference["weight_decay"]),
        ..AdamW::default()
    };
    let clip = Some(number(&reference["max_grad_norm"]));
    let mut optimizer = Optimizer::new(trainable, settings, clip).expect("an optimiser");
    optimizer.b_ratio = case["loraplus_lr_ratio"].as_f64().unwrap_or(1.0);
    let lr = number(&reference["learning_rate"]);
    let scale = 1.0 / texts.count();
    let list = |key: &str| case[key].as_array().expect(key).clone();
    let expected = list("loss_before_each_update")
        .into_iter()
        .zip(list("grad_norm_before_each_update"));
    for (step, (loss, norm)) in expected.enumerate() {
        let found = differentiate(base, trainable, texts.input(), scale, Checkpointing::Off)
            .expect("a step");
        let (found, loss) = (found.sum * scale, number(&loss));
        assert!(
            (found - loss).abs() < 1e-4 * loss,
            "{name} {step}: {found}, expected {loss}"
        );
        let (found, norm) = (
            optimizer.step(trainable, lr).expect("an update"),
            number(&norm),
        );
        assert!(
            (found - norm).abs() < 1e-3 * norm,
            "{name} {step}: norm {found}, expected {norm}"
        );
    }
    let last = evaluate(base, trainable, texts.input()).expect("a loss");
    let (last, expected) = (last.sum * scale, number(&case["final_loss"]));
    assert!(
        (last - expected).abs() < 1e-4 * expected,
        "{name}: {last}, expected {expected}"
    );
}

fn pissa(name: &str) -> LoraConfig {
    let plain = match name {
        "pissa" => LoraConfig {
            r: 4,
            lora_alpha: 8.0,
            target_modules: Targets::List(
                ["q_proj", "v_proj", "down_proj"].map(str::to_owned).into(),
            ),
            ..LoraConfig::default()
        },
        _ => LoraConfig {
            r: 3,
            lora_alpha: 5.0,
            use_rslora: true,
            target_modules: Targets::Text(ALL_LINEAR.to_owned()),
            rank_pattern: BTreeMap::from([("v_proj".to_owned(), 2)]),
            ..LoraConfig::default()
        },
    };
    plain.for_principal()
}

fn base_of(name: &str) -> std::path::PathBuf {
    let base = reference()["cases"][name]["base"]
        .as_str()
        .expect("a base")
        .to_owned();
    fixtures().join(base)
}

/// PEFT takes the principal part out of the weights and trains it apart; here an ordinary adapter begins without
/// effect and goes the same way. What is saved is that adapter: it needs no other base.
#[test]
fn pissa_goes_the_way_of_peft_and_is_saved_as_a_plain_adapter() {
    for name in ["pissa", "pissa-rslora"] {
        let folder = base_of(name);
        let mut base = model(&folder);
        let config = pissa(name);
        let mut trainable = Trainable::lora(&mut base, &config, 0).expect("an adapter");
        let before: BTreeMap<String, Vec<f32>> = trainable
            .registry()
            .iter()
            .map(|(name, trained)| (name.clone(), numbers(&trained.value)))
            .collect();
        check(name, &mut base, &mut trainable);

        // The half that takes away is as it was, to the bit; the other is not.
        for (tensor, trained) in trainable.registry() {
            let (rows, columns) = trained.value.dims2().expect("a matrix");
            let after = numbers(&trained.value);
            let stays = |index: usize| {
                if tensor.ends_with("lora_A.weight") {
                    index / columns >= rows / 2
                } else {
                    index % columns >= columns / 2
                }
            };
            let mut moved = 0;
            for (index, (one, other)) in before[tensor].iter().zip(&after).enumerate() {
                assert!(
                    !stays(index) || one.to_bits() == other.to_bits(),
                    "{name} {tensor}"
                );
                moved += usize::from(one != other);
            }
            assert!(
                moved * 3 > after.len(),
                "{name} {tensor}: {moved} of {}",
                after.len()
            );
        }

        let saved = tempfile::tempdir().expect("a folder");
        let config = AdapterConfig {
            lora: config,
            base_model_name_or_path: None,
            task: peft::Task::CausalLm,
        };
        peft::save(saved.path(), &trainable, &config).expect("saved");
        let mut fresh = model(&folder);
        let (mut loaded, _) = peft::load(saved.path(), &mut fresh, 0).expect("loaded");
        let texts = texts(&reference());
        let mean = |model: &Model, trainable: &mut Trainable| {
            evaluate(model, trainable, texts.input())
                .expect("a loss")
                .sum
                / texts.count()
        };
        assert_eq!(
            mean(&fresh, &mut loaded),
            mean(&base, &mut trainable),
            "{name}"
        );
    }
}

/// Of a quantised base the principal part of what quantisation left of it.
#[test]
fn pissa_begins_without_effect_on_any_base() {
    let texts = texts(&reference());
    for quantize in [Quantize::None, Quantize::Nf4, Quantize::Int8] {
        let options = sparsam_base::model::LoadOptions {
            quantize,
            max_length: 64,
            ..F32
        };
        let mut base = Model::from_folder(&base_of("pissa"), options).expect("a model");
        let plain = evaluate(&base, &mut Trainable::none(&base), texts.input()).expect("a loss");
        let mut trainable = Trainable::lora(&mut base, &pissa("pissa"), 0).expect("an adapter");
        let begun = evaluate(&base, &mut trainable, texts.input()).expect("a loss");
        assert!(
            (plain.sum - begun.sum).abs() < 1e-4 * plain.sum,
            "{quantize:?}"
        );
    }
}

#[test]
fn loraplus_goes_the_way_of_peft() {
    let mut base = model(&base_of("loraplus"));
    let folder = fixtures().join("ways/loraplus");
    let (mut trainable, config) = peft::load(&folder, &mut base, 0).expect("an adapter");
    assert_eq!(config.lora.bias, Bias::All);
    check("loraplus", &mut base, &mut trainable);
}

/// The sum of what adapters do, each times its weight, whatever their ranks and modules.
#[test]
fn combined_adapters_do_what_they_do_one_by_one() {
    let read =
        |case: &str| Parts::read(&fixtures().join("peft").join(case).join("final")).expect(case);
    let (one, other, third) = (read("all-linear"), read("patterns"), read("rslora"));
    let all = [(one, 0.5), (other, -1.25), (third, 1.0)];
    let sum = Parts::combine(&all).expect("combined");
    let folder = tempfile::tempdir().expect("a folder");
    peft::save_parts(folder.path(), &sum).expect("saved");
    let loaded = Parts::read(folder.path()).expect("read again");
    assert_eq!(loaded.branches.len(), all[0].0.branches.len());
    for (module, branch) in &loaded.branches {
        let changes = all.iter().filter_map(|(parts, weight)| {
            let change = parts.branches.get(module)?.change().expect("a change");
            Some((change * *weight).expect("scaled"))
        });
        let expected = changes
            .reduce(|a, b| (a + b).expect("added"))
            .expect("a branch");
        let (ours, theirs) = (
            numbers(&branch.change().expect("a change")),
            numbers(&expected),
        );
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!(
                (ours - theirs).abs() < 1e-5,
                "{module}: {ours}, expected {theirs}"
            );
        }
    }
    // On a model, as an adapter.
    let mut base = model(&fixtures().join("families/llama"));
    peft::load(folder.path(), &mut base, 0).expect("fits its base");
}

#[test]
fn adapters_that_do_not_add_up_are_refused() {
    let read =
        |case: &str| Parts::read(&fixtures().join("peft").join(case).join("final")).expect(case);
    for case in ["dora", "bias-all", "save-lm-head"] {
        let all = [(read(case), 1.0), (read(case), 1.0)];
        let error = Parts::combine(&all).expect_err(case).to_string();
        assert!(error.contains("only plain adapters"), "{case}: {error}");
    }
    let mut elsewhere = read("lora-qv");
    elsewhere.config.base_model_name_or_path = Some("another".to_owned());
    let error = Parts::combine(&[(read("lora-qv"), 1.0), (elsewhere, 1.0)]).expect_err("refused");
    assert!(error.to_string().contains("another"), "{error}");
    assert!(Parts::combine(&[]).is_err());
}
