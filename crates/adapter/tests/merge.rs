//! Merged models against base and adapter together, for every adapter of the fixtures, through files.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use common::{F32, fixtures, model, texts};
use serde_json::Value;
use sparsam_adapter::error::Error;
use sparsam_adapter::merge::{Merged, drift, write};
use sparsam_adapter::parts::Parts;
use sparsam_adapter::peft;
use sparsam_adapter::trainable::Trainable;
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::files::shards::Written;
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_kernels::Documents;

const CASES: [&str; 11] = [
    "all-linear",
    "bias-all",
    "bias-lora-only",
    "dora",
    "layers-to-transform",
    "lora-qv",
    "patterns",
    "regex-exclude",
    "rslora",
    "save-embeddings",
    "save-lm-head",
];

fn ids() -> Vec<u32> {
    texts(&[40]).remove(0)
}

fn logits(model: &Model, hook: &mut Trainable) -> Tensor {
    let ids = ids();
    model
        .logits(&ids, &Documents::single(ids.len()), hook)
        .expect("logits")
}

fn adapter(case: &str) -> PathBuf {
    fixtures().join("peft").join(case).join("final")
}

fn base_of(case: &str) -> PathBuf {
    let text = fs::read_to_string(fixtures().join("peft/reference.json")).expect("reference");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    fixtures().join(value["cases"][case]["base"].as_str().expect("a base"))
}

/// Merges into a folder that can be opened as a model.
fn merge(
    base: &Path,
    parts: &Parts,
    through: Quantize,
    dtype: Option<DType>,
    shard: u64,
    to: &Path,
) -> Result<Written, Error> {
    let config = fs::read_to_string(base.join("config.json")).expect("a configuration");
    let value: Value = serde_json::from_str(&config).expect("JSON");
    let tied = value["tie_word_embeddings"] == true;
    let files = SafetensorsFiles::in_folder(base).expect("weights");
    let names: Vec<String> = files.names().map(str::to_owned).collect();
    let merged = Merged::new(&files, names, tied, parts, through, dtype)?;
    fs::write(to.join("config.json"), merged.config(&config)?).expect("written");
    write(
        &merged,
        to,
        shard,
        &[("made of", "an adapter")],
        &mut |_, _| (),
    )
}

#[test]
fn logits_of_a_merged_model_are_those_of_base_and_adapter() {
    for case in CASES {
        let base = base_of(case);
        let parts = Parts::read(&adapter(case)).expect(case);
        let folder = tempfile::tempdir().expect("a folder");
        // Small shards, so that the model comes in several files.
        let written = merge(&base, &parts, Quantize::None, None, 20_000, folder.path());
        assert!(written.expect(case).files.len() > 3, "{case}");

        let mut adapted = model(&base);
        let plain = logits(&adapted, &mut Trainable::none(&adapted));
        let (mut hook, _) = peft::load(&adapter(case), &mut adapted, 0).expect(case);
        let expected = logits(&adapted, &mut hook);
        let effect = drift(&plain, &expected).expect("compared").largest;
        assert!(
            effect > 0.01,
            "{case}: without effect, this would prove nothing"
        );

        let merged = model(folder.path());
        let found = logits(&merged, &mut Trainable::none(&merged));
        let drift = drift(&expected, &found).expect("compared");
        assert!(drift.largest < 1e-4, "{case}: {drift:?}");
    }
}

#[test]
fn merged_into_the_dequantised_base_it_computes_what_was_trained() {
    let (case, base) = ("all-linear", base_of("all-linear"));
    let parts = Parts::read(&adapter(case)).expect("parts");
    for quantize in [Quantize::Nf4, Quantize::Nf4Double, Quantize::Int8] {
        let mut quantized =
            Model::from_folder(&base, LoadOptions { quantize, ..F32 }).expect("a model");
        let (mut hook, _) = peft::load(&adapter(case), &mut quantized, 0).expect("loaded");
        let trained = logits(&quantized, &mut hook);
        let off = |through: Quantize| {
            let folder = tempfile::tempdir().expect("a folder");
            merge(&base, &parts, through, None, 1 << 30, folder.path()).expect("merged");
            let merged = model(folder.path());
            let found = logits(&merged, &mut Trainable::none(&merged));
            drift(&trained, &found).expect("compared").largest
        };
        let (dequantised, unquantised) = (off(quantize), off(Quantize::None));
        assert!(dequantised < 1e-4, "{quantize:?}: {dequantised}");
        assert!(
            unquantised > 10.0 * dequantised,
            "{quantize:?}: {unquantised}"
        );
    }
}

