//! The card as a whole: a golden copy, and what the Hub and other readers need of it.

mod common;

use common::record;
use serde_json::Value;
use sparsam_tracker::card::{self, CardInputs, Metric, ModelKind, Origin, TrainingKind};
use sparsam_tracker::{Span, intensity};

fn inputs() -> CardInputs {
    CardInputs {
        title: "City trees".into(),
        kind: ModelKind::Adapter,
        base_model: Some(Origin::hub("HuggingFaceTB/SmolLM2-135M")),
        license: Some("Apache-2.0".into()),
        datasets: vec![
            Origin::local("datasets/city-trees/train.jsonl"),
            Origin::hub("someone/trees"),
        ],
        languages: vec!["de".into(), "en".into(), "no".into()],
        tags: vec!["trees: city".into()],
        description: Some("Answers messages on street trees.".into()),
        training: TrainingKind::FineTuning,
        data: vec!["2000 messages; the loss is taken on the answer only.".into()],
        recipe: vec![
            ("lora.r".into(), "16".into()),
            ("note".into(), "a|b".into()),
        ],
        evaluation_data: Some("datasets/city-trees/eval.jsonl".into()),
        metrics: vec![
            Metric {
                kind: "loss".into(),
                name: "Loss".into(),
                before: Some(2.5),
                after: 0.25,
            },
            Metric {
                kind: "exact_match".into(),
                name: "Exact match".into(),
                before: None,
                after: 0.66,
            },
        ],
        command: Some("sparsam generate --model x --adapter . --prompt 'Hello'".into()),
        example_prompt: Some("A \"bent\" tree".into()),
        chat: true,
        version: "0.1.0".into(),
        ..CardInputs::default()
    }
}

fn front_matter(card: &str) -> Value {
    let (front, _) = card
        .strip_prefix("---\n")
        .unwrap()
        .split_once("---\n")
        .unwrap();
    serde_saphyr::from_str(front).unwrap()
}

#[test]
fn golden_card() {
    insta::assert_snapshot!(card::render(&inputs(), &record(Some("Germany"))));
}

#[test]
fn golden_card_of_an_unknown_place_and_a_builtin_base() {
    let inputs = CardInputs {
        base_model: Some(Origin::local("builtin:sprout")),
        license: Some("my own".into()),
        ..inputs()
    };
    insta::assert_snapshot!(card::render(&inputs, &record(None)));
}

#[test]
fn the_block_is_what_the_hub_reads() {
    let front = front_matter(&card::render(&inputs(), &record(Some("DEU"))));
    let block = &front["co2_eq_emissions"];
    let germany = intensity::lookup("DEU").unwrap().g_per_kwh;
    let grams = block["emissions"].as_f64().unwrap();
    assert!((grams / (0.0012 * germany) - 1.0).abs() < 1e-5, "{grams}");
    assert_eq!(block["energy_consumed"], 0.0012);
    assert_eq!(block["training_type"], "fine-tuning");
    assert_eq!(block["geographical_location"], "Germany");
    assert_eq!(front["library_name"], "peft");
    assert_eq!(front["base_model"], "HuggingFaceTB/SmolLM2-135M");
    assert_eq!(front["license"], "apache-2.0");
    assert_eq!(front["datasets"], serde_json::json!(["someone/trees"]));
    assert_eq!(front["language"], serde_json::json!(["de", "en", "no"]));
    assert_eq!(
        front["tags"][0],
        "base_model:adapter:HuggingFaceTB/SmolLM2-135M"
    );
    let results = &front["model-index"][0]["results"][0];
    assert_eq!(results["metrics"][1]["value"], 0.66);
    assert_eq!(results["dataset"]["type"], "datasets/city-trees/eval.jsonl");
}

#[test]
fn an_unknown_place_has_no_single_figure_and_the_body_says_why() {
    let card = card::render(&inputs(), &record(None));
    assert!(front_matter(&card).get("co2_eq_emissions").is_none());
    assert!(card.contains("No country was given"));
    assert!(card.contains("Lesotho") && card.contains("Turkmenistan"));
}

#[test]
fn tiny_and_large_emissions_are_plain_decimals() {
    for (grams, text) in [
        (1.2e-5, "0.000012"),
        (1.25e9, "1250000000"),
        (12.345_678_9, "12.3457"),
    ] {
        let mut record = record(Some("DEU"));
        record.emissions_g = Span {
            low: grams,
            central: Some(grams),
            high: grams,
        };
        let card = card::render(&inputs(), &record);
        assert!(card.contains(&format!("\n  emissions: {text}\n")), "{card}");
    }
}

#[test]
fn the_five_labels_stand_word_for_word() {
    let card = card::render(&inputs(), &record(Some("DEU")));
    for label in [
        "Hardware Type",
        "Hours used",
        "Cloud Provider",
        "Compute Region",
        "Carbon Emitted",
    ] {
        assert!(card.contains(&format!("- **{label}:** ")), "{label}");
    }
}

#[test]
fn user_text_cannot_break_the_card() {
    let nasty = "x\n---\nlicense: gpl \"#: ' | ``` {a}: [b] \u{1}";
    let inputs = CardInputs {
        title: nasty.into(),
        license: Some(nasty.into()),
        tags: vec![nasty.into()],
        languages: vec!["NO".into()],
        base_model: Some(Origin::hub(nasty)),
        evaluation_data: Some(nasty.into()),
        recipe: vec![(nasty.into(), nasty.into())],
        ..inputs()
    };
    let card = card::render(&inputs, &record(Some("NO")));
    let front = front_matter(&card);
    assert_eq!(front["license_name"], nasty);
    assert_eq!(front["language"][0], "NO");
    assert_eq!(front["model-index"][0]["name"], nasty);
    assert!(front.get("base_model").is_none());
    assert_eq!(card.lines().filter(|line| *line == "---").count(), 2);
}

#[test]
fn terminal_and_card_print_the_same_figures() {
    let record = record(Some("DEU"));
    let card = card::render(&inputs(), &record);
    let lines = sparsam_tracker::summary_lines(&record).join("\n");
    for figure in [
        sparsam_tracker::format::energy(record.energy_kwh),
        sparsam_tracker::format::grams(record.emissions_g),
    ] {
        assert!(
            card.contains(&figure) && lines.contains(&figure),
            "{figure}"
        );
    }
}
