//! A model as one GGUF file, with its tokenizer, for llama.cpp and what is built on it.
//!
//! Matrices are stored in the kinds of the file type asked for, norms and biases in f32, as by
//! `convert_hf_to_gguf.py` and `llama-quantize`; rows of q and k are brought into GGUF's order for the families that need it.

use std::f64::consts::TAU;
use std::path::Path;

use candle_core::DType;
use sparsam_base::config::{ModelConfig, RopeScaling};
use sparsam_base::files::gguf_names::{architecture, permute, permuted_heads, tensor_name};
use sparsam_base::files::gguf_types::FileType;
use sparsam_base::files::gguf_writer::{GgufWriter, Kind, Meta, Planned};
use sparsam_base::model::HEAD;
use sparsam_base::weights::Weights;
use sparsam_kernels::host::view;

use super::cannot;
use crate::error::Result;
use crate::files::write_through;

/// llama.cpp's SmolLM3 leaves the rotation out in every fourth layer, whatever a file says.
const SMOLLM3_STEP: usize = 4;

/// Writes a model, whose tensors are `names` of `weights`. `entries` are the header's for its tokenizer and what else is to be noted, `name` is
/// what the model calls itself.
///
/// # Errors
/// A model that llama.cpp computes differently, tensors without a name, a file that cannot be written.
pub fn write(
    path: &Path,
    (weights, names): (&dyn Weights, &[String]),
    config: &ModelConfig,
    name: &str,
    entries: Vec<(String, Meta)>,
    file_type: FileType,
) -> Result<()> {
    check(config)?;
    let mut metadata = header(config, name, file_type)?;
    metadata.extend(entries);
    metadata.push(("general.quantization_version".to_owned(), Meta::U32(2)));
    let factors = rope_factors(config);
    let mut planned = Vec::new();
    if let Some(factors) = &factors {
        planned.push(Planned {
            name: "rope_freqs.weight".to_owned(),
            shape: vec![factors.len()],
            kind: Kind::F32,
        });
    }
    let tied = !names.iter().any(|name| name == HEAD);
    for name in names {
        let shape = weights.shape(name)?;
        let name = tensor_name(name)?;
        planned.push(Planned {
            kind: file_type.kind(&name, &shape, config.num_hidden_layers, tied),
            name,
            shape,
        });
    }
    write_through(path, |out| {
        let mut writer = GgufWriter::begin(out, &metadata, planned)?;
        if let Some(factors) = &factors {
            writer.tensor(factors)?;
        }
        for name in names {
            let tensor = weights.tensor(name)?.to_dtype(DType::F32)?.contiguous()?;
            let values = view::<f32>(&tensor)?;
            let (module, _) = name.rsplit_once('.').unwrap_or((name, ""));
            match permuted_heads(config, module) {
                Some(heads) => {
                    let columns = tensor.dims().get(1).copied().unwrap_or(1);
                    writer.tensor(&permute(&values, columns, heads))?;
                }
                None => writer.tensor(&values)?,
            }
        }
        writer.finish()?;
        Ok(())
    })
}

/// Refuses what llama.cpp would compute differently without a word.
fn check(config: &ModelConfig) -> Result<()> {
    let keep = "keep the model in Hugging Face's layout with `sparsam merge`";
    let reach = config.max_position_embeddings;
    if let Some(window) = config.layers.iter().find_map(|layer| layer.window)
        && window < reach
    {
        let what = format!(
            "a model whose tokens see {window} of {reach} tokens: llama.cpp would let them see all"
        );
        return Err(cannot("a GGUF file", &what, keep));
    }
    let steps = config.layers.iter().enumerate();
    let turns =
        |layer: usize| config.family != "smollm3" || !(layer + 1).is_multiple_of(SMOLLM3_STEP);
    if let Some((layer, _)) = steps.into_iter().find(|(i, layer)| layer.rope != turns(*i)) {
        let what = format!(
            "a model of this family whose layer {layer} treats positions so: llama.cpp does not"
        );
        return Err(cannot("a GGUF file", &what, keep));
    }
    Ok(())
}

/// The entries about the model itself.
fn header(config: &ModelConfig, name: &str, file_type: FileType) -> Result<Vec<(String, Meta)>> {
    let architecture = architecture(config)?;
    let text = |text: &str| Meta::Text(text.to_owned());
    let number = |number: usize| Meta::U32(number as u32);
    let mut entries = vec![
        ("general.architecture".to_owned(), text(architecture)),
        ("general.type".to_owned(), text("model")),
        ("general.name".to_owned(), text(name)),
        ("general.file_type".to_owned(), Meta::U32(file_type.code())),
    ];
    let mut of_model =
        |key: &str, value: Meta| entries.push((format!("{architecture}.{key}"), value));
    of_model("block_count", number(config.num_hidden_layers));
    of_model("context_length", number(config.max_position_embeddings));
    of_model("embedding_length", number(config.hidden_size));
    of_model("feed_forward_length", number(config.intermediate_size));
    of_model("attention.head_count", number(config.num_attention_heads));
    of_model(
        "attention.head_count_kv",
        number(config.num_key_value_heads),
    );
    of_model("rope.freq_base", Meta::F32(config.rope.theta as f32));
    let epsilon = Meta::F32(config.rms_norm_eps as f32);
    of_model("attention.layer_norm_rms_epsilon", epsilon);
    of_model("vocab_size", number(config.vocab_size));
    of_model("rope.dimension_count", number(config.head_dim));
    if config.head_dim * config.num_attention_heads != config.hidden_size {
        of_model("attention.key_length", number(config.head_dim));
        of_model("attention.value_length", number(config.head_dim));
    }
    if let RopeScaling::Linear(factor) = config.rope.scaling {
        of_model("rope.scaling.type", text("linear"));
        of_model("rope.scaling.factor", Meta::F32(factor as f32));
    }
    Ok(entries)
}

/// Divisors of the rotary frequencies, `[head_dim / 2]`, for Llama 3.1's stretching.
fn rope_factors(config: &ModelConfig) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 {
        factor,
        low,
        high,
        original,
    } = config.rope.scaling
    else {
        return None;
    };
    let dim = config.head_dim;
    let divisor = |i: usize| {
        let frequency = config.rope.theta.powf(-((2 * i) as f64) / dim as f64);
        let wave = TAU / frequency;
        if wave < original / high {
            1.0
        } else if wave > original / low {
            factor
        } else {
            let smooth = (original / wave - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    Some((0..dim / 2).map(|i| divisor(i) as f32).collect())
}
