//! GGUF files, written as llama.cpp's converter writes them.
//!
//! A file is planned first, since its header says where every tensor lies, and then filled tensor by
//! tensor, so that it takes the memory of one. Layout: version 3 of
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, little-endian, tensors aligned to 32
//! bytes. Numbers are rounded as `gguf-py` rounds them, to the bit.

use std::io::Write;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use sparsam_kernels::ggml::GgmlType;

use crate::error::{Error, Result};

/// Every tensor begins at a multiple of this, in bytes.
const ALIGNMENT: usize = 32;
/// Numbers of a Q8_0 block.
const BLOCK: usize = 32;

/// A value of the header.
#[derive(Clone, Debug, PartialEq)]
pub enum Meta {
    /// A whole number.
    U32(u32),
    /// A number.
    F32(f32),
    /// A flag.
    Bool(bool),
    /// A text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of numbers.
    F32s(Vec<f32>),
    /// A list of whole numbers.
    I32s(Vec<i32>),
}

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Four bytes a number.
    F32,
    /// Two, with 11 bits of fraction.
    F16,
    /// Two, with 8 bits of fraction.
    Bf16,
    /// Eight bits a number and an f16 scale for each 32.
    Q8_0,
    /// Another of GGML's quantised types.
    Blocks(GgmlType),
}

impl Kind {
    /// The number of the type in ggml.
    fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
            Self::Bf16 => 30,
            Self::Blocks(blocks) => blocks.code(),
        }
    }

    /// Bytes of so many numbers.
    fn bytes(self, count: usize) -> usize {
        match self {
            Self::F32 => 4 * count,
            Self::F16 | Self::Bf16 => 2 * count,
            Self::Q8_0 => count / BLOCK * (2 + BLOCK),
            Self::Blocks(blocks) => count / blocks.block_length() * blocks.block_bytes(),
        }
    }

    /// The kind that rows of `columns` numbers are stored in. Blocks must fill rows: where those of 256 do
    /// not, the next larger kind with blocks of 32 takes their place, and where these do not either, f16
    /// (llama.cpp's `convert_hf_to_gguf.py` and `tensor_type_fallback`).
    pub fn for_columns(self, columns: usize) -> Self {
        let kind = match self {
            Self::Blocks(blocks) if !columns.is_multiple_of(blocks.block_length()) => {
                match blocks {
                    GgmlType::Q4K => Self::Blocks(GgmlType::Q5_0),
                    GgmlType::Q5K => Self::Blocks(GgmlType::Q5_1),
                    _ => Self::Q8_0,
                }
            }
            kind => kind,
        };
        let blocks = matches!(kind, Self::Q8_0 | Self::Blocks(_));
        if blocks && !columns.is_multiple_of(BLOCK) {
            Self::F16
        } else {
            kind
        }
    }
}

/// A tensor to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// Its shape, rows first; the file has it the other way round.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub kind: Kind,
}

impl Planned {
    fn bytes(&self) -> usize {
        self.kind.bytes(self.shape.iter().product())
    }
}

/// Writes a GGUF file.
pub struct GgufWriter<W> {
    out: W,
    planned: std::vec::IntoIter<Planned>,
}

