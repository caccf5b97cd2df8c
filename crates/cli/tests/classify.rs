//! A classifier through the binary: trained, looked at, used, resumed, and what is refused and how. The encoder is the
//! seeded one of `tests/fixtures`, with a tokenizer of words made here.

use std::path::Path;

use serde_json::{Value, json};

mod desk;

use desk::Desk;

const RECIPE: &str = "model: bert
data: {train: train.csv, eval: eval.jsonl, columns: {text: message, label: topic}}
lora: {r: 4, alpha: 8}
max_steps: 100
batch_size: 4
learning_rate: 1e-2
eval_steps: 50
save_steps: 50
metric_for_best_model: macro_f1
country: DEU
output_dir: run
";

const WORDS: [&str; 12] = [
    "tree", "street", "lamp", "broken", "dead", "branch", "dark", "light", "leaf", "pole", "the",
    "is",
];

/// A WordPiece tokenizer of the few words, with `[CLS]` and `[SEP]` around every text.
fn tokenizer() -> Value {
    let special = |id: usize, token: &str| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let mut vocabulary = serde_json::Map::new();
    for token in ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
        .into_iter()
        .chain(WORDS)
    {
        vocabulary.insert(token.to_owned(), vocabulary.len().into());
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(0, "[PAD]"), special(1, "[CLS]"), special(2, "[SEP]"), special(3, "[UNK]")],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]},
                               "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocabulary}
    })
}

/// Texts on trees and on lamps, told apart by a word.
fn rows(from: usize, count: usize) -> Vec<(String, &'static str)> {
    let fill = ["the", "is", "street", "broken", "dead"];
    (from..from + count)
        .map(|i| {
            let (word, topic) = [
                ("tree", "trees"),
                ("leaf", "trees"),
                ("lamp", "lamps"),
                ("pole", "lamps"),
            ][i % 4];
            (
                format!(
                    "{} {word} {} {}",
                    fill[i % 5],
                    fill[(i / 5) % 5],
                    fill[i % 3]
                ),
                topic,
            )
        })
        .collect()
}

impl Desk {
    fn new() -> Self {
        let desk = Self::empty();
        let fixture =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/classifiers/bert");
        for name in ["config.json", "model.safetensors"] {
            let bytes = std::fs::read(fixture.join(name)).unwrap();
            desk.write(&format!("bert/{name}"), bytes);
        }
        desk.write("bert/tokenizer.json", tokenizer().to_string());
        desk.write(
            "bert/tokenizer_config.json",
            r#"{"pad_token": "[PAD]", "cls_token": "[CLS]"}"#,
        );
        desk.write("recipe.yaml", RECIPE);
        let header = ("message".to_owned(), "topic");
        let csv: Vec<String> = std::iter::once(header)
            .chain(rows(0, 48))
            .map(|(text, topic)| format!("{text},{topic}"))
            .collect();
        desk.write("train.csv", csv.join("\n"));
        desk.write("eval.jsonl", lines(&rows(100, 16)));
        desk
    }

    #[track_caller]
    fn told(&self, arguments: &[&str]) -> String {
        self.done(arguments).out
    }
}

