//! Classifiers against transformers and PEFT, on the seeded models of `tests/fixtures/classifiers`.

mod common;

use std::path::{Path, PathBuf};

use candle_core::DType;
use common::{F32, WAYS, device, fixtures, numbers};
use sparsam_adapter::classify::init;
use sparsam_adapter::data::{Batch, Batches, Example, Order, pack::unpacked};
use sparsam_adapter::lora::LoraConfig;
use sparsam_adapter::optimizer::Optimizer;
use sparsam_adapter::pass::Input;
use sparsam_adapter::peft::{self, AdapterConfig, Task};
use sparsam_adapter::targets::Targets;
use sparsam_adapter::train::Learner;
use sparsam_adapter::trainable::Trainable;
use sparsam_base::classifier::Classifier;
use sparsam_base::config::ModelConfig;
use sparsam_base::encoder::config::{EncoderConfig, is_encoder, labels};
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_base::network::Network as _;
use sparsam_base::prefix::Store;
use sparsam_base::projection::Hook as _;
use sparsam_base::stack::Checkpointing;
use sparsam_base::weights::Weights;
use sparsam_kernels::adamw::AdamW;

const FAMILIES: [&str; 6] = [
    "bert",
    "distilbert",
    "roberta",
    "modernbert",
    "modernbert-mean",
    "llama",
];
const CLASSES: [u32; 3] = [0, 2, 1];

fn folder(family: &str) -> PathBuf {
    fixtures().join("classifiers").join(family)
}

fn load_as(folder: &Path, names: usize, options: LoadOptions) -> Classifier {
    let mut model = unplaced(folder, names, options);
    model.move_to(&device(), DType::F32).expect("room");
    model
}

fn unplaced(folder: &Path, names: usize, options: LoadOptions) -> Classifier {
    let text = std::fs::read_to_string(folder.join("config.json")).expect("a configuration");
    let files = SafetensorsFiles::in_folder(folder).expect("tensors");
    let mut classes = labels(&text).expect("read").expect("classes");
    classes.resize(names, "new".to_owned());
    let init = init(7);
    if is_encoder(&text).expect("a family") {
        let config = EncoderConfig::parse(&text).expect("an encoder");
        return Classifier::encoder(config, &files, options, classes, &init).expect("a classifier");
    }
    let mut config = ModelConfig::parse(&text).expect("a decoder");
    config.tie_word_embeddings = true;
    let model = Model::load(config, &files, options).expect("a model");
    Classifier::decoder(model, Some(&files), classes, &init).expect("a classifier")
}

fn load(family: &str) -> Classifier {
    load_as(&folder(family), 3, F32)
}

struct Reference {
    files: SafetensorsFiles,
    batch: Batch,
}

fn reference(family: &str) -> Reference {
    let path = folder(family).join("expected.safetensors");
    let files = SafetensorsFiles::open(&[path]).expect("expectations");
    let examples: Vec<Example> = (0..3)
        .map(|i| {
            let ids = files.tensor(&format!("input_ids.{i}")).expect("ids");
            let ids: Vec<i64> = ids.to_vec1().expect("ids");
            Example {
                trained: vec![false; ids.len()],
                ids: ids.into_iter().map(|id| id as u32).collect(),
                label: Some(CLASSES[i]),
            }
        })
        .collect();
    let batch = Batch::new(&examples);
    Reference { files, batch }
}

impl Reference {
    fn input(&self) -> Input<'_> {
        Input {
            ids: &self.batch.ids,
            targets: &self.batch.targets,
            documents: &self.batch.documents,
        }
    }

    fn numbers(&self, name: &str) -> Vec<f32> {
        numbers(&self.files.tensor(name).expect(name))
    }
}

fn near(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
    for (found, expected) in found.iter().zip(expected) {
        let off = (found - expected).abs();
        assert!(
            off <= tolerance * size.max(1e-2),
            "{what}: {found}, expected {expected}"
        );
    }
}

