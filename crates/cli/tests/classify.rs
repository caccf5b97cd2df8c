//! A classifier through the binary: trained, looked at, used, resumed, and what is refused and how. The encoder is the
//! seeded one of `tests/fixtures`, with a tokenizer of words made here.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

struct Workshop {
    folder: tempfile::TempDir,
}

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

impl Workshop {
    fn new() -> Self {
        let workshop = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let fixture =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/classifiers/bert");
        std::fs::create_dir(workshop.path("bert")).unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(fixture.join(name), workshop.path("bert").join(name)).unwrap();
        }
        workshop.write("bert/tokenizer.json", &tokenizer().to_string());
        workshop.write(
            "bert/tokenizer_config.json",
            r#"{"pad_token": "[PAD]", "cls_token": "[CLS]"}"#,
        );
        workshop.write("recipe.yaml", RECIPE);
        let header = ("message".to_owned(), "topic");
        let csv: Vec<String> = std::iter::once(header)
            .chain(rows(0, 48))
            .map(|(text, topic)| format!("{text},{topic}"))
            .collect();
        workshop.write(
            "train.csv",
            &csv.join(
                "
",
            ),
        );
        workshop.write("eval.jsonl", &lines(&rows(100, 16)));
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sparsam"))
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("SPARSAM_COUNTRY")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    #[track_caller]
    fn told(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], words: &str) {
        let output = self.run(arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_ne!(output.status.code(), Some(0), "{arguments:?}");
        assert!(errors.contains(words), "{errors}");
        assert!(
            errors.contains("hint: ") && !errors.contains("panic"),
            "{errors}"
        );
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
    let workshop = Workshop::new();
    let screen = workshop.told(&["train", "recipe.yaml"]);
    assert!(
        screen.contains("macro F1") && screen.contains("sparsam classify --model bert"),
        "{screen}"
    );
    let run = workshop.json("run/run.json");
    assert_eq!(run["recipe"]["task"], "classification");
    assert_eq!(run["labels"], json!(["lamps", "trees"]));
    let after = &run["results"]["classes"]["after"];
    assert_eq!(after["accuracy"], json!(1.0), "{after}");
    assert_eq!(after["confusion"], json!([[8, 0], [0, 8]]));
    let adapter = workshop.json("run/adapter_config.json");
    assert_eq!(adapter["task_type"], "SEQ_CLS");
    assert_eq!(adapter["modules_to_save"], json!(["classifier", "score"]));
    assert_eq!(
        workshop.json("run/labels.json")["id2label"],
        json!({"0": "lamps", "1": "trees"})
    );
    let card = workshop.read("run/README.md");
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
    assert!(workshop.read("run/metrics.jsonl").contains("eval_macro_f1"));

    let model = ["classify", "--model", "bert", "--adapter", "run"];
    let answer = workshop.told(&[&model[..], &["--text", "the lamp is dead"]].concat());
    assert!(answer.starts_with("lamps"), "{answer}");
    let answers = workshop.told(
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
    workshop.told(&[&model[..], &file[..], &["answers.csv"]].concat());
    workshop.told(&[&model[..], &file[..], &["answers.jsonl"]].concat());
    let csv = workshop.read("answers.csv");
    assert!(
        csv.starts_with("text,label,probability,p(lamps),p(trees)\n"),
        "{csv}"
    );
    assert_eq!(csv.lines().count(), 17);
    for ((text, topic), line) in rows(100, 16)
        .iter()
        .zip(workshop.read("answers.jsonl").lines())
    {
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
    workshop.refused(
        &["generate", "--model", "bert", "--prompt", "x"],
        "not a family",
    );
    workshop.refused(&["merge", "run", "--output", "merged"], "SEQ_CLS");
    workshop.refused(&["plan", "recipe.yaml"], "language models alone");
}

/// The same recipe gives the same bits on any number of threads, dropout included; what is trained further keeps the
/// numbers of its classes.
#[test]
fn a_run_repeats_bit_for_bit_and_an_adapter_can_be_trained_further() {
    let workshop = Workshop::new();
    workshop.told(&["train", "recipe.yaml", "lora.dropout=0.1"]);
    workshop.told(&[
        "train",
        "recipe.yaml",
        "lora.dropout=0.1",
        "output_dir=again",
        "threads=1",
    ]);
    let weights = |folder: &str| {
        std::fs::read(workshop.path(folder).join("adapter_model.safetensors")).unwrap()
    };
    assert_eq!(weights("run"), weights("again"));
    workshop.write(
        "eval.jsonl",
        &lines(&[
            ("the tree".to_owned(), "trees"),
            ("a lamp".to_owned(), "lamps"),
        ]),
    );
    workshop.told(&[
        "train",
        "recipe.yaml",
        "adapter=run",
        "output_dir=further",
        "max_steps=2",
    ]);
    assert_eq!(
        workshop.json("further/labels.json"),
        workshop.json("run/labels.json")
    );
}

#[test]
fn a_whole_classifier_and_a_decoder_s_head_are_trained_and_used() {
    let workshop = Workshop::new();
    workshop.told(&[
        "train",
        "recipe.yaml",
        "method=full",
        "learning_rate=1e-3",
        "output_dir=whole",
    ]);
    let config = workshop.json("whole/config.json");
    assert_eq!(
        config["architectures"],
        json!(["BertForSequenceClassification"])
    );
    assert_eq!(config["label2id"], json!({"lamps": 0, "trees": 1}));
    let answer = workshop.told(&["classify", "--model", "whole", "--text", "lamp"]);
    assert!(answer.starts_with("lamps"), "{answer}");

    let decoder = [
        "train",
        "recipe.yaml",
        "model=builtin:sprout",
        "task=classification",
    ];
    let short = ["max_steps=80", "learning_rate=3e-3", "output_dir=decoder"];
    workshop.told(&[&decoder[..], &short[..]].concat());
    let accuracy = &workshop.json("decoder/run.json")["results"]["classes"]["after"]["accuracy"];
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
    assert!(workshop.told(&model).starts_with("lamps"));
    workshop.refused(
        &[
            "generate",
            "--model",
            "builtin:sprout",
            "--adapter",
            "decoder",
            "--prompt",
            "x",
        ],
        "does not write texts",
    );
}

#[test]
fn data_are_shown_and_what_is_wrong_is_named() {
    let workshop = Workshop::new();
    let screen = workshop.told(&["data", "inspect", "recipe.yaml", "--examples=1"]);
    assert!(
        screen.contains("of class trees") && screen.contains("[CLS]"),
        "{screen}"
    );
    assert!(screen.contains("24  lamps"), "{screen}");
    workshop.write(
        "eval.jsonl",
        &lines(&[("a tree".to_owned(), "trees"), ("x".to_owned(), "cats")]),
    );
    workshop.refused(
        &["train", "recipe.yaml"],
        "`eval.jsonl`, line 2: the label `cats`",
    );
    assert!(!workshop.path("run").exists());
    workshop.write("eval.jsonl", &lines(&rows(0, 4)));
    workshop.refused(
        &["train", "recipe.yaml", "data.label_field=Topic"],
        "has no field `Topic`",
    );
    workshop.refused(
        &["train", "recipe.yaml", "data.columns.label=subject"],
        "column `subject`",
    );
    workshop.refused(
        &["train", "recipe.yaml", "task=causal_lm"],
        "`task: causal_lm`",
    );
    workshop.refused(
        &[
            "train",
            "recipe.yaml",
            "task=classification",
            "packing=true",
        ],
        "`packing`",
    );
    workshop.refused(
        &["train", "recipe.yaml", "eval_generation.samples=2"],
        "`eval_generation`",
    );
    workshop.refused(
        &["train", "recipe.yaml", "device=cuda:0"],
        "processor alone",
    );
    workshop.refused(&["train", "recipe.yaml", "max_length=30"], "at most 24");
    workshop.write("train.csv", "message,topic\na tree,trees\na leaf,trees\n");
    workshop.refused(&["train", "recipe.yaml"], "every row has the label `trees`");
    workshop.refused(
        &["classify", "--model", "builtin:sprout", "--text", "x"],
        "names no classes",
    );
}
