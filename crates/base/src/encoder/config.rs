//! What an encoder's `config.json` says, checked once and then trusted.

use serde_json::{Map, Value};
use sparsam_kernels::activation::Activation;

use crate::config::{Reader, Rope, RopeScaling};
use crate::error::{Error, Result};

/// Families of encoders.
pub const FAMILIES: &[&str] = &["bert", "distilbert", "modernbert", "roberta", "xlm-roberta"];

/// Keys that carry nothing the computation depends on.
const HARMLESS: &[&str] = &[
    "architectures",
    "attention_probs_dropout_prob",
    "classifier_activation",
    "cls_token_id",
    "decoder_bias",
    "deterministic_flash_attn",
    "directionality",
    "gradient_checkpointing",
    "initializer_cutoff_factor",
    "is_decoder",
    "masked_softmax",
    "mlp_dropout",
    "model_max_length",
    "output_past",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "position_embedding_type",
    "qa_dropout",
    "reference_compile",
    "sep_token_id",
    "sinusoidal_pos_embds",
    "sparse_pred_ignore_index",
    "sparse_prediction",
    "tie_weights_",
    "tie_word_embeddings",
];

/// What the head reads of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Its first token.
    First,
    /// Its last token.
    Last,
    /// The mean of all.
    Mean,
}

/// The shape of an encoder and the variations of its block.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// `model_type`, one of [`FAMILIES`].
    pub family: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward unit.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Rows of the table of tokens.
    pub vocab_size: usize,
    /// Rows of the table of positions, where there is one.
    pub position_rows: Option<usize>,
    /// The row of a text's first token (RoBERTa counts from behind its padding token).
    pub position_offset: usize,
    /// Rows of the table of kinds of text, where there is one.
    pub type_vocab_size: Option<usize>,
    /// The longest text, in tokens.
    pub max_length: usize,
    /// Added to the variance in every norm.
    pub epsilon: f64,
    /// What the unit's numbers pass through.
    pub activation: Activation,
    /// Share of hidden numbers that is dropped in training.
    pub dropout: f64,
    /// The same before the classifier.
    pub classifier_dropout: f64,
    /// Deviation of weights that begin at random.
    pub initializer_range: f64,
    /// What the head reads.
    pub pooling: Pooling,
    /// What ModernBERT has otherwise.
    pub modern: Option<Modern>,
    /// Names of the classes, where the model has any of its own.
    pub labels: Option<Vec<String>>,
    /// Keys of `config.json` that are not known to this program.
    pub unrecognised: Vec<String>,
}

/// What ModernBERT has otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Modern {
    /// Frequencies of global layers.
    pub rope: Rope,
    /// Frequencies of local layers.
    pub local_rope: Rope,
    /// A token of a local layer sees tokens at most so far away.
    pub window: usize,
    /// Whether each layer is local.
    pub local: Vec<bool>,
    /// Biases in attention.
    pub attention_bias: bool,
    /// Biases in the unit.
    pub mlp_bias: bool,
    /// Biases of the norms.
    pub norm_bias: bool,
    /// Bias of the head's first projection.
    pub classifier_bias: bool,
    /// What the head's numbers pass through.
    pub classifier_activation: Activation,
}

/// Whether a `config.json` is that of an encoder.
///
/// # Errors
/// Not a JSON object, or one without `model_type`.
pub fn is_encoder(text: &str) -> Result<bool> {
    let family = Reader::new(text)?.text("model_type")?;
    Ok(FAMILIES.contains(&family.as_str()))
}

/// Names of a `config.json`'s classes, by number, where they are more than numbers: `LABEL_0` says nothing.
///
/// # Errors
/// Not a JSON object.
pub fn labels(text: &str) -> Result<Option<Vec<String>>> {
    let mut reader = Reader::new(text)?;
    let map = reader.object("id2label")?;
    Ok(names(&map))
}

fn names(map: &Map<String, Value>) -> Option<Vec<String>> {
    let names: Option<Vec<String>> = (0..map.len())
        .map(|id| map.get(&id.to_string())?.as_str().map(str::to_owned))
        .collect();
    names.filter(|names| !names.is_empty())
}

