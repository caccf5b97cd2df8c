//! What a model's `config.json` says, checked once and then trusted.
//!
//! A family is a set of answers to the questions the one decoder block asks: are there biases, where do
//! the norms stand, are q and k normalised, which layers see a window, which turn their positions. A key that would change
//! the computation in a way the block cannot follow is an error that names it; a key that is not known
//! at all is kept in [`ModelConfig::unrecognised`], so that it can be said.

use serde_json::{Map, Value};
use sparsam_kernels::activation::Activation;
use sparsam_kernels::rope::RopeTable;

use crate::error::{Error, Result};

/// The shape of a decoder-only model and the variations of its block.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `model_type`, one of [`FAMILIES`].
    pub family: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated unit.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// The longest text the positions reach; with [`RopeScaling::Long`], the length first trained on.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// Norms on q and k, head by head.
    pub qk_norm: bool,
    /// Whether those norms run over all heads at once (OLMo 2).
    pub qk_norm_wide: bool,
    /// Where a block's norms stand.
    pub norms: Norms,
    /// Added to the stored weights of all norms (1 in Gemma).
    pub norm_offset: f64,
    /// Whether q, k and v are one projection, and gate and up another (Phi-3).
    pub fused: bool,
    /// What the gate of the unit passes through.
    pub activation: Activation,
    /// Factor on the scores of attention.
    pub attention_scale: f64,
    /// Scores of attention are bent below this.
    pub attention_softcap: Option<f64>,
    /// Logits are bent below this.
    pub final_softcap: Option<f64>,
    /// Factor on the embeddings.
    pub embedding_multiplier: f64,
    /// Factor on what joins the residual stream.
    pub residual_multiplier: f64,
    /// Logits are divided by this.
    pub logits_divisor: f64,
    /// Numbers of a head that are turned, from the first on.
    pub rotary_dim: usize,
    /// Frequencies of the rotary embedding.
    pub rope: Rope,
    /// Those of local layers, where they are others (Gemma 3).
    pub local_rope: Option<Rope>,
    /// What differs from layer to layer.
    pub layers: Vec<LayerConfig>,
    /// Keys of `config.json` that are not known to this program.
    pub unrecognised: Vec<String>,
}

/// Where the norms of a block stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Before attention and before the gated unit.
    Before,
    /// After them, before their output joins the residual stream (OLMo 2).
    After,
    /// Both (Gemma 2 and 3).
    Both,
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerConfig {
    /// A token sees at most this many tokens, itself included.
    pub window: Option<usize>,
    /// Whether positions are turned in this layer.
    pub rope: bool,
    /// Whether they are turned by the frequencies of local layers.
    pub local: bool,
}

/// How rotary frequencies are made.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series.
    pub theta: f64,
    /// Stretching for long texts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched for texts longer than those first trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by one factor.
    Linear(f64),
    /// Long waves by a factor, short ones not, with a ramp between (Llama 3.1).
    Llama3 {
        /// Factor on the long waves.
        factor: f64,
        /// Waves longer than `original / low` are stretched.
        low: f64,
        /// Waves shorter than `original / high` are not.
        high: f64,
        /// Length first trained on.
        original: f64,
    },
    /// Each by a divisor of its own, `[rotary_dim / 2]` (`rope_freqs.weight` of a GGUF file).
    Divisors(Vec<f64>),
    /// Each by a divisor of its own, for texts up to the length first trained on, with a factor on
    /// sines and cosines (Phi-3). Longer texts would be turned by other divisors.
    Long {
        /// Divisors, `[rotary_dim / 2]`.
        short: Vec<f64>,
        /// The factor.
        attention: f64,
        /// Length first trained on.
        original: usize,
    },
}

