//! Which of a repository's files are needed: a model's configuration, tokenizer, card and safetensors
//! weights, and none of its weights in other formats.

use serde_json::Value;

use crate::data_files::{self, Split};

/// What a repository is wanted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// A base model.
    Model,
    /// An adapter in PEFT's layout.
    Adapter,
    /// Whichever of the two it holds.
    Any,
    /// A base model's tokenizer alone.
    Tokenizer,
    /// A part of a data set.
    Data(Split),
}

pub(crate) const INDEX: &str = "model.safetensors.index.json";
pub(crate) const CARD: &str = "README.md";
const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// What stands beside weights, where it is there.
const COMPANIONS: &[&str] = &[
    CARD,
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    // The classes of a classifier's adapter.
    "labels.json",
];

/// Why a repository cannot serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lack {
    pub(crate) what: String,
    pub(crate) hint: String,
}

pub(crate) fn lack<T>(what: impl Into<String>, hint: impl Into<String>) -> Result<T, Lack> {
    Err(Lack {
        what: what.into(),
        hint: hint.into(),
    })
}

/// The files needed of those there are. `read` reads one that tells of others: the index of a sharded
/// model, the card of a data set.
pub(crate) fn select<E: From<Lack>>(
    there: &[String],
    need: &Need,
    read: impl FnOnce(&str) -> Result<Vec<u8>, E>,
) -> Result<Vec<String>, E> {
    let has = |name: &str| there.iter().any(|path| path == name);
    let need = match need {
        Need::Any if has(ADAPTER_CONFIG) && !has(CONFIG) => Need::Adapter,
        Need::Any => Need::Model,
        Need::Data(split) => return data_files::select(there, split, || read(CARD)),
        given => given.clone(),
    };
    let mut files: Vec<String> = Vec::new();
    match need {
        Need::Adapter => {
            if !has(ADAPTER_CONFIG) {
                return Ok(lack(
                    format!("it holds no {ADAPTER_CONFIG}"),
                    "an adapter is expected here; a base model is named with `model`",
                )?);
            }
            if !has(ADAPTER_WEIGHTS) {
                return Ok(lack(
                    format!("it holds no {ADAPTER_WEIGHTS}"),
                    "weights in other formats are not read, as loading them may run code",
                )?);
            }
            files.extend([ADAPTER_CONFIG.to_owned(), ADAPTER_WEIGHTS.to_owned()]);
        }
        Need::Tokenizer => {
            if !has(TOKENIZER) {
                return Ok(no_tokenizer()?);
            }
        }
        Need::Model | Need::Any | Need::Data(_) => {
            if !has(CONFIG) {
                return Ok(model_lacks_config(there)?);
            }
            if !has(TOKENIZER) {
                return Ok(no_tokenizer()?);
            }
            files.push(CONFIG.to_owned());
            if has(INDEX) {
                files.push(INDEX.to_owned());
                let shards = shards(&read(INDEX)?)?;
                if let Some(missing) = shards.iter().find(|shard| !has(shard)) {
                    return Ok(lack(
                        format!("{INDEX} names `{missing}`, which is not there"),
                        "the repository was not uploaded to its end; choose another revision",
                    )?);
                }
                files.extend(shards);
            } else if has(WEIGHTS) {
                files.push(WEIGHTS.to_owned());
            } else {
                return Ok(no_weights(there)?);
            }
        }
    }
    let beside = COMPANIONS.iter().filter(|name| has(name));
    files.extend(beside.map(|&name| name.to_owned()));
    Ok(files)
}

fn model_lacks_config(there: &[String]) -> Result<Vec<String>, Lack> {
    if there.iter().any(|path| path == ADAPTER_CONFIG) {
        return lack(
            "it holds an adapter, a base model is expected here",
            "name the base as the model and this repository as the adapter",
        );
    }
    if there.iter().any(|path| is(path, "gguf")) {
        return lack(
            "it holds GGUF files and no config.json",
            "use the repository with the original weights, model.safetensors",
        );
    }
    lack(
        "it holds no config.json",
        "a model in transformers' layout is expected, with config.json, tokenizer.json and \
         model.safetensors",
    )
}