impl EncoderConfig {
    /// Reads and checks the text of a `config.json`.
    ///
    /// # Errors
    /// Not JSON, another family, a missing or impossible value, or a key that cannot be honoured.
    pub fn parse(text: &str) -> Result<Self> {
        let mut reader = Reader::new(text)?;
        let family = reader.text("model_type")?;
        if !FAMILIES.contains(&family.as_str()) {
            let known = FAMILIES.join(", ");
            let what = format!("`{family}` is not an encoder this version knows; it knows {known}");
            return Err(Error::config("model_type", what));
        }
        let distil = family == "distilbert";
        let modern = family == "modernbert";
        let name = |theirs: &'static str, usual: &'static str| if distil { theirs } else { usual };
        let hidden_size = reader.count(name("dim", "hidden_size"))?;
        let num_attention_heads = reader.count(name("n_heads", "num_attention_heads"))?;
        if !hidden_size.is_multiple_of(num_attention_heads) {
            let what = "is not a multiple of the number of heads";
            return Err(Error::config(name("dim", "hidden_size"), what));
        }
        let num_hidden_layers = reader.count(name("n_layers", "num_hidden_layers"))?;
        let positions = reader.optional_count("max_position_embeddings")?;
        let positions = positions.unwrap_or(if modern { 8192 } else { 512 });
        let padding = reader.take("pad_token_id").and_then(|id| id.as_u64());
        let position_offset = match family.as_str() {
            "roberta" | "xlm-roberta" => padding.unwrap_or(1) as usize + 1,
            _ => 0,
        };
        if positions <= position_offset {
            return Err(Error::config(
                "max_position_embeddings",
                format!("is {positions}, too few for a text"),
            ));
        }
        if let Some(Value::String(kind)) = reader.take("position_embedding_type")
            && kind != "absolute"
        {
            let what = format!("is `{kind}`, this version computes `absolute`");
            return Err(Error::config("position_embedding_type", what));
        }
        if reader.take("is_decoder") == Some(Value::Bool(true)) {
            return Err(Error::config(
                "is_decoder",
                "is true, an encoder is expected",
            ));
        }
        let key = match family.as_str() {
            "distilbert" => "activation",
            "modernbert" => "hidden_activation",
            _ => "hidden_act",
        };
        let activation = activation(&mut reader, key)?;
        let dropout = reader.number(match family.as_str() {
            "distilbert" => "dropout",
            "modernbert" => "embedding_dropout",
            _ => "hidden_dropout_prob",
        })?;
        let dropout = dropout.unwrap_or(if modern { 0.0 } else { 0.1 });
        let in_head = reader.number(name("seq_classif_dropout", "classifier_dropout"))?;
        let classifier_dropout = in_head.unwrap_or(if distil { 0.2 } else { dropout });
        let epsilon = match reader.number(if modern { "norm_eps" } else { "layer_norm_eps" })? {
            _ if distil => 1e-12,
            Some(epsilon) => epsilon,
            None if modern => 1e-5,
            None => 1e-12,
        };
        let types = reader.optional_count("type_vocab_size")?;
        let mut pooling = Pooling::First;
        let modern_config = if modern {
            if let Some(Value::String(how)) = reader.take("classifier_pooling") {
                pooling = match how.as_str() {
                    "cls" => Pooling::First,
                    "mean" => Pooling::Mean,
                    _ => {
                        let what = format!("is `{how}`, expected `cls` or `mean`");
                        return Err(Error::config("classifier_pooling", what));
                    }
                };
            }
            Some(modern_keys(&mut reader, num_hidden_layers)?)
        } else {
            None
        };
        let labels = names(&reader.object("id2label")?);
        Ok(Self {
            hidden_size,
            intermediate_size: reader.count(name("hidden_dim", "intermediate_size"))?,
            num_hidden_layers,
            num_attention_heads,
            vocab_size: reader.count("vocab_size")?,
            position_rows: (!modern).then_some(positions),
            position_offset,
            type_vocab_size: match family.as_str() {
                "distilbert" | "modernbert" => None,
                _ => Some(types.unwrap_or(2)),
            },
            max_length: positions - position_offset,
            epsilon,
            activation,
            dropout,
            classifier_dropout,
            initializer_range: reader.number("initializer_range")?.unwrap_or(0.02),
            pooling,
            modern: modern_config,
            labels,
            unrecognised: {
                let unknown = reader.unrecognised();
                let known = |key: &String| HARMLESS.contains(&key.as_str());
                unknown.into_iter().filter(|key| !known(key)).collect()
            },
            family,
        })
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// What the names of the encoder's own tensors begin with.
    pub fn prefix(&self) -> &'static str {
        match self.family.as_str() {
            "bert" => "bert.",
            "distilbert" => "distilbert.",
            "modernbert" => "model.",
            _ => "roberta.",
        }
    }
}

