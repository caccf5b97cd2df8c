//! The tokenizer of a GGUF file.
//!
//! llama.cpp stores the vocabulary and names the rest: `llama` is SentencePiece's BPE, whose merges
//! follow from the scores; `gpt2` is byte-level BPE, whose splitting of a text into words is named by
//! `tokenizer.ggml.pre`. Both become the `tokenizer.json` that transformers would have, so that one
//! tokenizer serves all models. A way of splitting that is not known is refused: another would give other
//! tokens, and a model trained on those would answer worse where it is used.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::header::{Header, Value};
use crate::tokenizer::{Tokenizer, TokenizerError};

type Result<T> = std::result::Result<T, TokenizerError>;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const MODEL: &str = "tokenizer.ggml.model";
const SPLITTING: &str = "tokenizer.ggml.pre";

/// `llama_token_type` of llama.cpp.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Control tokens that end a turn or a text, as llama.cpp finds them by their text.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "<|end_of_text|>",
];

/// How a text is split into words before they are cut into tokens.
struct Splitting {
    /// Names of it under `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    words: Words,
    /// Unicode is brought into its composed form first.
    nfc: bool,
    /// A word that is in the vocabulary as a whole is one token, whatever the merges say.
    ignore_merges: bool,
    /// Whether a text begins with BOS where the file does not say.
    bos: bool,
}