/// Logits, loss, and the gradients whose names in the reference begin with `prefix`.
fn check(
    family: &str,
    model: &Classifier,
    trainable: &mut Trainable,
    prefix: &str,
    checkpointing: Checkpointing,
) {
    let reference = reference(family);
    let what = format!("{family} {prefix}");
    let batch = &reference.batch;
    let (logits, _) = model
        .forward(&batch.ids, &batch.documents, trainable, None)
        .expect("logits");
    for (found, expected) in numbers(&logits)
        .iter()
        .zip(reference.numbers(&format!("{prefix}logits")))
    {
        assert!(
            (found - expected).abs() < 1e-4,
            "{what}logits: {found}, expected {expected}"
        );
    }
    let loss = model
        .differentiate(trainable, reference.input(), 1.0 / 3.0, checkpointing)
        .expect("gradients");
    let expected = reference.numbers(&format!("{prefix}loss"))[0];
    assert!(
        (loss.sum as f32 / 3.0 - expected).abs() < 1e-5,
        "{what}loss"
    );
    let grad = format!("{prefix}grad.");
    let names: Vec<String> = reference
        .files
        .names()
        .filter_map(|name| name.strip_prefix(&grad).map(str::to_owned))
        .collect();
    for name in &names {
        let found = trainable
            .registry()
            .get(name)
            .unwrap_or_else(|| panic!("{family}: {name} is not trained"));
        near(
            &format!("{what}{name}"),
            &numbers(&found.grad),
            &reference.numbers(&format!("{grad}{name}")),
            5e-5,
        );
    }
    assert!(
        names.len() >= 5,
        "{family}: {} gradients were compared",
        names.len()
    );
    if !prefix.is_empty() {
        assert_eq!(
            names.len(),
            trainable.registry().len(),
            "{family}: what PEFT trains"
        );
    }
}

#[test]
fn logits_losses_and_gradients_equal_those_of_transformers() {
    for family in FAMILIES {
        let mut model = load(family);
        let mut trainable = Trainable::full(&mut model).expect("trainable");
        for way in WAYS {
            check(family, &model, &mut trainable, "", way);
            trainable.clear_gradients().expect("cleared");
        }
    }
}

#[test]
fn adapters_of_peft_give_its_logits_and_gradients_and_read_back() {
    for family in FAMILIES {
        let mut model = load(family);
        let (mut trainable, config) =
            peft::load(&folder(family).join("adapter"), &mut model, 0).expect("an adapter");
        assert_eq!(config.task, Task::SequenceClassification);
        check(
            family,
            &model,
            &mut trainable,
            "adapted.",
            Checkpointing::Off,
        );
        let written = tempfile::tempdir().expect("a folder");
        peft::save(written.path(), &trainable, &config).expect("written");
        let mut again = load(family);
        let (mut read, same) = peft::load(written.path(), &mut again, 1).expect("read back");
        assert_eq!(same, config, "{family}");
        check(family, &again, &mut read, "adapted.", Checkpointing::Units);
        let ours =
            SafetensorsFiles::open(&[written.path().join(peft::WEIGHTS_FILE)]).expect("ours");
        let theirs = folder(family).join("adapter").join(peft::WEIGHTS_FILE);
        let theirs = SafetensorsFiles::open(&[theirs]).expect("theirs");
        assert!(
            ours.names().eq(theirs.names()),
            "{family}: names of the tensors"
        );
    }
}

/// XLM-RoBERTa is RoBERTa under another name; a checkpoint of the bare encoder has names without its prefix, and
/// TensorFlow's had other names for norms.
#[test]
fn other_names_for_the_same_are_understood() {
    let copy = |family: &str, from: &str, to: &str, rename: &dyn Fn(&str) -> String| {
        let place = tempfile::tempdir().expect("a folder");
        let text = std::fs::read_to_string(folder(family).join("config.json")).expect("read");
        std::fs::write(place.path().join("config.json"), text.replace(from, to)).expect("written");
        let files = SafetensorsFiles::in_folder(&folder(family)).expect("tensors");
        let tensors = files
            .names()
            .map(|name| (rename(name), files.tensor(name).expect(name)));
        let tensors = tensors.collect::<std::collections::HashMap<_, _>>();
        candle_core::safetensors::save(&tensors, place.path().join("model.safetensors"))
            .expect("written");
        let mut model = load_as(place.path(), 3, F32);
        assert!(model.fresh.is_empty(), "{:?}", model.fresh);
        let mut trainable = Trainable::full(&mut model).expect("trainable");
        check(family, &model, &mut trainable, "", Checkpointing::Off);
    };
    copy(
        "roberta",
        "\"model_type\": \"roberta\"",
        "\"model_type\": \"xlm-roberta\"",
        &str::to_owned,
    );
    copy("bert", "", "", &|name| {
        let name = name.strip_prefix("bert.").unwrap_or(name);
        name.replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta")
    });
}

#[test]
fn a_head_of_other_classes_begins_anew_and_is_part_of_the_adapter() {
    for (family, module) in [
        ("bert", "classifier"),
        ("roberta", "classifier.out_proj"),
        ("llama", "score"),
    ] {
        let mut model = load_as(&folder(family), 5, F32);
        assert_eq!(model.fresh, [module], "{family}");
        let mut lora = LoraConfig {
            r: 2,
            target_modules: Targets::List(["query", "value", "q_proj"].map(str::to_owned).to_vec()),
            ..LoraConfig::default()
        };
        peft::with_classifiers(&mut lora.modules_to_save);
        let trainable = Trainable::lora(&mut model, &lora, 3).expect("trainable");
        let head = &trainable.registry()[&format!("{module}.weight")].value;
        assert_eq!(head.dims(), [5, 32]);
        let values = numbers(head);
        let deviation = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
        assert!((deviation - 0.02).abs() < 0.004, "{family}: {deviation}");
    }
}

