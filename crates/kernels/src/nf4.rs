//! NF4: four bits a number, in blocks of 64, as bitsandbytes stores them.
//!
//! A block is scaled by its greatest magnitude (`absmax`), and each number becomes the index of the
//! nearest of sixteen levels, the quantiles of a normal distribution (Dettmers et al., "QLoRA",
//! arXiv 2305.14314, appendix E). Blocks run over the matrix row by row without regard to where rows
//! end. The first of two numbers sits in the high half of a byte. With double quantisation the
//! `absmax` themselves are stored in eight bits, in blocks of 256, around their mean.
//!
//! FP4 is the same with other levels, and blocks may be of another length: a checkpoint brings both.
//!
//! The bytes equal those of bitsandbytes 0.50 on the CPU; the fixtures of `tests/fixtures/bnb` hold
//! it to that.

mod expand;

use std::ops::Range;

use candle_core::{Result, bail};
use half::bf16;
use rayon::prelude::*;

pub use self::expand::Lookup;
use self::expand::expand;
use crate::cpu::Level;
use crate::gemm::Rows;
use crate::host::num::Float;
use crate::vector::Real;

/// Numbers that share one `absmax`.
pub const BLOCK: usize = 64;
/// `absmax` values that share one scale under double quantisation.
pub const NESTED_BLOCK: usize = 256;

/// The sixteen levels (bitsandbytes, `functional.get_4bit_type("nf4")`).
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A matrix stored in NF4, or in four bits with other levels.
#[derive(Clone, Debug)]
pub struct Nf4 {
    rows: usize,
    columns: usize,
    levels: [f32; 16],
    /// Numbers that share a scale.
    block: usize,
    /// Two numbers a byte, the first in the high half.
    packed: std::sync::Arc<[u8]>,
    /// Scale of each block of numbers, expanded from its eight bits where it has them.
    absmax: std::sync::Arc<[f32]>,
    nested: Option<std::sync::Arc<Nested>>,
    /// Whether its products may be of numbers rounded to bf16.
    pub(crate) rounded: bool,
}

/// The stored form of the scales under double quantisation.
#[derive(Clone, Debug)]
pub struct Nested {
    /// Index of each scale in [`dynamic_map`].
    pub codes: Vec<u8>,
    /// Scale of each block of [`NESTED_BLOCK`] codes.
    pub absmax: Vec<f32>,
    /// Mean of all scales.
    pub offset: f32,
}

impl Nf4 {
    /// Quantises a matrix `[rows, columns]`, given row by row.
    ///
    /// # Errors
    /// A length that does not fit the shape, or numbers that are not finite.
    pub fn quantize(values: &[f32], rows: usize, columns: usize, double: bool) -> Result<Self> {
        if values.len() != rows * columns {
            bail!(
                "NF4: {} numbers do not fill a matrix of {rows} × {columns}",
                values.len()
            );
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            bail!(
                "NF4: the number in row {}, column {} is not finite",
                at / columns,
                at % columns
            );
        }
        let absmax: Vec<f32> = values.par_chunks(BLOCK).map(block_scale).collect();
        let mut packed = vec![0u8; values.len().div_ceil(2)];
        packed
            .par_chunks_mut(BLOCK / 2)
            .zip(values.par_chunks(BLOCK))
            .zip(&absmax)
            .for_each(|((out, values), absmax)| {
                let scaled = scaling(values.len(), *absmax);
                for (out, pair) in out.iter_mut().zip(values.chunks(2)) {
                    let high = nearest(scaled(pair[0]));
                    // The half byte past the end of an odd matrix holds the level of zero.
                    let low = nearest(pair.get(1).map_or(0.0, |value| scaled(*value)));
                    *out = high << 4 | low;
                }
            });
        if !double {
            return Self::from_parts(packed, absmax, rows, columns);
        }
        Self::from_nested(packed, Nested::quantize(&absmax), rows, columns)
    }

