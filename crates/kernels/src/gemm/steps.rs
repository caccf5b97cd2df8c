//! Numbers as [`Steps`]: 32 of a depth at a time, in the pairs that the registers of AMX take, rounded to bf16 or in three
//! parts of bf16.
//!
//! An f32 is the sum of three bf16: the nearest one, the one nearest to what is left, and what is left then, since each
//! takes eight of its 24 bits. Of the nine products of two such sums six are formed; what the other three would add is
//! less than what f32 rounds off. So products of f32 run on the instruction for bf16, six times over, which is still
//! more than twice as fast as its own (Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype
//! For Higher-Precision Computations", ARITH 2019).
//!
//! A number that no bf16 comes near, above 3.39 · 10³⁸, counts as infinite; of one below 10⁻³³ the lowest bits may be lost.

use std::ops::Range;

use half::bf16;

use super::kernel::{Kernel as _, PAIRS, Pair, Piece, Steps, Target, Tile};
use super::pack::{Held, Pieces, STRIP, ask_for, copy_pairs, next, strips};
use super::scratch::Scratch;
use super::{Left, Rows};
use crate::cpu::Level;
use crate::transpose::transpose;
use crate::vector::{Real, levels};

/// Numbers of one.
const NUMBERS: usize = 2 * PAIRS;
/// Parts of an f32.
const PARTS: usize = 3;

/// What [`Held`] asks for that does not depend on the number of parts.
macro_rules! in_steps {
    () => {
        const DEPTH: usize = NUMBERS;
        const CLEAR: bool = false;

        fn stride(depth: usize) -> usize {
            odd(depth.div_ceil(NUMBERS))
        }

        fn tile(level: Level, columns: usize) -> Tile {
            T::tile_of_pairs(level, columns)
        }

        fn multiply<'a>(
            level: Level,
            tile: Tile,
            rows: usize,
            pieces: impl Iterator<Item = Piece<'a, Self>> + Clone,
            right: &[Self],
            target: Target<T>,
        ) {
            T::multiply_steps(level, tile, rows, pieces, right, target);
        }
    };
}

impl<T: Real> Held<T> for Steps<1> {
    const BLOCK: usize = 1152;

    fn as_is<'a>(left: &Left<'a, T>) -> Option<(&'a [Self], usize)> {
        let rounded = left.rounded?;
        let whole = rounded.length.is_multiple_of(PAIRS);
        let steps = Steps::of_pairs(rounded.pairs).filter(|_| whole)?;
        Some((steps, rounded.length / PAIRS))
    }

    fn copy_left(
        level: Level,
        left: &Left<T>,
        rows: Range<usize>,
        depth: Range<usize>,
        out: &mut [Self],
    ) {
        let length = depth.len().div_ceil(2);
        let stride = <Self as Held<T>>::stride(depth.len()) * PAIRS;
        let out = Steps::pairs_mut(out);
        if let Some(rounded) = left.rounded {
            let from = rounded.pairs[rows.start * rounded.length..].chunks(rounded.length);
            for (from, out) in from.zip(out.chunks_exact_mut(stride)).take(rows.len()) {
                out[..length].copy_from_slice(&from[depth.start / 2..][..length]);
            }
        } else {
            copy_pairs(level, left, rows, depth, out, stride);
        }
        for row in out.chunks_exact_mut(stride) {
            row[length..].fill(Pair::default());
        }
    }

    fn pack_plain(
        level: Level,
        matrix: &dyn Rows<T>,
        depth: Range<usize>,
        columns: Range<usize>,
        pieces: Pieces<Self>,
    ) {
        Pair::pack_plain(
            level,
            matrix,
            depth.clone(),
            columns,
            in_pairs(pieces, &depth),
        );
    }

    fn pack_transposed(
        level: Level,
        matrix: &dyn Rows<T>,
        depth: Range<usize>,
        rows: Range<usize>,
        pieces: Pieces<Self>,
    ) {
        Pair::pack_transposed(level, matrix, depth.clone(), rows, in_pairs(pieces, &depth));
    }

    in_steps!();
}

