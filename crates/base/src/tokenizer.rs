//! Text to token ids and back, exactly as the model's own files say.
//!
//! `tokenizer.json` holds the vocabulary, the merges and the post-processor; this file adds what the
//! three JSON files beside it say: which tokens are BOS, EOS, padding and unknown, which ids end a
//! generation, and the model's chat template as text. Rendering a template is the business of
//! [`chat_template`](crate::chat_template); which tokens are trained is that of the data code.
//!
//! The post-processor of `tokenizer.json` decides which special tokens surround a text, as in
//! transformers 5, where `add_bos_token` and `add_eos_token` of `tokenizer_config.json` are only
//! advice. They are followed here in the one case left open: no post-processor at all.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::TruncationParams;

/// Why a tokenizer cannot be read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file of the tokenizer cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `tokenizer.json` is not there.
    #[error("`{}` has no `tokenizer.json`", folder.display())]
    Missing {
        /// The model's folder.
        folder: PathBuf,
    },
    /// A file is there but is not what its name says.
    #[error("`{file}` cannot be used: {reason}")]
    Broken {
        /// File name, with its folder where known.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A special token is named that the vocabulary does not have.
    #[error(
        "`{file}` names `{token}` as `{role}`, which is not in the vocabulary of `tokenizer.json`"
    )]
    UnknownSpecial {
        /// File that names it.
        file: &'static str,
        /// `bos_token`, `eos_token`, …
        role: &'static str,
        /// The token.
        token: String,
    },
    /// A key of a GGUF file describes a tokenizer that cannot be built.
    #[error("`{file}` cannot be used: `{key}` {what}")]
    Key {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// The tokenizer can produce ids for which the model has no embedding.
    #[error(
        "the tokenizer does not fit the model: token `{token}` has id {id}, the embedding has {rows} rows ({count} tokens are past its end)"
    )]
    DoesNotFit {
        /// The first token past the end.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the model's embedding.
        rows: usize,
        /// How many tokens are past the end.
        count: usize,
    },
    /// The tokenizer failed on a text or on ids.
    #[error("the tokenizer failed: {0}")]
    Failed(String),
}

impl TokenizerError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } | Self::Failed(_) => None,
            Self::Missing { .. } => Some(
                "copy `tokenizer.json` and `tokenizer_config.json` from the model's page; a model that only has a SentencePiece `tokenizer.model` must be converted first".into(),
            ),
            Self::Broken { .. } => {
                Some("the file may be cut short or be a Git LFS pointer; fetch it again".into())
            }
            Self::Key { .. } => Some(
                "use the model's folder in Hugging Face's layout, or a GGUF file made by another version of llama.cpp's converter".into(),
            ),
            Self::UnknownSpecial { .. } => {
                Some("`tokenizer.json` and the files beside it must come from the same model".into())
            }
            Self::DoesNotFit { .. } => Some(
                "take `tokenizer.json` and the weights from the same model; tokens added later need an embedding of their own".into(),
            ),
        }
    }

    fn broken(file: &str, reason: impl Into<String>) -> Self {
        Self::Broken {
            file: file.into(),
            reason: reason.into(),
        }
    }
}

type Result<T> = std::result::Result<T, TokenizerError>;

/// Token ids and the byte range of the text each stands for, both `[tokens]`.
pub type Encoded = (Vec<u32>, Vec<(usize, usize)>);

/// A token with a role: its id and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Special {
    id: u32,
    text: String,
}

