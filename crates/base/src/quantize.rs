//! Quantised checkpoints as bitsandbytes and transformers write them.
//!
//! The matrices of the blocks become NF4 or int8; embedding, head, norms and biases stay as they are
//! stored, as `BitsAndBytesConfig` has it by default. Each matrix takes several tensors, named after it:
//!
//! | NF4 | type, shape |
//! |---|---|
//! | `X.weight` | u8 `[(out · in + 1) / 2, 1]` |
//! | `X.weight.absmax` | f32 `[blocks]`; u8 with double quantisation |
//! | `X.weight.nested_absmax` | f32 `[blocks / 256]`, double quantisation only |
//! | `X.weight.nested_quant_map` | f32 `[256]`, double quantisation only |
//! | `X.weight.quant_map` | f32 `[16]` |
//! | `X.weight.quant_state.bitsandbytes__nf4` | u8, JSON as Python's `json.dumps` writes it |
//!
//! | int8 | |
//! |---|---|
//! | `X.weight` | i8 `[out, in]` |
//! | `X.SCB` | f32 `[out]`, greatest magnitude of each row |
//! | `X.weight_format` | u8, no dimensions, 0: row by row |
//!
//! The layout is that of bitsandbytes 0.50 (`QuantState.as_dict(packed=True)`, `Linear8bitLt`).

use std::fmt::Write as _;
use std::path::Path;

use candle_core::{DType, Tensor};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use sparsam_kernels::Weight;
use sparsam_kernels::host::view;
use sparsam_kernels::int8::Int8;
use sparsam_kernels::nf4::{BLOCK, LEVELS, NESTED_BLOCK, Nf4, dynamic_map};

use crate::error::{Error, Result};
use crate::files::shards::{ShardWriter, Stored, Written};
use crate::model::Quantize;
use crate::weights::Weights;

/// Whether [`Quantize`] concerns a tensor: the matrices of the blocks.
pub fn is_quantized(name: &str, tensor: &Tensor) -> bool {
    tensor.rank() == 2 && name.starts_with("model.layers.") && name.ends_with(".weight")
}

/// A matrix `[out, in]` quantised; as plain f32 numbers for [`Quantize::None`].
///
/// # Errors
/// Numbers that are not finite.
pub fn quantized(name: &str, tensor: &Tensor, quantize: Quantize) -> Result<Weight> {
    let (rows, columns) = tensor.dims2()?;
    let tensor = tensor.to_dtype(DType::F32)?.contiguous()?;
    let values = view::<f32>(&tensor)?;
    let weight = match quantize {
        Quantize::None => Ok(Weight::Dense(tensor.clone())),
        Quantize::Int8 => Int8::quantize(&values, rows, columns).map(Weight::Int8),
        Quantize::Nf4 => Nf4::quantize(&values, rows, columns, false).map(Weight::Nf4),
        Quantize::Nf4Double => Nf4::quantize(&values, rows, columns, true).map(Weight::Nf4),
    };
    weight.map_err(|e| Error::weight(name, format!("cannot be quantised: {e}")))
}

/// What became of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The files.
    pub written: Written,
    /// Matrices that were quantised.
    pub quantized: usize,
    /// Root of the mean square error of their numbers, relative to the root of their mean square.
    pub relative_error: f64,
}

/// Writes a model's tensors, quantised, into an existing folder, in shards of at most `max_shard` bytes.
///
/// # Errors
/// Tensors that cannot be read or quantised, a model without blocks, files that cannot be written.
pub fn write(
    weights: &dyn Weights,
    names: &[String],
    quantize: Quantize,
    folder: &Path,
    max_shard: u64,
) -> Result<Outcome> {
    let mut writer = ShardWriter::new(folder, max_shard);
    let (mut parameters, mut count) = (0, 0);
    let (mut error, mut size) = (0f64, 0f64);
    for name in names {
        let tensor = weights.tensor(name)?;
        parameters += tensor.elem_count() as u64;
        if !is_quantized(name, &tensor) {
            writer.push(vec![Stored::of(name, &tensor)?])?;
            continue;
        }
        let weight = quantized(name, &tensor, quantize)?;
        let sum = |tensor: Tensor| -> Result<f64> {
            let sum = tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?;
            Ok(sum.to_scalar::<f64>()?)
        };
        let plain = tensor.to_dtype(DType::F32)?;
        error += sum((&plain - weight.dequantize()?)?)?;
        size += sum(plain)?;
        count += 1;
        writer.push(stored(name, &weight, tensor.dtype())?)?;
    }
    if count == 0 {
        return Err(Error::weight(
            "model.layers.0",
            "is not in the model, so that there is nothing to quantise",
        ));
    }
    Ok(Outcome {
        written: writer.finish(parameters)?,
        quantized: count,
        relative_error: if size > 0.0 {
            (error / size).sqrt()
        } else {
            0.0
        },
    })
}

