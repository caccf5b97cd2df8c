//! Encoders out of their files, under the names that transformers gives their parameters.

use candle_core::{DType, Tensor};
use sparsam_kernels::Weight;
use sparsam_kernels::attention::Bidirectional;

use super::block::{EncoderBlock, EncoderNorms, LayerNorm};
use super::config::EncoderConfig;
use super::{Embeddings, Encoder};
use crate::error::Result;
use crate::model::{LoadOptions, Loader};
use crate::projection::Group;
use crate::weights::Weights;

/// Tensors under the names of a model with a head, where the files have those of the model without one, or the
/// names that TensorFlow's checkpoints gave the vectors of norms.
pub(crate) struct Renamed<'a> {
    inner: &'a dyn Weights,
    prefix: &'static str,
}

impl<'a> Renamed<'a> {
    pub(crate) fn new(inner: &'a dyn Weights, prefix: &'static str) -> Self {
        Self { inner, prefix }
    }

    fn name(&self, name: &str) -> String {
        let bare = name.strip_prefix(self.prefix);
        let old = |name: &str| {
            let weight = name
                .strip_suffix("LayerNorm.weight")
                .map(|path| format!("{path}LayerNorm.gamma"));
            weight.or_else(|| {
                name.strip_suffix("LayerNorm.bias")
                    .map(|path| format!("{path}LayerNorm.beta"))
            })
        };
        let names = [
            Some(name.to_owned()),
            bare.map(str::to_owned),
            old(name),
            bare.and_then(old),
        ];
        let there = names
            .into_iter()
            .flatten()
            .find(|name| self.inner.contains(name));
        there.unwrap_or_else(|| name.to_owned())
    }
}

impl Weights for Renamed<'_> {
    fn contains(&self, name: &str) -> bool {
        self.inner.contains(&self.name(name))
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.inner.tensor(&self.name(name))
    }

    fn kept(&self, name: &str) -> Result<Option<Weight>> {
        self.inner.kept(&self.name(name))
    }
}

/// Names of a family's modules.
struct Names {
    layer: &'static str,
    qkv: &'static [&'static str],
    out: &'static str,
    up: &'static str,
    down: &'static str,
    attention_norm: &'static str,
    unit_norm: &'static str,
    words: &'static str,
    embedding_norm: &'static str,
}

const BERT: Names = Names {
    layer: "encoder.layer",
    qkv: &[
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ],
    out: "attention.output.dense",
    up: "intermediate.dense",
    down: "output.dense",
    attention_norm: "attention.output.LayerNorm",
    unit_norm: "output.LayerNorm",
    words: "embeddings.word_embeddings",
    embedding_norm: "embeddings.LayerNorm",
};