impl<W: Write> GgufWriter<W> {
    /// Writes the header. The tensors follow in the order in which they are planned.
    ///
    /// # Errors
    /// Where `out` cannot be written.
    pub fn begin(mut out: W, metadata: &[(String, Meta)], planned: Vec<Planned>) -> Result<Self> {
        let mut header = Vec::new();
        header.extend(b"GGUF");
        header.extend(3u32.to_le_bytes());
        header.extend((planned.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            text(&mut header, key);
            meta(&mut header, value);
        }
        let mut offset = 0;
        for tensor in &planned {
            text(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            for dim in tensor.shape.iter().rev() {
                header.extend((*dim as u64).to_le_bytes());
            }
            header.extend(tensor.kind.code().to_le_bytes());
            header.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes().next_multiple_of(ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
        out.write_all(&header).map_err(io)?;
        Ok(Self {
            out,
            planned: planned.into_iter(),
        })
    }

    /// Writes the numbers of the next tensor, row by row.
    ///
    /// # Errors
    /// Another count than planned, numbers that its kind cannot hold, an `out` that cannot be written.
    pub fn tensor(&mut self, values: &[f32]) -> Result<()> {
        let Some(planned) = self.planned.next() else {
            return Err(Error::weight("(all)", "are more than were planned"));
        };
        let count = planned.shape.iter().product::<usize>();
        if values.len() != count {
            let what = format!("has {} numbers, {count} were planned", values.len());
            return Err(Error::weight(&planned.name, what));
        }
        let mut bytes = encode(&planned.name, values, planned.kind)?;
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        self.out.write_all(&bytes).map_err(io)
    }

    /// Gives the file back, whole.
    ///
    /// # Errors
    /// Planned tensors that did not come.
    pub fn finish(mut self) -> Result<W> {
        match self.planned.next() {
            Some(missing) => Err(Error::weight(&missing.name, "was planned and did not come")),
            None => Ok(self.out),
        }
    }
}

fn io(error: std::io::Error) -> Error {
    Error::Tensor(candle_core::Error::Io(error))
}

fn text(into: &mut Vec<u8>, text: &str) {
    into.extend((text.len() as u64).to_le_bytes());
    into.extend(text.as_bytes());
}

fn meta(into: &mut Vec<u8>, value: &Meta) {
    let list = |into: &mut Vec<u8>, kind: u32, count: usize| {
        into.extend(9u32.to_le_bytes());
        into.extend(kind.to_le_bytes());
        into.extend((count as u64).to_le_bytes());
    };
    match value {
        Meta::U32(value) => {
            into.extend(4u32.to_le_bytes());
            into.extend(value.to_le_bytes());
        }
        Meta::F32(value) => {
            into.extend(6u32.to_le_bytes());
            into.extend(value.to_le_bytes());
        }
        Meta::Bool(value) => {
            into.extend(7u32.to_le_bytes());
            into.push(u8::from(*value));
        }
        Meta::Text(value) => {
            into.extend(8u32.to_le_bytes());
            text(into, value);
        }
        Meta::Texts(values) => {
            list(into, 8, values.len());
            for value in values {
                text(into, value);
            }
        }
        Meta::F32s(values) => {
            list(into, 6, values.len());
            into.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Meta::I32s(values) => {
            list(into, 5, values.len());
            into.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
}

/// The bytes of a tensor.
fn encode(name: &str, values: &[f32], kind: Kind) -> Result<Vec<u8>> {
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::weight(name, "holds a number that is not finite"));
    }
    let beyond = || {
        let what = "holds a number beyond 65504, which f16 cannot hold; choose f32";
        Error::weight(name, what)
    };
    let half = |value: f32| Some(f16::from_f32(value)).filter(|half| half.is_finite());
    Ok(match kind {
        Kind::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Kind::Bf16 => {
            let rounded = values.iter().map(|value| bf16::from_f32(*value));
            rounded.flat_map(bf16::to_le_bytes).collect()
        }
        Kind::F16 => {
            let mut bytes = Vec::with_capacity(2 * values.len());
            for value in values {
                bytes.extend(half(*value).ok_or_else(beyond)?.to_le_bytes());
            }
            bytes
        }
        Kind::Q8_0 => {
            let mut bytes = Vec::with_capacity(kind.bytes(values.len()));
            for block in values.chunks_exact(BLOCK) {
                let largest = block.iter().fold(0f32, |m, value| m.max(value.abs()));
                let scale = largest / 127.0;
                let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                bytes.extend(half(scale).ok_or_else(beyond)?.to_le_bytes());
                // Halves away from zero, as C's `roundf`.
                bytes.extend(block.iter().map(|value| {
                    let code = (value * inverse).round() as i8;
                    code.cast_unsigned()
                }));
            }
            bytes
        }
        Kind::Blocks(blocks) => {
            let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
            QTensor::quantize(&tensor, candle_type(blocks))?
                .data()?
                .into_owned()
        }
    })
}

/// candle's name of a type.
fn candle_type(blocks: GgmlType) -> GgmlDType {
    match blocks {
        GgmlType::Q4_0 => GgmlDType::Q4_0,
        GgmlType::Q4_1 => GgmlDType::Q4_1,
        GgmlType::Q5_0 => GgmlDType::Q5_0,
        GgmlType::Q5_1 => GgmlDType::Q5_1,
        GgmlType::Q8_0 => GgmlDType::Q8_0,
        GgmlType::Q8_1 => GgmlDType::Q8_1,
        GgmlType::Q2K => GgmlDType::Q2K,
        GgmlType::Q3K => GgmlDType::Q3K,
        GgmlType::Q4K => GgmlDType::Q4K,
        GgmlType::Q5K => GgmlDType::Q5K,
        GgmlType::Q6K => GgmlDType::Q6K,
        GgmlType::Q8K => GgmlDType::Q8K,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::quantized::gguf_file::Content;

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.7).sin() * 3.0).collect()
    }

    #[test]
    fn what_is_written_another_reader_reads() {
        let metadata = [
            (
                "general.architecture".to_owned(),
                Meta::Text("llama".to_owned()),
            ),
            ("a.count".to_owned(), Meta::U32(7)),
            ("a.ratio".to_owned(), Meta::F32(0.5)),
            ("a.flag".to_owned(), Meta::Bool(true)),
            (
                "a.names".to_owned(),
                Meta::Texts(vec!["ü".to_owned(), String::new()]),
            ),
            ("a.scores".to_owned(), Meta::F32s(vec![1.0, -2.0])),
            ("a.types".to_owned(), Meta::I32s(vec![1, -3])),
        ];
        let shape = vec![3, 64];
        let kinds = [Kind::F32, Kind::F16, Kind::Bf16, Kind::Q8_0];
        let planned: Vec<Planned> = kinds
            .iter()
            .map(|kind| Planned {
                name: format!("{kind:?}"),
                shape: shape.clone(),
                kind: *kind,
            })
            .collect();
        let mut writer = GgufWriter::begin(Vec::new(), &metadata, planned).expect("begun");
        for _ in kinds {
            writer.tensor(&values(192)).expect("written");
        }
        let bytes = writer.finish().expect("finished");
        let mut reader = std::io::Cursor::new(&bytes);
        let content = Content::read(&mut reader).expect("a GGUF file");
        assert_eq!(content.metadata["a.count"].to_u32().expect("a number"), 7);
        assert_eq!(
            content.metadata["a.names"].to_vec().expect("a list").len(),
            2
        );
        for (kind, tolerance) in [
            ("F32", 0.0),
            ("F16", 2e-3),
            ("Bf16", 1.3e-2),
            ("Q8_0", 1.3e-2),
        ] {
            let tensor = content.tensor(&mut reader, kind, &Device::Cpu).expect(kind);
            let tensor = tensor.dequantize(&Device::Cpu).expect("numbers");
            assert_eq!(tensor.dims(), [3, 64]);
            let read: Vec<f32> = tensor
                .flatten_all()
                .and_then(|t| t.to_vec1())
                .expect("numbers");
            for (one, other) in read.iter().zip(values(192)) {
                assert!(
                    (one - other).abs() <= tolerance,
                    "{kind}: {one} and {other}"
                );
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let planned = |kind| {
            vec![Planned {
                name: "x".to_owned(),
                shape: vec![1, 32],
                kind,
            }]
        };
        let begin = |kind| GgufWriter::begin(Vec::new(), &[], planned(kind)).expect("begun");
        assert!(begin(Kind::F32).tensor(&values(31)).is_err());
        assert!(begin(Kind::F32).finish().is_err());
        assert!(begin(Kind::F32).tensor(&[f32::NAN; 32]).is_err());
        assert!(begin(Kind::F16).tensor(&[70_000.0; 32]).is_err());
        assert!(begin(Kind::Bf16).tensor(&[70_000.0; 32]).is_ok());
        assert_eq!(Kind::Q8_0.for_columns(172), Kind::F16);
        assert_eq!(Kind::Q8_0.for_columns(64), Kind::Q8_0);
    }
}
