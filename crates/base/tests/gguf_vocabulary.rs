//! Tokenizers as GGUF's header holds them.

use serde_json::{Value, json};
use sparsam_base::builtin;
use sparsam_base::files::gguf_vocabulary::vocabulary;
use sparsam_base::files::gguf_writer::Meta;
use sparsam_base::tokenizer::Tokenizer;

fn entry<'a>(entries: &'a [(String, Meta)], name: &str) -> Option<&'a Meta> {
    let key = format!("tokenizer.ggml.{name}");
    entries
        .iter()
        .find(|(known, _)| *known == key)
        .map(|(_, value)| value)
}

fn texts<'a>(entries: &'a [(String, Meta)], name: &str) -> &'a [String] {
    match entry(entries, name) {
        Some(Meta::Texts(texts)) => texts,
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn a_byte_level_tokenizer_keeps_its_tokens_merges_and_split() {
    let sprout = builtin::find("sprout").expect("the model");
    let tokenizer = sprout.tokenizer().expect("a tokenizer");
    let file: Value = serde_json::from_slice(sprout.tokenizer).expect("JSON");
    let rows = tokenizer.vocab_size() + 4;
    let entries = vocabulary(sprout.tokenizer, &tokenizer, rows).expect("written");
    assert_eq!(
        entry(&entries, "model"),
        Some(&Meta::Text("gpt2".to_owned()))
    );
    // Single digits, then GPT-2's expression.
    assert_eq!(
        entry(&entries, "pre"),
        Some(&Meta::Text("smollm".to_owned()))
    );
    let tokens = texts(&entries, "tokens");
    assert_eq!(tokens.len(), rows);
    for (text, id) in file["model"]["vocab"].as_object().expect("a vocabulary") {
        assert_eq!(tokens[id.as_u64().expect("an id") as usize], *text);
    }
    let last = rows - 1;
    assert_eq!(tokens[last], format!("[PAD{last}]"));
    let Some(Meta::I32s(types)) = entry(&entries, "token_type") else {
        panic!("no types");
    };
    let (bos, _) = tokenizer.bos().expect("a first token");
    // A control token, one that is merged of others, one that is none.
    assert_eq!(
        (types[bos as usize], types[last - 4], types[last]),
        (3, 1, 5)
    );
    let merges = texts(&entries, "merges");
    assert_eq!(
        merges.len(),
        file["model"]["merges"].as_array().expect("merges").len()
    );
    assert!(merges.iter().all(|merge| merge.split(' ').count() == 2));
    assert_eq!(entry(&entries, "bos_token_id"), Some(&Meta::U32(bos)));
    assert_eq!(entry(&entries, "add_bos_token"), Some(&Meta::Bool(true)));
    assert_eq!(entry(&entries, "add_eos_token"), Some(&Meta::Bool(false)));
    let template = (
        "tokenizer.chat_template".to_owned(),
        tokenizer.chat_template(),
    );
    let written = entries
        .iter()
        .find(|(key, _)| *key == template.0)
        .map(|(_, value)| value);
    assert_eq!(
        written,
        template.1.map(|text| Meta::Text(text.to_owned())).as_ref()
    );
}

/// SentencePiece's BPE as transformers converts it, very small.
fn sentencepiece(merges: &Value, vocab: &Value) -> Vec<u8> {
    json!({
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true},
            {"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true}
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        ]},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
                  "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                  "byte_fallback": true, "vocab": vocab, "merges": merges}
    })
    .to_string()
    .into_bytes()
}

fn scores(merges: &Value, vocab: &Value) -> (Vec<f32>, Vec<i32>) {
    let json = sentencepiece(merges, vocab);
    let tokenizer = Tokenizer::from_parts(
        &json,
        Some(br#"{"unk_token": "<unk>", "bos_token": "<s>"}"#),
        None,
        None,
    )
    .expect("a tokenizer");
    let entries = vocabulary(&json, &tokenizer, vocab.as_object().expect("a map").len());
    let entries = entries.expect("written");
    assert_eq!(
        entry(&entries, "model"),
        Some(&Meta::Text("llama".to_owned()))
    );
    assert!(entry(&entries, "merges").is_none());
    assert!(
        entry(&entries, "add_space_prefix").is_none(),
        "llama.cpp puts one by itself"
    );
    match (entry(&entries, "scores"), entry(&entries, "token_type")) {
        (Some(Meta::F32s(scores)), Some(Meta::I32s(types))) => (scores.clone(), types.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sentencepiece_merges_by_scores() {
    let vocab =
        json!({"<unk>": 0, "<s>": 1, "<0x41>": 2, "ab": 3, "abc": 4, "a": 5, "b": 6, "c": 7});
    let (in_order, types) = scores(&json!(["a b", "ab c"]), &vocab);
    assert_eq!(types, [2, 3, 6, 1, 1, 1, 1, 1]);
    assert_eq!(in_order, [0.0, 0.0, 0.0, -0.0, -1.0, -2.0, -3.0, -4.0]);
    // Where ids do not follow the merges, the merges decide.
    let vocab =
        json!({"<unk>": 0, "<s>": 1, "<0x41>": 2, "abc": 3, "ab": 4, "a": 5, "b": 6, "c": 7});
    let (by_merge, _) = scores(&json!([["a", "b"], ["ab", "c"]]), &vocab);
    assert_eq!((by_merge[4], by_merge[3]), (-0.0, -1.0));
    assert!(by_merge[5] < by_merge[3], "{by_merge:?}");
}

#[test]
fn a_split_without_a_name_is_refused() {
    let sprout = builtin::find("sprout").expect("the model");
    let tokenizer = sprout.tokenizer().expect("a tokenizer");
    let mut file: Value = serde_json::from_slice(sprout.tokenizer).expect("JSON");
    let refusal = |file: &Value| {
        let error = vocabulary(file.to_string().as_bytes(), &tokenizer, 4096).expect_err("refused");
        assert!(error.hint().is_some());
        error.to_string()
    };
    file["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = json!(false);
    assert!(refusal(&file).contains("Digits, ByteLevel"));
    file["model"]["type"] = json!("WordPiece");
    assert!(refusal(&file).contains("WordPiece"));
}