/// Panels of numbers of one part as those of pairs, which they are but for the end of an uneven depth, which is cleared.
fn in_pairs<'a>(pieces: Pieces<'a, Steps<1>>, depth: &Range<usize>) -> Pieces<'a, Pair> {
    let Pieces {
        values,
        length,
        start,
        size,
        width,
    } = pieces;
    let (values, length, start) = (Steps::pairs_mut(values), length * PAIRS, start * PAIRS);
    let there = depth.len().div_ceil(2) * width;
    let whole = size * PAIRS;
    if there < whole {
        for panel in values.chunks_exact_mut(length) {
            panel[start..][there..whole].fill(Pair::default());
        }
    }
    Pieces {
        values,
        length,
        start,
        size: there,
        width,
    }
}

impl<T: Real> Held<T> for Steps<PARTS> {
    const BLOCK: usize = 576;

    fn as_is<'a>(_: &Left<'a, T>) -> Option<(&'a [Self], usize)> {
        None
    }

    fn copy_left(
        level: Level,
        left: &Left<T>,
        rows: Range<usize>,
        depth: Range<usize>,
        out: &mut [Self],
    ) {
        let length = <Self as Held<T>>::stride(depth.len());
        let at = |row: usize, depth: usize| depth * left.depth_stride + row * left.row_stride;
        if left.depth_stride == 1 {
            for (row, out) in rows.zip(out.chunks_exact_mut(length.max(1))) {
                let from = &left.values[at(row, depth.start)..][..depth.len()];
                along::<T>(level, from, out);
            }
            return;
        }
        assert_eq!(left.row_stride, 1, "left operands lie along one direction");
        let count = rows.len();
        let out = Steps::pairs_mut(out);
        let mut turned = Scratch::<Pair>::new(PARTS * PAIRS * count);
        for (step, start) in depth.clone().step_by(NUMBERS).enumerate() {
            let deep = NUMBERS.min(depth.end - start);
            let from = &left.values[at(rows.start, start)..];
            across::<T>(
                level,
                from,
                left.depth_stride,
                deep,
                count,
                count,
                0,
                &mut turned,
            );
            clear_past(deep.div_ceil(2), count, &mut turned);
            for part in 0..PARTS {
                let from = &turned[part * PAIRS * count..];
                let to = &mut out[(step * PARTS + part) * PAIRS..];
                let stride = length * PARTS * PAIRS;
                transpose::<Pair>(level, from, count, PAIRS, count, to, stride);
            }
        }
    }

    fn pack_plain(
        level: Level,
        matrix: &dyn Rows<T>,
        depth: Range<usize>,
        columns: Range<usize>,
        mut pieces: Pieces<Self>,
    ) {
        let width = pieces.width;
        let dense = matrix.dense();
        let count = columns.len();
        let mut expanded = vec![T::ZERO; if dense.is_some() { 0 } else { STRIP * count }];
        for rows in strips(depth.clone()) {
            let first = (rows.start - depth.start) / 2;
            let (values, stride) = if let Some((values, stride)) = dense {
                ask_for(values, stride, next(&rows, &depth), &columns);
                (&values[rows.start * stride + columns.start..], stride)
            } else {
                for (row, out) in rows.clone().zip(expanded.chunks_exact_mut(count.max(1))) {
                    matrix.fill(row, columns.clone(), out);
                }
                (&expanded[..], count)
            };
            for (columns, out) in pieces.each(0..count) {
                let from = &values[columns.start..];
                let (count, out) = (columns.len(), Steps::pairs_mut(out));
                across::<T>(level, from, stride, rows.len(), count, width, first, out);
            }
        }
        for (_, out) in pieces.each(0..count) {
            clear_past(depth.len().div_ceil(2), width, Steps::pairs_mut(out));
        }
    }

    fn pack_transposed(
        level: Level,
        matrix: &dyn Rows<T>,
        depth: Range<usize>,
        rows: Range<usize>,
        mut pieces: Pieces<Self>,
    ) {
        /// Steps of the piece of rows that is split, then transposed, at a time.
        const PIECE: usize = 4;
        let (width, end) = (pieces.width, rows.end);
        let dense = matrix.dense();
        let mut split = [Steps::default(); STRIP * PIECE];
        for (rows, out) in pieces.each(rows) {
            if rows.len() < width {
                out.fill(Self::default());
            }
            if let Some((values, stride)) = dense {
                ask_for(values, stride, rows.end..end.min(rows.end + width), &depth);
            }
            let out = Steps::pairs_mut(out);
            for first in (0..rows.len()).step_by(STRIP) {
                let count = STRIP.min(rows.len() - first);
                let strip = rows.start + first..rows.start + first + count;
                for start in depth.clone().step_by(PIECE * NUMBERS) {
                    let piece = start..depth.end.min(start + PIECE * NUMBERS);
                    let held = piece.len().div_ceil(NUMBERS);
                    for (row, split) in strip.clone().zip(split.chunks_exact_mut(PIECE)) {
                        if let Some((values, stride)) = dense {
                            let from = &values[row * stride..][piece.clone()];
                            along::<T>(level, from, split);
                        } else {
                            expand::<T>(level, matrix, row, piece.clone(), &mut split[..held]);
                        }
                    }
                    let done = (start - depth.start) / NUMBERS * PARTS;
                    for part in 0..held * PARTS {
                        let from = &Steps::pairs(&split)[part * PAIRS..];
                        let to = &mut out[(done + part) * PAIRS * width + first..];
                        let stride = PIECE * PARTS * PAIRS;
                        transpose::<Pair>(level, from, stride, count, PAIRS, to, width);
                    }
                }
            }
        }
    }

    in_steps!();
}