    /// A matrix from its stored bytes and scales.
    ///
    /// # Errors
    /// Lengths that do not fit the shape.
    pub fn from_parts(
        packed: Vec<u8>,
        absmax: Vec<f32>,
        rows: usize,
        columns: usize,
    ) -> Result<Self> {
        Self::from_code(packed, absmax, rows, columns, LEVELS, BLOCK)
    }

    /// A matrix from its stored bytes and scales, with levels of its own and `block` numbers to a
    /// scale.
    ///
    /// # Errors
    /// Lengths that do not fit the shape.
    pub fn from_code(
        packed: Vec<u8>,
        absmax: Vec<f32>,
        rows: usize,
        columns: usize,
        levels: [f32; 16],
        block: usize,
    ) -> Result<Self> {
        let Some(count) = rows.checked_mul(columns).filter(|_| block > 0) else {
            bail!("NF4: no matrix is of {rows} × {columns} in blocks of {block}");
        };
        if packed.len() != count.div_ceil(2) || absmax.len() != count.div_ceil(block) {
            bail!(
                "NF4: {} bytes and {} scales do not fit a matrix of {rows} × {columns}",
                packed.len(),
                absmax.len()
            );
        }
        Ok(Self {
            rows,
            columns,
            levels,
            block,
            packed: packed.into(),
            absmax: absmax.into(),
            nested: None,
            rounded: false,
        })
    }

    /// A matrix from its stored bytes and doubly quantised scales.
    ///
    /// # Errors
    /// Lengths that do not fit the shape.
    pub fn from_nested(
        packed: Vec<u8>,
        nested: Nested,
        rows: usize,
        columns: usize,
    ) -> Result<Self> {
        if nested.absmax.len() != nested.codes.len().div_ceil(NESTED_BLOCK) {
            bail!(
                "NF4: {} scales of {} codes",
                nested.absmax.len(),
                nested.codes.len()
            );
        }
        let weight = Self::from_parts(packed, nested.dequantize(), rows, columns)?;
        Ok(Self {
            nested: Some(std::sync::Arc::new(nested)),
            ..weight
        })
    }

    /// `(rows, columns)`
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Memory held, in bytes: the packed numbers and their scales.
    pub fn bytes(&self) -> usize {
        let nested = self
            .nested
            .as_ref()
            .map_or(0, |n| n.codes.len() + 4 * n.absmax.len());
        self.packed.len() + 4 * self.absmax.len() + nested
    }

    /// The sixteen levels.
    pub fn levels(&self) -> &[f32; 16] {
        &self.levels
    }

    /// Numbers that share a scale.
    pub fn block(&self) -> usize {
        self.block
    }

    /// The stored bytes, two numbers each.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// The scale of each block, expanded where it is doubly quantised.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// The doubly quantised scales, if they are.
    pub fn nested(&self) -> Option<&Nested> {
        self.nested.as_deref()
    }
}

impl Nf4 {
    /// Writes numbers of a row, block by block; `table` makes the sixteen numbers of a scale.
    fn expand<N: Lookup>(
        &self,
        row: usize,
        columns: Range<usize>,
        out: &mut [N],
        table: impl Fn(f32) -> [N; 16],
    ) {
        let level = Level::detect();
        let mut at = row * self.columns + columns.start;
        let mut out = out;
        while !out.is_empty() {
            let block = at / self.block;
            let length = out.len().min((block + 1) * self.block - at);
            let (now, rest) = out.split_at_mut(length);
            expand(level, &self.packed, at, &table(self.absmax[block]), now);
            at += length;
            out = rest;
        }
    }
}

impl<T: Real> Rows<T> for Nf4 {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn fill(&self, row: usize, columns: Range<usize>, out: &mut [T]) {
        self.expand(row, columns, out, |scale| {
            let number = |level| <T as Float>::of(f64::from(level * scale));
            self.levels.map(number)
        });
    }

    fn rounded(&self) -> bool {
        self.rounded
    }

