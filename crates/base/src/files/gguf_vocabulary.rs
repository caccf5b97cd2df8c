//! A tokenizer as GGUF's header holds it.
//!
//! llama.cpp knows two kinds that the families here use: byte-level BPE (`gpt2`), which splits a text by
//! an expression it has under a name, and SentencePiece's BPE (`llama`), which merges by scores. A
//! tokenizer that is neither, or that splits in a way without a name, is refused: llama.cpp would cut
//! texts differently from what the model has learned.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::gguf_writer::Meta;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Key of the chat template.
pub const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

/// Kinds of tokens (`llama_token_type`).
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Expressions by which byte-level tokenizers split a text, and llama.cpp's names for them.
const SPLITS: [(&str, &str); 2] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
    ),
];

/// The entries of a header for a tokenizer, of which `json` is `tokenizer.json`, with `rows` tokens in
/// the embedding.
///
/// # Errors
/// A tokenizer that llama.cpp has no equal of.
pub fn vocabulary(json: &[u8], tokenizer: &Tokenizer, rows: usize) -> Result<Vec<(String, Meta)>> {
    let file: Value = serde_json::from_slice(json)
        .map_err(|e| refused(&format!("`tokenizer.json` is not JSON: {e}")))?;
    if file["model"]["type"] != "BPE" {
        let found = file["model"]["type"].as_str().unwrap_or("nothing");
        return Err(refused(&format!("its model is `{found}`, expected `BPE`")));
    }
    let words = words(&file)?;
    let added = added(&file);
    let spm = file["model"]["byte_fallback"] == true;
    let pre = if spm {
        "default"
    } else {
        split_name(&file["pre_tokenizer"])?
    };
    let (mut texts, mut types) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    for id in 0..rows as u32 {
        let special = added.get(&id);
        let text = special.map(|(text, _)| text).or_else(|| words.get(&id));
        types.push(match (text, special) {
            (None, _) => UNUSED,
            (Some(_), _) if spm && tokenizer.unk().is_some_and(|(unk, _)| unk == id) => UNKNOWN,
            (_, Some((_, true))) => CONTROL,
            (_, Some((_, false))) => USER_DEFINED,
            (Some(text), None) if spm && is_byte(text) => BYTE,
            _ => NORMAL,
        });
        texts.push(text.map_or_else(|| format!("[PAD{id}]"), Clone::clone));
    }
    let mut entries = vec![
        (
            "model",
            Meta::Text(if spm { "llama" } else { "gpt2" }.to_owned()),
        ),
        ("pre", Meta::Text(pre.to_owned())),
        ("tokens", Meta::Texts(texts)),
    ];
    if spm {
        let scores = scores(&file, &words, &types)?;
        entries.push(("scores", Meta::F32s(scores)));
    }
    entries.push(("token_type", Meta::I32s(types)));
    if !spm {
        entries.push(("merges", Meta::Texts(merges(&file)?)));
    }
    for (name, token) in [
        ("bos_token_id", tokenizer.bos()),
        ("eos_token_id", tokenizer.eos()),
        ("unknown_token_id", tokenizer.unk()),
        ("padding_token_id", tokenizer.pad()),
    ] {
        if let Some((id, _)) = token {
            entries.push((name, Meta::U32(id)));
        }
    }
    let holds =
        |ids: &[u32], token: Option<(u32, &str)>| token.is_some_and(|(id, _)| ids.contains(&id));
    let (bos, eos) = (tokenizer.bos(), tokenizer.eos());
    entries.push(("add_bos_token", Meta::Bool(holds(tokenizer.prefix(), bos))));
    entries.push(("add_eos_token", Meta::Bool(holds(tokenizer.suffix(), eos))));
    if spm && !file["normalizer"].to_string().contains("\"Prepend\"") {
        entries.push(("add_space_prefix", Meta::Bool(false)));
    }
    let mut entries: Vec<(String, Meta)> = entries
        .into_iter()
        .map(|(name, value)| (format!("tokenizer.ggml.{name}"), value))
        .collect();
    if let Some(template) = tokenizer.chat_template() {
        let template = Meta::Text(template.to_owned());
        entries.push((CHAT_TEMPLATE.to_owned(), template));
    }
    Ok(entries)
}

fn refused(what: &str) -> Error {
    Error::Generation {
        what: format!("the tokenizer cannot be written into a GGUF file: {what}"),
        hint: "merge the adapter and convert the folder with llama.cpp's convert_hf_to_gguf.py",
    }
}