/// An odd number of steps, this one or the next: rows that lie as far apart are in sets of the first cache of their own.
const fn odd(steps: usize) -> usize {
    steps | 1
}

/// Writes the parts of a piece of a row.
fn expand<T: Real>(
    level: Level,
    matrix: &dyn Rows<T>,
    row: usize,
    columns: Range<usize>,
    out: &mut [Steps<PARTS>],
) {
    let mut numbers = [T::ZERO; NUMBERS];
    for (start, out) in columns.clone().step_by(NUMBERS).zip(out) {
        let columns = start..columns.end.min(start + NUMBERS);
        let numbers = &mut numbers[..columns.len()];
        matrix.fill(row, columns, numbers);
        along::<T>(level, numbers, std::slice::from_mut(out));
    }
}

/// The parts of a number, from the greatest to the least, as bf16.
#[inline(always)]
fn parts<T: Real>(number: T) -> [u16; PARTS] {
    let mut rest = number;
    std::array::from_fn(|part| {
        if part > 0 && rest == T::ZERO {
            return 0;
        }
        let bits = rest.to_bf16_bits();
        let taken = bf16::from_bits(bits);
        rest = if taken.is_finite() {
            rest - T::of(f64::from(taken))
        } else {
            T::ZERO
        };
        bits
    })
}

/// The parts of numbers that follow each other, then zeros.
fn along<T: Real>(level: Level, values: &[T], out: &mut [Steps<PARTS>]) {
    assert!(out.len() >= values.len().div_ceil(NUMBERS));
    #[cfg(target_arch = "x86_64")]
    if f32::pairs_are_faster(level)
        && let Some(values) = T::as_f32(values)
    {
        assert!(level <= Level::detect(), "the processor lacks {level:?}");
        // SAFETY: the processor has the instructions, and `out` is long enough.
        #[expect(unsafe_code, reason = "the vector version")]
        unsafe {
            vectors::along(values.as_ptr(), values.len(), out.as_mut_ptr());
        }
        return;
    }
    along_loop::<T>(level, values, out);
}

