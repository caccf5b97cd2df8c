//! The manual of the recipe, printed from the structures that decode it.
//!
//! The JSON schema is derived from the structures of [`super`], their doc comments and their
//! defaults. The commented recipe, the list of keys in `sparsam train --help`, the names that
//! suggestions are made from and the effective recipe are printed by walking that schema, so that
//! none of them can drift from what is decoded.

use std::fmt::Write as _;
use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::Recipe;

/// Columns of comments and help.
const WIDTH: usize = 78;

/// A key of the recipe as the manual sees it.
struct Key {
    name: String,
    doc: String,
    kind: Kind,
}

enum Kind {
    /// A single value.
    Leaf {
        default: Value,
        example: Option<Value>,
        choices: Vec<(String, String)>,
    },
    /// A mapping of further keys; off by default if `optional`.
    Section { keys: Vec<Key>, optional: bool },
}

static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| read_keys(&raw_schema()));

fn raw_schema() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings
        .into_generator()
        .into_root_schema_for::<Recipe>()
        .to_value()
}

fn read_keys(schema: &Value) -> Vec<Key> {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return Vec::new();
    };
    properties
        .iter()
        .map(|(name, property)| Key {
            name: name.clone(),
            doc: text_of(property),
            kind: read_kind(property),
        })
        .collect()
}

fn read_kind(property: &Value) -> Kind {
    if property.get("properties").is_some() {
        let types = property.get("type").and_then(Value::as_array);
        return Kind::Section {
            keys: read_keys(property),
            optional: types.is_some_and(|types| types.contains(&json!("null"))),
        };
    }
    let choices = property
        .get("oneOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|choice| {
            let name = choice.get("const")?.as_str()?.to_owned();
            Some((name, text_of(choice)))
        })
        .collect();
    Kind::Leaf {
        default: property.get("default").cloned().unwrap_or(Value::Null),
        example: property
            .get("examples")
            .and_then(|examples| examples.get(0))
            .cloned(),
        choices,
    }
}

/// The description of a schema, its line breaks undone but for paragraphs.
fn text_of(schema: &Value) -> String {
    let text = schema
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every key that holds a value, dotted, in the order of the recipe.
pub(crate) fn keys() -> Vec<String> {
    let mut all = Vec::new();
    visit(&KEYS, "", &mut |path, _| all.push(path.to_owned()));
    all
}

fn visit<'a>(keys: &'a [Key], prefix: &str, found: &mut dyn FnMut(&str, &'a Key)) {
    for key in keys {
        let path = format!("{prefix}{}", key.name);
        match &key.kind {
            Kind::Leaf { .. } => found(&path, key),
            Kind::Section { keys, .. } => visit(keys, &format!("{path}."), found),
        }
    }
}

/// The JSON schema of a recipe, for editors and other programs.
pub(crate) fn schema() -> Value {
    let mut schema = raw_schema();
    tidy(&mut schema);
    schema
}

/// Turns the empty defaults of required keys into `required`, drops the defaults of sections,
/// which repeat those of their keys, and lets YAML's booleans stand for the names `true` and
/// `false`.
fn tidy(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    if let Some(name @ ("true" | "false")) = object.get("const").and_then(Value::as_str) {
        let choices = json!([name, name == "true"]);
        object.shift_remove("const");
        object.shift_remove("type");
        object.insert("enum".to_owned(), choices);
    }
    let mut required = Vec::new();
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        for (name, property) in properties.iter_mut() {
            tidy(property);
            let Some(property) = property.as_object_mut() else {
                continue;
            };
            if property.get("default") == Some(&json!("")) || is_required_section(property) {
                property.shift_remove("default");
                required.push(name.clone());
            } else if property.contains_key("properties") {
                property.shift_remove("default");
            }
        }
    }
    if !required.is_empty() {
        object.insert("required".to_owned(), json!(required));
    }
    if let Some(choices) = object.get_mut("oneOf").and_then(Value::as_array_mut) {
        choices.iter_mut().for_each(tidy);
    }
}

fn is_required_section(property: &Map<String, Value>) -> bool {
    property.contains_key("properties") && property.contains_key("required")
}

/// The fully commented recipe. It parses, and says nothing but the defaults.
pub(crate) fn commented_recipe() -> String {
    let mut text = String::new();
    let opening = "A recipe for `sparsam train`, with every key and its default. Lines \
        with a `#` and no space after it are keys that are not set, with an example; take the \
        `#` away to set one. A recipe of your own needs only `model`, `data` and what you want \
        to change.\n\n\
        To run it:       sparsam train recipe.yaml\n\
        With a change:   sparsam train recipe.yaml learning_rate=1e-4 lora.r=32\n\n\
        Paths are relative to the directory the command is run in.";
    for paragraph in opening.split('\n') {
        comment(&mut text, "# ", paragraph);
    }
    for key in KEYS.iter() {
        text.push('\n');
        print_key(&mut text, key, "");
    }
    text
}