const DISTILBERT: Names = Names {
    layer: "transformer.layer",
    qkv: &["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    out: "attention.out_lin",
    up: "ffn.lin1",
    down: "ffn.lin2",
    attention_norm: "sa_layer_norm",
    unit_norm: "output_layer_norm",
    ..BERT
};

const MODERNBERT: Names = Names {
    layer: "layers",
    qkv: &["attn.Wqkv"],
    out: "attn.Wo",
    up: "mlp.Wi",
    down: "mlp.Wo",
    attention_norm: "attn_norm",
    unit_norm: "mlp_norm",
    words: "embeddings.tok_embeddings",
    embedding_norm: "embeddings.norm",
};

impl Encoder {
    /// Makes an encoder of a configuration and its tensors.
    ///
    /// # Errors
    /// Tensors that are missing or do not fit the configuration.
    pub fn load(
        config: EncoderConfig,
        weights: &dyn Weights,
        options: LoadOptions,
    ) -> Result<Self> {
        let prefix = config.prefix();
        let weights = Renamed::new(weights, prefix);
        let loader = Loader {
            weights: &weights,
            options,
            norm_offset: 0.0,
        };
        let names = match config.family.as_str() {
            "distilbert" => DISTILBERT,
            "modernbert" => MODERNBERT,
            _ => BERT,
        };
        let hidden = config.hidden_size;
        let table = |name: &str, rows: Option<usize>| -> Result<Option<(String, Tensor)>> {
            let Some(rows) = rows else { return Ok(None) };
            let name = format!("{prefix}embeddings.{name}.weight");
            let table = loader
                .tensor(&name, &[rows, hidden])?
                .to_dtype(DType::F32)?;
            Ok(Some((name, table)))
        };
        let words = format!("{prefix}{}.weight", names.words);
        let embeddings = Embeddings {
            positions: table("position_embeddings", config.position_rows)?,
            kinds: table("token_type_embeddings", config.type_vocab_size)?,
            norm: norm(
                &loader,
                &config,
                &format!("{prefix}{}", names.embedding_norm),
            )?,
            tokens: (
                words.clone(),
                loader.table(&words, config.vocab_size, hidden)?,
            ),
        };
        let blocks = (0..config.num_hidden_layers)
            .map(|layer| block(&loader, &config, &names, layer))
            .collect::<Result<_>>()?;
        let (mut last, mut tables) = (None, [None, None]);
        if let Some(modern) = &config.modern {
            last = Some(norm(&loader, &config, &format!("{prefix}final_norm"))?);
            let length = options.max_length.min(config.max_length);
            for (table, rope) in tables.iter_mut().zip([&modern.rope, &modern.local_rope]) {
                *table = Some(rope.table(config.head_dim(), length)?);
            }
        }
        let [global, local_table] = tables;
        Ok(Self {
            config,
            embeddings,
            blocks,
            norm: last,
            table: global,
            local_table,
        })
    }
}

/// The layer norm at a path.
pub(crate) fn norm(loader: &Loader, config: &EncoderConfig, path: &str) -> Result<LayerNorm> {
    let vector = |name: &str| -> Result<Tensor> {
        let tensor = loader.tensor(&format!("{path}.{name}"), &[config.hidden_size])?;
        Ok(tensor.to_dtype(DType::F32)?)
    };
    let has_bias = config.modern.as_ref().is_none_or(|modern| modern.norm_bias);
    Ok(LayerNorm {
        name: path.to_owned(),
        weight: vector("weight")?,
        bias: if has_bias {
            Some(vector("bias")?)
        } else {
            None
        },
        epsilon: config.epsilon,
    })
}

fn block(
    loader: &Loader,
    config: &EncoderConfig,
    names: &Names,
    layer: usize,
) -> Result<EncoderBlock> {
    let path = |name: &str| format!("{}{}.{layer}.{name}", config.prefix(), names.layer);
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    let modern = config.modern.as_ref();
    let attention_bias = modern.is_none_or(|modern| modern.attention_bias);
    let unit_bias = modern.is_none_or(|modern| modern.mlp_bias);
    let group = |modules: &[&str], out: usize, input: usize, bias: bool| -> Result<Group> {
        let projections = modules
            .iter()
            .map(|name| loader.projection(path(name), out, input, bias));
        Ok(Group {
            projections: projections.collect::<Result<_>>()?,
        })
    };
    let of_layer = |name: &str| norm(loader, config, &path(name));
    let local = modern.is_some_and(|modern| modern.local[layer]);
    let norms = if modern.is_some() {
        EncoderNorms::Before {
            attention: if layer == 0 {
                None
            } else {
                Some(of_layer(names.attention_norm)?)
            },
            unit: of_layer(names.unit_norm)?,
        }
    } else {
        EncoderNorms::After {
            attention: of_layer(names.attention_norm)?,
            unit: of_layer(names.unit_norm)?,
        }
    };
    let (together, gated) = (names.qkv.len() == 1, modern.is_some());
    Ok(EncoderBlock {
        layer,
        qkv: group(
            names.qkv,
            if together { 3 * hidden } else { hidden },
            hidden,
            attention_bias,
        )?,
        out: group(&[names.out], hidden, hidden, attention_bias)?,
        up: group(
            &[names.up],
            if gated { 2 * wide } else { wide },
            hidden,
            unit_bias,
        )?,
        down: group(&[names.down], hidden, wide, unit_bias)?,
        norms,
        gated,
        activation: config.activation,
        shape: Bidirectional {
            heads: config.num_attention_heads,
            head_dim: config.head_dim(),
            scale: 1.0 / (config.head_dim() as f64).sqrt(),
            window: modern.filter(|_| local).map(|modern| modern.window),
        },
        local,
        dropout: if modern.is_some() {
            0.0
        } else {
            config.dropout
        },
    })
}