/// The tokenizer of a model with its special tokens.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<Special>,
    eos: Option<Special>,
    pad: Option<Special>,
    unk: Option<Special>,
    end_ids: Vec<u32>,
    special_ids: BTreeSet<u32>,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    chat_template: Option<String>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("end_ids", &self.end_ids)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the tokenizer of a model folder: `tokenizer.json`, and where present
    /// `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json` and
    /// `chat_template.jinja` (which takes precedence over a template in the configuration).
    ///
    /// # Errors
    /// A missing `tokenizer.json`, a file that cannot be read or parsed, a special token that the
    /// vocabulary does not have.
    pub fn from_dir(folder: &Path) -> Result<Self> {
        let tokenizer_json = read_optional(&folder.join("tokenizer.json"))?.ok_or_else(|| {
            TokenizerError::Missing {
                folder: folder.into(),
            }
        })?;
        let config = read_optional(&folder.join("tokenizer_config.json"))?;
        let generation = read_optional(&folder.join("generation_config.json"))?;
        let map = read_optional(&folder.join("special_tokens_map.json"))?;
        let mut tokenizer = Self::from_parts(
            &tokenizer_json,
            config.as_deref(),
            generation.as_deref(),
            map.as_deref(),
        )
        .map_err(|error| match error {
            TokenizerError::Broken { file, reason } => TokenizerError::Broken {
                file: folder.join(file).display().to_string(),
                reason,
            },
            other => other,
        })?;
        let template = folder.join("chat_template.jinja");
        if let Some(bytes) = read_optional(&template)? {
            let text = String::from_utf8(bytes).map_err(|error| {
                TokenizerError::broken(
                    &template.display().to_string(),
                    error.utf8_error().to_string(),
                )
            })?;
            tokenizer.chat_template = Some(text);
        }
        Ok(tokenizer)
    }

    /// Builds the tokenizer from the bytes of its files.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir), apart from reading.
    pub fn from_parts(
        tokenizer_json: &[u8],
        tokenizer_config: Option<&[u8]>,
        generation_config: Option<&[u8]>,
        special_tokens_map: Option<&[u8]>,
    ) -> Result<Self> {
        let mut inner = tokenizers::Tokenizer::from_bytes(tokenizer_json)
            .map_err(|error| TokenizerError::broken("tokenizer.json", error.to_string()))?;
        // Files often carry the truncation and padding of their last use; both would change data
        // behind the user's back.
        inner
            .with_truncation(None::<TruncationParams>)
            .map_err(|error| TokenizerError::broken("tokenizer.json", error.to_string()))?;
        inner.with_padding(None);

        let config = parse_object("tokenizer_config.json", tokenizer_config)?;
        let map = parse_object("special_tokens_map.json", special_tokens_map)?;
        let generation = parse_object("generation_config.json", generation_config)?;

        let named = |role| special(&inner, role, &config, &map);
        let numbered = |key| -> Option<Special> {
            let id = first_id(generation.get(key)?)?;
            Some(Special {
                id,
                text: inner.id_to_token(id)?,
            })
        };
        let bos = named("bos_token")?.or_else(|| numbered("bos_token_id"));
        let eos = named("eos_token")?.or_else(|| numbered("eos_token_id"));
        let pad = named("pad_token")?;
        let unk = named("unk_token")?;

        let mut end_ids: Vec<u32> = eos.iter().map(|token| token.id).collect();
        for id in all_ids(generation.get("eos_token_id")) {
            if !end_ids.contains(&id) {
                end_ids.push(id);
            }
        }

        let mut special_ids: BTreeSet<u32> = inner
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(&id, _)| id)
            .collect();
        special_ids.extend(
            [&bos, &eos, &pad]
                .into_iter()
                .flatten()
                .map(|token| token.id),
        );
        special_ids.extend(&end_ids);

        let (prefix, suffix) = if inner.get_post_processor().is_some() {
            surroundings(&inner)?
        } else {
            let asked = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
            let wanted = |key: &str, token: &Option<Special>| match token {
                Some(token) if asked(key) => vec![token.id],
                _ => Vec::new(),
            };
            (wanted("add_bos_token", &bos), wanted("add_eos_token", &eos))
        };

        let chat_template = config
            .get("chat_template")
            .map(template_text)
            .transpose()?
            .flatten();
        Ok(Self {
            inner,
            bos,
            eos,
            pad,
            unk,
            end_ids,
            special_ids,
            prefix,
            suffix,
            chat_template,
        })
    }

    /// Token ids of a text. `special`: with the tokens the tokenizer itself puts around a text
    /// (see [`prefix`](Self::prefix)). Special tokens written out in the text are recognised either
    /// way, as in transformers.
    ///
    /// # Errors
    /// When the tokenizer's model fails, for instance on a character without a token where there is
    /// no unknown token.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let (ids, _) = self.encode_with_offsets(text)?;
        if !special {
            return Ok(ids);
        }
        Ok([self.prefix.as_slice(), &ids, &self.suffix].concat())
    }

    /// Token ids of a text and the byte range of the text each stands for, `[tokens]`, without
    /// tokens added around it. Tokens of one character in several bytes share its range.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_offsets(&self, text: &str) -> Result<Encoded> {
        let encoding = self
            .inner
            .encode(text, false)
            .map_err(|error| TokenizerError::Failed(error.to_string()))?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
    }

    /// Text of token ids; `skip_special` leaves special tokens out.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|error| TokenizerError::Failed(error.to_string()))
    }

    /// Decodes token by token, as text is generated.
    pub fn stream(&self) -> TextStream<'_> {
        self.stream_after(&[])
    }

    /// Like [`stream`](Self::stream), for text that follows `prompt`: decoders treat the first token
    /// of a text differently (SentencePiece drops its leading space), so a continuation must be
    /// decoded as one.
    pub fn stream_after(&self, prompt: &[u32]) -> TextStream<'_> {
        let context = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        TextStream {
            tokenizer: self,
            told: context.len(),
            ids: context,
        }
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Checks that every token has a row in an embedding of `rows` rows.
    ///
    /// # Errors
    /// [`TokenizerError::DoesNotFit`] names the first token that has none.
    pub fn check_fits(&self, rows: usize) -> Result<()> {
        let vocabulary = self.inner.get_vocab(true);
        let outside = vocabulary.iter().filter(|&(_, &id)| id as usize >= rows);
        let count = outside.clone().count();
        match outside.min_by_key(|&(_, &id)| id) {
            None => Ok(()),
            Some((token, &id)) => Err(TokenizerError::DoesNotFit {
                token: token.clone(),
                id,
                rows,
                count,
            }),
        }
    }

    /// Token that begins a document.
    pub fn bos(&self) -> Option<(u32, &str)> {
        pair(self.bos.as_ref())
    }

    /// Token that ends a document.
    pub fn eos(&self) -> Option<(u32, &str)> {
        pair(self.eos.as_ref())
    }

    /// Padding token. Nothing here pads; files for others name it.
    pub fn pad(&self) -> Option<(u32, &str)> {
        pair(self.pad.as_ref())
    }

    /// Token for what the vocabulary cannot express.
    pub fn unk(&self) -> Option<(u32, &str)> {
        pair(self.unk.as_ref())
    }

    /// All ids that end a generation: EOS, then those of `generation_config.json`.
    pub fn end_ids(&self) -> &[u32] {
        &self.end_ids
    }

    /// Whether an id is a control token rather than text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// Id of a token by its exact text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Text of a token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Tokens put before a text that begins a document, usually BOS or nothing.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// Tokens put after a text that ends a document, usually nothing.
    pub fn suffix(&self) -> &[u32] {
        &self.suffix
    }

    /// The model's own chat template (Jinja), where it has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }
}