/// A few steps on a quantised encoder with dropout; repeated from the seed they are the same bits, and the loss of
/// what is learned falls.
#[test]
fn training_repeats_bit_for_bit_and_learns() {
    let run = || {
        let options = LoadOptions {
            quantize: Quantize::Nf4,
            ..F32
        };
        let mut model = load_as(&folder("bert"), 3, options);
        let mut lora = LoraConfig {
            r: 4,
            lora_dropout: 0.1,
            ..LoraConfig::default()
        };
        peft::with_classifiers(&mut lora.modules_to_save);
        let mut trainable = Trainable::lora(&mut model, &lora, 3).expect("trainable");
        let mut optimizer =
            Optimizer::new(&trainable, AdamW::default(), None).expect("an optimiser");
        let reference = reference("bert");
        for step in 0..30 {
            trainable.set_training(Some(step));
            model
                .differentiate(
                    &mut trainable,
                    reference.input(),
                    1.0 / 3.0,
                    WAYS[step as usize % WAYS.len()],
                )
                .expect("a step");
            optimizer.step(&trainable, 1e-2).expect("an update");
        }
        let examples = (0..3).map(|i| {
            let range = reference.batch.documents.ranges().nth(i).expect("a text");
            Example {
                trained: vec![false; range.len()],
                ids: reference.batch.ids[range].to_vec(),
                label: Some(CLASSES[i]),
            }
        });
        let batches = Batches::new(examples.collect(), unpacked(3), 2, Order::AsRead);
        let measured = model.measure(&mut trainable, &batches).expect("measured");
        let values: Vec<Vec<f32>> = trainable
            .registry()
            .values()
            .map(|t| numbers(&t.value))
            .collect();
        (measured, values)
    };
    let ((measured, values), (_, again)) = (run(), run());
    assert_eq!(values, again);
    let loss: f64 = measured.losses.iter().map(|loss| loss.sum).sum::<f64>() / 3.0;
    assert!(loss < 0.3, "{loss}");
    let classes = measured.classes.expect("classes");
    assert_eq!((classes.accuracy, classes.macro_f1), (1.0, 1.0));
}

#[test]
fn a_language_model_refuses_a_classifier_s_adapter_and_a_merge_too() {
    let mut model = common::family("llama", F32);
    let adapter = folder("llama").join("adapter");
    let Err(error) = peft::load(&adapter, &mut model, 0) else {
        panic!("it was loaded");
    };
    assert!(
        error.to_string().contains("the head of a classifier"),
        "{error}"
    );
    let error = sparsam_adapter::parts::Parts::read(&adapter).expect_err("refused");
    assert!(error.to_string().contains("SEQ_CLS"), "{error}");
    let written = AdapterConfig {
        lora: LoraConfig::default(),
        base_model_name_or_path: None,
        task: Task::default(),
    };
    assert_eq!(written.task, Task::CausalLm);
}

/// Where only the last block and the head are trained, what lies below is computed once; with the base's own
/// dropout in evaluation alone, as training drops other numbers in every pass.
#[test]
fn what_is_below_the_trained_blocks_is_computed_once() {
    for family in FAMILIES {
        let [(losses, gradients, none), (found, others, counts)] = [false, true].map(|kept| {
            let mut model = load(family);
            let last = model.layers() - 1;
            let config = LoraConfig {
                target_modules: Targets::Text(format!(r".*\.{last}\..*")),
                modules_to_save: vec!["classifier".to_owned(), "score".to_owned()],
                ..common::lora()
            };
            let mut trainable = Trainable::lora(&mut model, &config, 7).expect("trainable");
            if kept {
                trainable.keep_prefix(&model, Store::Memory, u64::MAX);
            }
            assert_eq!(trainable.lowest_block(), last, "{family}");
            let reference = reference(family);
            let batch = &reference.batch;
            let mut losses = Vec::new();
            for step in 0..2 {
                trainable.set_training(Some(step));
                let loss =
                    model.differentiate(&mut trainable, reference.input(), 0.5, Checkpointing::Off);
                losses.push(loss.expect("a pass").sum);
                trainable.set_training(None);
                let logits = model.forward(&batch.ids, &batch.documents, &mut trainable, None);
                let logits = numbers(&logits.expect("logits").0);
                losses.extend(logits.into_iter().map(f64::from));
            }
            let counts = trainable.prefix().map(|prefix| prefix.lock().counts());
            (losses, common::gradients(&trainable), counts)
        });
        assert!(losses == found && gradients == others, "{family}");
        let counts = counts.expect("counts");
        assert!(none.is_none() && counts.reused > 0, "{family}: {counts:?}");
    }
}