fn lines(rows: &[(String, &str)]) -> String {
    let rows = rows
        .iter()
        .map(|(text, topic)| json!({"message": text, "topic": topic}));
    rows.map(|row| row.to_string())
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn an_encoder_is_trained_described_and_used() {
    let desk = Desk::new();
    let screen = desk.told(&["train", "recipe.yaml"]);
    assert!(
        screen.contains("macro F1") && screen.contains("sparsam classify --model bert"),
        "{screen}"
    );
    let run = desk.json("run/run.json");
    assert_eq!(run["recipe"]["task"], "classification");
    assert_eq!(run["labels"], json!(["lamps", "trees"]));
    let after = &run["results"]["classes"]["after"];
    assert_eq!(after["accuracy"], json!(1.0), "{after}");
    assert_eq!(after["confusion"], json!([[8, 0], [0, 8]]));
    let adapter = desk.json("run/adapter_config.json");
    assert_eq!(adapter["task_type"], "SEQ_CLS");
    assert_eq!(adapter["modules_to_save"], json!(["classifier", "score"]));
    assert_eq!(
        desk.json("run/labels.json")["id2label"],
        json!({"0": "lamps", "1": "trees"})
    );
    let card = desk.read("run/README.md");
    for words in [
        "pipeline_tag: text-classification",
        "type: text-classification",
        "- type: accuracy",
        "- type: f1",
        "### Class by class",
        "| **lamps** | 8 | 0 |",
        "How far its probabilities can be trusted",
        "AutoModelForSequenceClassification",
    ] {
        assert!(card.contains(words), "{words}: {card}");
    }
    assert!(desk.read("run/metrics.jsonl").contains("eval_macro_f1"));

    let model = ["classify", "--model", "bert", "--adapter", "run"];
    let answer = desk.told(&[&model[..], &["--text", "the lamp is dead"]].concat());
    assert!(answer.starts_with("lamps"), "{answer}");
    let answers = desk.told(
        &[
            &model[..],
            &["-t", &rows(101, 1)[0].0, "-t", &rows(102, 1)[0].0],
        ]
        .concat(),
    );
    let classes: Vec<&str> = answers
        .lines()
        .map(|line| line.split('\t').next().unwrap())
        .collect();
    assert_eq!(classes, ["trees", "lamps"]);
    let file = ["--file", "eval.jsonl", "--column", "message", "-o"];
    desk.told(&[&model[..], &file[..], &["answers.csv"]].concat());
    desk.told(&[&model[..], &file[..], &["answers.jsonl"]].concat());
    let csv = desk.read("answers.csv");
    assert!(
        csv.starts_with("text,label,probability,p(lamps),p(trees)\n"),
        "{csv}"
    );
    assert_eq!(csv.lines().count(), 17);
    for ((text, topic), line) in rows(100, 16).iter().zip(desk.read("answers.jsonl").lines()) {
        let row: Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            (row["text"].as_str(), row["label"].as_str()),
            (Some(text.as_str()), Some(*topic))
        );
        let sum: f64 = row["probabilities"]
            .as_object()
            .unwrap()
            .values()
            .map(|p| p.as_f64().unwrap())
            .sum();
        assert!((sum - 1.0).abs() < 1e-5);
    }
    desk.refused(
        &["generate", "--model", "bert", "--prompt", "x"],
        1,
        &["not a family"],
    );
    let export = ["export", "run", "--format=gguf", "-o", "x.gguf"];
    desk.refused(&export, 1, &["SEQ_CLS"]);
    let plan = desk.told(&["plan", "recipe.yaml", "--seconds=0.2", "--json"]);
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let arms = plan["arms"].as_array().unwrap();
    assert_eq!(arms.len(), 3, "{plan}");
    for arm in arms {
        assert_eq!(arm["how"], "calibrated", "{arm}");
        assert!(arm["seconds"]["central"].as_f64().unwrap() > 0.0, "{arm}");
    }
    let elsewhere = ["plan", "recipe.yaml", "--hardware", "RTX 4090", "--json"];
    let plan: Value = serde_json::from_str(&desk.told(&elsewhere)).unwrap();
    assert_eq!(plan["arms"][0]["how"], "computed");
}

