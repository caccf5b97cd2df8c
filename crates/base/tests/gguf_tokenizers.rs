//! Tokenizers that went into a GGUF file and come out of it as they were: the same ids for every text.
//!
//! The keys are written as llama.cpp's converter writes them, of the built-in model's tokenizer and,
//! where `SPARSAM_SHARED` names a folder with them, of those of well-known models.

use std::path::PathBuf;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use serde_json::Value as Json;
use sparsam_base::builtin;
use sparsam_base::files::gguf::GgufFile;
use sparsam_base::tokenizer::{Tokenizer, TokenizerError};

#[path = "common/gguf.rs"]
mod common;

use common::Contents;

/// A file with the vocabulary of a `tokenizer.json`; the tokenizer is of this kind and splits a text so.
fn file_of(json: &Json, kind: &str, splitting: &str) -> Contents {
    let mut contents = Contents::of_family("llama", GgmlDType::F16);
    contents
        .metadata
        .retain(|(key, _)| !key.starts_with("tokenizer."));
    let vocabulary = json["model"]["vocab"].as_object().expect("a vocabulary");
    let mut tokens: Vec<(String, i32)> = vec![(String::new(), 5); vocabulary.len()];
    let mut put = |token: &str, id: &Json, kind: i32| {
        let id = id.as_u64().expect("an id") as usize;
        if tokens.len() <= id {
            tokens.resize(id + 1, (String::new(), 5));
        }
        tokens[id] = (token.to_owned(), kind);
    };
    for (token, id) in vocabulary {
        let byte = kind == "llama" && token.len() == 6 && token.starts_with("<0x");
        put(token, id, if byte { 6 } else { 1 });
    }
    for added in json["added_tokens"].as_array().expect("added tokens") {
        let token = added["content"].as_str().expect("a text");
        let kind = match (token, added["special"].as_bool()) {
            ("<unk>", _) => 2,
            (_, Some(true)) => 3,
            _ => 4,
        };
        put(token, &added["id"], kind);
    }
    let list = |values: Vec<Value>| Value::Array(values);
    let texts: Vec<Value> = tokens
        .iter()
        .map(|(text, _)| Value::String(text.clone()))
        .collect();
    let types: Vec<Value> = tokens.iter().map(|(_, kind)| Value::I32(*kind)).collect();
    contents.set("tokenizer.ggml.model", Value::String(kind.to_owned()));
    contents.set("tokenizer.ggml.pre", Value::String(splitting.to_owned()));
    contents.set("tokenizer.ggml.tokens", list(texts));
    contents.set("tokenizer.ggml.token_type", list(types));
    let merges = json["model"]["merges"].as_array().expect("merges").iter();
    let merges: Vec<String> = merges
        .map(|merge| match merge {
            Json::String(text) => text.clone(),
            pair => format!(
                "{} {}",
                pair[0].as_str().unwrap(),
                pair[1].as_str().unwrap()
            ),
        })
        .collect();
    if kind == "llama" {
        // A token's score is the rank of the first merge that gives it, from which the merges were made.
        let mut ranks = std::collections::HashMap::new();
        for (rank, merge) in merges.iter().enumerate() {
            ranks.entry(merge.replace(' ', "")).or_insert(rank);
        }
        let score = |token: &String| ranks.get(token).map_or(-1e9, |rank| -(*rank as f32));
        let scores = tokens.iter().map(|(token, _)| Value::F32(score(token)));
        contents.set("tokenizer.ggml.scores", list(scores.collect()));
    } else {
        let merges = merges.into_iter().map(Value::String);
        contents.set("tokenizer.ggml.merges", list(merges.collect()));
    }
    contents
}

fn tokenizer(contents: &Contents) -> Result<Tokenizer, TokenizerError> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    contents.write(&path);
    GgufFile::open(&path).expect("a file").tokenizer()
}

const TEXTS: [&str; 5] = [
    "Grüße aus Köln – 1234 schöne Straßen!",
    "a\n\n  b\tc 3.14 €5",
    "<|user|>Wie geht's?<|assistant|>",
    "日本語 🦙",
    "",
];

