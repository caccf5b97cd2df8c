//! AdamW's step with its moments kept in eight bits (Dettmers, Lewis, Shleifer and Zettlemoyer, "8-bit Optimizers via
//! Block-wise Quantization", arXiv 2110.02861), as bitsandbytes' `AdamW8bit` keeps them.
//!
//! A moment is cut into blocks of 256 numbers. Of a block its greatest magnitude is kept in f32, and of each number
//! the place of its share of that in a map of 256 levels: the signed dynamic map for the first moment, the unsigned
//! one for the second. That is 2.03 bytes a trained number for both moments, where f32 takes 8.
//!
//! A step brings a block of both moments to f32, makes the step of [`adamw_step`](super::adamw_step) with them, and
//! rounds them again, so that the parameter itself sees moments of this step that are not rounded yet. Each share
//! goes to its nearest level, as on bitsandbytes' GPUs. (Its CPU code first brings shares to one of 65,536 even steps, in
//! which the lower decades of the maps are lost; its CUDA code moves a share below zero that has become zero to the
//! first level below.) Numbers whose square is less than about 10⁻⁷ of the greatest in their block lose their second
//! moment, and a gradient that is zero in most steps may then meet a first moment alone: embeddings, whose rows are
//! mostly without a gradient, should keep their moments in f32.

use std::sync::LazyLock;

use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::{AdamW, CHUNK, Factors, advance, of_one_shape};
use crate::cpu::Level;
use crate::host::{fetch, tensor, update, view};
use crate::nf4::dynamic_levels;
use crate::vector::{LANES, Real, larger, levels, reduce};

/// Numbers that share a greatest magnitude.
pub const BLOCK: usize = 256;

/// Levels of a map.
const LEVELS: usize = 256;

// Tasks are of whole blocks, so that the number of threads does not matter.
const _: () = assert!(CHUNK.is_multiple_of(BLOCK));

/// Which levels shares of a block's greatest magnitude are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// From −0.993 to 1, for the first moment.
    Signed,
    /// From 0 to 1, for the second, twice as fine.
    Unsigned,
}

impl Map {
    /// The levels, rising; bitsandbytes' `create_dynamic_map(signed)`, bit for bit.
    pub fn levels(self) -> &'static [f32; LEVELS] {
        &self.table().levels
    }

    /// The place of the level nearest to a share; of two that are equally near (the number midway between them
    /// rounded to f32), the lower.
    pub fn nearest(self, share: f32) -> u8 {
        self.table().nearest(share)
    }

    fn table(self) -> &'static Table {
        static SIGNED: LazyLock<Table> = LazyLock::new(|| Table::new(&dynamic_levels(true)));
        static UNSIGNED: LazyLock<Table> = LazyLock::new(|| Table::new(&dynamic_levels(false)));
        match self {
            Self::Signed => &SIGNED,
            Self::Unsigned => &UNSIGNED,
        }
    }
}

/// The first 16 bits of 2⁻²³, below which shares go to the level of zero, and of 1, the greatest share.
const LOWEST: u32 = (127 - 23) << 7;
const HIGHEST: u32 = 127 << 7;
/// The place of the numbers below zero among a map's cells.
const NEGATIVE: usize = 1 << 12;

/// A map with what finds the nearest level without a search.
struct Table {
    levels: [f32; LEVELS],
    /// Midway between each level and the next; above the last there is none.
    middles: [f32; LEVELS],
    /// By a number's first 16 bits, sign and magnitude from [`LOWEST`] on: the nearest level to the least number
    /// that has them. At most one number midway between two levels has the same bits, so one comparison decides.
    /// Words, as those are what vectors look up.
    cells: Box<[u32; 2 * NEGATIVE]>,
}

impl Table {
    fn new(levels: &[f32; LEVELS]) -> Self {
        let mut middles = [f32::INFINITY; LEVELS];
        for (middle, pair) in middles.iter_mut().zip(levels.windows(2)) {
            *middle = f32::midpoint(pair[0], pair[1]);
        }
        let nearest = |share: f32| middles.partition_point(|middle| *middle < share) as u32;
        let mut cells: Box<[u32; 2 * NEGATIVE]> = vec![0; 2 * NEGATIVE]
            .into_boxed_slice()
            .try_into()
            .expect("as many as there are");
        for cell in 0..=HIGHEST - LOWEST {
            let bits = (LOWEST + cell) << 16;
            let least = if cell == 0 { 0.0 } else { f32::from_bits(bits) };
            cells[cell as usize] = nearest(least);
            cells[NEGATIVE + cell as usize] = nearest(-f32::from_bits(bits | 0xFFFF));
        }
        Self {
            levels: *levels,
            middles,
            cells,
        }
    }