fn print_key(text: &mut String, key: &Key, indent: &str) {
    comment(text, &format!("{indent}# "), &key.doc);
    match &key.kind {
        Kind::Leaf {
            default,
            example,
            choices,
        } => {
            let width = choices
                .iter()
                .map(|(name, _)| name.len())
                .max()
                .unwrap_or(0);
            for (name, doc) in choices {
                let _ = writeln!(text, "{indent}#   {name:width$}  {doc}");
            }
            let required = default == &json!("");
            let value = match example {
                Some(example) if required || is_empty(default) => example,
                _ => default,
            };
            let off = if is_empty(default) && !required {
                "#"
            } else {
                ""
            };
            let _ = writeln!(text, "{indent}{off}{}: {}", key.name, flow(value));
        }
        Kind::Section { keys, optional } => {
            if *optional {
                for key in keys {
                    let words = format!("{}: {}", key.name, key.doc);
                    comment(text, &format!("{indent}#   "), &words);
                }
                // The first keys are the important ones; the line ends where the page does.
                let mut line = format!("{indent}#{}: {{", key.name);
                for (index, entry) in keys.iter().filter_map(inline_entry).enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    if line.len() + comma.len() + entry.len() < WIDTH {
                        line.push_str(comma);
                        line.push_str(&entry);
                    }
                }
                let _ = writeln!(text, "{line}}}");
            } else {
                let _ = writeln!(text, "{indent}{}:", key.name);
                for key in keys {
                    print_key(text, key, &format!("{indent}  "));
                }
            }
        }
    }
}

/// `key: value` with the example or the default, for a section on one line.
fn inline_entry(key: &Key) -> Option<String> {
    let Kind::Leaf {
        default, example, ..
    } = &key.kind
    else {
        return None;
    };
    let value = example.as_ref().unwrap_or(default);
    (!is_empty(value)).then(|| format!("{}: {}", key.name, flow(value)))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn comment(text: &mut String, prefix: &str, words: &str) {
    for line in wrap(words, WIDTH.saturating_sub(prefix.len())) {
        let _ = writeln!(text, "{}", format!("{prefix}{line}").trim_end());
    }
}

/// Breaks a paragraph into lines. One that already fits is left as it is, with its spaces.
fn wrap(words: &str, width: usize) -> Vec<String> {
    if words.chars().count() <= width {
        return vec![words.to_owned()];
    }
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in words.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// The list of keys for `sparsam train --help`.
pub(crate) fn key_list() -> String {
    let mut text = String::from("Keys of a recipe, with their defaults:\n");
    visit(&KEYS, "", &mut |path, key| {
        let Kind::Leaf {
            default, choices, ..
        } = &key.kind
        else {
            return;
        };
        let default = match default {
            Value::String(text) if text.is_empty() => "required".to_owned(),
            default if is_empty(default) => "not set".to_owned(),
            default => flow(default),
        };
        let _ = write!(text, "\n  {path} [{default}]");
        if !choices.is_empty() {
            let names: Vec<&str> = choices.iter().map(|(name, _)| name.as_str()).collect();
            let _ = write!(text, ": {}", names.join(" | "));
        }
        text.push('\n');
        for line in wrap(first_sentence(&key.doc), WIDTH - 6) {
            let _ = writeln!(text, "      {line}");
        }
    });
    text
}

fn first_sentence(doc: &str) -> &str {
    doc.find(". ").map_or(doc, |end| &doc[..=end])
}

/// A recipe as YAML: every key with the value it has. Reading it again gives the same recipe.
pub(crate) fn effective(recipe: &Recipe) -> anyhow::Result<String> {
    let mut text = String::new();
    print_value(&mut text, &serde_json::to_value(recipe)?, "");
    Ok(text)
}

fn print_value(text: &mut String, value: &Value, indent: &str) {
    let Value::Object(entries) = value else {
        return;
    };
    for (key, value) in entries {
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                let _ = writeln!(text, "{indent}{}:", plain_or_quoted(key));
                print_value(text, value, &format!("{indent}  "));
            }
            value => {
                let _ = writeln!(text, "{indent}{}: {}", plain_or_quoted(key), flow(value));
            }
        }
    }
}

/// A value on one line.
fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => plain_or_quoted(text),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(flow).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(entries) => {
            let entries: Vec<String> = entries
                .iter()
                .map(|(key, value)| format!("{}: {}", plain_or_quoted(key), flow(value)))
                .collect();
            format!("{{{}}}", entries.join(", "))
        }
        other => other.to_string(),
    }
}

/// A text without quotes where no reader of YAML could take it for anything else.
fn plain_or_quoted(text: &str) -> String {
    let ordinary = |character: char| character.is_alphanumeric() || "_./-".contains(character);
    let colon_inside = !text.ends_with(':') && !text.contains(": ");
    let first = text
        .chars()
        .next()
        .is_some_and(|first| first.is_alphabetic() || first == '/' || first == '_' || first == '.');
    let plain = first
        && colon_inside
        && text
            .chars()
            .all(|character| ordinary(character) || character == ':')
        && text.parse::<f64>().is_err()
        && !matches!(
            text.to_lowercase().as_str(),
            "null" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if plain {
        text.to_owned()
    } else {
        Value::String(text.to_owned()).to_string()
    }
}