    fn fill_bf16(&self, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        self.expand(row, columns, out, |scale| {
            let number = |level: f32| bf16::from_bits((level * scale).to_bf16_bits());
            self.levels.map(number)
        });
    }
}

fn largest(values: &[f32]) -> f32 {
    values
        .iter()
        .fold(0f32, |largest, value| largest.max(value.abs()))
}

/// Greatest magnitude of a block; a short last block of zeros is given 1e-38, as in bitsandbytes.
fn block_scale(values: &[f32]) -> f32 {
    let largest = largest(values);
    if largest == 0.0 && values.len() < BLOCK {
        1e-38
    } else {
        largest
    }
}

/// How a number of a block is scaled: bitsandbytes multiplies a full block by the reciprocal of its
/// `absmax` and divides the short last one, which can differ in the last place.
fn scaling(length: usize, absmax: f32) -> impl Fn(f32) -> f32 {
    let (full, reciprocal) = (length == BLOCK, 1.0 / absmax);
    move |value| match (absmax == 0.0, full) {
        (true, _) => 0.0,
        (false, true) => value * reciprocal,
        (false, false) => value / absmax,
    }
}

/// Index of the nearest level; halfway between two it is the lower.
fn nearest(value: f32) -> u8 {
    let above = |pair: &[f32]| value > f32::midpoint(pair[0], pair[1]);
    LEVELS.windows(2).filter(|pair| above(pair)).count() as u8
}

impl Nested {
    /// Quantises scales: the distance from their mean, in blocks, to the nearest entry of
    /// [`dynamic_map`].
    pub fn quantize(scales: &[f32]) -> Self {
        let map = dynamic_map();
        let offset = mean(scales);
        let distances: Vec<f32> = scales.iter().map(|scale| scale - offset).collect();
        let absmax: Vec<f32> = distances.chunks(NESTED_BLOCK).map(largest).collect();
        let mut codes = Vec::with_capacity(scales.len());
        for (values, absmax) in distances.chunks(NESTED_BLOCK).zip(&absmax) {
            // Where all scales are equal there is nothing to scale by: bitsandbytes stores code 0.
            codes.extend(values.iter().map(|value| match *absmax {
                0.0 => 0,
                absmax if values.len() == NESTED_BLOCK => {
                    nearest_entry(&map, value * (1.0 / absmax))
                }
                absmax => nearest_entry(&map, value / absmax),
            }));
        }
        Self {
            codes,
            absmax,
            offset,
        }
    }

    /// The scales as numbers.
    pub fn dequantize(&self) -> Vec<f32> {
        let map = dynamic_map();
        self.codes
            .iter()
            .enumerate()
            .map(|(i, code)| map[usize::from(*code)] * self.absmax[i / NESTED_BLOCK] + self.offset)
            .collect()
    }
}

/// Mean as PyTorch computes it, to the bit, since bitsandbytes' codes follow its last bit: f32, in the
/// order of `vectorized_inner_sum` of ATen's `SumKernel.cpp` with AVX2 and one thread. With several
/// threads PyTorch cuts sums of 32,768 numbers and more into one piece for each, and no order is right.
fn mean(values: &[f32]) -> f32 {
    /// Numbers of an AVX2 register.
    const LANES: usize = 8;
    if values.is_empty() {
        return 0.0;
    }
    let sum = if values.len() < LANES {
        cascade::<1>(values)[0]
    } else {
        let whole = values.len() / LANES * LANES;
        let rest: f32 = values[whole..].iter().fold(0.0, |sum, value| sum + value);
        let lanes = cascade::<LANES>(&values[..whole]);
        lanes.iter().fold(rest, |sum, lane| sum + lane)
    };
    sum / values.len() as f32
}