    /// Where a share's first 16 bits stand in `cells`.
    #[inline(always)]
    fn cell(share: f32) -> u32 {
        let bits = share.to_bits();
        let magnitude = (bits >> 16 & 0x7FFF).clamp(LOWEST, HIGHEST) - LOWEST;
        magnitude | bits >> 31 << NEGATIVE.ilog2()
    }

    #[inline(always)]
    fn nearest(&self, share: f32) -> u8 {
        let mut found = [0];
        self.all_nearest(&[share], &mut found);
        found[0] as u8
    }

    /// The nearest levels to some shares. In three turns without anything in common, so that the compiler makes
    /// vectors of them.
    #[inline(always)]
    fn all_nearest(&self, shares: &[f32], found: &mut [u32]) {
        for (found, share) in found.iter_mut().zip(shares) {
            *found = Self::cell(*share);
        }
        for found in found.iter_mut() {
            *found = self.cells[*found as usize % (2 * NEGATIVE)];
        }
        for (found, share) in found.iter_mut().zip(shares) {
            *found += u32::from(*share > self.middles[*found as usize % LEVELS]);
        }
    }
}

/// A moment in eight bits a number.
#[derive(Clone, Debug)]
pub struct EightBit {
    map: Map,
    /// Places in the map, u8, of the shape of what is trained.
    codes: Tensor,
    /// Greatest magnitudes, f32 `[blocks]`.
    absmax: Tensor,
    /// The levels, f32 `[256]`, where the codes are.
    #[cfg(feature = "cuda")]
    levels: Tensor,
}

impl EightBit {
    /// Zeros for what is trained.
    ///
    /// # Errors
    /// No memory for them.
    pub fn zeros(like: &Tensor, map: Map) -> Result<Self> {
        let blocks = like.elem_count().div_ceil(BLOCK);
        Self::from_parts(
            map,
            Tensor::zeros(like.shape(), DType::U8, like.device())?,
            Tensor::zeros(blocks, DType::F32, like.device())?,
        )
    }

    /// The nearest to an f32 tensor, on its device.
    ///
    /// # Errors
    /// Another type, or no memory.
    pub fn quantize(values: &Tensor, map: Map) -> Result<Self> {
        let here = fetch(values)?;
        let (mut codes, mut absmax) = (Vec::new(), Vec::new());
        for block in view::<f32>(&here)?.chunks(BLOCK) {
            let start = codes.len();
            codes.resize(start + block.len(), 0);
            absmax.push(round(block, &mut codes[start..], map.table()));
        }
        let blocks = absmax.len();
        let device = values.device();
        Self::from_parts(
            map,
            tensor(codes, values.shape())?.to_device(device)?,
            tensor(absmax, blocks)?.to_device(device)?,
        )
    }

    /// From codes of the shape of what is trained, u8, and the greatest magnitude of each block of them, f32
    /// `[blocks]`.
    ///
    /// # Errors
    /// Other types, another number of blocks, or tensors on two devices.
    pub fn from_parts(map: Map, codes: Tensor, absmax: Tensor) -> Result<Self> {
        let blocks = codes.elem_count().div_ceil(BLOCK);
        if (codes.dtype(), absmax.dtype()) != (DType::U8, DType::F32) {
            bail!(
                "a moment in eight bits has codes of U8 and magnitudes of F32, found {:?} and {:?}",
                codes.dtype(),
                absmax.dtype()
            );
        }
        if absmax.dims() != [blocks] {
            bail!(
                "a moment in eight bits of {:?} has {blocks} blocks, found magnitudes of {:?}",
                codes.dims(),
                absmax.dims()
            );
        }
        if !codes.device().same_device(absmax.device()) {
            bail!(
                "a moment's codes are on {:?}, its magnitudes on {:?}",
                codes.device(),
                absmax.device()
            );
        }
        Ok(Self {
            map,
            #[cfg(feature = "cuda")]
            levels: Tensor::from_slice(map.levels(), LEVELS, codes.device())?,
            codes,
            absmax,
        })
    }

    /// Places in the map, u8, of the shape of what is trained.
    pub fn codes(&self) -> &Tensor {
        &self.codes
    }

    /// The greatest magnitude of each block, f32 `[blocks]`.
    pub fn absmax(&self) -> &Tensor {
        &self.absmax
    }

    /// The levels, f32 `[256]`, where the codes are.
    #[cfg(feature = "cuda")]
    pub(crate) fn levels(&self) -> &Tensor {
        &self.levels
    }