fn words(file: &Value) -> Result<HashMap<u32, String>> {
    let map = file["model"]["vocab"].as_object();
    let map = map.ok_or_else(|| refused("it has no vocabulary"))?;
    map.iter()
        .map(|(text, id)| {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            id.map(|id| (id, text.clone()))
                .ok_or_else(|| refused(&format!("its token `{text}` has no id")))
        })
        .collect()
}

/// Text of each added token, and whether it is special.
fn added(file: &Value) -> BTreeMap<u32, (String, bool)> {
    let tokens = file["added_tokens"].as_array().into_iter().flatten();
    tokens
        .filter_map(|token| {
            let id = u32::try_from(token["id"].as_u64()?).ok()?;
            let text = token["content"].as_str()?.to_owned();
            Some((id, (text, token["special"] == true)))
        })
        .collect()
}

/// Whether a token stands for one byte, `<0x0A>`.
fn is_byte(text: &str) -> bool {
    text.strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}

/// llama.cpp's name of the way in which a byte-level tokenizer splits a text before it merges.
fn split_name(pre: &Value) -> Result<&'static str> {
    let parts: Vec<&Value> = match pre["type"].as_str() {
        Some("Sequence") => pre["pretokenizers"]
            .as_array()
            .into_iter()
            .flatten()
            .collect(),
        _ => vec![pre],
    };
    let kinds: Vec<&str> = parts
        .iter()
        .filter_map(|part| part["type"].as_str())
        .collect();
    let byte_level = parts.last().filter(|part| part["type"] == "ByteLevel");
    let plain = byte_level.is_some_and(|part| part["add_prefix_space"] != true);
    let by_regex = byte_level.is_some_and(|part| part["use_regex"] != false);
    let name = match kinds[..] {
        ["ByteLevel"] if plain && by_regex => Some("gpt-2"),
        ["Digits", "ByteLevel"] if plain && by_regex => {
            (parts[0]["individual_digits"] == true).then_some("smollm")
        }
        ["Split", "ByteLevel"] if plain && !by_regex => {
            let regex = parts[0]["pattern"]["Regex"].as_str().unwrap_or_default();
            SPLITS
                .iter()
                .find(|(known, _)| *known == regex)
                .map(|(_, name)| *name)
        }
        _ => None,
    };
    name.ok_or_else(|| {
        refused(&format!(
            "llama.cpp has no name known here for the way it splits texts ({})",
            kinds.join(", ")
        ))
    })
}

/// `left right` for each merge. A space within a part, which byte-level BPE does not have, is written
/// as the converter writes it.
fn merges(file: &Value) -> Result<Vec<String>> {
    let merges = pairs(file)?;
    let part = |text: &str| text.replace(' ', "\u{120}");
    Ok(merges
        .iter()
        .map(|(left, right)| format!("{} {}", part(left), part(right)))
        .collect())
}

fn pairs(file: &Value) -> Result<Vec<(String, String)>> {
    let merges = file["model"]["merges"].as_array();
    let merges = merges.ok_or_else(|| refused("it has no merges"))?;
    let pair = |merge: &Value| match merge {
        Value::String(text) => {
            let (left, right) = text.split_once(' ')?;
            Some((left.to_owned(), right.to_owned()))
        }
        Value::Array(parts) => match &parts[..] {
            [Value::String(left), Value::String(right)] => Some((left.clone(), right.clone())),
            _ => None,
        },
        _ => None,
    };
    let pairs: Option<Vec<_>> = merges.iter().map(pair).collect();
    pairs.ok_or_else(|| refused("one of its merges is not a pair"))
}

/// What SentencePiece gives its BPE tokens: minus their rank. Where ids follow the merges, as in every
/// vocabulary that was converted from SentencePiece, the rank is the id, else that of the merge.
fn scores(file: &Value, words: &HashMap<u32, String>, types: &[i32]) -> Result<Vec<f32>> {
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, (left, right)) in pairs(file)?.into_iter().enumerate() {
        ranks.entry(left + &right).or_insert(rank);
    }
    let merged = |id: u32| words.get(&id).and_then(|text| ranks.get(text));
    let ids = 0..types.len() as u32;
    let in_order: Vec<usize> = ids.clone().filter_map(|id| merged(id).copied()).collect();
    let by_id = in_order.windows(2).all(|pair| pair[0] < pair[1]);
    let first = types.iter().position(|kind| *kind == NORMAL).unwrap_or(0);
    Ok(ids
        .map(|id| match types[id as usize] {
            NORMAL if by_id => -((id as usize - first) as f32),
            NORMAL => -(merged(id).copied().unwrap_or(ranks.len()) as f32),
            UNUSED => -10_000.0,
            _ => 0.0,
        })
        .collect())
}
