//! Examined adapters: sound ones of PEFT's, and every fault that PEFT would pass over.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use common::fixtures;
use serde_json::{Value, json};
use sparsam_adapter::files::write_tensors;
use sparsam_adapter::parts::Parts;
use sparsam_adapter::peft::{CONFIG_FILE, WEIGHTS_FILE};
use sparsam_adapter::verify::{Against, Answer, Gravity, Program, Report, programs, verify};
use sparsam_base::config::ModelConfig;
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::weights::Weights;

fn base_of(case: &str) -> PathBuf {
    let text = fs::read_to_string(fixtures().join("peft/reference.json")).expect("reference");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    fixtures().join(value["cases"][case]["base"].as_str().expect("a base"))
}

fn examine(adapter: &Path, base: &Path) -> (Report, Option<Parts>, ModelConfig) {
    let text = fs::read_to_string(base.join("config.json")).expect("a configuration");
    let config = ModelConfig::parse(&text).expect("understood");
    let files = SafetensorsFiles::in_folder(base).expect("weights");
    let names: Vec<String> = files.names().map(str::to_owned).collect();
    let against = Against {
        config: &config,
        weights: &files,
        names: &names,
    };
    let (report, parts) = verify(adapter, &against).expect("examined");
    (report, parts, config)
}

/// The answers of PEFT, llama.cpp, mistral.rs, vLLM and mlx.
fn answers(case: &str) -> [Answer; 5] {
    let adapter = fixtures().join("peft").join(case).join("final");
    let (report, parts, config) = examine(&adapter, &base_of(case));
    assert!(report.sound(), "{case}: {:?}", report.findings);
    assert!(report.without_effect.is_empty(), "{case}: {report:?}");
    let verdicts = programs::verdicts(&parts.expect("parts"), &config);
    Program::ALL.map(|program| {
        let verdict = verdicts.iter().find(|verdict| verdict.program == program);
        let verdict = verdict.expect("a verdict");
        assert!(!verdict.reason.is_empty());
        verdict.answer
    })
}

#[test]
fn adapters_of_peft_are_sound_and_each_program_is_judged() {
    use Answer::{Exported, No, Yes};
    for (case, wanted) in [
        ("lora-qv", [Yes, Exported, Yes, Yes, Exported]),
        ("rslora", [Yes, Exported, Yes, Yes, Exported]),
        // vLLM has one scale for all.
        ("patterns", [Yes, Exported, Yes, No, Exported]),
        ("dora", [Yes, No, No, No, No]),
        ("save-lm-head", [Yes, No, No, No, No]),
        ("bias-all", [Yes, No, No, No, No]),
    ] {
        assert_eq!(answers(case), wanted, "{case}");
    }
}

/// A copy of an adapter with changed settings and tensors.
fn altered(
    settings: impl Fn(&mut Value),
    tensors: impl Fn(&mut BTreeMap<String, Tensor>),
) -> tempfile::TempDir {
    let from = fixtures().join("peft/lora-qv/final");
    let folder = tempfile::tempdir().expect("a folder");
    let text = fs::read_to_string(from.join(CONFIG_FILE)).expect("read");
    let mut config = serde_json::from_str(&text).expect("JSON");
    settings(&mut config);
    fs::write(folder.path().join(CONFIG_FILE), config.to_string()).expect("written");
    let files = SafetensorsFiles::open(&[from.join(WEIGHTS_FILE)]).expect("opened");
    let mut map: BTreeMap<String, Tensor> = files
        .names()
        .map(|name| (name.to_owned(), files.tensor(name).expect("a tensor")))
        .collect();
    tensors(&mut map);
    write_tensors(&folder.path().join(WEIGHTS_FILE), &map).expect("written");
    folder
}

#[track_caller]
fn fault(folder: &tempfile::TempDir, words: &str) -> Report {
    let (report, _, _) = examine(folder.path(), &base_of("lora-qv"));
    assert!(!report.sound(), "{report:?}");
    let found = report
        .findings
        .iter()
        .any(|finding| finding.gravity == Gravity::Fault && finding.what.contains(words));
    assert!(found, "`{words}` is not in {:#?}", report.findings);
    report
}

#[test]
fn what_peft_would_load_without_effect_is_a_fault() {
    let renamed = |change: fn(&str) -> String| {
        altered(
            |_| (),
            move |map| {
                *map = std::mem::take(map)
                    .into_iter()
                    .map(|(name, tensor)| (change(&name), tensor))
                    .collect();
            },
        )
    };
    let bare = renamed(|name| name.replace("base_model.model.", ""));
    let report = fault(&bare, "lacks the prefix `base_model.model.`");
    assert!(
        report.findings[0].what.contains("(and 7 more)"),
        "{report:?}"
    );
    assert_eq!(report.findings.len(), 1, "one fault is reported once");
    let named = renamed(|name| name.replace(".weight", ".default.weight"));
    fault(&named, "`.default`");
    let other = renamed(|name| name.replace("layers.1.", "layers.5."));
    let report = fault(
        &other,
        "`model.layers.5.self_attn.q_proj` is not in the base",
    );
    assert!(report.findings.len() >= 3, "all are reported: {report:?}");
}

#[test]
fn settings_without_tensors_and_numbers_that_are_none_are_faults() {
    let more = altered(
        |config| config["target_modules"] = json!(["q_proj", "v_proj", "o_proj"]),
        |_| (),
    );
    fault(&more, "2 modules of the base that the file has nothing for");
    fault(
        &altered(|config| config["r"] = 3.into(), |_| ()),
        "the rank 3",
    );
    fault(
        &altered(|config| config["lora_alpha"] = 0.into(), |_| ()),
        "scale of 0",
    );
    fault(
        &altered(|config| config["peft_type"] = "LOHA".into(), |_| ()),
        "peft_type",
    );
    let infinite = altered(
        |_| (),
        |map| {
            let tensor = map.values_mut().next().expect("a tensor");
            *tensor = (&*tensor / 0.0).expect("divided");
        },
    );
    fault(&infinite, "not finite");
    fault(&altered(|_| (), BTreeMap::clear), "holds no tensors");
}

#[test]
fn branches_without_effect_are_named() {
    let silence = |some: bool| {
        altered(
            |_| (),
            move |map| {
                for (name, tensor) in map {
                    if name.contains("lora_B") && (!some || name.contains("layers.0.")) {
                        *tensor = tensor.zeros_like().expect("zeros");
                    }
                }
            },
        )
    };
    let report = fault(&silence(false), "changes nothing of its base");
    assert_eq!(report.without_effect.len(), 4);
    let (report, _, _) = examine(silence(true).path(), &base_of("lora-qv"));
    assert!(report.sound(), "{report:?}");
    assert_eq!(
        report.without_effect,
        [
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.self_attn.v_proj"
        ]
    );
    assert!(
        report
            .findings
            .iter()
            .any(|f| f.gravity == Gravity::Warning)
    );
}

#[test]
fn another_base_is_a_fault() {
    let adapter = fixtures().join("peft/lora-qv/final");
    let (report, _, _) = examine(&adapter, &fixtures().join("families/mistral-head-dim"));
    assert!(!report.sound());
    assert!(
        report.findings[0].what.contains("in the base it is"),
        "{report:?}"
    );
}