/// Tokens of context a piece of text is decoded with: enough for a character spread over bytes and
/// for a decoder that looks at its left neighbour.
const CONTEXT: usize = 8;

/// Decodes a growing sequence of ids into pieces of text that never split a character.
#[derive(Clone, Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Context, then ids whose text has not been handed out yet.
    ids: Vec<u32>,
    /// Leading ids whose text has been handed out.
    told: usize,
}

impl TextStream<'_> {
    /// Adds an id; the new text once it is complete, `None` while a character is still open or the
    /// id is a special token.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        self.ids.push(id);
        self.take(false)
    }

    /// What is left at the end, with `U+FFFD` for a character that stayed incomplete.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn finish(mut self) -> Result<Option<String>> {
        self.take(true)
    }

    fn take(&mut self, all: bool) -> Result<Option<String>> {
        let before = self.tokenizer.decode(&self.ids[..self.told], true)?;
        let now = self.tokenizer.decode(&self.ids, true)?;
        // The text so far may end in the replacement of an open character; it is compared by length.
        if now.len() <= before.len() || (!all && now.ends_with('\u{FFFD}')) {
            return Ok(None);
        }
        let text = now.get(before.len()..).unwrap_or_default().to_owned();
        let surplus = self.told.saturating_sub(CONTEXT);
        self.ids.drain(..surplus);
        self.told = self.ids.len();
        Ok(Some(text))
    }
}

