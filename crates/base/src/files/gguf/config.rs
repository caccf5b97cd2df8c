//! The configuration of a model in the keys of a GGUF file.
//!
//! The keys become those of a `config.json`, which [`ModelConfig`] then checks as any other, so that a
//! model is the same however it arrives. A key that is wrong is named as the file has it.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::header::{Header, Value};
use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// Architectures of llama.cpp and the families they are here.
const ARCHITECTURES: &[(&str, &str)] = &[
    // Mistral's models are `llama` in GGUF.
    ("llama", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
];

/// Keys behind the architecture, and those of `config.json`.
const KEYS: &[(&str, &str)] = &[
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("block_count", "num_hidden_layers"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("context_length", "max_position_embeddings"),
    ("rope.freq_base", "rope_theta"),
    ("rope.scaling.factor", "rope_scaling.factor"),
    ("rope.scaling.type", "rope_scaling.rope_type"),
];

/// Keys that change the computation unless they have one of these values.
const NEUTRAL: &[(&str, &[f64])] = &[
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attention.scale", &[0.0]),
    ("attention.sliding_window", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("expert_count", &[0.0]),
    ("expert_used_count", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("rope.scale_linear", &[1.0]),
    ("rope.scaling.attn_factor", &[1.0]),
];

/// Keys that carry nothing the computation depends on, or that are looked at elsewhere.
const HARMLESS: &[&str] = &[
    "attention.layer_norm_epsilon",
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
    "vocab_size",
];

/// Name of the embedding.
pub(super) const EMBEDDING: &str = "token_embd.weight";
/// Name of a head of its own.
pub(super) const HEAD: &str = "output.weight";
/// Divisors of the rotary frequencies.
pub(super) const DIVISORS: &str = "rope_freqs.weight";

/// What a file's header says about its model.
pub(super) fn read(path: &Path, header: &Header) -> Result<ModelConfig> {
    let keys = Keys::of(path, header)?;
    let mut config = keys.config()?;
    let has = |part: &str| header.tensors.keys().any(|name| name.ends_with(part));
    config.qkv_bias |= has("attn_q.bias") || has("attn_k.bias") || has("attn_v.bias");
    config.o_bias |= has("attn_output.bias");
    config.mlp_bias |= has("ffn_gate.bias") || has("ffn_up.bias") || has("ffn_down.bias");
    for suffix in ["attention.value_length", "rope.dimension_count"] {
        if let Some(value) = keys.get(suffix)
            && value.number() != Some(config.head_dim as f64)
        {
            let what = format!(
                "is {}, heads are {} wide",
                value.describe(),
                config.head_dim
            );
            return Err(keys.wrong(suffix, what));
        }
    }
    Ok(config)
}

struct Keys<'a> {
    header: &'a Header,
    architecture: &'a str,
    family: &'static str,
}

impl<'a> Keys<'a> {
    fn of(path: &Path, header: &'a Header) -> Result<Self> {
        let unfit = |what: String, hint: &'static str| Error::Unfit {
            path: path.to_owned(),
            what,
            hint,
        };
        let text = |key: &str| header.metadata.get(key).and_then(Value::text);
        if let Some(kind) = text("general.type").filter(|kind| *kind != "model") {
            return Err(unfit(
                format!("holds no model: its `general.type` is `{kind}`"),
                "name the file of the base model",
            ));
        }
        if let Some(parts) = header.metadata.get("split.count").and_then(Value::number)
            && parts > 1.0
        {
            return Err(unfit(
                format!("is one of {parts} parts of a model"),
                "join them with `llama-gguf-split --merge` and name the result",
            ));
        }
        let Some(architecture) = text("general.architecture") else {
            return Err(Error::config(
                "general.architecture",
                "is missing or not a text",
            ));
        };
        let known = ARCHITECTURES.iter().find(|(name, _)| *name == architecture);
        let Some((_, family)) = known else {
            let names: Vec<&str> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
            return Err(Error::config(
                "general.architecture",
                format!(
                    "is `{architecture}`, this version can train {}",
                    names.join(", ")
                ),
            ));
        };
        Ok(Self {
            header,
            architecture,
            family,
        })
    }

    fn get(&self, suffix: &str) -> Option<&'a Value> {
        let key = format!("{}.{suffix}", self.architecture);
        self.header.metadata.get(&key)
    }

    fn wrong(&self, suffix: &str, what: impl Into<String>) -> Error {
        Error::config(&format!("{}.{suffix}", self.architecture), what)
    }

    fn config(&self) -> Result<ModelConfig> {
        let mut json = Map::new();
        json.insert("model_type".to_owned(), self.family.into());
        let mut scaling = Map::new();
        for (suffix, key) in KEYS {
            let Some(value) = self.get(suffix) else {
                continue;
            };
            let value = self.json(suffix, value)?;
            match key.strip_prefix("rope_scaling.") {
                Some(key) => scaling.insert(key.to_owned(), value),
                None => json.insert((*key).to_owned(), value),
            };
        }
        let kind = scaling.get("rope_type").and_then(Json::as_str);
        if kind.is_none() && scaling.contains_key("factor") {
            // As llama.cpp takes a factor without a type.
            scaling.insert("rope_type".to_owned(), "linear".into());
        } else if kind == Some("none") {
            scaling.clear();
        }
        json.insert("rope_scaling".to_owned(), scaling.into());
        for (suffix, neutral) in NEUTRAL {
            if let Some(value) = self.get(suffix)
                && !value
                    .number()
                    .is_some_and(|number| neutral.contains(&number))
            {
                let what = format!("is {}, which this version cannot compute", value.describe());
                return Err(self.wrong(suffix, what));
            }
        }
        if let Some(value) = self.get("attention.causal")
            && value.flag() != Some(true)
        {
            let what = format!("is {}, which this version cannot compute", value.describe());
            return Err(self.wrong("attention.causal", what));
        }
        let tensors = &self.header.tensors;
        let rows = tensors
            .get(EMBEDDING)
            .and_then(|info| info.dims.first().copied());
        json.insert(
            "vocab_size".to_owned(),
            rows.ok_or_else(|| Error::weight(EMBEDDING, "is not in the file"))?
                .into(),
        );
        let tied = !tensors.contains_key(HEAD);
        json.insert("tie_word_embeddings".to_owned(), tied.into());
        if let Some(count) = json.get("num_hidden_layers").and_then(Json::as_u64)
            && count > tensors.len() as u64
        {
            let what = format!("is {count}, the file has only {} tensors", tensors.len());
            return Err(self.wrong("block_count", what));
        }
        let mut config =
            ModelConfig::parse(&Json::Object(json).to_string()).map_err(|e| self.rename(e))?;
        config.unrecognised = self.unrecognised();
        Ok(config)
    }

    /// A value as `config.json` would have it; a list of equal numbers, one a layer, is one number.
    fn json(&self, suffix: &str, value: &Value) -> Result<Json> {
        Ok(match value {
            Value::Integer(number) => match u64::try_from(*number) {
                Ok(number) => number.into(),
                Err(_) => json!(*number as f64),
            },
            Value::Float(number) if number.is_finite() => json!(number),
            Value::Float(number) => {
                return Err(self.wrong(suffix, format!("is {number}, expected a number")));
            }
            Value::Flag(flag) => (*flag).into(),
            Value::Text(text) => text.as_str().into(),
            Value::List(list) => {
                let mut numbers = list.numbers().into_iter().flatten();
                let first = numbers.next();
                match first {
                    Some(first) if first >= 0.0 && numbers.all(|number| number == first) => {
                        json!(first as u64)
                    }
                    _ => {
                        let what = "differs from layer to layer, which this version cannot compute";
                        return Err(self.wrong(suffix, what));
                    }
                }
            }
        })
    }

    /// An error about a key of `config.json` as one about the file's own key.
    fn rename(&self, error: Error) -> Error {
        let Error::Config { key, what } = error else {
            return error;
        };
        let (mut named, mut what) = (key.clone(), what);
        for (suffix, theirs) in KEYS {
            let ours = format!("{}.{suffix}", self.architecture);
            what = what.replace(&format!("`{theirs}`"), &format!("`{ours}`"));
            if *theirs == key {
                named = ours;
            }
        }
        Error::Config { key: named, what }
    }

    fn unrecognised(&self) -> Vec<String> {
        let prefix = format!("{}.", self.architecture);
        let known = |suffix: &str| {
            KEYS.iter().any(|(key, _)| *key == suffix)
                || NEUTRAL.iter().any(|(key, _)| *key == suffix)
                || HARMLESS.contains(&suffix)
                || suffix == "attention.causal"
        };
        let keys = self.header.metadata.keys();
        keys.filter(|key| {
            key.strip_prefix(&prefix)
                .is_some_and(|suffix| !known(suffix))
        })
        .cloned()
        .collect()
    }
}
