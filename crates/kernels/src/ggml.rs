//! GGML blocks: the quantised forms of GGUF files, kept as they lie in the file.
//!
//! A row is a sequence of blocks of 32 or 256 numbers, each with its own scale; a row's length is a
//! multiple of the block's. Blocks of 256 are cut into groups of 16 or 32 with small scales of their
//! own (the "K" types). All of them can be read 32 numbers at a time, which is what [`Rows::fill`] does,
//! so a piece of a row costs what it is long. The layouts are those of llama.cpp's `ggml-common.h`, the
//! arithmetic that of its `dequantize_row_*`, in the same order and in f32: bit for bit the same numbers.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, bail};
use half::bf16;

use crate::gemm::Rows;
use crate::host::num::Float;
use crate::vector::Real;
use crate::weight::fill_and_round;

/// Numbers that are read together; every block is a multiple of it.
const UNIT: usize = 32;

/// A quantised type of GGML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgmlType {
    /// 4 bits around 8, a scale for 32.
    Q4_0,
    /// 4 bits, a scale and an offset for 32.
    Q4_1,
    /// 5 bits around 16, a scale for 32.
    Q5_0,
    /// 5 bits, a scale and an offset for 32.
    Q5_1,
    /// 8 bits, a scale for 32.
    Q8_0,
    /// As `Q8_0`, with the sum of the block beside it.
    Q8_1,
    /// 2 bits, 4-bit scales and offsets for 16.
    Q2K,
    /// 3 bits, 6-bit scales for 16.
    Q3K,
    /// 4 bits, 6-bit scales and offsets for 32.
    Q4K,
    /// 5 bits, 6-bit scales and offsets for 32.
    Q5K,
    /// 6 bits, 8-bit scales for 16.
    Q6K,
    /// 8 bits, one f32 scale for 256.
    Q8K,
}

impl GgmlType {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q8_1,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Q8K,
    ];

    /// Its number in GGUF files (`ggml_type` of `ggml.h`).
    pub fn code(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q8_1 => 9,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Q8K => 15,
        }
    }

    /// The type of a number in GGUF files.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Its name as llama.cpp writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q8_1 => "Q8_1",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Q8K => "Q8_K",
        }
    }

    /// Numbers in a block.
    pub fn block_length(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Q8_1 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Q8K => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 4 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 4 + 4 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q8_1 => 4 + 32,
            Self::Q2K => 16 + 64 + 4,
            Self::Q3K => 32 + 64 + 12 + 2,
            Self::Q4K => 4 + 12 + 128,
            Self::Q5K => 4 + 12 + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
            Self::Q8K => 4 + 256 + 32,
        }
    }

    /// Bytes of a row of `columns` numbers; none where it does not end with a block.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        if !columns.is_multiple_of(self.block_length()) {
            return None;
        }
        (columns / self.block_length()).checked_mul(self.block_bytes())
    }

    /// Writes the numbers `UNIT · unit ..` of a row.
    #[inline]
    fn expand(self, row: &[u8], unit: usize, out: &mut [f32; UNIT]) {
        let units = self.block_length() / UNIT;
        let (block, unit) = (unit / units, unit % units);
        let block = &row[block * self.block_bytes()..][..self.block_bytes()];
        match self {
            Self::Q4_0 => q4(
                &block[2..],
                half(block, 0),
                |code| f32::from(code) - 8.0,
                out,
            ),
            Self::Q4_1 => {
                let offset = half(block, 2);
                q4(&block[4..], half(block, 0), f32::from, out);
                add(offset, out);
            }
            Self::Q5_0 => q5(
                &block[2..6],
                &block[6..],
                half(block, 0),
                |code| f32::from(code) - 16.0,
                out,
            ),
            Self::Q5_1 => {
                let offset = half(block, 2);
                q5(&block[4..8], &block[8..], half(block, 0), f32::from, out);
                add(offset, out);
            }
            Self::Q8_0 => q8(&block[2..], half(block, 0), out),
            Self::Q8_1 => q8(&block[4..], half(block, 0), out),
            Self::Q2K => q2_k(block, unit, out),
            Self::Q3K => q3_k(block, unit, out),
            Self::Q4K => q4_k(block, unit, out),
            Self::Q5K => q5_k(block, unit, out),
            Self::Q6K => q6_k(block, unit, out),
            Self::Q8K => {
                let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
                q8(&block[4 + unit * UNIT..], scale, out);
            }
        }
    }
}