/// The sum of every lane of rows of `LANES` numbers: four rows side by side, each in a cascade of levels
/// (`row_sum` and `multi_row_sum`).
fn cascade<const LANES: usize>(values: &[f32]) -> [f32; LANES] {
    const SIDE_BY_SIDE: usize = 4;
    const LEVELS: usize = 4;
    let rows = values.len() / LANES;
    let row = |row: usize| &values[row * LANES..][..LANES];
    let steps = rows / SIDE_BY_SIDE;
    let log = if steps <= 2 {
        1
    } else {
        usize::BITS - (steps - 1).leading_zeros()
    };
    let power = (log as usize / LEVELS).max(4);
    let mut sums = [[[0f32; LANES]; SIDE_BY_SIDE]; LEVELS];
    let add = |into: &mut [f32; LANES], from: &[f32]| {
        for (into, from) in into.iter_mut().zip(from) {
            *into += from;
        }
    };
    let mut done = 0;
    while done < steps {
        let whole = done + (1 << power) <= steps;
        let end = if whole { done + (1 << power) } else { steps };
        for step in done..end {
            for (column, sum) in sums[0].iter_mut().enumerate() {
                add(sum, row(step * SIDE_BY_SIDE + column));
            }
        }
        done = end;
        if !whole {
            break;
        }
        // What a level has gathered goes up a level when it is full.
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut sums[level - 1], [[0.0; LANES]; SIDE_BY_SIDE]);
            for (sum, below) in sums[level].iter_mut().zip(&below) {
                add(sum, below);
            }
            if done & (((1 << power) - 1) << (level * power)) != 0 {
                break;
            }
        }
    }
    let [mut first, higher @ ..] = sums;
    for level in &higher {
        for (sum, level) in first.iter_mut().zip(level) {
            add(sum, level);
        }
    }
    for left in steps * SIDE_BY_SIDE..rows {
        add(&mut first[0], row(left));
    }
    let [mut total, others @ ..] = first;
    for other in &others {
        add(&mut total, other);
    }
    total
}

/// Index of the entry of a rising map that bitsandbytes takes for `value`, from −1 to 1: the nearest, after
/// `value` was brought to the nearest of 65,536 even steps. Its CPU code looks entries up by step, which
/// near the middle of two entries can be the further one (0.50.2; found by asking it for 500,000 values).
fn nearest_entry(map: &[f32; 256], value: f32) -> u8 {
    /// Half of the steps' number less one.
    const HALF: f32 = 32_767.5;
    let step = ((value + 1.0) * HALF + 0.5) as u16;
    let value = f32::from(step) / HALF - 1.0;
    let next = map.partition_point(|entry| *entry < value);
    if next == 0 {
        return 0;
    }
    if next == map.len() {
        return 255;
    }
    let (lower, upper) = (map[next - 1], map[next]);
    (if value > f32::midpoint(lower, upper) {
        next
    } else {
        next - 1
    }) as u8
}

/// The signed dynamic map of 256 entries (Dettmers, "8-bit Approximations for Parallelism in Deep
/// Learning", arXiv 1511.04561): seven decades, each cut into twice as many steps as the one below.
///
/// Computed in f32 in the order of PyTorch's `linspace` (from both ends, fused), bit for bit.
pub fn dynamic_map() -> [f32; 256] {
    dynamic_levels(true)
}