/// The parts of the numbers of one row and the next of a panel of `width` columns, from its pair `first` on, for `depth` rows
/// of `count` numbers that lie `stride` apart; an odd last row is paired with 0, and so are the columns from `count` to
/// `width`.
#[expect(clippy::too_many_arguments, reason = "two matrices and their places")]
fn across<T: Real>(
    level: Level,
    values: &[T],
    stride: usize,
    depth: usize,
    count: usize,
    width: usize,
    first: usize,
    out: &mut [Pair],
) {
    if depth == 0 {
        return;
    }
    assert!(count <= width && values.len() >= (depth - 1) * stride + count);
    let pairs = first..first + depth.div_ceil(2);
    assert!(out.len() >= pairs.end.div_ceil(PAIRS) * PARTS * PAIRS * width);
    #[cfg(target_arch = "x86_64")]
    if f32::pairs_are_faster(level)
        && let Some(values) = T::as_f32(values)
    {
        assert!(level <= Level::detect(), "the processor lacks {level:?}");
        for (number, pair) in pairs.enumerate() {
            let one = values[2 * number * stride..].as_ptr();
            let next = values.get((2 * number + 1) * stride..).map(<[f32]>::as_ptr);
            let next = next.filter(|_| 2 * number + 1 < depth);
            let place = place(pair, width);
            // SAFETY: the processor has the instructions; each row holds `count` numbers, and there are `width` places from
            // that of the pair on in each part.
            #[expect(unsafe_code, reason = "the vector version")]
            unsafe {
                let out = out[place..].as_mut_ptr();
                vectors::across(one, next, count, PAIRS * width, out);
            }
            if count < width {
                for part in 0..PARTS {
                    let row = &mut out[place + part * PAIRS * width..][..width];
                    row[count..].fill(Pair::default());
                }
            }
        }
        return;
    }
    across_loop::<T>(level, values, stride, depth, count, width, first, out);
}

/// Where the first part of a pair begins in a panel of so many columns.
#[inline(always)]
fn place(pair: usize, width: usize) -> usize {
    (pair / PAIRS * PARTS * PAIRS + pair % PAIRS) * width
}

/// Clears what the last step has past the pairs of a panel.
fn clear_past(pairs: usize, width: usize, out: &mut [Pair]) {
    let past = pairs % PAIRS;
    if past == 0 {
        return;
    }
    let step = &mut out[pairs / PAIRS * PARTS * PAIRS * width..][..PARTS * PAIRS * width];
    for part in step.chunks_exact_mut(PAIRS * width) {
        part[past * width..].fill(Pair::default());
    }
}

levels! {
    fn along_loop<T: Real>(values: &[T], out: &mut [Steps<PARTS>]) {
        for (values, out) in values.chunks(NUMBERS).zip(out) {
            let mut numbers = [[0; PARTS]; NUMBERS];
            for (parts_of, value) in numbers.iter_mut().zip(values) {
                *parts_of = parts(*value);
            }
            let out = Steps::pairs_mut(std::slice::from_mut(out));
            for (part, out) in out.chunks_exact_mut(PAIRS).enumerate() {
                for (out, [first, second]) in out.iter_mut().zip(numbers.as_chunks().0) {
                    *out = Pair::of_bits(first[part], second[part]);
                }
            }
        }
    }
}