fn pair(token: Option<&Special>) -> Option<(u32, &str)> {
    token.map(|token| (token.id, token.text.as_str()))
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read {
            path: path.into(),
            source,
        }),
    }
}

fn parse_object(file: &'static str, bytes: Option<&[u8]>) -> Result<Map<String, Value>> {
    let Some(bytes) = bytes else {
        return Ok(Map::new());
    };
    serde_json::from_slice(bytes).map_err(|error| TokenizerError::broken(file, error.to_string()))
}

/// The token with a role, from the configuration or else the special tokens map. A token is written
/// as a string or as an object with `content` (an added token).
fn special(
    inner: &tokenizers::Tokenizer,
    role: &'static str,
    config: &Map<String, Value>,
    map: &Map<String, Value>,
) -> Result<Option<Special>> {
    for (file, object) in [
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", map),
    ] {
        let text = match object.get(role) {
            None | Some(Value::Null) => continue,
            Some(Value::String(text)) => text,
            Some(Value::Object(token)) => match token.get("content") {
                Some(Value::String(text)) => text,
                _ => {
                    return Err(TokenizerError::broken(
                        file,
                        format!("`{role}` has no `content`"),
                    ));
                }
            },
            Some(_) => {
                let reason = format!("`{role}` is neither a string nor an added token");
                return Err(TokenizerError::broken(file, reason));
            }
        };
        return match inner.token_to_id(text) {
            Some(id) => Ok(Some(Special {
                id,
                text: text.clone(),
            })),
            // Only BOS and EOS ever reach the model from here.
            None if matches!(role, "pad_token" | "unk_token") => Ok(None),
            None => Err(TokenizerError::UnknownSpecial {
                file,
                role,
                token: text.clone(),
            }),
        };
    }
    Ok(None)
}

/// What the post-processor puts before and after a text.
fn surroundings(inner: &tokenizers::Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    let failed = |error: tokenizers::Error| TokenizerError::Failed(error.to_string());
    let plain = inner.encode("a", false).map_err(failed)?;
    let full = inner.encode("a", true).map_err(failed)?;
    let (plain, full) = (plain.get_ids(), full.get_ids());
    let at = (0..=full.len().saturating_sub(plain.len()))
        .find(|&at| full[at..].starts_with(plain))
        .filter(|_| !plain.is_empty());
    match at {
        Some(at) => Ok((full[..at].to_vec(), full[at + plain.len()..].to_vec())),
        None => Err(TokenizerError::broken(
            "tokenizer.json",
            "its post-processor does more than put tokens around a text",
        )),
    }
}