/// What a word is.
enum Words {
    /// GPT-2's own expression, which the byte-level pre-tokenizer knows.
    Gpt2,
    /// Digits one by one, then as GPT-2.
    DigitsThenGpt2,
    /// Matches of an expression.
    Matches(&'static str),
}

/// The ways to split that are known; the expressions are those of the models' own tokenizer.json.
const SPLITTINGS: &[Splitting] = &[
    Splitting {
        names: &["llama-bpe", "llama3", "llama-v3"],
        words: Words::Matches(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        nfc: false,
        ignore_merges: true,
        bos: true,
    },
    Splitting {
        names: &["qwen2", "deepseek-r1-qwen"],
        words: Words::Matches(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        nfc: true,
        ignore_merges: false,
        bos: false,
    },
    Splitting {
        names: &["tekken"],
        words: Words::Matches(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        nfc: false,
        ignore_merges: true,
        bos: true,
    },
    Splitting {
        names: &["smollm"],
        words: Words::DigitsThenGpt2,
        nfc: false,
        ignore_merges: false,
        bos: false,
    },
    Splitting {
        names: &["gpt-2", "gpt2"],
        words: Words::Gpt2,
        nfc: false,
        ignore_merges: false,
        bos: false,
    },
];

/// Builds the tokenizer of a file.
pub(super) fn read(path: &Path, header: &Header) -> Result<Tokenizer> {
    let file = path.display().to_string();
    let keys = Keys::of(&file, header)?;
    let (tokenizer, begins) = match keys.text(MODEL)? {
        "llama" => (keys.sentencepiece()?, true),
        "gpt2" => keys.byte_level()?,
        other => {
            return Err(keys.wrong(
                MODEL,
                format!("is `{other}`, this version knows `llama` and `gpt2`"),
            ));
        }
    };
    let bytes = |value: &Json| value.to_string().into_bytes();
    Tokenizer::from_parts(
        &bytes(&tokenizer),
        Some(&bytes(&keys.roles(begins)?)),
        Some(&bytes(&json!({"eos_token_id": keys.ends()?}))),
        None,
    )
    .map_err(|error| match error {
        TokenizerError::Broken { reason, .. } => TokenizerError::Broken { file, reason },
        other => other,
    })
}

struct Keys<'a> {
    file: &'a str,
    header: &'a Header,
    tokens: Vec<&'a str>,
    types: Vec<i64>,
}

impl<'a> Keys<'a> {
    fn of(file: &'a str, header: &'a Header) -> Result<Self> {
        let mut keys = Self {
            file,
            header,
            tokens: Vec::new(),
            types: Vec::new(),
        };
        keys.tokens = keys.texts(TOKENS)?;
        if keys.tokens.is_empty() {
            return Err(keys.wrong(TOKENS, "is empty"));
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = keys.tokens.iter().find(|token| !seen.insert(**token)) {
            return Err(keys.wrong(TOKENS, format!("holds the token `{twice}` twice")));
        }
        keys.types = match keys.numbers(TYPES)? {
            Some(types) => types.iter().map(|kind| *kind as i64).collect(),
            None => vec![NORMAL; keys.tokens.len()],
        };
        Ok(keys)
    }

    fn wrong(&self, key: &str, what: impl Into<String>) -> TokenizerError {
        TokenizerError::Key {
            file: self.file.to_owned(),
            key: key.to_owned(),
            what: what.into(),
        }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.header.metadata.get(key)
    }

    fn text(&self, key: &str) -> Result<&'a str> {
        self.get(key)
            .and_then(Value::text)
            .ok_or_else(|| self.wrong(key, "is missing or not a text"))
    }

    fn texts(&self, key: &str) -> Result<Vec<&'a str>> {
        self.get(key)
            .and_then(Value::list)
            .and_then(|list| list.texts())
            .map(Iterator::collect)
            .ok_or_else(|| self.wrong(key, "is missing or not a list of texts"))
    }

    /// One number for each token.
    fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let numbers = value.list().and_then(|list| list.numbers());
        let numbers: Option<Vec<f64>> = numbers.map(Iterator::collect);
        match numbers.filter(|numbers| numbers.len() == self.tokens.len()) {
            Some(numbers) => Ok(Some(numbers)),
            None => Err(self.wrong(key, "is not a list of a number for each token")),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.flag().ok_or_else(|| {
                self.wrong(
                    key,
                    format!("is {}, neither true nor false", value.describe()),
                )
            }),
        }
    }

    /// The token that a key names by its number.
    fn token(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let id = value.number().filter(|id| *id >= 0.0 && id.fract() == 0.0);
        match id.and_then(|id| self.tokens.get(id as usize)) {
            Some(token) => Ok(Some(*token)),
            None => Err(self.wrong(
                key,
                format!(
                    "is {}, there are {} tokens",
                    value.describe(),
                    self.tokens.len()
                ),
            )),
        }
    }

    fn vocabulary(&self) -> Map<String, Json> {
        let numbered = self.tokens.iter().enumerate();
        numbered
            .map(|(id, token)| ((*token).to_owned(), id.into()))
            .collect()
    }

    /// Tokens that are found in a text before it is split.
    fn added(&self) -> Vec<Json> {
        let numbered = self.tokens.iter().zip(&self.types).enumerate();
        numbered
            .filter(|(_, (token, kind))| {
                matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED) && !token.is_empty()
            })
            .map(|(id, (token, kind))| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                       "rstrip": false, "normalized": false, "special": *kind != USER_DEFINED})
            })
            .collect()
    }

    fn sentencepiece(&self) -> Result<Json> {
        let Some(scores) = self.numbers(SCORES)? else {
            return Err(self.wrong(SCORES, "is missing"));
        };
        let vocabulary = self.vocabulary();
        let bytes = (0..=255u8).all(|byte| vocabulary.contains_key(&format!("<0x{byte:02X}>")));
        let space = self.flag("tokenizer.ggml.add_space_prefix", true)?;
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        let normalizers = if space {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            vec![json!({"type": "Prepend", "prepend": "▁"}), spaces]
        } else {
            vec![spaces]
        };
        let by_type = || self.types.iter().position(|kind| *kind == UNKNOWN);
        let unknown = self
            .token("tokenizer.ggml.unknown_token_id")?
            .or_else(|| by_type().map(|id| self.tokens[id]));
        let merges = self.merges_of_scores(&scores, &vocabulary);
        Ok(json!({
            "version": "1.0",
            "added_tokens": self.added(),
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null,
            "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {"type": "BPE", "dropout": null, "unk_token": unknown,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                "byte_fallback": bytes, "ignore_merges": false, "vocab": vocabulary, "merges": merges},
        }))
    }

    /// SentencePiece joins the two neighbours whose union has the highest score, so every way to cut a
    /// token in two is a merge, in the order of the scores (and, as in transformers' converter, of the
    /// lengths of its halves).
    fn merges_of_scores(
        &self,
        scores: &[f64],
        vocabulary: &Map<String, Json>,
    ) -> Vec<[&'a str; 2]> {
        struct Merge<'a> {
            score: f64,
            halves: [&'a str; 2],
            lengths: [usize; 2],
            ids: [u64; 2],
        }
        let mut merges = Vec::new();
        for ((token, kind), score) in self.tokens.iter().zip(&self.types).zip(scores) {
            if *kind != NORMAL {
                continue;
            }
            let mut local = Vec::new();
            for (at, _) in token.char_indices().skip(1) {
                let halves = [&token[..at], &token[at..]];
                let ids = halves.map(|half| vocabulary.get(half).and_then(Json::as_u64));
                if let [Some(left), Some(right)] = ids {
                    local.push(Merge {
                        score: *score,
                        halves,
                        lengths: halves.map(|half| half.chars().count()),
                        ids: [left, right],
                    });
                }
            }
            local.sort_by_key(|merge| merge.ids);
            merges.extend(local);
        }
        merges.sort_by(|a, b| {
            let scores = b.score.total_cmp(&a.score);
            scores.then_with(|| b.lengths.cmp(&a.lengths))
        });
        merges.into_iter().map(|merge| merge.halves).collect()
    }

    /// The tokenizer, and whether a text begins with BOS where the file does not say.
    fn byte_level(&self) -> Result<(Json, bool)> {
        let name = self.text(SPLITTING)?;
        let known = SPLITTINGS
            .iter()
            .find(|splitting| splitting.names.contains(&name));
        let Some(splitting) = known else {
            let names: Vec<String> = SPLITTINGS
                .iter()
                .filter_map(|splitting| splitting.names.first())
                .map(|name| format!("`{name}`"))
                .collect();
            return Err(self.wrong(
                SPLITTING,
                format!("is `{name}`, this version knows {}", names.join(", ")),
            ));
        };
        let merges: Vec<[&str; 2]> = self
            .texts(MERGES)?
            .into_iter()
            .map(|merge| {
                // A token that itself begins with a space would make the first cut empty.
                let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ');
                let at = at.map(|(at, _)| at).filter(|at| at + 1 < merge.len());
                at.map(|at| [&merge[..at], &merge[at + 1..]])
                    .ok_or_else(|| self.wrong(MERGES, format!("holds `{merge}`, not two tokens")))
            })
            .collect::<Result<_>>()?;
        let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let sequence =
            |first: Json, then: Json| json!({"type": "Sequence", "pretokenizers": [first, then]});
        let words = match splitting.words {
            Words::Gpt2 => bytes(true),
            Words::DigitsThenGpt2 => sequence(
                json!({"type": "Digits", "individual_digits": true}),
                bytes(true),
            ),
            Words::Matches(expression) => sequence(
                json!({"type": "Split", "pattern": {"Regex": expression},
                       "behavior": "Isolated", "invert": false}),
                bytes(false),
            ),
        };
        let normalizer = if splitting.nfc {
            json!({"type": "NFC"})
        } else {
            Json::Null
        };
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": self.added(),
            "normalizer": normalizer,
            "pre_tokenizer": words,
            "post_processor": null,
            "decoder": bytes(true),
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": splitting.ignore_merges,
                "vocab": self.vocabulary(), "merges": merges},
        });
        Ok((tokenizer, splitting.bos))
    }

    /// What `tokenizer_config.json` would say.
    fn roles(&self, begins: bool) -> Result<Json> {
        let bos = self.token("tokenizer.ggml.bos_token_id")?;
        let eos = self.token("tokenizer.ggml.eos_token_id")?;
        let add = |key: &str, default: bool, token: Option<&str>| {
            let asked = self.flag(key, default && token.is_some())?;
            if asked && token.is_none() {
                return Err(self.wrong(key, "is true, but the file names no such token"));
            }
            Ok(asked)
        };
        let template = self.get("tokenizer.chat_template").and_then(Value::text);
        Ok(json!({
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": self.token("tokenizer.ggml.padding_token_id")?,
            "unk_token": self.token("tokenizer.ggml.unknown_token_id")?,
            "add_bos_token": add("tokenizer.ggml.add_bos_token", begins, bos)?,
            "add_eos_token": add("tokenizer.ggml.add_eos_token", false, eos)?,
            "chat_template": template,
        }))
    }

    /// Ids that end a generation: EOS first, then the ends of a turn.
    fn ends(&self) -> Result<Vec<usize>> {
        let id = |token: &str| self.tokens.iter().position(|other| *other == token);
        let mut ends = Vec::new();
        for key in ["eos", "eot", "eom"] {
            let token = self.token(&format!("tokenizer.ggml.{key}_token_id"))?;
            ends.extend(token.and_then(id));
        }
        let by_text = ENDS.iter().filter_map(|token| id(token));
        ends.extend(by_text.filter(|id| self.types[*id] == CONTROL));
        let mut seen = BTreeSet::new();
        ends.retain(|id| seen.insert(*id));
        Ok(ends)
    }
}
