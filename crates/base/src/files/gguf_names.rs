//! What a Hugging Face model is called in GGUF: its architecture, its tensors, the order of their rows.
//!
//! llama.cpp turns pairs of neighbours in its rotary embedding of the `llama` family, transformers pairs
//! half a head apart; the converter therefore reorders the rows of q and k
//! (`LlamaModel.permute` of `convert_hf_to_gguf.py`).

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::model::{EMBEDDING, HEAD};

/// `general.architecture` of a model.
///
/// # Errors
/// A family of which this is not known.
pub fn architecture(config: &ModelConfig) -> Result<&'static str> {
    match config.family.as_str() {
        "llama" | "mistral" => Ok("llama"),
        "qwen2" => Ok("qwen2"),
        "qwen3" => Ok("qwen3"),
        "smollm3" => Ok("smollm3"),
        other => Err(Error::config(
            "model_type",
            format!("is `{other}`, which this version cannot write as GGUF"),
        )),
    }
}

/// The GGUF name of a tensor of a checkpoint.
///
/// # Errors
/// A tensor that has none.
pub fn tensor_name(name: &str) -> Result<String> {
    let unknown = || Error::weight(name, "has no name in GGUF that this version knows");
    let whole = match name {
        EMBEDDING => Some("token_embd.weight"),
        HEAD => Some("output.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        _ => None,
    };
    if let Some(whole) = whole {
        return Ok(whole.to_owned());
    }
    let rest = name.strip_prefix("model.layers.").ok_or_else(unknown)?;
    let (layer, rest) = rest.split_once('.').ok_or_else(unknown)?;
    let (module, parameter) = rest.rsplit_once('.').ok_or_else(unknown)?;
    let module = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return Err(unknown()),
    };
    if layer.parse::<usize>().is_err() || !matches!(parameter, "weight" | "bias") {
        return Err(unknown());
    }
    Ok(format!("blk.{layer}.{module}.{parameter}"))
}

/// Heads whose rows are reordered in a module (`….q_proj`), if they are.
pub fn permuted_heads(config: &ModelConfig, module: &str) -> Option<usize> {
    if !matches!(config.family.as_str(), "llama" | "mistral" | "smollm3") {
        return None;
    }
    match module.rsplit('.').next() {
        Some("q_proj") => Some(config.num_attention_heads),
        Some("k_proj") => Some(config.num_key_value_heads),
        _ => None,
    }
}

/// Rows in the order of GGUF: within a head, row `j · half + i` of transformers becomes row `2 i + j`.
/// `values` is `[rows, columns]`.
pub fn permute(values: &[f32], columns: usize, heads: usize) -> Vec<f32> {
    let rows = values.len() / columns.max(1);
    let half = rows / heads.max(1) / 2;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for i in 0..half {
            for j in 0..2 {
                let row = (head * 2 + j) * half + i;
                out.extend_from_slice(&values[row * columns..][..columns]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_are_taken_in_turn_from_its_halves() {
        let rows: Vec<f32> = (0..8)
            .flat_map(|row| [row as f32, row as f32 + 0.5])
            .collect();
        let found = permute(&rows, 2, 2);
        let first: Vec<f32> = found.chunks(2).map(|row| row[0]).collect();
        assert_eq!(first, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }

    #[test]
    fn names_are_those_of_llama_cpp() {
        for (name, wanted) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.norm.weight", "output_norm.weight"),
            (
                "model.layers.12.self_attn.k_proj.bias",
                "blk.12.attn_k.bias",
            ),
            (
                "model.layers.0.mlp.down_proj.weight",
                "blk.0.ffn_down.weight",
            ),
        ] {
            assert_eq!(tensor_name(name).expect(name), wanted);
        }
        for name in [
            "model.layers.x.mlp.up_proj.weight",
            "classifier.weight",
            "model.layers.0.y",
        ] {
            assert!(tensor_name(name).is_err(), "{name}");
        }
    }
}