fn no_tokenizer() -> Result<Vec<String>, Lack> {
    lack(
        format!("it holds no {TOKENIZER}"),
        "use a repository whose tokenizer is in that form; transformers writes it when a tokenizer is \
         saved",
    )
}

fn no_weights(there: &[String]) -> Result<Vec<String>, Lack> {
    let other = there
        .iter()
        .find(|path| is(path, "bin") || is(path, "pt") || is(path, "pth"));
    match other {
        Some(other) => lack(
            format!("its weights are in `{other}` and not in {WEIGHTS}"),
            "such files are not read, as loading them may run code; many repositories have a \
             revision with safetensors, such as `refs/pr/1`",
        ),
        None => lack(
            format!("it holds no {WEIGHTS}"),
            "choose a repository with weights in that form",
        ),
    }
}

/// Whether a name ends so.
fn is(path: &str, extension: &str) -> bool {
    path.rsplit_once('.')
        .is_some_and(|(_, end)| end.eq_ignore_ascii_case(extension))
}

/// The shards that an index names, each once.
fn shards(index: &[u8]) -> Result<Vec<String>, Lack> {
    let value: Value = serde_json::from_slice(index).unwrap_or_default();
    let names = value["weight_map"].as_object().map(|map| {
        let mut names: Vec<String> = map
            .values()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        names.sort();
        names.dedup();
        names
    });
    match names {
        Some(names) if !names.is_empty() => Ok(names),
        _ => lack(
            format!("{INDEX} names no weights"),
            "the repository is damaged; choose another revision",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn chosen(there: &[&str], need: &Need, index: &str) -> Result<Vec<String>, Lack> {
        select(&names(there), need, |_| Ok(index.as_bytes().to_vec()))
    }

    #[test]
    fn only_what_is_needed_is_chosen() {
        let there = [
            ".gitattributes",
            "README.md",
            "config.json",
            "model.safetensors",
            "onnx/model.onnx",
            "original/consolidated.00.pth",
            "pytorch_model.bin",
            "tokenizer.json",
        ];
        assert_eq!(
            chosen(&there, &Need::Any, "").unwrap(),
            names(&[
                "config.json",
                "model.safetensors",
                "README.md",
                "tokenizer.json"
            ])
        );
    }

    #[test]
    fn shards_are_those_of_the_index() {
        let there = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            INDEX,
            "tokenizer.json",
        ];
        let index = r#"{"weight_map": {"a": "model-00002-of-00002.safetensors",
            "b": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}}"#;
        let files = chosen(&there, &Need::Model, index).unwrap();
        assert_eq!(files[2..4], names(&there[1..3]));
        let lack = chosen(&there[..1], &Need::Model, index).unwrap_err();
        assert!(lack.what.contains("tokenizer.json"));
        let there = ["config.json", INDEX, "tokenizer.json"];
        let lack = chosen(&there, &Need::Model, index).unwrap_err();
        assert!(lack.what.contains("model-00001-of-00002"), "{}", lack.what);
        assert!(chosen(&there, &Need::Model, "[]").is_err());
    }

    #[test]
    fn adapters_and_models_are_told_apart() {
        let adapter = ["adapter_config.json", "adapter_model.safetensors"];
        assert_eq!(chosen(&adapter, &Need::Any, "").unwrap(), names(&adapter));
        let lack = chosen(&adapter, &Need::Model, "").unwrap_err();
        assert!(lack.what.contains("an adapter"));
        let model = ["config.json", "pytorch_model.bin", "tokenizer.json"];
        assert!(chosen(&model, &Need::Adapter, "").is_err());
        assert!(
            chosen(&model, &Need::Any, "")
                .unwrap_err()
                .what
                .contains(".bin")
        );
        assert!(
            chosen(&["m.gguf"], &Need::Any, "")
                .unwrap_err()
                .what
                .contains("GGUF")
        );
    }
}