/// The tensors that stand for a matrix `name`, which was of type `dtype`.
///
/// # Errors
/// An operation on tensors failed.
pub fn stored(name: &str, weight: &Weight, dtype: DType) -> Result<Vec<Stored>> {
    if let Weight::Nf4(nf4) = weight {
        return Ok(stored_nf4(name, nf4, dtype));
    }
    if let Weight::Int8(int8) = weight {
        return Ok(stored_int8(name, int8));
    }
    Ok(vec![Stored::of(name, &weight.dequantize()?)?])
}

fn stored_nf4(name: &str, nf4: &Nf4, dtype: DType) -> Vec<Stored> {
    let (rows, columns) = nf4.dims();
    let part = |part: &str| format!("{name}.{part}");
    let mut state = format!(
        "{{\"quant_type\": \"nf4\", \"blocksize\": {BLOCK}, \"dtype\": \"{}\", \"shape\": [{rows}, {columns}]",
        torch_name(dtype)
    );
    let packed = nf4.packed().to_vec();
    let mut tensors = vec![Stored::u8(name.to_owned(), vec![packed.len(), 1], packed)];
    if let Some(nested) = nf4.nested() {
        let codes = nested.codes.clone();
        tensors.push(Stored::u8(part("absmax"), vec![codes.len()], codes));
        tensors.push(Stored::f32(part("nested_absmax"), &nested.absmax));
        tensors.push(Stored::f32(part("nested_quant_map"), &dynamic_map()));
        let _ = write!(
            state,
            ", \"nested_blocksize\": {NESTED_BLOCK}, \"nested_dtype\": \"float32\", \"nested_offset\": {}",
            python_float(f64::from(nested.offset))
        );
    } else {
        tensors.push(Stored::f32(part("absmax"), nf4.absmax()));
    }
    state.push('}');
    tensors.push(Stored::f32(part("quant_map"), &LEVELS));
    let state = state.into_bytes();
    tensors.push(Stored::u8(
        part("quant_state.bitsandbytes__nf4"),
        vec![state.len()],
        state,
    ));
    tensors
}

fn stored_int8(name: &str, int8: &Int8) -> Vec<Stored> {
    let (rows, columns) = int8.dims();
    let module = name.trim_end_matches(".weight");
    let codes = int8.codes().iter().map(|code| code.cast_unsigned());
    vec![
        Stored {
            name: name.to_owned(),
            dtype: Dtype::I8,
            shape: vec![rows, columns],
            bytes: codes.collect(),
        },
        Stored::f32(format!("{module}.SCB"), int8.absmax()),
        Stored::u8(format!("{module}.weight_format"), Vec::new(), vec![0]),
    ]
}

/// A base's `config.json` with `quantization_config` as transformers writes it. `dtype`, the type of
/// the weights that stay, is also that in which bitsandbytes will compute.
///
/// # Errors
/// A text that is not a JSON object.
pub fn config(base: &str, quantize: Quantize, dtype: DType) -> Result<String> {
    let mut config: Value = serde_json::from_str(base)
        .ok()
        .filter(Value::is_object)
        .ok_or_else(|| Error::file(Path::new("config.json"), "is not a JSON object"))?;
    let four = matches!(quantize, Quantize::Nf4 | Quantize::Nf4Double);
    let eight = quantize == Quantize::Int8;
    config["quantization_config"] = json!({
        "_load_in_4bit": four,
        "_load_in_8bit": eight,
        "bnb_4bit_compute_dtype": if four { torch_name(dtype) } else { "float32" },
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": if four { "nf4" } else { "fp4" },
        "bnb_4bit_use_double_quant": quantize == Quantize::Nf4Double,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": four,
        "load_in_8bit": eight,
        "quant_method": "bitsandbytes",
    });
    Ok(format!("{config:#}\n"))
}

/// PyTorch's name of a type.
fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        DType::F64 => "float64",
        _ => "float32",
    }
}

/// A number as Python's `repr` writes it: the fewest digits that are read back the same, with an
/// exponent below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    match exponent.parse::<i32>() {
        Ok(exponent) if value != 0.0 && !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        for (value, text) in [
            (f64::from(0.328_610_54_f32), "0.32861053943634033"),
            (0.0, "0.0"),
            (1.0, "1.0"),
            (1.5e-5, "1.5e-05"),
            (1e-38, "1e-38"),
            (1e-4, "0.0001"),
            (-2.5e20, "-2.5e+20"),
            (1e16, "1e+16"),
            (123_456.75, "123456.75"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }
}
