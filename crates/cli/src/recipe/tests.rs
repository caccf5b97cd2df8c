//! What a recipe may say, and how it is told that it may not.

use super::*;

/// The shortest recipe.
const LEAST: &str = "model: builtin:sprout\ndata: {train: a.jsonl}\n";

fn load(text: &str, overrides: &[&str]) -> Result<Recipe, Failure> {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    RecipeFile::parse(Path::new("recipe.yaml"), text, &overrides).map(|file| file.recipe)
}

fn least() -> Recipe {
    Recipe {
        model: "builtin:sprout".to_owned(),
        data: Data {
            train: "a.jsonl".into(),
            ..Data::default()
        },
        ..Recipe::default()
    }
}

#[test]
fn what_is_not_said_is_the_default() {
    assert_eq!(load(LEAST, &[]).unwrap(), least());
}

#[test]
fn the_printed_recipe_says_the_defaults_and_nothing_else() {
    let mut expected = least();
    expected.data.train = "datasets/city-trees/train.jsonl".into();
    assert_eq!(load(&manual::commented_recipe(), &[]).unwrap(), expected);
}

#[test]
fn every_example_of_the_printed_recipe_can_be_taken() {
    let mut taken = 0;
    for (index, line) in manual::commented_recipe().lines().enumerate() {
        let Some((indent, rest)) = line.split_once('#') else {
            continue;
        };
        if !indent.trim().is_empty() || rest.is_empty() || rest.starts_with(' ') {
            continue;
        }
        let mut lines: Vec<String> = manual::commented_recipe()
            .lines()
            .map(str::to_owned)
            .collect();
        lines[index] = format!("{indent}{rest}");
        let tree = tree::parse(&lines.join("\n")).unwrap();
        let recipe = decode::decode(&tree).unwrap_or_else(|problem| panic!("{problem:?}"));
        assert_ne!(recipe, load(&manual::commented_recipe(), &[]).unwrap());
        taken += 1;
    }
    assert!(taken > 20, "{taken}");
}

#[test]
fn every_key_is_described() {
    let text = manual::commented_recipe();
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    for key in manual::keys() {
        let name = key.rsplit('.').next().unwrap();
        assert!(text.contains(&format!("{name}:")), "{key}");
    }
    let list = manual::key_list();
    assert!(list.contains("\n  lora.rank_pattern [not set]\n      Another rank"));
    assert!(list.contains("\n  early_stopping.patience [3]\n"));
}

#[test]
fn the_effective_recipe_reads_back_the_same() {
    let rich = "\
model: ./bases/m
revision: '0123'
quantize: nf4-dq
lora:
  target_modules: '.*\\.(q|v)_proj'
  rank_pattern: {k_proj: 4, 'model.layers.1.mlp': 2}
  init_lora_weights: false
data: {train: 'a b: c.jsonl', eval: \"null\", columns: {prompt: yes}}
max_steps: 10
learning_rate: 1e-5
eval_steps: 5
eval_generation: {samples: 3}
early_stopping: {}
country: NO
language: [de, en]
tags: trees
";
    let recipe = load(rich, &[]).unwrap();
    let printed = manual::effective(&recipe).unwrap();
    assert_eq!(load(&printed, &[]).unwrap(), recipe, "{printed}");
    let json = serde_json::to_string(&recipe).unwrap();
    assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), recipe);
}

#[test]
fn a_text_stays_what_was_written() {
    let recipe = load(LEAST, &["country=NO", "revision=1e5", "license=no"]).unwrap();
    assert_eq!(recipe.country.as_deref(), Some("NO"));
    assert_eq!(recipe.revision.as_deref(), Some("1e5"));
    assert_eq!(recipe.license.as_deref(), Some("no"));
}

#[test]
fn numbers_in_every_spelling() {
    for spelling in ["2e-4", "2.0e-4", "0.0002", "2E-4", ".0002", "+2e-4"] {
        let recipe = load(&format!("{LEAST}learning_rate: {spelling}\n"), &[]).unwrap();
        assert_eq!(recipe.learning_rate, 2e-4, "{spelling}");
    }
    assert_eq!(load(LEAST, &["lora.alpha=8"]).unwrap().lora.alpha, 8.0);
    for refused in [".inf", "inf", ".nan", "1_000", "0x10", "2e", "''"] {
        assert!(
            load(LEAST, &[&format!("learning_rate={refused}")]).is_err(),
            "{refused}"
        );
    }
}

#[test]
fn arguments_lie_over_the_file_in_their_order() {
    let text = format!("{LEAST}epochs: 2\nlora: {{r: 4, alpha: 8}}\n");
    let recipe = load(&text, &["lora.r=32", "lora.r=64", "packing=false"]).unwrap();
    assert_eq!((recipe.lora.r, recipe.lora.alpha), (64, 8.0));
    assert!(!recipe.packing);

    let recipe = load(&text, &["early_stopping.patience=7", "data.eval=e.jsonl"]).unwrap();
    assert_eq!(recipe.early_stopping.map(|early| early.patience), Some(7));

    let recipe = load(&text, &["lora={r: 2}"]).unwrap();
    assert_eq!((recipe.lora.r, recipe.lora.alpha), (2, 32.0));

    let recipe = load(&text, &["lora.target_modules=[q_proj, v_proj]"]).unwrap();
    let names = vec!["q_proj".to_owned(), "v_proj".to_owned()];
    assert_eq!(recipe.lora.target_modules, TargetModules::List(names));

    let recipe = load(LEAST, &["data.train=a=b.jsonl"]).unwrap();
    assert_eq!(recipe.data.train, Path::new("a=b.jsonl"));
}

#[test]
fn an_argument_replaces_the_key_it_excludes() {
    let text = format!("{LEAST}epochs: 2\nwarmup_ratio: 0.1\n");
    let recipe = load(&text, &["max_steps=10", "warmup_steps=3"]).unwrap();
    assert_eq!(recipe.length(), RunLength::Steps(10));
    assert_eq!(recipe.warmup(), Warmup::Steps(3));
    assert_eq!((recipe.epochs, recipe.warmup_ratio), (None, None));

    assert_eq!(load(&text, &[]).unwrap().length(), RunLength::Epochs(2.0));
    assert_eq!(load(LEAST, &[]).unwrap().warmup(), Warmup::Ratio(0.03));
    assert!(load(LEAST, &["max_steps=10", "epochs=1"]).is_err());
}

#[test]
fn an_empty_section_is_a_section_of_defaults() {
    let recipe = load(&format!("{LEAST}lora:\n  # r: 4\n"), &[]).unwrap();
    assert_eq!(recipe, least());
}

#[test]
fn a_byte_order_mark_and_windows_lines_are_no_obstacle() {
    let text = format!("\u{feff}{}", LEAST.replace('\n', "\r\n"));
    assert_eq!(load(&text, &[]).unwrap(), least());
}

#[test]
fn the_place_of_a_key_can_be_named_later() {
    let text = format!("{LEAST}seed: 1\n");
    let file =
        RecipeFile::parse(Path::new("recipe.yaml"), &text, &["lora.r=2".to_owned()]).unwrap();
    assert_eq!(file.place("data.train"), "recipe.yaml:2");
    assert_eq!(file.place("seed"), "recipe.yaml:3");
    assert_eq!(file.place("lora.r"), "argument `lora.r=2`");
    assert_eq!(file.place("epochs"), "recipe.yaml");
}

#[test]
fn deep_nesting_is_an_error_and_no_crash() {
    let text = format!("model: {}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(load(&text, &[]).is_err());
}
