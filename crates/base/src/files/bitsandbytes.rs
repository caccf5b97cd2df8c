//! Matrices as bitsandbytes stores them in safetensors files.
//!
//! A matrix of four bits is `X.weight` (two numbers a byte), with its scales (`.absmax`, or their codes
//! with `.nested_absmax` and `.nested_quant_map`), its sixteen levels (`.quant_map`) and a small JSON
//! text under a name that ends in `bitsandbytes__nf4` or `__fp4`. A matrix of LLM.int8 is `X.weight` in
//! i8 with `X.SCB`, the maxima of its rows. What is beside a matrix decides how it is read; all lengths
//! are checked against the shape before it is believed.

use safetensors::tensor::Dtype;
use serde_json::{Map, Value};
use sparsam_kernels::Weight;
use sparsam_kernels::int8::Int8;
use sparsam_kernels::nf4::{BLOCK, LEVELS, NESTED_BLOCK, Nested, Nf4, dynamic_map};

use super::safetensors::{Raw, SafetensorsFiles};
use crate::error::{Error, Result};

/// The matrix of a name, if bitsandbytes quantised it.
pub(super) fn kept(files: &SafetensorsFiles, name: &str) -> Result<Option<Weight>> {
    for kind in ["nf4", "fp4"] {
        let state = format!("{name}.quant_state.bitsandbytes__{kind}");
        if files.holds(&state) {
            return four_bits(files, name, kind, &state).map(Some);
        }
    }
    let scales = name
        .strip_suffix(".weight")
        .map(|name| format!("{name}.SCB"));
    match scales.filter(|scales| files.holds(scales)) {
        Some(scales) => eight_bits(files, name, &scales).map(Some),
        None => Ok(None),
    }
}

fn four_bits(files: &SafetensorsFiles, name: &str, kind: &str, state: &str) -> Result<Weight> {
    let state = State::read(files, state)?;
    if state.value.get("quant_type").and_then(Value::as_str) != Some(kind) {
        return Err(state.wrong("quant_type", &format!("`{kind}`")));
    }
    let (rows, columns) = state.shape()?;
    let block = state.count("blocksize")?;
    let fits = |error: candle_core::Error| Error::weight(name, format!("is damaged: {error}"));
    let packed = files.raw(name)?.bytes;
    let levels = floats(files, &format!("{name}.quant_map"))?;
    let levels: [f32; 16] = levels
        .try_into()
        .map_err(|_| Error::weight(&format!("{name}.quant_map"), "does not hold 16 levels"))?;
    let scales = format!("{name}.absmax");
    let plain = levels == LEVELS && block == BLOCK;
    if !state.value.contains_key("nested_blocksize") {
        let scales = floats(files, &scales)?;
        let weight = Nf4::from_code(packed, scales, rows, columns, levels, block);
        return weight.map(Weight::Nf4).map_err(fits);
    }
    let codes = files.raw(&scales)?;
    if codes.dtype != Dtype::U8 {
        return Err(Error::weight(&scales, "is not stored in eight bits"));
    }
    let nested_block = state.count("nested_blocksize")?;
    let offset = state.value.get("nested_offset").and_then(Value::as_f64);
    let offset = offset.ok_or_else(|| state.wrong("nested_offset", "a number"))? as f32;
    let absmax = floats(files, &format!("{name}.nested_absmax"))?;
    let map_name = format!("{name}.nested_quant_map");
    let map: [f32; 256] = floats(files, &map_name)?
        .try_into()
        .map_err(|_| Error::weight(&map_name, "does not hold 256 values"))?;
    if absmax.len() != codes.bytes.len().div_ceil(nested_block) {
        let what = format!("has {} scales of {} codes", absmax.len(), codes.bytes.len());
        return Err(Error::weight(&format!("{name}.nested_absmax"), what));
    }
    if plain && nested_block == NESTED_BLOCK && map == dynamic_map() {
        let nested = Nested {
            codes: codes.bytes,
            absmax,
            offset,
        };
        let weight = Nf4::from_nested(packed, nested, rows, columns);
        return weight.map(Weight::Nf4).map_err(fits);
    }
    let scales = codes.bytes.iter().enumerate();
    let scales =
        scales.map(|(i, code)| map[usize::from(*code)] * absmax[i / nested_block] + offset);
    let weight = Nf4::from_code(packed, scales.collect(), rows, columns, levels, block);
    weight.map(Weight::Nf4).map_err(fits)
}

fn eight_bits(files: &SafetensorsFiles, name: &str, scales: &str) -> Result<Weight> {
    let raw = files.raw(name)?;
    let (&[rows, columns], Dtype::I8) = (raw.shape.as_slice(), raw.dtype) else {
        let what = format!(
            "is {:?} {:?}, expected a matrix of I8",
            raw.dtype, raw.shape
        );
        return Err(Error::weight(name, what));
    };
    let format = name
        .strip_suffix("weight")
        .map(|name| format!("{name}weight_format"));
    if let Some(format) = format.filter(|format| files.holds(format))
        && files.raw(&format)?.bytes.iter().any(|byte| *byte != 0)
    {
        // Other layouts were those of old processors' tensor cores.
        return Err(Error::weight(
            &format,
            "names a layout other than row by row",
        ));
    }
    let codes = raw.bytes.into_iter().map(u8::cast_signed).collect();
    Int8::from_parts(codes, floats(files, scales)?, rows, columns)
        .map(Weight::Int8)
        .map_err(|error| Error::weight(name, format!("is damaged: {error}")))
}

/// Finite f32 numbers.
fn floats(files: &SafetensorsFiles, name: &str) -> Result<Vec<f32>> {
    let Raw { dtype, bytes, .. } = files.raw(name)?;
    if dtype != Dtype::F32 {
        return Err(Error::weight(
            name,
            format!("is stored as {dtype:?}, expected F32"),
        ));
    }
    let numbers: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    if numbers.iter().any(|number| !number.is_finite()) {
        return Err(Error::weight(name, "holds a number that is not finite"));
    }
    Ok(numbers)
}

/// The JSON text beside a matrix of four bits.
struct State<'a> {
    name: &'a str,
    value: Map<String, Value>,
}

impl<'a> State<'a> {
    fn read(files: &SafetensorsFiles, name: &'a str) -> Result<Self> {
        let bytes = files.raw(name)?.bytes;
        let value = serde_json::from_slice(&bytes)
            .map_err(|error| Error::weight(name, format!("is not a JSON object: {error}")))?;
        Ok(Self { name, value })
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self
            .value
            .get(key)
            .map_or_else(|| "missing".to_owned(), Value::to_string);
        Error::weight(
            self.name,
            format!("has `{key}` {found}, expected {expected}"),
        )
    }

    fn count(&self, key: &str) -> Result<usize> {
        let count = self.value.get(key).and_then(Value::as_u64);
        count
            .and_then(|count| usize::try_from(count).ok())
            .filter(|count| *count > 0)
            .ok_or_else(|| self.wrong(key, "a whole number above 0"))
    }

    fn shape(&self) -> Result<(usize, usize)> {
        let dims = self.value.get("shape").and_then(Value::as_array);
        let dims: Option<Vec<usize>> = dims.and_then(|dims| {
            let dims = dims.iter().map(|dim| dim.as_u64().map(|dim| dim as usize));
            dims.collect()
        });
        match dims.as_deref() {
            Some(&[rows, columns]) => Ok((rows, columns)),
            _ => Err(self.wrong("shape", "two whole numbers")),
        }
    }
}