/// The f16 at byte `at`.
fn half(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn add(offset: f32, out: &mut [f32; UNIT]) {
    for out in out {
        *out += offset;
    }
}

/// Low halves of 16 bytes, then their high halves.
fn q4(codes: &[u8], scale: f32, value: impl Fn(u8) -> f32, out: &mut [f32; UNIT]) {
    let (low, high) = out.split_at_mut(UNIT / 2);
    for ((low, high), code) in low.iter_mut().zip(high).zip(codes) {
        *low = value(code & 15) * scale;
        *high = value(code >> 4) * scale;
    }
}

/// As [`q4`], with a fifth bit for each number in `fifth`.
fn q5(fifth: &[u8], codes: &[u8], scale: f32, value: impl Fn(u8) -> f32, out: &mut [f32; UNIT]) {
    let fifth = u32::from_le_bytes([fifth[0], fifth[1], fifth[2], fifth[3]]);
    let bit = |at: usize| ((fifth >> at & 1) << 4) as u8;
    let (low, high) = out.split_at_mut(UNIT / 2);
    for (i, ((low, high), code)) in low.iter_mut().zip(high).zip(codes).enumerate() {
        *low = value(code & 15 | bit(i)) * scale;
        *high = value(code >> 4 | bit(i + UNIT / 2)) * scale;
    }
}

fn q8(codes: &[u8], scale: f32, out: &mut [f32; UNIT]) {
    for (out, code) in out.iter_mut().zip(codes) {
        *out = f32::from(code.cast_signed()) * scale;
    }
}

/// `scales` 16, `codes` 64, scale, offset: four units share 32 bytes, two bits each.
fn q2_k(block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
    let (scale, offset) = (half(block, 80), half(block, 82));
    let codes = &block[16 + unit / 4 * 32..][..32];
    let shift = 2 * (unit % 4);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let small = block[2 * unit + group];
        let (scale, offset) = (
            scale * f32::from(small & 15),
            offset * f32::from(small >> 4),
        );
        for (out, code) in out.iter_mut().zip(&codes[16 * group..]) {
            *out = scale * f32::from(code >> shift & 3) - offset;
        }
    }
}

/// `third bits` 32, `codes` 64, `scales` 12, scale: as [`q2_k`], with a third bit that, unset, takes 4.
fn q3_k(block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
    let scale = half(block, 108);
    let (third, scales) = (&block[..32], &block[96..108]);
    let codes = &block[32 + unit / 4 * 32..][..32];
    let shift = 2 * (unit % 4);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let at = 2 * unit + group;
        let low = if at < 8 {
            scales[at] & 15
        } else {
            scales[at - 8] >> 4
        };
        let high = scales[8 + at % 4] >> (2 * (at / 4)) & 3;
        let scale = scale * (f32::from(high << 4 | low) - 32.0);
        let third = &third[16 * group..];
        for ((out, code), third) in out.iter_mut().zip(&codes[16 * group..]).zip(third) {
            let code = f32::from(code >> shift & 3);
            let less = if third >> unit & 1 == 0 { 4.0 } else { 0.0 };
            *out = scale * (code - less);
        }
    }
}

/// The 6-bit scale and offset of a unit, of the twelve bytes that hold eight of both.
fn scale_and_offset(scales: &[u8], unit: usize) -> (f32, f32) {
    let (scale, offset) = if unit < 4 {
        (scales[unit] & 63, scales[unit + 4] & 63)
    } else {
        (
            scales[unit + 4] & 15 | scales[unit - 4] >> 6 << 4,
            scales[unit + 4] >> 4 | scales[unit] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(offset))
}

/// Scale, offset, `scales` 12, `codes` 128: two units share 32 bytes, four bits each.
fn q4_k(block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
    let (scale, offset) = scale_and_offset(&block[4..16], unit);
    let (scale, offset) = (half(block, 0) * scale, half(block, 2) * offset);
    let shift = 4 * (unit % 2);
    for (out, code) in out.iter_mut().zip(&block[16 + unit / 2 * 32..]) {
        *out = scale * f32::from(code >> shift & 15) - offset;
    }
}

/// As [`q4_k`], with 32 bytes of fifth bits before the codes: one byte for each of the eight units.
fn q5_k(block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
    let (scale, offset) = scale_and_offset(&block[4..16], unit);
    let (scale, offset) = (half(block, 0) * scale, half(block, 2) * offset);
    let shift = 4 * (unit % 2);
    let (fifth, codes) = (&block[16..48], &block[48 + unit / 2 * 32..]);
    for ((out, code), fifth) in out.iter_mut().zip(codes).zip(fifth) {
        let code = code >> shift & 15 | (fifth >> unit & 1) << 4;
        *out = scale * f32::from(code) - offset;
    }
}

/// `low bits` 128, `high bits` 64, `scales` 16, scale: of the four units of 128 numbers, the first and
/// third share the low bits of 32 bytes, as do the second and fourth; all four share the high bits.
fn q6_k(block: &[u8], unit: usize, out: &mut [f32; UNIT]) {
    let scale = half(block, 208);
    let (part, unit) = (unit / 4, unit % 4);
    let low = &block[part * 64 + unit % 2 * 32..][..32];
    let high = &block[128 + part * 32..][..32];
    let scales = &block[192 + part * 8 + unit * 2..][..2];
    let shift = 4 * (unit / 2);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = scale * f32::from(scales[group].cast_signed());
        let codes = low[16 * group..].iter().zip(&high[16 * group..]);
        for (out, (low, high)) in out.iter_mut().zip(codes) {
            let code = low >> shift & 15 | (high >> (2 * unit) & 3) << 4;
            *out = scale * (f32::from(code) - 32.0);
        }
    }
}