/// Merged, base, branches and head are one model, which says the same of every text and needs no adapter.
#[test]
fn a_classifier_is_merged_into_a_model_of_its_own() {
    let desk = Desk::new();
    desk.told(&["train", "recipe.yaml"]);
    let said = desk.told(&[
        "merge",
        "run",
        "-o",
        "merged",
        "--max-shard-size=20kB",
        "--prompt=dead tree",
    ]);
    assert!(said.contains("a head over 2 classes into bert"), "{said}");
    assert!(said.contains("the same class"), "{said}");
    let config = desk.json("merged/config.json");
    assert_eq!(
        config["architectures"],
        json!(["BertForSequenceClassification"])
    );
    assert_eq!(config["label2id"].as_object().unwrap().len(), 2);
    assert!(desk.path("merged/model.safetensors.index.json").exists());
    let answers = |arguments: &[&str]| -> Vec<Value> {
        let all = [
            &[
                "classify",
                "-o",
                "out.jsonl",
                "-t=the tree is dead",
                "-t=a broken lamp",
                "-t=pole",
            ],
            arguments,
        ]
        .concat();
        desk.told(&all);
        desk.read("out.jsonl")
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let adapted = answers(&["--model=bert", "--adapter=run"]);
    let merged = answers(&["--model=merged"]);
    assert_eq!((adapted.len(), merged.len()), (3, 3));
    for (one, other) in adapted.iter().zip(&merged) {
        assert_eq!(one["label"], other["label"]);
        for (label, p) in one["probabilities"].as_object().unwrap() {
            let q = other["probabilities"][label].as_f64().unwrap();
            assert!((p.as_f64().unwrap() - q).abs() < 1e-5, "{one} {other}");
        }
    }
    desk.refused(
        &["merge", "run", "-o", "again", "--dtype=bf16"],
        2,
        &["in f32"],
    );
    desk.refused(&["merge", "run", "-o", "merged"], 2, &["merged"]);
}

/// The same recipe gives the same bits on any number of threads, dropout included; what is trained further keeps the
/// numbers of its classes.
#[test]
fn a_run_repeats_bit_for_bit_and_an_adapter_can_be_trained_further() {
    let desk = Desk::new();
    desk.told(&["train", "recipe.yaml", "lora.dropout=0.1"]);
    desk.told(&[
        "train",
        "recipe.yaml",
        "lora.dropout=0.1",
        "output_dir=again",
        "threads=1",
    ]);
    let weights =
        |folder: &str| std::fs::read(desk.path(folder).join("adapter_model.safetensors")).unwrap();
    assert_eq!(weights("run"), weights("again"));
    desk.write(
        "eval.jsonl",
        lines(&[
            ("the tree".to_owned(), "trees"),
            ("a lamp".to_owned(), "lamps"),
        ]),
    );
    desk.told(&[
        "train",
        "recipe.yaml",
        "adapter=run",
        "output_dir=further",
        "max_steps=2",
    ]);
    assert_eq!(
        desk.json("further/labels.json"),
        desk.json("run/labels.json")
    );
}

#[test]
fn a_whole_classifier_and_a_decoder_s_head_are_trained_and_used() {
    let desk = Desk::new();
    desk.told(&[
        "train",
        "recipe.yaml",
        "method=full",
        "learning_rate=1e-3",
        "output_dir=whole",
    ]);
    let config = desk.json("whole/config.json");
    assert_eq!(
        config["architectures"],
        json!(["BertForSequenceClassification"])
    );
    assert_eq!(config["label2id"], json!({"lamps": 0, "trees": 1}));
    let answer = desk.told(&["classify", "--model", "whole", "--text", "lamp"]);
    assert!(answer.starts_with("lamps"), "{answer}");

    let decoder = [
        "train",
        "recipe.yaml",
        "model=builtin:sprout",
        "task=classification",
    ];
    let short = ["max_steps=80", "learning_rate=3e-3", "output_dir=decoder"];
    desk.told(&[&decoder[..], &short[..]].concat());
    let accuracy = &desk.json("decoder/run.json")["results"]["classes"]["after"]["accuracy"];
    assert!(accuracy.as_f64().unwrap() > 0.9, "{accuracy}");
    let model = [
        "classify",
        "--model",
        "builtin:sprout",
        "--adapter",
        "decoder",
        "--text",
        "the lamp",
    ];
    assert!(desk.told(&model).starts_with("lamps"));
    desk.refused(
        &[
            "generate",
            "--model",
            "builtin:sprout",
            "--adapter",
            "decoder",
            "--prompt",
            "x",
        ],
        2,
        &["does not write texts"],
    );
}

#[test]
fn data_are_shown_and_what_is_wrong_is_named() {
    let desk = Desk::new();
    let screen = desk.told(&["data", "inspect", "recipe.yaml", "--examples=1"]);
    assert!(
        screen.contains("of class trees") && screen.contains("[CLS]"),
        "{screen}"
    );
    assert!(screen.contains("24  lamps"), "{screen}");
    desk.write(
        "eval.jsonl",
        lines(&[("a tree".to_owned(), "trees"), ("x".to_owned(), "cats")]),
    );
    desk.refused(
        &["train", "recipe.yaml"],
        1,
        &["`eval.jsonl`, line 2: the label `cats`"],
    );
    assert!(!desk.path("run").exists());
    desk.write("eval.jsonl", lines(&rows(0, 4)));
    desk.refused(
        &["train", "recipe.yaml", "data.label_field=Topic"],
        1,
        &["has no field `Topic`"],
    );
    desk.refused(
        &["train", "recipe.yaml", "data.columns.label=subject"],
        1,
        &["column `subject`"],
    );
    desk.refused(
        &["train", "recipe.yaml", "task=causal_lm"],
        2,
        &["`task: causal_lm`"],
    );
    desk.refused(
        &[
            "train",
            "recipe.yaml",
            "task=classification",
            "packing=true",
        ],
        2,
        &["`packing`"],
    );
    desk.refused(
        &["train", "recipe.yaml", "eval_generation.samples=2"],
        2,
        &["`eval_generation`"],
    );
    desk.refused(
        &["train", "recipe.yaml", "device=cuda:0"],
        2,
        &["`cuda:0` cannot be used"],
    );
    desk.refused(
        &["train", "recipe.yaml", "max_length=30"],
        2,
        &["at most 24"],
    );
    desk.write("train.csv", "message,topic\na tree,trees\na leaf,trees\n");
    desk.refused(
        &["train", "recipe.yaml"],
        1,
        &["every row has the label `trees`"],
    );
    desk.refused(
        &["classify", "--model", "builtin:sprout", "--text", "x"],
        2,
        &["names no classes"],
    );
}