/// The signed map, or the unsigned one, which has twice as many steps a decade and nothing below zero.
pub(crate) fn dynamic_levels(signed: bool) -> [f32; 256] {
    let mut entries = Vec::with_capacity(256);
    for exponent in 0..7u32 {
        let steps = (1usize << (exponent + u32::from(!signed))) + 1;
        let decade = 10f64.powi(exponent.cast_signed() - 6) as f32;
        let step = (1.0f32 - 0.1) / (steps - 1) as f32;
        let boundary = |i: usize| -> f32 {
            if i < steps / 2 {
                step.mul_add(i as f32, 0.1)
            } else {
                (-step).mul_add((steps - 1 - i) as f32, 1.0)
            }
        };
        for i in 0..steps - 1 {
            let value = f32::midpoint(boundary(i), boundary(i + 1)) * decade;
            entries.push(value);
            if signed {
                entries.push(-value);
            }
        }
    }
    entries.push(0.0);
    entries.push(1.0);
    entries.sort_by(f32::total_cmp);
    entries
        .try_into()
        .expect("seven decades give 254 entries, zero and one make 256")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        (0..count)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.013)
            .collect()
    }

    #[test]
    fn pieces_of_rows_equal_the_whole() {
        let weight = Nf4::quantize(&values(7 * 33), 7, 33, false).expect("quantised");
        let mut whole = vec![0f32; 33];
        for row in 0..7 {
            weight.fill(row, 0..33, &mut whole);
            for start in 0..33 {
                for end in start..=33 {
                    let mut piece = vec![0f32; end - start];
                    weight.fill(row, start..end, &mut piece);
                    assert_eq!(piece, whole[start..end]);
                }
            }
        }
    }

    #[test]
    fn levels_are_kept_exactly_and_errors_stay_within_half_a_step() {
        let exact: Vec<f32> = LEVELS
            .iter()
            .cycle()
            .take(128)
            .map(|level| level * 3.0)
            .collect();
        let weight = Nf4::quantize(&exact, 2, 64, false).expect("quantised");
        let mut row = vec![0f32; 64];
        weight.fill(1, 0..64, &mut row);
        assert_eq!(row, exact[64..]);
        for (value, code) in [(-1.0, 0), (0.0, 7), (1.0, 15), (0.04, 8), (0.0397, 7)] {
            assert_eq!(nearest(value), code);
        }
    }

    #[test]
    fn entries_are_those_that_bitsandbytes_takes_near_the_middle_of_two() {
        // What `quantize_blockwise` of bitsandbytes 0.50.2 gives on the CPU; the nearest is the other one.
        let map = dynamic_map();
        for (value, entry) in [
            (0.000_668_379_25, 139),
            (-0.060_633_738, 78),
            (-0.091_562_115, 66),
            (-0.000_333_613_4, 118),
            (0.008_308_639, 156),
            (-1.0, 0),
            (1.0, 255),
        ] {
            assert_eq!(nearest_entry(&map, value), entry, "{value}");
        }
    }

    #[test]
    fn the_mean_counts_every_number_once() {
        // Its bits are held by the offsets of `tests/fixtures/bnb`; here, that every number counts once.
        for count in (1..70).chain([255, 511, 512, 513, 1000, 4096, 20_000, 300_001]) {
            assert_eq!(mean(&vec![1.0; count]), 1.0, "{count}");
            for at in [0, count / 3, count / 2, count - 1] {
                let mut one = vec![0.0; count];
                one[at] = 1.0;
                assert_eq!(mean(&one), 1.0 / count as f32, "{at} of {count}");
            }
        }
        assert_eq!(mean(&[]), 0.0);
    }

    #[test]
    fn a_block_of_zeros_stays_zero() {
        let weight = Nf4::quantize(&[0.0; 130], 2, 65, true).expect("quantised");
        let mut row = vec![1f32; 65];
        weight.fill(1, 0..65, &mut row);
        assert!(row.iter().all(|value| value.abs() < 1e-12));
    }

    #[test]
    fn the_dynamic_map_rises_from_about_minus_one_to_one() {
        let map = dynamic_map();
        assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(map[255], 1.0);
        assert!((map[0] + 0.992_968_74).abs() < 1e-6, "{}", map[0]);
        assert!(map.contains(&0.0));
    }

    #[test]
    fn refuses_what_it_cannot_hold() {
        assert!(Nf4::quantize(&[0.0; 5], 2, 3, false).is_err());
        assert!(Nf4::quantize(&[0.0, f32::NAN], 1, 2, false).is_err());
        assert!(Nf4::from_parts(vec![0; 3], vec![0.0], 2, 4).is_err());
    }
}