/// A matrix stored in GGML blocks.
#[derive(Clone, Debug)]
pub struct Ggml {
    kind: GgmlType,
    rows: usize,
    columns: usize,
    row_bytes: usize,
    bytes: Arc<[u8]>,
    /// Whether its products may be of numbers rounded to bf16.
    pub(crate) rounded: bool,
}

impl Ggml {
    /// A matrix `[rows, columns]` from its stored bytes.
    ///
    /// # Errors
    /// Rows that do not end with a block, or a length that does not fit the shape.
    pub fn from_bytes(kind: GgmlType, bytes: Vec<u8>, rows: usize, columns: usize) -> Result<Self> {
        let Some(row_bytes) = kind.row_bytes(columns) else {
            bail!(
                "{}: rows of {columns} numbers do not end with a block of {}",
                kind.name(),
                kind.block_length()
            );
        };
        if rows.checked_mul(row_bytes) != Some(bytes.len()) {
            bail!(
                "{}: {} bytes do not fill a matrix of {rows} × {columns}",
                kind.name(),
                bytes.len()
            );
        }
        Ok(Self {
            kind,
            rows,
            columns,
            row_bytes,
            bytes: bytes.into(),
            rounded: false,
        })
    }

    /// How its numbers are stored.
    pub fn kind(&self) -> GgmlType {
        self.kind
    }

    /// `(rows, columns)`
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The stored bytes, row by row.
    pub fn stored(&self) -> &[u8] {
        &self.bytes
    }
}

impl<T: Real> Rows<T> for Ggml {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn fill(&self, row: usize, columns: Range<usize>, out: &mut [T]) {
        let bytes = &self.bytes[row * self.row_bytes..][..self.row_bytes];
        let mut values = [0f32; UNIT];
        let (mut at, mut out) = (columns.start, out);
        while !out.is_empty() {
            let skipped = at % UNIT;
            let length = out.len().min(UNIT - skipped);
            let (now, rest) = out.split_at_mut(length);
            self.kind.expand(bytes, at / UNIT, &mut values);
            for (out, value) in now.iter_mut().zip(&values[skipped..]) {
                *out = <T as Float>::of(f64::from(*value));
            }
            at += length;
            out = rest;
        }
    }

    fn rounded(&self) -> bool {
        self.rounded
    }

    fn fill_bf16(&self, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        fill_and_round::<T>(self, row, columns, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_does_not_fill_a_matrix() {
        assert!(Ggml::from_bytes(GgmlType::Q8_0, vec![0; 34], 1, 33).is_err());
        assert!(Ggml::from_bytes(GgmlType::Q8_0, vec![0; 35], 1, 32).is_err());
        assert!(Ggml::from_bytes(GgmlType::Q8_0, vec![0; 34], usize::MAX, 32).is_err());
        assert!(Ggml::from_bytes(GgmlType::Q8_0, vec![0; 34], 1, usize::MAX - 31).is_err());
        assert!(Ggml::from_bytes(GgmlType::Q4K, vec![0; 144], 1, 256).is_ok());
    }

    #[test]
    fn codes_name_their_types() {
        for kind in GgmlType::ALL {
            assert_eq!(GgmlType::from_code(kind.code()), Some(kind));
        }
        assert_eq!(GgmlType::from_code(0), None);
    }
}