/// Keys that carry nothing the computation depends on.
const HARMLESS: &[&str] = &[
    "_sliding_window_pattern",
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "hidden_act",
    "id2label",
    "initializer_range",
    "is_decoder",
    "label2id",
    "layer_norm_eps",
    "max_window_layers",
    "model_type",
    "original_max_position_embeddings",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "resid_pdrop",
    "return_dict",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

/// Keys whose presence (other than null, false, or the neutral number) changes the computation in a
/// way that is not built.
const UNSUPPORTED: &[(&str, Option<f64>)] = &[
    ("attention_multiplier", None),
    ("attn_logit_softcapping", None),
    ("embedding_multiplier", Some(1.0)),
    ("final_logit_softcapping", None),
    ("logit_scale", Some(1.0)),
    ("logits_scaling", Some(1.0)),
    ("moe_intermediate_size", None),
    ("num_experts", None),
    ("num_local_experts", None),
    ("partial_rotary_factor", Some(1.0)),
    ("query_pre_attn_scalar", None),
    ("residual_multiplier", Some(1.0)),
    ("scale_depth", Some(1.0)),
    ("scale_emb", Some(1.0)),
    ("use_bidirectional_attention", None),
];

/// Families that the block can be configured to.
pub const FAMILIES: &[&str] = &[
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
];

impl ModelConfig {
    /// Reads and checks the text of a `config.json`.
    ///
    /// # Errors
    /// Not JSON, an unknown family, a missing or impossible value, or a key that cannot be honoured.
    pub fn parse(text: &str) -> Result<Self> {
        Reader::new(text)?.read()
    }

    /// Inverse frequencies of the rotary embedding, `[rotary_dim / 2]`.
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        self.rope.inverse_frequencies(self.rotary_dim)
    }
}

impl Rope {
    /// Inverse frequencies, `[rotary_dim / 2]`.
    pub fn inverse_frequencies(&self, rotary_dim: usize) -> Vec<f64> {
        (0..rotary_dim / 2)
            .map(|i| {
                // In f32, as the models were trained with them.
                let exponent = (2 * i) as f32 / rotary_dim as f32;
                let frequency = f64::from(1.0 / (self.theta as f32).powf(exponent));
                self.scaling.apply(i, frequency)
            })
            .collect()
    }

    /// Sines and cosines of positions below `positions`.
    ///
    /// # Errors
    /// More positions than the frequencies are made for.
    pub fn table(&self, rotary_dim: usize, positions: usize) -> Result<RopeTable> {
        let factor = match self.scaling {
            RopeScaling::Long {
                attention,
                original,
                ..
            } => {
                if positions > original {
                    let what = format!(
                        "is `longrope`, of which this version computes texts of up to {original} \
                         tokens, not {positions}"
                    );
                    return Err(Error::config("rope_scaling.rope_type", what));
                }
                attention
            }
            _ => 1.0,
        };
        let frequencies = self.inverse_frequencies(rotary_dim);
        Ok(RopeTable::new(&frequencies, positions, factor))
    }
}

