//! Int8: eight bits a number, a scale for each row, as LLM.int8 stores weights.
//!
//! `code = round(value · 127 / absmax of the row)`, halves to even, and back
//! `value = code · absmax / 127` (Dettmers et al., "LLM.int8()", arXiv 2208.07339; bitsandbytes keeps
//! the codes as `weight` and the row maxima as `SCB`). Numbers are rounded to f16 first, as there. Inputs are not quantised here: the product
//! runs over the expanded weight, so there are no outlier columns to split off.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, bail};
use half::bf16;

use crate::gemm::Rows;
use crate::host::num::Float;
use crate::vector::Real;
use crate::weight::fill_and_round;

/// A matrix stored in eight bits with a scale for each row.
#[derive(Clone, Debug)]
pub struct Int8 {
    columns: usize,
    codes: Arc<[i8]>,
    /// Greatest magnitude of each row (`SCB`).
    absmax: Arc<[f32]>,
    /// Whether its products may be of numbers rounded to bf16.
    pub(crate) rounded: bool,
}

impl Int8 {
    /// Quantises a matrix `[rows, columns]`, given row by row.
    ///
    /// # Errors
    /// A length that does not fit the shape, or numbers that are not finite.
    pub fn quantize(values: &[f32], rows: usize, columns: usize) -> Result<Self> {
        if values.len() != rows * columns {
            bail!(
                "int8: {} numbers do not fill a matrix of {rows} × {columns}",
                values.len()
            );
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            bail!(
                "int8: the number in row {}, column {} is not finite",
                at / columns,
                at % columns
            );
        }
        let mut codes = Vec::with_capacity(values.len());
        let mut absmax = Vec::with_capacity(rows);
        for row in values.chunks_exact(columns.max(1)) {
            let largest = row
                .iter()
                .fold(0f32, |largest, value| largest.max(rounded(*value).abs()));
            // In f64, so that a number lies on a half only where it truly does; there bitsandbytes'
            // f32 products fall to either side.
            let scale = if largest == 0.0 {
                0.0
            } else {
                127.0 / f64::from(largest)
            };
            codes.extend(
                row.iter()
                    .map(|value| (f64::from(rounded(*value)) * scale).round_ties_even() as i8),
            );
            absmax.push(largest);
        }
        Self::from_parts(codes, absmax, rows, columns)
    }

    /// A matrix from its stored codes and row maxima.
    ///
    /// # Errors
    /// Lengths that do not fit the shape.
    pub fn from_parts(
        codes: Vec<i8>,
        absmax: Vec<f32>,
        rows: usize,
        columns: usize,
    ) -> Result<Self> {
        if codes.len() != rows * columns || absmax.len() != rows {
            bail!(
                "int8: {} codes and {} scales do not fit a matrix of {rows} × {columns}",
                codes.len(),
                absmax.len()
            );
        }
        Ok(Self {
            columns,
            codes: codes.into(),
            absmax: absmax.into(),
            rounded: false,
        })
    }

    /// `(rows, columns)`
    pub fn dims(&self) -> (usize, usize) {
        (self.absmax.len(), self.columns)
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.absmax.len()
    }

    /// The stored codes, row by row.
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// Greatest magnitude of each row.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }
}

impl<T: Real> Rows<T> for Int8 {
    fn rows(&self) -> usize {
        self.absmax.len()
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn fill(&self, row: usize, columns: Range<usize>, out: &mut [T]) {
        /// `1/127` in f32, by which bitsandbytes multiplies.
        const UNIT: f32 = 1.0 / 127.0;
        let scale = self.absmax[row];
        let codes = &self.codes[row * self.columns..][columns];
        for (out, code) in out.iter_mut().zip(codes) {
            *out = <T as Float>::of(f64::from(f32::from(*code) * scale * UNIT));
        }
    }

    fn rounded(&self) -> bool {
        self.rounded
    }

    fn fill_bf16(&self, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        fill_and_round::<T>(self, row, columns, out);
    }
}

/// To f16 and back, as bitsandbytes receives its weights.
fn rounded(value: f32) -> f32 {
    half::f16::from_f32(value).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_stay_within_half_a_step_and_zeros_stay() {
        let values: Vec<f32> = (0..3 * 41)
            .map(|i| (i as f32 * 0.37).sin() * (i / 41) as f32)
            .collect();
        let weight = Int8::quantize(&values, 3, 41).expect("quantised");
        for row in 0..3 {
            let mut out = vec![1f32; 41];
            weight.fill(row, 0..41, &mut out);
            let step = weight.absmax()[row] / 127.0;
            for (out, value) in out.iter().zip(&values[row * 41..]) {
                assert!((out - value).abs() <= step * 0.5001 + value.abs() / 2048.0);
            }
        }
    }

    #[test]
    fn refuses_what_it_cannot_hold() {
        assert!(Int8::quantize(&[0.0; 5], 2, 3).is_err());
        assert!(Int8::quantize(&[f32::INFINITY, 0.0], 1, 2).is_err());
    }
}