#[test]
fn the_type_asked_for_is_written_and_said() {
    let parts = Parts::read(&adapter("lora-qv")).expect("parts");
    let folder = tempfile::tempdir().expect("a folder");
    let bf16 = Some(DType::BF16);
    let base = base_of("lora-qv");
    let written = merge(&base, &parts, Quantize::None, bf16, 1 << 30, folder.path());
    assert_eq!(written.expect("merged").files, ["model.safetensors"]);
    let config = fs::read_to_string(folder.path().join("config.json")).expect("read");
    assert!(config.contains("\"bfloat16\""), "{config}");
    let size = |folder: &Path| {
        fs::metadata(folder.join("model.safetensors"))
            .expect("a file")
            .len()
    };
    assert!(size(folder.path()) < size(&base) * 6 / 10);
}

#[test]
fn what_does_not_fit_is_refused() {
    let parts = Parts::read(&adapter("lora-qv")).expect("parts");
    let folder = tempfile::tempdir().expect("a folder");
    let refusal = |parts: &Parts| {
        let base = base_of("lora-qv");
        merge(&base, parts, Quantize::None, None, 1 << 30, folder.path())
            .expect_err("refused")
            .to_string()
    };

    let module = "model.layers.1.self_attn.v_proj";
    let mut missing = parts.clone();
    missing.branches.remove(module);
    assert!(refusal(&missing).contains(&format!(
        "`{module}.lora_A.weight` is not in the adapter's file"
    )));

    let mut foreign = parts.clone();
    let branch = foreign.branches[module].clone();
    foreign
        .branches
        .insert("model.layers.7.self_attn.v_proj".to_owned(), branch);
    assert!(refusal(&foreign).contains("`model.layers.7.self_attn.v_proj` is not in the base"));

    let mut misshapen = parts.clone();
    let q = misshapen.branches["model.layers.0.self_attn.q_proj"].clone();
    misshapen.branches.insert(module.to_owned(), q);
    assert!(refusal(&misshapen).contains("has shape [32, 32], in the base it is [16, 32]"));

    let mut infinite = parts;
    let branch = infinite.branches.get_mut(module).expect("a branch");
    branch.scale = f64::INFINITY;
    assert!(refusal(&infinite).contains("not finite"));
}

#[test]
fn settings_and_tensors_that_contradict_each_other_are_refused() {
    let refusal = |edit: &dyn Fn(&mut Value)| {
        let folder = tempfile::tempdir().expect("a folder");
        let from = adapter("lora-qv");
        fs::copy(
            from.join(peft::WEIGHTS_FILE),
            folder.path().join(peft::WEIGHTS_FILE),
        )
        .expect("copied");
        let text = fs::read_to_string(from.join(peft::CONFIG_FILE)).expect("read");
        let mut config = serde_json::from_str(&text).expect("JSON");
        edit(&mut config);
        fs::write(folder.path().join(peft::CONFIG_FILE), config.to_string()).expect("written");
        Parts::read(folder.path()).expect_err("refused").to_string()
    };
    assert!(refusal(&|config| config["r"] = 3.into()).contains("the rank 3"));
    assert!(refusal(&|config| config["use_dora"] = true.into()).contains("lora_magnitude_vector"));
    let only_q = serde_json::json!(["q_proj"]);
    let refused = refusal(&|config| config["target_modules"] = only_q.clone());
    assert!(refused.contains("v_proj"), "{refused}");
}