#[test]
fn the_built_in_tokenizer_comes_out_as_it_went_in() {
    let sprout = builtin::find("sprout").expect("it is built in");
    let json: Json = serde_json::from_slice(sprout.tokenizer).expect("JSON");
    let mut contents = file_of(&json, "gpt2", "smollm");
    contents.set("tokenizer.ggml.bos_token_id", Value::U32(0));
    contents.set("tokenizer.ggml.eos_token_id", Value::U32(1));
    contents.set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    let (ours, own) = (
        tokenizer(&contents).expect("a tokenizer"),
        sprout.tokenizer().expect("a tokenizer"),
    );
    for text in TEXTS {
        let ids = own.encode(text, true).expect("ids");
        assert_eq!(ours.encode(text, true).expect("ids"), ids, "{text}");
        for skip in [true, false] {
            let text = own.decode(&ids, skip).expect("text");
            assert_eq!(ours.decode(&ids, skip).expect("text"), text);
        }
    }
    assert_eq!(ours.vocab_size(), own.vocab_size());
    assert_eq!(ours.eos(), own.eos());

    contents.set("tokenizer.ggml.eot_token_id", Value::U32(3));
    let ours = tokenizer(&contents).expect("a tokenizer");
    assert_eq!(ours.end_ids(), [1, 3]);
}

#[test]
fn a_way_of_splitting_that_is_not_known_is_named() {
    let sprout = builtin::find("sprout").expect("it is built in");
    let json: Json = serde_json::from_slice(sprout.tokenizer).expect("JSON");
    for splitting in ["default", "deepseek-llm"] {
        let error = tokenizer(&file_of(&json, "gpt2", splitting)).expect_err("refused");
        let text = error.to_string();
        assert!(
            text.contains(&format!("`tokenizer.ggml.pre` is `{splitting}`")),
            "{text}"
        );
        assert!(error.hint().is_some());
    }
    let mut contents = file_of(&json, "gpt2", "gpt-2");
    contents
        .metadata
        .retain(|(key, _)| key != "tokenizer.ggml.pre");
    let text = tokenizer(&contents).expect_err("refused").to_string();
    assert!(text.contains("`tokenizer.ggml.pre` is missing"), "{text}");
    let mut contents = file_of(&json, "gpt2", "gpt-2");
    contents.set(
        "tokenizer.ggml.merges",
        Value::Array(vec![Value::String("alone".to_owned())]),
    );
    let text = tokenizer(&contents).expect_err("refused").to_string();
    assert!(
        text.contains("`tokenizer.ggml.merges` holds `alone`"),
        "{text}"
    );
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
fn well_known_tokenizers_give_the_ids_that_transformers_gives() {
    let Some(shared) = std::env::var_os("SPARSAM_SHARED") else {
        eprintln!("skipped: SPARSAM_SHARED is not set");
        return;
    };
    let folder = PathBuf::from(shared).join("data/tokenizers");
    let read = |path: PathBuf| -> Json {
        serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
    };
    let expected = read(folder.join("expected_ids.json"));
    for (name, kind, splitting) in [
        ("tinyllama", "llama", "default"),
        ("gpt2", "gpt2", "gpt-2"),
        ("qwen", "gpt2", "qwen2"),
    ] {
        let json = read(folder.join(name).join("tokenizer.json"));
        let mut contents = file_of(&json, kind, splitting);
        if kind == "llama" {
            contents.set("tokenizer.ggml.bos_token_id", Value::U32(1));
            contents.set("tokenizer.ggml.eos_token_id", Value::U32(2));
            contents.set("tokenizer.ggml.unknown_token_id", Value::U32(0));
        }
        let ours = tokenizer(&contents).expect(name);
        let cases = expected[name]["cases"].as_array().expect("cases");
        for case in cases {
            let text = case["text"].as_str().expect("a text");
            for (key, special) in [("ids", false), ("ids_with_special", true)] {
                let ids = ours.encode(text, special).expect("ids");
                assert_eq!(Json::from(ids), case[key], "{name}: {text}");
            }
        }
        assert!(cases.len() >= 9);
    }
}
