//! `sparsam data inspect` through the binary: what is shown of a recipe's data, and what is refused.

use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

const RECIPE: &str = "model: builtin:sprout
data: {train: train.jsonl, eval: eval.jsonl}
max_length: 64
";

const TRAIN: &str = r#"{"prompt": "Wo steht die Linde?", "completion": "Am Markt"}
{"prompt": "Wo steht die Eiche?", "completion": "Am Markt, im Gartenweg, in der Bahnhofstraße, am Hafen, im Norden, am Wall, im Süden, am Ufer, im Westen, am Rathaus, im Osten, an der Kirche, im Park, an der Schule, am Fluss, im Hof, im Wald, am See"}
"#;

const EVAL: &str = r#"{"prompt": "Wo steht der Ahorn?", "completion": "Im Hof"}
"#;

/// Exit code, standard output and standard error.
fn inspect(recipe: &str, train: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("recipe.yaml", recipe);
    write("train.jsonl", train);
    write("eval.jsonl", EVAL);
    let output = Command::new(env!("CARGO_BIN_EXE_sparsam"))
        .current_dir(folder.path())
        .args(["data", "inspect", "recipe.yaml"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(!Path::new("run").exists());
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn examples_are_shown_with_what_is_trained_and_counts() {
    let (code, screen, errors) = inspect(RECIPE, TRAIN, &["--examples=1"]);
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{screen}");
    assert!(screen.contains("Wo steht die Linde?"), "{screen}");
    let shown = screen.split_once("example 1").unwrap().1;
    let trained = shown.split_once('⟦').unwrap().1.split_once('⟧').unwrap().0;
    assert!(trained.contains("Am Markt"), "{screen}");
    assert!(!screen.contains("Wo steht die Eiche?"), "one is shown");
    assert!(screen.contains("data.eval"), "{screen}");
    assert!(screen.contains("Wo steht der Ahorn?"), "{screen}");
    assert!(screen.contains("2, examples made of them: 2"), "{screen}");
    assert!(screen.contains("1 row cut at `max_length`"), "{screen}");
    assert!(screen.contains("is trained in 1 of 2 examples"), "{screen}");
    assert!(screen.contains('█'), "{screen}");
    assert!(!screen.contains('\u{1b}'), "no colour in a pipe");
}

#[test]
fn json_holds_every_token_and_they_make_the_text_again() {
    let (code, text, errors) = inspect(RECIPE, TRAIN, &["--json"]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let value: Value = serde_json::from_str(&text).unwrap();
    let set = &value["sets"][0];
    let of = |trained: bool| -> String {
        let tokens = set["examples"][0]["tokens"].as_array().unwrap();
        tokens
            .iter()
            .filter(|token| token["trained"] == trained)
            .map(|token| token["text"].as_str().unwrap())
            .collect()
    };
    assert!(of(false).contains("Wo steht die Linde?"), "{}", of(false));
    let stop = set["ends"]["tokens"][0].as_str().unwrap();
    assert_eq!(of(true), format!("Am Markt{stop}"));
    assert_eq!(set["statistics"]["truncated"], 1);
    assert_eq!(set["lengths"]["64"], 1);
    let lengths: u64 = set["lengths"]
        .as_object()
        .unwrap()
        .iter()
        .fold(0, |sum, (length, count)| {
            sum + length.parse::<u64>().unwrap() * count.as_u64().unwrap()
        });
    assert_eq!(set["statistics"]["tokens"], lengths);
}

#[test]
fn settings_of_the_command_line_count() {
    let (_, text, _) = inspect(RECIPE, TRAIN, &["data.train_on=all", "--json"]);
    let value: Value = serde_json::from_str(&text).unwrap();
    let tokens = value["sets"][0]["examples"][0]["tokens"]
        .as_array()
        .unwrap();
    assert!(tokens[1..].iter().all(|token| token["trained"] == true));
    assert_eq!(tokens[0]["trained"], false);
}

#[test]
fn data_in_which_nothing_is_trained_is_refused() {
    let (code, screen, errors) = inspect(RECIPE, TRAIN, &["max_length=4"]);
    assert_eq!((code, screen.as_str()), (Some(2), ""), "{errors}");
    assert!(errors.contains("train.jsonl"), "{errors}");
    assert!(
        errors.contains("begins after `max_length` tokens"),
        "{errors}"
    );
    assert!(errors.contains("\nhint: raise `max_length`"), "{errors}");

    let unanswered = r#"{"messages": [{"role": "user", "content": "Wo?"}]}"#;
    let (code, _, errors) = inspect(RECIPE, unanswered, &[]);
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("no row has an answer"), "{errors}");
}