    /// The same moment on a device.
    ///
    /// # Errors
    /// No memory there.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Self::from_parts(
            self.map,
            self.codes.to_device(device)?,
            self.absmax.to_device(device)?,
        )
    }

    /// The numbers it stands for, f32, on the host.
    ///
    /// # Errors
    /// Tensors that cannot be read.
    pub fn dequantize(&self) -> Result<Tensor> {
        let (codes, absmax) = (fetch(&self.codes)?, fetch(&self.absmax)?);
        let (codes, absmax) = (view::<u8>(&codes)?, view::<f32>(&absmax)?);
        let mut values = vec![0.0; codes.len()];
        let blocks = values.chunks_mut(BLOCK).zip(codes.chunks(BLOCK));
        for ((values, codes), absmax) in blocks.zip(absmax.iter()) {
            widen(codes, *absmax, self.map.table(), values);
        }
        tensor(values, self.codes.shape())
    }
}

/// Updates `param` and its moments in place with `grad · grad_scale`, as [`adamw_step`](super::adamw_step) does with
/// moments in f32.
///
/// `step` counts from 1. `param`, `grad` and the codes of both moments have one shape; the first two are f32.
///
/// # Errors
/// Shapes that differ, another type than f32, maps other than signed and unsigned, step 0, or tensors that are not
/// contiguous on the CPU.
pub fn adamw_step_eight_bit(
    param: &Tensor,
    grad: &Tensor,
    exp_avg: &EightBit,
    exp_avg_sq: &EightBit,
    settings: &AdamW,
    step: usize,
    grad_scale: f64,
) -> Result<()> {
    of_one_shape(param, &[grad, &exp_avg.codes, &exp_avg_sq.codes])?;
    if (exp_avg.map, exp_avg_sq.map) != (Map::Signed, Map::Unsigned) {
        bail!("the first moment goes by the signed map and the second by the unsigned one");
    }
    let factors = Factors::of(settings, step, grad_scale)?;
    #[cfg(feature = "cuda")]
    if param.device().is_cuda() {
        let moments = super::all::Moments::EightBit(exp_avg, exp_avg_sq);
        return crate::cuda::adamw_step(param, grad, moments, &factors);
    }
    let level = Level::detect();
    let grad = view::<f32>(grad)?;
    update(param, |param: &mut [f32]| {
        lent(exp_avg, |first, first_absmax| {
            lent(exp_avg_sq, |second, second_absmax| {
                let moments = chunks(first, first_absmax).zip(chunks(second, second_absmax));
                param
                    .par_chunks_mut(CHUNK)
                    .zip(grad.par_chunks(CHUNK))
                    .zip(moments)
                    .for_each(|((param, grad), (first, second))| {
                        blocks::<f32>(level, param, grad, first, second, factors);
                    });
                Ok(())
            })
        })
    })
}

/// Lends both parts of a moment.
fn lent<R>(
    moment: &EightBit,
    change: impl FnOnce(&mut [u8], &mut [f32]) -> Result<R>,
) -> Result<R> {
    update(&moment.codes, |codes: &mut [u8]| {
        update(&moment.absmax, |absmax: &mut [f32]| change(codes, absmax))
    })
}

/// Codes and greatest magnitudes of whole blocks.
type Part<'a> = (&'a mut [u8], &'a mut [f32]);

/// A moment in parts of a task each.
fn chunks<'a>(
    codes: &'a mut [u8],
    absmax: &'a mut [f32],
) -> impl IndexedParallelIterator<Item = Part<'a>> {
    codes
        .par_chunks_mut(CHUNK)
        .zip(absmax.par_chunks_mut(CHUNK / BLOCK))
}

levels! {
    /// The step of some blocks.
    fn blocks<T: Real>(param: &mut [f32], grad: &[f32], first: Part<'_>, second: Part<'_>, factors: Factors) {
        let (signed, unsigned) = (Map::Signed.table(), Map::Unsigned.table());
        let (mut exp_avg, mut exp_avg_sq) = ([0.0; BLOCK], [0.0; BLOCK]);
        let numbers = param.chunks_mut(BLOCK).zip(grad.chunks(BLOCK));
        let first = first.0.chunks_mut(BLOCK).zip(first.1);
        let second = second.0.chunks_mut(BLOCK).zip(second.1);
        for ((param, grad), ((codes, absmax), (codes_sq, absmax_sq))) in numbers.zip(first.zip(second)) {
            let exp_avg = &mut exp_avg[..param.len()];
            let exp_avg_sq = &mut exp_avg_sq[..param.len()];
            widen(codes, *absmax, signed, exp_avg);
            widen(codes_sq, *absmax_sq, unsigned, exp_avg_sq);
            advance(param, grad, exp_avg, exp_avg_sq, factors);
            *absmax = round(exp_avg, codes, signed);
            *absmax_sq = round(exp_avg_sq, codes_sq, unsigned);
        }
    }
}