levels! {
    fn across_loop<T: Real>(
        values: &[T],
        stride: usize,
        depth: usize,
        count: usize,
        width: usize,
        first: usize,
        out: &mut [Pair],
    ) {
        for number in 0..depth.div_ceil(2) {
            let out = &mut out[place(first + number, width)..];
            let one = &values[2 * number * stride..][..count];
            let next = (2 * number + 1 < depth).then(|| &values[(2 * number + 1) * stride..][..count]);
            for column in 0..width {
                let of = |row: Option<&[T]>| {
                    let number = row.and_then(|row| row.get(column));
                    number.map_or([0; PARTS], |number| parts(*number))
                };
                let (one, next) = (of(Some(one)), of(next));
                for part in 0..PARTS {
                    out[part * PAIRS * width + column] = Pair::of_bits(one[part], next[part]);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use std::arch::x86_64::*;

    use super::super::pairs::vectors::{first, interleaved, rounded};
    use super::{NUMBERS, PARTS, Pair, Steps};

    /// Numbers of a vector.
    const LANES: usize = 16;

    /// A vector's half of bf16 as f32.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn widened(half: __m256i) -> __m512 {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
    }

    /// What is left of numbers when a part is taken away; nothing, where the part is not finite.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn less(numbers: __m512, part: __m512) -> __m512 {
        let infinity = _mm512_set1_ps(f32::INFINITY);
        let finite = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(part), infinity);
        _mm512_maskz_sub_ps(finite, numbers, part)
    }

    /// The parts of the numbers of `low`, then those of `high`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn parts(mut low: __m512, mut high: __m512) -> [__m512i; PARTS] {
        let mut parts = [_mm512_setzero_si512(); PARTS];
        for (number, part) in parts.iter_mut().enumerate() {
            *part = rounded(low, high);
            if number + 1 < PARTS {
                low = less(low, widened(_mm512_castsi512_si256(*part)));
                high = less(high, widened(_mm512_extracti64x4_epi64::<1>(*part)));
            }
        }
        parts
    }

    /// # Safety
    /// The processor has AVX-512 BF16; `values` are `count` numbers, and `out` has room for all.
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn along(values: *const f32, count: usize, out: *mut Steps<PARTS>) {
        for (step, at) in (0..count).step_by(NUMBERS).enumerate() {
            let there = count - at;
            // SAFETY: the masks leave what is there of 32 numbers; where there is none of the upper half, `values` is not
            // moved past its end. There is room for the step.
            unsafe {
                let low = _mm512_maskz_loadu_ps(first(there), values.add(at));
                let high = if there > LANES {
                    _mm512_maskz_loadu_ps(first(there - LANES), values.add(at + LANES))
                } else {
                    _mm512_setzero_ps()
                };
                for (part, numbers) in parts(low, high).into_iter().enumerate() {
                    let out: *mut __m512i = out.add(step).cast();
                    _mm512_storeu_si512(out.add(part), numbers);
                }
            }
        }
    }

    /// The pairs of two rows, or of one row with 0, whose parts go to places `apart` from each other.
    ///
    /// # Safety
    /// The processor has AVX-512 BW and BF16; each row is `count` numbers, and there is room for as many pairs of each part.
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn across(
        one: *const f32,
        next: Option<*const f32>,
        count: usize,
        apart: usize,
        out: *mut Pair,
    ) {
        for at in (0..count).step_by(LANES) {
            let there = first(count - at);
            // SAFETY: the masks leave what is there of 16 numbers and places.
            unsafe {
                let low = _mm512_maskz_loadu_ps(there, one.add(at));
                let high = match next {
                    Some(next) => _mm512_maskz_loadu_ps(there, next.add(at)),
                    None => _mm512_setzero_ps(),
                };
                for (part, numbers) in parts(low, high).into_iter().enumerate() {
                    let out = out.add(part * apart + at);
                    _mm512_mask_storeu_epi32(out.cast(), there, interleaved(numbers));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Numbers of all kinds but those of which a part is below the normal range, for which the product has 0.
    fn number() -> impl Strategy<Value = f32> {
        prop_oneof![
            8 => -3.0f32..3.0,
            2 => any::<f32>().prop_filter("no part is tiny", |x| x.abs() > 1e-30 || *x == 0.0),
            1 => Just(f32::INFINITY),
            1 => Just(f32::NAN),
        ]
    }

    proptest! {
        #[test]
        fn parts_add_up_to_the_number(number in number()) {
            let sum = parts(number).map(|part| f64::from(bf16::from_bits(part))).iter().sum::<f64>();
            if number.abs() < 3.39e38 {
                prop_assert_eq!(sum, f64::from(number));
            } else {
                prop_assert!(!sum.is_finite(), "{} of {}", sum, number);
            }
        }

        #[test]
        fn the_same_parts_at_every_level(
            values in prop::collection::vec(number(), 0..700),
            stride in 1usize..60,
            past in 0usize..5,
            first in 0usize..20,
        ) {
            let mut expected = vec![Steps::default(); values.len().div_ceil(NUMBERS)];
            along::<f32>(Level::Portable, &values, &mut expected);
            let depth = values.len() / stride;
            let (count, width) = (stride.saturating_sub(past), stride + past);
            let pairs = (first + depth.div_ceil(2)).div_ceil(PAIRS) * PARTS * PAIRS * width;
            let mut rows = vec![Pair(7); pairs];
            across::<f32>(Level::Portable, &values, stride, depth, count, width, first, &mut rows);
            for level in Level::available() {
                let mut out = vec![Steps::default(); expected.len()];
                along::<f32>(level, &values, &mut out);
                prop_assert_eq!(&out, &expected, "{:?}", level);
                let mut out = vec![Pair(7); pairs];
                across::<f32>(level, &values, stride, depth, count, width, first, &mut out);
                prop_assert_eq!(&out, &rows, "{:?}", level);
            }
        }
    }
}