fn modern_keys(reader: &mut Reader, layers: usize) -> Result<Modern> {
    let every = reader
        .optional_count("global_attn_every_n_layers")?
        .unwrap_or(3);
    let local = match reader.list("layer_types", layers)? {
        Some(types) => types
            .iter()
            .map(|kind| match kind.as_str() {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                _ => Err(Error::config(
                    "layer_types",
                    format!("holds {kind}, which is not known"),
                )),
            })
            .collect::<Result<_>>()?,
        None => (0..layers).map(|layer| layer % every != 0).collect(),
    };
    let mut by_kind = reader.object("rope_parameters")?;
    let mut rope = |kind: &str, old: &str, usual: f64| -> Result<Rope> {
        let old = reader.number(old)?;
        let entry = match by_kind.remove(kind) {
            Some(Value::Object(entry)) => entry,
            _ => Map::new(),
        };
        if let Some(how) = entry.get("rope_type").and_then(Value::as_str)
            && how != "default"
        {
            let what = format!("is `{how}`, of encoders this version knows `default`");
            return Err(Error::config("rope_parameters.rope_type", what));
        }
        let theta = entry.get("rope_theta").and_then(Value::as_f64);
        Ok(Rope {
            theta: theta.or(old).unwrap_or(usual),
            scaling: RopeScaling::None,
        })
    };
    let (global, near) = (
        rope("full_attention", "global_rope_theta", 160_000.0)?,
        rope("sliding_attention", "local_rope_theta", 10_000.0)?,
    );
    Ok(Modern {
        rope: global,
        local_rope: near,
        window: reader.optional_count("local_attention")?.unwrap_or(128) / 2,
        local,
        attention_bias: reader.flag("attention_bias", false)?,
        mlp_bias: reader.flag("mlp_bias", false)?,
        norm_bias: reader.flag("norm_bias", false)?,
        classifier_bias: reader.flag("classifier_bias", false)?,
        classifier_activation: activation(reader, "classifier_activation")?,
    })
}

fn activation(reader: &mut Reader, key: &str) -> Result<Activation> {
    match reader.take(key) {
        None | Some(Value::Null) => Ok(Activation::Gelu),
        Some(Value::String(name)) => match name.as_str() {
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "silu" | "swish" => Ok(Activation::Silu),
            _ => {
                let what = format!("is `{name}`, expected `gelu`, `gelu_new` or `silu`");
                Err(Error::config(key, what))
            }
        },
        Some(value) => Err(Error::config(key, format!("is {value}, expected a name"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BERT: &str = r#"{"model_type": "bert", "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 10 EXTRA}"#;

    fn parse(extra: &str) -> Result<EncoderConfig> {
        EncoderConfig::parse(&BERT.replace("EXTRA", extra))
    }

    #[test]
    fn what_is_not_said_has_the_family_s_default() {
        let config = parse(r#", "surprise": 1, "pooler_type": "x""#).expect("a plain model");
        assert_eq!((config.max_length, config.type_vocab_size), (512, Some(2)));
        assert_eq!((config.dropout, config.classifier_dropout), (0.1, 0.1));
        assert_eq!(config.unrecognised, ["surprise"]);
        let roberta = BERT.replace("\"bert\"", "\"roberta\"").replace("EXTRA", "");
        let roberta = EncoderConfig::parse(&roberta).expect("a RoBERTa");
        assert_eq!((roberta.position_offset, roberta.max_length), (2, 510));
        assert!(is_encoder(BERT.replace("EXTRA", "").as_str()).expect("read"));
    }

    #[test]
    fn a_key_that_cannot_be_honoured_is_named() {
        for (extra, key) in [
            (
                r#", "position_embedding_type": "relative_key""#,
                "position_embedding_type",
            ),
            (r#", "hidden_act": "relu2""#, "hidden_act"),
            (r#", "is_decoder": true"#, "is_decoder"),
            (r#", "num_attention_heads": 3"#, "hidden_size"),
        ] {
            let error = parse(extra).expect_err(key).to_string();
            assert!(error.contains(&format!("`{key}`")), "{error}");
        }
    }
}