/// The numbers of a block.
#[inline(always)]
fn widen(codes: &[u8], absmax: f32, table: &Table, values: &mut [f32]) {
    for (value, code) in values.iter_mut().zip(codes) {
        *value = table.levels[usize::from(*code)] * absmax;
    }
}

/// Rounds the numbers of a block and returns their greatest magnitude. What has grown beyond f32 counts as the
/// greatest f32, so that the others of its block are kept.
#[inline(always)]
fn round(values: &[f32], codes: &mut [u8], table: &Table) -> f32 {
    let absmax = greatest_magnitude(values);
    // Shares of nothing are nothing.
    let whole = if absmax > 0.0 { absmax } else { 1.0 };
    let mut shares = [0.0; BLOCK];
    let shares = &mut shares[..values.len()];
    for (share, value) in shares.iter_mut().zip(values) {
        *share = *value / whole;
    }
    let mut found = [0; BLOCK];
    let found = &mut found[..values.len()];
    table.all_nearest(shares, found);
    for (code, found) in codes.iter_mut().zip(found.iter()) {
        *code = *found as u8;
    }
    absmax
}

#[inline(always)]
fn greatest_magnitude(values: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for part in whole {
        for lane in 0..LANES {
            lanes[lane] = larger(part[lane].abs(), lanes[lane]);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = larger(value.abs(), *lane);
    }
    let greatest = reduce(lanes, larger);
    if greatest < f32::MAX {
        greatest
    } else {
        f32::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: [Map; 2] = [Map::Signed, Map::Unsigned];

    #[test]
    fn a_cell_has_at_most_one_number_midway_between_levels() {
        for map in MAPS {
            let mut cells: Vec<u32> = map.table().middles[..LEVELS - 1]
                .iter()
                .map(|middle| middle.to_bits() >> 16)
                .collect();
            assert!(cells.iter().all(|cell| cell & 0x7FFF > LOWEST), "{map:?}");
            cells.dedup();
            assert_eq!(cells.len(), LEVELS - 1, "{map:?}");
        }
    }

    #[test]
    fn the_nearest_level_is_found_on_both_sides_of_every_middle() {
        for map in MAPS {
            let table = map.table();
            for (code, level) in table.levels.iter().enumerate() {
                assert_eq!(usize::from(map.nearest(*level)), code, "{map:?}: {level}");
            }
            for (code, middle) in table.middles[..LEVELS - 1].iter().enumerate() {
                let near = [middle.next_down(), *middle, middle.next_up()].map(|x| map.nearest(x));
                assert_eq!(
                    near.map(usize::from),
                    [code, code, code + 1],
                    "{map:?}: {middle}"
                );
            }
        }
    }

    #[test]
    fn ends_and_what_is_hardly_there() {
        let zero = Map::Signed.nearest(0.0);
        assert_eq!(Map::Signed.levels()[usize::from(zero)], 0.0);
        assert_eq!(Map::Unsigned.nearest(0.0), 0);
        for tiny in [f32::from_bits(1), f32::MIN_POSITIVE, 1e-8] {
            assert_eq!(Map::Signed.nearest(tiny), zero);
            assert_eq!(Map::Signed.nearest(-tiny), zero);
            assert_eq!(Map::Unsigned.nearest(tiny), 0);
        }
        assert_eq!(Map::Signed.nearest(-0.0), zero);
        assert_eq!(Map::Unsigned.nearest(-0.0), 0);
        for map in MAPS {
            assert_eq!(map.nearest(1.0), 255);
            assert_eq!(map.nearest(f32::INFINITY), 255);
            assert_eq!(map.nearest(-1.0), 0);
        }
    }

    #[test]
    fn every_level_of_instructions_gives_the_same_bits() {
        let numbers = |factor: usize, size: f32| -> Vec<f32> {
            (0..1000)
                .map(|i| ((i * factor % 613) as f32 / 613.0 - 0.5).powi(5) * size)
                .collect()
        };
        let run = |level: Level| {
            let mut param = numbers(31, 3.0);
            let (mut first, mut first_absmax) = (vec![0; 1000], vec![0.0; 4]);
            let (mut second, mut second_absmax) = (vec![0; 1000], vec![0.0; 4]);
            for step in 1..6 {
                let factors = Factors::of(&AdamW::default(), step, 0.7).expect("a step");
                let grad = numbers(17 + step, 0.1);
                let first = (&mut first[..], &mut first_absmax[..]);
                let second = (&mut second[..], &mut second_absmax[..]);
                blocks::<f32>(level, &mut param, &grad, first, second, factors);
            }
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let absmax = [bits(&first_absmax), bits(&second_absmax)];
            (bits(&param), first, second, absmax)
        };
        let expected = run(Level::Portable);
        for level in Level::available() {
            assert!(run(level) == expected, "{level:?}");
        }
    }
}