/// `chat_template` of the configuration: a string, or named ones of which `default` counts.
fn template_text(value: &Value) -> Result<Option<String>> {
    let wrong = || {
        TokenizerError::broken(
            "tokenizer_config.json",
            "`chat_template` is neither a string nor a list of `{name, template}`",
        )
    };
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            match default {
                None => Ok(None),
                Some(entry) => entry["template"]
                    .as_str()
                    .map(|text| Some(text.to_owned()))
                    .ok_or_else(wrong),
            }
        }
        _ => Err(wrong()),
    }
}

fn first_id(value: &Value) -> Option<u32> {
    all_ids(Some(value)).first().copied()
}

fn all_ids(value: Option<&Value>) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A character tokenizer with byte fallback for what it does not know.
    fn tokenizer_json(post_processor: &Value) -> Vec<u8> {
        let mut vocab = Map::new();
        for token in ["<unk>", "<s>", "</s>"] {
            vocab.insert(token.into(), vocab.len().into());
        }
        for byte in 0..=255u8 {
            vocab.insert(format!("<0x{byte:02X}>"), vocab.len().into());
        }
        for letter in "▁abcdefgh".chars() {
            vocab.insert(letter.to_string(), vocab.len().into());
        }
        let special = |id: u32, text: &str| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        };
        json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
            "padding": null,
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null,
            "post_processor": post_processor,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                "byte_fallback": true, "vocab": vocab, "merges": []}
        })
        .to_string()
        .into_bytes()
    }

    fn with_bos() -> Value {
        json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}})
    }

    const CONFIG: &[u8] =
        br#"{"bos_token": "<s>", "eos_token": {"content": "</s>", "special": true}}"#;
    const A: u32 = 260;

    #[test]
    fn post_processor_decides_and_stored_truncation_is_dropped() {
        let tokenizer =
            Tokenizer::from_parts(&tokenizer_json(&with_bos()), Some(CONFIG), None, None).unwrap();
        assert_eq!(
            tokenizer.encode("abcdef", true).unwrap(),
            [1, 259, A, A + 1, A + 2, A + 3, A + 4, A + 5]
        );
        assert_eq!(tokenizer.encode("a", false).unwrap(), [259, A]);
        assert_eq!(
            (tokenizer.prefix(), tokenizer.suffix()),
            (&[1][..], &[][..])
        );
        assert_eq!(tokenizer.bos(), Some((1, "<s>")));
        assert_eq!(tokenizer.eos(), Some((2, "</s>")));
        assert!(tokenizer.is_special(2) && !tokenizer.is_special(A));
    }

    #[test]
    fn configuration_acts_where_there_is_no_post_processor() {
        let config = br#"{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true, "add_eos_token": true}"#;
        let tokenizer =
            Tokenizer::from_parts(&tokenizer_json(&Value::Null), Some(config), None, None).unwrap();
        assert_eq!(tokenizer.encode("a", true).unwrap(), [1, 259, A, 2]);
        let plain =
            Tokenizer::from_parts(&tokenizer_json(&Value::Null), Some(CONFIG), None, None).unwrap();
        assert_eq!(plain.encode("a", true).unwrap(), [259, A]);
    }

    #[test]
    fn end_ids_come_from_generation_config_too() {
        let generation = br#"{"eos_token_id": [2, 260], "bos_token_id": 1}"#;
        let json = tokenizer_json(&with_bos());
        let tokenizer = Tokenizer::from_parts(&json, Some(CONFIG), Some(generation), None).unwrap();
        assert_eq!(tokenizer.end_ids(), [2, 260]);
        let without_names = Tokenizer::from_parts(&json, None, Some(generation), None).unwrap();
        assert_eq!(without_names.eos(), Some((2, "</s>")));
        let map = br#"{"eos_token": "</s>"}"#;
        let from_map = Tokenizer::from_parts(&json, None, None, Some(map)).unwrap();
        assert_eq!(from_map.eos(), Some((2, "</s>")));
        assert_eq!(from_map.bos(), None);
    }

    #[test]
    fn named_templates_take_default() {
        let json = tokenizer_json(&with_bos());
        let config = br#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        let tokenizer = Tokenizer::from_parts(&json, Some(config), None, None).unwrap();
        assert_eq!(tokenizer.chat_template(), Some("d"));
        let wrong = Tokenizer::from_parts(&json, Some(br#"{"chat_template": 3}"#), None, None);
        assert!(wrong.unwrap_err().to_string().contains("`chat_template`"));
    }

    #[test]
    fn misfits_are_named() {
        let json = tokenizer_json(&with_bos());
        let tokenizer = Tokenizer::from_parts(&json, Some(CONFIG), None, None).unwrap();
        assert_eq!(tokenizer.vocab_size(), 268);
        assert!(tokenizer.check_fits(268).is_ok());
        let error = tokenizer.check_fits(266).unwrap_err();
        assert!(
            error.to_string().contains("token `g` has id 266"),
            "{error}"
        );
        assert!(error.to_string().contains("2 tokens"), "{error}");

        let config = br#"{"eos_token": "<|end|>"}"#;
        let error = Tokenizer::from_parts(&json, Some(config), None, None).unwrap_err();
        assert!(
            error.to_string().contains("`<|end|>` as `eos_token`"),
            "{error}"
        );
        let error = Tokenizer::from_parts(&json[..40], None, None, None).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("`tokenizer.json` cannot be used"),
            "{error}"
        );
    }

    #[test]
    fn folder_without_tokenizer_and_template_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = Tokenizer::from_dir(folder.path()).unwrap_err();
        assert!(matches!(error, TokenizerError::Missing { .. }));
        assert!(error.hint().is_some());
        fs::write(
            folder.path().join("tokenizer.json"),
            tokenizer_json(&with_bos()),
        )
        .unwrap();
        fs::write(
            folder.path().join("tokenizer_config.json"),
            r#"{"chat_template": "old"}"#,
        )
        .unwrap();
        fs::write(folder.path().join("chat_template.jinja"), "new").unwrap();
        assert_eq!(
            Tokenizer::from_dir(folder.path()).unwrap().chat_template(),
            Some("new")
        );
    }

    #[test]
    fn streaming_never_splits_a_character_and_keeps_spaces() {
        let tokenizer =
            Tokenizer::from_parts(&tokenizer_json(&with_bos()), Some(CONFIG), None, None).unwrap();
        for text in ["ab cd ef gh", "a ü€ 🌳b", " a  b"] {
            let ids = tokenizer.encode(text, true).unwrap();
            let mut stream = tokenizer.stream();
            let mut pieces = Vec::new();
            for &id in &ids {
                pieces.extend(stream.push(id).unwrap());
            }
            pieces.extend(stream.finish().unwrap());
            assert!(pieces.len() > 2 && pieces.iter().all(|piece| !piece.contains('\u{FFFD}')));
            assert_eq!(pieces.concat(), text);
        }
        let mut stream = tokenizer.stream_after(&tokenizer.encode("ab", true).unwrap());
        assert_eq!(stream.push(259).unwrap().as_deref(), Some(" "));
        assert_eq!(stream.push(2).unwrap(), None);
        let mut open = tokenizer.stream();
        assert_eq!(open.push(3 + 0xC3).unwrap(), None);
        assert_eq!(open.finish().unwrap().as_deref(), Some("\u{FFFD}"));
    }

    #[test]
    fn offsets_are_bytes() {
        let tokenizer =
            Tokenizer::from_parts(&tokenizer_json(&with_bos()), Some(CONFIG), None, None).unwrap();
        let (ids, offsets) = tokenizer.encode_with_offsets("aüb</s>").unwrap();
        assert_eq!(ids.len(), offsets.len());
        assert_eq!(ids.last(), Some(&2));
        assert_eq!(offsets.last(), Some(&(4, 8)));
        assert_eq!(&offsets[1..5], [(0, 1), (1, 3), (1, 3), (3, 4)]);
    }
}
