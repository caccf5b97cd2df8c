//! Real tokenizers and chat templates against what transformers made of them.
//!
//! `SPARSAM_SHARED` names a folder whose `data` has real material (`chat_templates/`, `tokenizers/`,
//! `models/`).
//! It is not part of the repository; without it these tests say so and check nothing.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use sparsam_base::chat_template::{ChatTemplate, Message};
use sparsam_base::tokenizer::Tokenizer;

/// 15 January 2026, the day the expected renderings were made on.
const CLOCK: i64 = 1_768_435_200;

#[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
fn shared() -> Option<PathBuf> {
    let folder =
        std::env::var_os("SPARSAM_SHARED").map(|folder| PathBuf::from(folder).join("data"));
    if folder.is_none() {
        eprintln!("skipped: SPARSAM_SHARED is not set");
    }
    folder
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn check(
    failures: &mut Vec<String>,
    name: &str,
    template: &str,
    tokens: (&str, &str),
    case: &Value,
    expected: Option<&str>,
) {
    let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
    let prompt = case["add_generation_prompt"].as_bool().unwrap();
    let rendered = ChatTemplate::new(template, tokens.0, tokens.1)
        .and_then(|template| template.with_clock(CLOCK).render(&messages, prompt));
    match (rendered, expected) {
        (Ok(rendered), Some(expected)) if rendered.text == expected => {}
        (Err(error), None)
            if case["error"].as_str().is_some_and(|text| {
                error
                    .to_string()
                    .contains(text.trim_start_matches("Exception: "))
            }) => {}
        (Ok(rendered), expected) => {
            failures.push(format!(
                "{name}\n  got      {:?}\n  expected {expected:?}",
                rendered.text
            ));
        }
        (Err(error), _) => failures.push(format!("{name}\n  error {error}")),
    }
}

#[test]
fn templates_render_as_in_transformers() {
    let Some(shared) = shared() else { return };
    let folder = shared.join("chat_templates");
    let mut failures = Vec::new();
    let mut checked = 0;
    for (file, cases) in json(folder.join("expected_renderings.json"))
        .as_object()
        .unwrap()
    {
        let template = fs::read_to_string(folder.join(file)).unwrap();
        for (name, case) in cases.as_object().unwrap() {
            checked += 1;
            let name = format!("{file} {name}");
            check(
                &mut failures,
                &name,
                &template,
                ("<s>", "</s>"),
                case,
                case["rendered"].as_str(),
            );
        }
    }
    for case in json(folder.join("cases.json")).as_array().unwrap() {
        checked += 1;
        let text = |key: &str| case[key].as_str().unwrap();
        let tokens = (text("bos_token"), text("eos_token"));
        check(
            &mut failures,
            text("name"),
            text("template"),
            tokens,
            case,
            Some(text("jinja2_render")),
        );
    }
    assert!(checked > 0);
    assert!(
        failures.is_empty(),
        "{} of {checked} differ:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn tokenizers_give_the_reference_ids() {
    let Some(shared) = shared() else { return };
    let expected = json(shared.join("tokenizers/expected_ids.json"));
    for (name, reference) in expected.as_object().unwrap() {
        let tokenizer = Tokenizer::from_dir(&shared.join("tokenizers").join(name)).unwrap();
        assert_eq!(
            tokenizer.vocab_size() as u64,
            reference["vocab_size_with_added"],
            "{name}"
        );
        for case in reference["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(Value::from(ids.clone()), case["ids"], "{name} {text}");
            let special = tokenizer.encode(text, true).unwrap();
            assert_eq!(
                Value::from(special),
                case["ids_with_special"],
                "{name} {text}"
            );
            let decoded = tokenizer.decode(&ids, true).unwrap();
            assert_eq!(decoded, case["decoded"].as_str().unwrap(), "{name} {text}");
            let mut stream = tokenizer.stream();
            let mut pieces = String::new();
            for &id in &ids {
                pieces.extend(stream.push(id).unwrap());
            }
            pieces.extend(stream.finish().unwrap());
            assert_eq!(pieces, decoded, "streaming {name} {text}");
        }
    }
    let models = json(shared.join("models/reference.json"));
    for (name, reference) in models.as_object().unwrap() {
        let tokenizer = Tokenizer::from_dir(&shared.join("models").join(name)).unwrap();
        for (key, case) in reference.as_object().unwrap() {
            if let Some(prompt) = key.strip_prefix("greedy40:") {
                let ids = tokenizer.encode(prompt, true).unwrap();
                assert_eq!(Value::from(ids), case["prompt_ids"], "{name} {prompt}");
            }
        }
    }
}