impl RopeScaling {
    /// Stretches the frequency number `i`.
    fn apply(&self, i: usize, frequency: f64) -> f64 {
        match *self {
            Self::None => frequency,
            Self::Divisors(ref divisors) => frequency / divisors[i],
            Self::Long { ref short, .. } => frequency / short[i],
            Self::Linear(factor) => frequency / factor,
            Self::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                let wave = std::f64::consts::TAU / frequency;
                if wave < original / high {
                    frequency
                } else if wave > original / low {
                    frequency / factor
                } else {
                    let smooth = (original / wave - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

/// A `config.json` from which keys are taken as they are understood.
pub(crate) struct Reader {
    pub(crate) value: Map<String, Value>,
}

impl Reader {
    /// The keys of a `config.json`.
    pub(crate) fn new(text: &str) -> Result<Self> {
        let value = serde_json::from_str(text)
            .map_err(|e| Error::config("config.json", format!("is not a JSON object: {e}")))?;
        Ok(Self { value })
    }

    /// Keys that were not taken and are not known to mean nothing here.
    pub(crate) fn unrecognised(&self) -> Vec<String> {
        let keys = self.value.keys();
        keys.filter(|key| !HARMLESS.contains(&key.as_str()))
            .cloned()
            .collect()
    }

    fn read(mut self) -> Result<ModelConfig> {
        let family = self.text("model_type")?;
        if !FAMILIES.contains(&family.as_str()) {
            return Err(Error::config(
                "model_type",
                format!(
                    "`{family}` is not a family this version can train; it can {}",
                    FAMILIES.join(", ")
                ),
            ));
        }
        self.quantization()?;
        let gemma = family.starts_with("gemma");
        let of_family = |family_has: bool, key: &str, this: &mut Self| {
            if family_has {
                this.number(key)
            } else {
                Ok(None)
            }
        };
        let capped = matches!(family.as_str(), "gemma2" | "gemma3_text");
        let granite = family == "granite";
        let attention_softcap = of_family(capped, "attn_logit_softcapping", &mut self)?;
        let final_softcap = of_family(capped, "final_logit_softcapping", &mut self)?;
        let query_scalar = of_family(capped, "query_pre_attn_scalar", &mut self)?;
        let attention_multiplier = of_family(granite, "attention_multiplier", &mut self)?;
        let embedding_multiplier = of_family(granite, "embedding_multiplier", &mut self)?;
        let residual_multiplier = of_family(granite, "residual_multiplier", &mut self)?;
        let logits_divisor = of_family(granite, "logits_scaling", &mut self)?;
        let rotary_share = of_family(family == "phi3", "partial_rotary_factor", &mut self)?;
        for (key, value) in [
            ("attn_logit_softcapping", attention_softcap),
            ("final_logit_softcapping", final_softcap),
            ("query_pre_attn_scalar", query_scalar),
            ("logits_scaling", logits_divisor),
        ] {
            if let Some(value) = value.filter(|value| *value <= 0.0) {
                return Err(Error::config(
                    key,
                    format!("is {value}, expected a number above 0"),
                ));
            }
        }
        for (key, neutral) in UNSUPPORTED {
            match self.take(key) {
                None | Some(Value::Null | Value::Bool(false)) => {}
                Some(Value::Number(n)) if neutral.is_some() && n.as_f64() == *neutral => {}
                Some(value) => {
                    return Err(Error::config(
                        key,
                        format!("is {value}, which this version cannot compute"),
                    ));
                }
            }
        }
        let activation = self.activation(&family)?;
        let hidden_size = self.count("hidden_size")?;
        let num_attention_heads = self.count("num_attention_heads")?;
        let num_key_value_heads = self
            .optional_count("num_key_value_heads")?
            .unwrap_or(num_attention_heads);
        let head_dim = match self.optional_count("head_dim")? {
            Some(width) => width,
            None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
            None => {
                return Err(Error::config(
                    "hidden_size",
                    "is not a multiple of `num_attention_heads`",
                ));
            }
        };
        if head_dim % 2 != 0 {
            return Err(Error::config(
                "head_dim",
                format!("is {head_dim}, positions need an even number"),
            ));
        }
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(Error::config(
                "num_key_value_heads",
                "does not divide `num_attention_heads`",
            ));
        }
        let num_hidden_layers = self.count("num_hidden_layers")?;
        let attention_bias = self.flag("attention_bias", false)?;
        let (qkv_bias, o_bias) = match family.as_str() {
            "qwen2" => (true, false),
            "mistral" => (false, false),
            _ => (attention_bias, attention_bias),
        };
        let rotary_dim = (head_dim as f64 * rotary_share.unwrap_or(1.0)) as usize;
        if !rotary_dim.is_multiple_of(2) || rotary_dim == 0 || rotary_dim > head_dim {
            let what = format!("leaves {rotary_dim} of {head_dim} numbers to turn");
            return Err(Error::config("partial_rotary_factor", what));
        }
        let max_position_embeddings = self
            .optional_count("max_position_embeddings")?
            .unwrap_or(2048);
        let (rope, local_rope) = self.ropes(&family, rotary_dim, max_position_embeddings)?;
        let max_position_embeddings = match rope.scaling {
            RopeScaling::Long { original, .. } => max_position_embeddings.min(original),
            _ => max_position_embeddings,
        };
        let layers = self.layers(&family, num_hidden_layers)?;
        let config = ModelConfig {
            hidden_size,
            intermediate_size: self.count("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: self.count("vocab_size")?,
            rms_norm_eps: self.number("rms_norm_eps")?.unwrap_or(1e-6),
            max_position_embeddings,
            tie_word_embeddings: self.flag("tie_word_embeddings", gemma || family == "smollm3")?,
            qkv_bias,
            o_bias,
            mlp_bias: self.flag("mlp_bias", false)?,
            qk_norm: matches!(family.as_str(), "qwen3" | "olmo2" | "gemma3_text"),
            qk_norm_wide: family == "olmo2",
            norms: match family.as_str() {
                "olmo2" => Norms::After,
                "gemma2" | "gemma3_text" => Norms::Both,
                _ => Norms::Before,
            },
            norm_offset: if gemma { 1.0 } else { 0.0 },
            fused: family == "phi3",
            activation,
            attention_scale: match (query_scalar, attention_multiplier) {
                (Some(scalar), _) => scalar.powf(-0.5),
                (None, Some(multiplier)) => multiplier,
                // Both families have 256 where nothing is said.
                (None, None) if capped => 1.0 / 16.0,
                (None, None) if granite => 1.0,
                (None, None) => 1.0 / (head_dim as f64).sqrt(),
            },
            attention_softcap,
            final_softcap,
            embedding_multiplier: match embedding_multiplier {
                Some(multiplier) => multiplier,
                // In f32, as it is computed.
                None if gemma => f64::from((hidden_size as f32).sqrt()),
                None => 1.0,
            },
            residual_multiplier: residual_multiplier.unwrap_or(1.0),
            logits_divisor: logits_divisor.unwrap_or(1.0),
            rotary_dim,
            rope,
            local_rope,
            layers,
            unrecognised: self.unrecognised(),
            family,
        };
        Ok(config)
    }

    /// How the weights are quantised. The files say it matrix by matrix; here it is made sure that
    /// what they say is understood.
    fn quantization(&mut self) -> Result<()> {
        let config = self.object("quantization_config")?;
        if config.is_empty() {
            return Ok(());
        }
        let text = |key: &str| config.get(key).and_then(Value::as_str);
        let flag = |key: &str| config.get(key).and_then(Value::as_bool) == Some(true);
        let wrong =
            |key: &str, what: String| Error::config(&format!("quantization_config.{key}"), what);
        match text("quant_method") {
            Some("bitsandbytes") => {}
            // Checkpoints of 2023 do not say it.
            None if flag("load_in_4bit") || flag("load_in_8bit") => {}
            None => return Err(wrong("quant_method", "is missing or not a text".to_owned())),
            Some(other) => {
                let what = format!("is `{other}`, this version reads `bitsandbytes`");
                return Err(wrong("quant_method", what));
            }
        }
        match text("bnb_4bit_quant_type") {
            None | Some("nf4" | "fp4") => Ok(()),
            Some(other) => {
                let what = format!("is `{other}`, this version reads `nf4` and `fp4`");
                Err(wrong("bnb_4bit_quant_type", what))
            }
        }
    }

    /// What the gate passes through. Gemma says it under a key of its own, beside which the usual one
    /// means nothing.
    fn activation(&mut self, family: &str) -> Result<Activation> {
        let key = if family.starts_with("gemma") && self.value.contains_key("hidden_activation") {
            "hidden_activation"
        } else {
            "hidden_act"
        };
        match self.take(key) {
            None | Some(Value::Null) if family.starts_with("gemma") => Ok(Activation::GeluTanh),
            None | Some(Value::Null) => Ok(Activation::Silu),
            Some(Value::String(name)) => match name.as_str() {
                "silu" | "swish" => Ok(Activation::Silu),
                "gelu" => Ok(Activation::Gelu),
                "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Activation::GeluTanh),
                _ => {
                    let what =
                        format!("is `{name}`, expected `silu`, `gelu` or `gelu_pytorch_tanh`");
                    Err(Error::config(key, what))
                }
            },
            Some(value) => Err(Error::config(key, format!("is {value}, expected a name"))),
        }
    }

    /// The frequencies of all layers, and of the local ones where they are others. transformers 5 has
    /// both under `rope_parameters`, by the kind of the layer.
    fn ropes(
        &mut self,
        family: &str,
        rotary_dim: usize,
        longest: usize,
    ) -> Result<(Rope, Option<Rope>)> {
        let mut local = None;
        if family == "gemma3_text" {
            let mut theta = self.number("rope_local_base_freq")?.unwrap_or(10_000.0);
            let mut by_kind = self.object("rope_parameters")?;
            if let Some(Value::Object(sliding)) = by_kind.remove("sliding_attention") {
                theta = sliding
                    .get("rope_theta")
                    .and_then(Value::as_f64)
                    .unwrap_or(theta);
            }
            let all = match by_kind.remove("full_attention") {
                Some(Value::Object(all)) => all,
                _ => by_kind,
            };
            if !all.is_empty() {
                self.value.insert("rope_parameters".to_owned(), all.into());
            }
            local = Some(Rope {
                theta,
                scaling: RopeScaling::None,
            });
        }
        Ok((self.rope(family, rotary_dim, longest)?, local))
    }

    /// The divisors of Phi-3's long texts, and the factor that goes with them.
    fn long(
        &mut self,
        scaling: &Map<String, Value>,
        half: usize,
        longest: usize,
    ) -> Result<RopeScaling> {
        let list = |key: &str| {
            let list = scaling.get(key).and_then(Value::as_array);
            let list: Option<Vec<f64>> =
                list.and_then(|list| list.iter().map(Value::as_f64).collect());
            list.filter(|list| list.len() == half && list.iter().all(|divisor| *divisor > 0.0))
                .ok_or_else(|| {
                    let what = format!("is not a list of {half} numbers above 0");
                    Error::config(&format!("rope_scaling.{key}"), what)
                })
        };
        let (short, _) = (list("short_factor")?, list("long_factor")?);
        let key = "original_max_position_embeddings";
        let inside = scaling.get(key).and_then(Value::as_u64);
        let original = match self
            .optional_count(key)?
            .or(inside.map(|count| count as usize))
        {
            Some(original) if original > 1 => original,
            _ => return Err(Error::config(key, "is missing or below 2")),
        };
        let stretched = longest as f64 / original as f64;
        let usual = if stretched > 1.0 {
            (1.0 + stretched.ln() / (original as f64).ln()).sqrt()
        } else {
            1.0
        };
        let given = scaling.get("attention_factor").and_then(Value::as_f64);
        Ok(RopeScaling::Long {
            short,
            attention: given.unwrap_or(usual),
            original,
        })
    }

    /// The frequencies, from `rope_theta` and `rope_scaling` or from transformers 5's
    /// `rope_parameters`.
    fn rope(&mut self, family: &str, rotary_dim: usize, longest: usize) -> Result<Rope> {
        let default = match family {
            "smollm3" => 2_000_000.0,
            "gemma3_text" => 1_000_000.0,
            _ => 10_000.0,
        };
        let parameters = self.object("rope_parameters")?;
        let mut scaling = self.object("rope_scaling")?;
        let theta = self.number("rope_theta")?;
        scaling.extend(parameters);
        let get = |key: &str| scaling.get(key).and_then(Value::as_f64);
        let theta = get("rope_theta").or(theta).unwrap_or(default);
        let need = |key: &str| {
            get(key).ok_or_else(|| {
                Error::config(&format!("rope_scaling.{key}"), "is missing or not a number")
            })
        };
        let kind = scaling
            .get("rope_type")
            .or_else(|| scaling.get("type"))
            .and_then(Value::as_str);
        let scaling = match kind {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear(need("factor")?),
            Some("llama3") => RopeScaling::Llama3 {
                factor: need("factor")?,
                low: need("low_freq_factor")?,
                high: need("high_freq_factor")?,
                original: need("original_max_position_embeddings")?,
            },
            Some("longrope" | "su") if family == "phi3" => {
                self.long(&scaling, rotary_dim / 2, longest)?
            }
            Some(other) => {
                let what =
                    format!("is `{other}`, this version knows `default`, `linear` and `llama3`");
                return Err(Error::config("rope_scaling.rope_type", what));
            }
        };
        Ok(Rope { theta, scaling })
    }

    fn layers(&mut self, family: &str, count: usize) -> Result<Vec<LayerConfig>> {
        let window = self.optional_count("sliding_window")?;
        let everywhere = matches!(family, "mistral" | "phi3");
        let uses = self.flag("use_sliding_window", everywhere)?;
        let pattern = match family {
            "gemma2" => Some(2),
            "gemma3_text" => Some(self.optional_count("sliding_window_pattern")?.unwrap_or(6)),
            _ => None,
        };
        let first_windowed = self
            .value
            .get("max_window_layers")
            .and_then(Value::as_u64)
            .unwrap_or(0);
        let types = self.list("layer_types", count)?;
        let no_rope = self.list("no_rope_layers", count)?;
        let interval = self.optional_count("no_rope_layer_interval")?;
        (0..count)
            .map(|layer| {
                let windowed = match types.as_ref().map(|types| &types[layer]) {
                    Some(Value::String(kind)) if kind == "sliding_attention" => true,
                    Some(Value::String(kind)) if kind == "full_attention" => false,
                    Some(other) => {
                        return Err(Error::config(
                            "layer_types",
                            format!("holds {other}, which is not known"),
                        ));
                    }
                    None => match pattern {
                        Some(pattern) => (layer + 1) % pattern != 0,
                        None => uses && (everywhere || layer as u64 >= first_windowed),
                    },
                };
                let rope = match (&no_rope, interval, family) {
                    // The list says 1 where positions are turned.
                    (Some(list), _, _) => list[layer].as_u64() != Some(0),
                    (None, Some(interval), _) => (layer + 1) % interval != 0,
                    (None, None, "smollm3") => (layer + 1) % 4 != 0,
                    _ => true,
                };
                Ok(LayerConfig {
                    window: window.filter(|_| windowed),
                    rope,
                    local: windowed && family == "gemma3_text",
                })
            })
            .collect()
    }

    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.value.shift_remove(key)
    }

    pub(crate) fn text(&mut self, key: &str) -> Result<String> {
        match self.take(key) {
            Some(Value::String(text)) => Ok(text),
            _ => Err(Error::config(key, "is missing or not a text")),
        }
    }

    pub(crate) fn count(&mut self, key: &str) -> Result<usize> {
        self.optional_count(key)?
            .ok_or_else(|| Error::config(key, "is missing"))
    }

    pub(crate) fn optional_count(&mut self, key: &str) -> Result<Option<usize>> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(count @ 1..=0x7fff_ffff) => Ok(Some(count as usize)),
                _ => Err(Error::config(
                    key,
                    format!("is {value}, expected a whole number above 0"),
                )),
            },
        }
    }

    pub(crate) fn number(&mut self, key: &str) -> Result<Option<f64>> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(Error::config(key, format!("is {value}, expected a number"))),
            },
        }
    }

    pub(crate) fn flag(&mut self, key: &str, default: bool) -> Result<bool> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(value) => Err(Error::config(
                key,
                format!("is {value}, expected true or false"),
            )),
        }
    }

    pub(crate) fn object(&mut self, key: &str) -> Result<Map<String, Value>> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(Map::new()),
            Some(Value::Object(map)) => Ok(map),
            Some(value) => Err(Error::config(
                key,
                format!("is {value}, expected an object"),
            )),
        }
    }

    pub(crate) fn list(&mut self, key: &str, count: usize) -> Result<Option<Vec<Value>>> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(list)) if list.len() == count => Ok(Some(list)),
            Some(_) => Err(Error::config(
                key,
                format!("is not a list of {count} entries, one a layer"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 10 EXTRA}"#;

    fn parse(extra: &str) -> Result<ModelConfig> {
        ModelConfig::parse(&PLAIN.replace("EXTRA", extra))
    }

    #[test]
    fn what_is_not_said_has_the_family_s_default() {
        let config = parse("").expect("a plain model");
        assert_eq!((config.head_dim, config.num_key_value_heads), (4, 2));
        assert_eq!(
            config.layers,
            [LayerConfig {
                window: None,
                rope: true,
                local: false
            }; 2]
        );
        assert!(config.unrecognised.is_empty());
    }

    #[test]
    fn a_key_that_cannot_be_honoured_is_named() {
        for (extra, key) in [
            (
                r#", "final_logit_softcapping": 30.0"#,
                "final_logit_softcapping",
            ),
            (
                r#", "rope_scaling": {"rope_type": "yarn", "factor": 4.0}"#,
                "rope_scaling.rope_type",
            ),
            (r#", "hidden_act": "relu2""#, "hidden_act"),
            (r#", "num_key_value_heads": 3"#, "num_key_value_heads"),
            (r#", "num_key_value_heads": 0"#, "num_key_value_heads"),
            (r#", "layer_types": ["full_attention"]"#, "layer_types"),
            (r#", "partial_rotary_factor": 0.5"#, "partial_rotary_factor"),
        ] {
            let error = parse(extra).expect_err(key).to_string();
            assert!(error.contains(&format!("`{key}`")), "{error}");
        }
        assert!(
            parse(r#", "partial_rotary_factor": 1.0, "final_logit_softcapping": null"#).is_ok()
        );
    }

    #[test]
    fn an_unknown_key_is_kept_to_be_said() {
        assert_eq!(
            parse(r#", "surprise": 1, "use_cache": true"#)
                .expect("read")
                .unrecognised,
            ["surprise"]
        );
    }
}
