//! Rounding to bf16, two numbers to a [`Pair`].
//!
//! The loops are the meaning; what a training step rounds most, f32, has twins of the instructions that round 32
//! numbers at a time. They take numbers below the normal range for 0, which their products do anyway.

use half::bf16;

use super::kernel::{Kernel, Pair};
use crate::cpu::Level;
use crate::vector::{Real, levels};

/// What can be rounded to bf16.
pub(super) trait Round: Copy {
    /// The bits of the nearest bf16.
    fn bits(self) -> u16;
    /// The same numbers, where they are f32.
    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
}

impl<T: Real> Round for T {
    #[inline(always)]
    fn bits(self) -> u16 {
        self.to_bf16_bits()
    }

    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Real::as_f32(values)
    }
}

impl Round for bf16 {
    #[inline(always)]
    fn bits(self) -> u16 {
        self.to_bits()
    }
}

/// Pairs of numbers that follow each other; an odd last one is paired with 0.
pub(super) fn along<T: Real>(level: Level, values: &[T], out: &mut [Pair]) {
    assert!(out.len() >= values.len().div_ceil(2));
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if f32::pairs_are_faster(level)
        && let Some(values) = Real::as_f32(values)
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

/// Pairs of the numbers of one row and the next, `out[pair * width + column]`, for `depth` rows of `count` numbers
/// that lie `stride` apart; an odd last row is paired with 0, and so are the columns from `count` to `width`.
pub(super) fn across<T: Round>(
    level: Level,
    values: &[T],
    stride: usize,
    depth: usize,
    count: usize,
    width: usize,
    out: &mut [Pair],
) {
    if depth == 0 {
        return;
    }
    assert!(count <= width && values.len() >= (depth - 1) * stride + count);
    assert!(out.len() >= depth.div_ceil(2) * width);
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if f32::pairs_are_faster(level)
        && let Some(values) = Round::as_f32(values)
    {
        assert!(level <= Level::detect(), "the processor lacks {level:?}");
        let pairs = out.chunks_exact_mut(width).take(depth.div_ceil(2));
        for (pair, out) in pairs.enumerate() {
            let first = values[2 * pair * stride..].as_ptr();
            let second = values.get((2 * pair + 1) * stride..).map(<[f32]>::as_ptr);
            let second = second.filter(|_| 2 * pair + 1 < depth);
            // SAFETY: the processor has the instructions; each row holds `count` numbers, and `out` `width`.
            #[expect(unsafe_code, reason = "the vector version")]
            unsafe {
                vectors::across(first, second, count, out.as_mut_ptr());
            }
            out[count..].fill(Pair::default());
        }
        return;
    }
    across_loop::<T>(level, values, stride, depth, count, width, out);
}

/// `values`, each rounded to bf16.
pub(crate) fn round<T: Real>(level: Level, values: &[T], out: &mut [bf16]) {
    assert!(out.len() >= values.len());
    let even = values.len() / 2 * 2;
    let (pairs, last) = out.split_at_mut(even);
    if let Some(pairs) = Pair::of_numbers_mut(pairs) {
        along::<T>(level, &values[..even], pairs);
        round_loop::<T>(level, &values[even..], last);
    } else {
        round_loop::<T>(level, values, out);
    }
}

levels! {
    fn round_loop<T: Real>(values: &[T], out: &mut [bf16]) {
        for (out, value) in out.iter_mut().zip(values) {
            *out = bf16::from_bits(value.to_bf16_bits());
        }
    }
}

levels! {
    fn along_loop<T: Real>(values: &[T], out: &mut [Pair]) {
        let (pairs, rest) = values.as_chunks::<2>();
        for (out, [first, second]) in out.iter_mut().zip(pairs) {
            *out = Pair::of_bits(first.bits(), second.bits());
        }
        if let ([last], Some(out)) = (rest, out.get_mut(pairs.len())) {
            *out = Pair::of_bits(last.bits(), 0);
        }
    }
}

levels! {
    fn across_loop<T: Round>(
        values: &[T],
        stride: usize,
        depth: usize,
        count: usize,
        width: usize,
        out: &mut [Pair],
    ) {
        /// Numbers of a vector.
        const LANES: usize = 16;
        for (pair, out) in out.chunks_exact_mut(width).take(depth.div_ceil(2)).enumerate() {
            let (out, past) = out.split_at_mut(count);
            past.fill(Pair::default());
            let first = &values[2 * pair * stride..][..count];
            if 2 * pair + 1 == depth {
                for (out, first) in out.iter_mut().zip(first) {
                    *out = Pair::of_bits(first.bits(), 0);
                }
                continue;
            }
            let second = &values[(2 * pair + 1) * stride..][..count];
            let (out, out_rest) = out.as_chunks_mut::<LANES>();
            let (first, first_rest) = first.as_chunks::<LANES>();
            let (second, second_rest) = second.as_chunks::<LANES>();
            for ((out, first), second) in out.iter_mut().zip(first).zip(second) {
                for lane in 0..LANES {
                    out[lane] = Pair::of_bits(first[lane].bits(), second[lane].bits());
                }
            }
            for ((out, first), second) in out_rest.iter_mut().zip(first_rest).zip(second_rest) {
                *out = Pair::of_bits(first.bits(), second.bits());
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod vectors {
    use std::arch::x86_64::*;

    use super::Pair;

    /// Numbers of a vector.
    const LANES: usize = 16;

    /// The numbers of `low`, then those of `high`, each rounded to bf16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(in super::super) fn rounded(low: __m512, high: __m512) -> __m512i {
        let numbers = _mm512_cvtne2ps_pbh(high, low);
        // SAFETY: the same bits, of a vector as long.
        #[expect(unsafe_code, reason = "named as whole numbers")]
        unsafe {
            std::mem::transmute::<__m512bh, __m512i>(numbers)
        }
    }

    /// A mask of the first `count` of 16, of all if there are more.
    pub(in super::super) fn first(count: usize) -> __mmask16 {
        u16::MAX >> (LANES - count.min(LANES))
    }

    /// Pairs of each number of the lower half with its like of the upper.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(in super::super) fn interleaved(numbers: __m512i) -> __m512i {
        // Place `2 i` is number `i` of the lower half, place `2 i + 1` of the upper.
        const PLACES: [u16; 2 * LANES] = {
            let mut places = [0; 2 * LANES];
            let mut i = 0;
            while i < LANES {
                (places[2 * i], places[2 * i + 1]) = (i as u16, (LANES + i) as u16);
                i += 1;
            }
            places
        };
        // SAFETY: as many bytes as a vector has.
        #[expect(unsafe_code, reason = "reads by an address")]
        let places = unsafe { _mm512_loadu_si512(PLACES.as_ptr().cast()) };
        _mm512_permutexvar_epi16(places, numbers)
    }

    /// # Safety
    /// The processor has AVX-512 BF16; `values` are `count` numbers, and `out` has half as many places, rounded up.
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn along(values: *const f32, count: usize, out: *mut Pair) {
        let whole = count / (2 * LANES) * 2 * LANES;
        for at in (0..whole).step_by(2 * LANES) {
            // SAFETY: 32 more numbers are there, and 16 places.
            unsafe {
                let low = _mm512_loadu_ps(values.add(at));
                let high = _mm512_loadu_ps(values.add(at + LANES));
                _mm512_storeu_si512(out.add(at / 2).cast(), rounded(low, high));
            }
        }
        let rest = count - whole;
        if rest > 0 {
            // SAFETY: the masks leave what is there of 32 numbers and 16 places. Where there is none of the upper
            // half, `values` is not moved past its end.
            unsafe {
                let low = _mm512_maskz_loadu_ps(first(rest), values.add(whole));
                let above = rest.saturating_sub(LANES);
                let high = if above > 0 {
                    _mm512_maskz_loadu_ps(first(above), values.add(whole + LANES))
                } else {
                    _mm512_setzero_ps()
                };
                let places = first(rest.div_ceil(2));
                _mm512_mask_storeu_epi32(out.add(whole / 2).cast(), places, rounded(low, high));
            }
        }
    }

    /// The pairs of two rows, or of one row with 0.
    ///
    /// # Safety
    /// The processor has AVX-512 BW and BF16; each row is `count` numbers, and `out` has as many places.
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn across(
        one: *const f32,
        next: Option<*const f32>,
        count: usize,
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
                let pairs = interleaved(rounded(low, high));
                if there == u16::MAX {
                    _mm512_storeu_si512(out.add(at).cast(), pairs);
                } else {
                    _mm512_mask_storeu_epi32(out.add(at).cast(), there, pairs);
                }
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod vectors {
    use std::arch::aarch64::*;
    use std::arch::asm;

    use super::Pair;

    /// Numbers of a vector.
    const LANES: usize = 4;

    /// The numbers of `low`, then those of `high`, each rounded to bf16.
    #[inline]
    #[target_feature(enable = "neon,bf16")]
    fn rounded(low: float32x4_t, high: float32x4_t) -> uint16x8_t {
        let numbers: uint16x8_t;
        // SAFETY: instructions of registers alone, which the processor has: of eight numbers, the first four are
        // written first.
        #[expect(unsafe_code, reason = "instructions without a name in the language")]
        unsafe {
            asm!(
                "bfcvtn {numbers:v}.4h, {low:v}.4s",
                "bfcvtn2 {numbers:v}.8h, {high:v}.4s",
                numbers = out(vreg) numbers,
                low = in(vreg) low,
                high = in(vreg) high,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        numbers
    }

    /// The first `count` numbers from `at` on, at most a vector of them, then zeros.
    ///
    /// # Safety
    /// They are there.
    #[inline]
    #[expect(unsafe_code, reason = "reads by an address")]
    #[target_feature(enable = "neon")]
    unsafe fn first(at: *const f32, count: usize) -> float32x4_t {
        let mut numbers = [0.0; LANES];
        // SAFETY: the caller's promise; `numbers` holds a vector.
        unsafe {
            std::ptr::copy_nonoverlapping(at, numbers.as_mut_ptr(), count.min(LANES));
            vld1q_f32(numbers.as_ptr())
        }
    }

    /// # Safety
    /// The processor has BF16; `values` are `count` numbers, and `out` has half as many places, rounded up.
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "neon,bf16")]
    pub(super) unsafe fn along(values: *const f32, count: usize, out: *mut Pair) {
        let whole = count / (2 * LANES) * 2 * LANES;
        for at in (0..whole).step_by(2 * LANES) {
            // SAFETY: eight more numbers are there, and four places.
            unsafe {
                let (low, high) = (vld1q_f32(values.add(at)), vld1q_f32(values.add(at + LANES)));
                vst1q_u16(out.add(at / 2).cast(), rounded(low, high));
            }
        }
        let rest = count - whole;
        if rest > 0 {
            let mut pairs = [Pair::default(); LANES];
            // SAFETY: what is there of eight numbers is read, and half as many places, rounded up, are written; where
            // there is none of the upper half, nothing is read past the end.
            unsafe {
                let low = first(values.add(whole), rest);
                let high = first(
                    values.add(whole + rest.min(LANES)),
                    rest.saturating_sub(LANES),
                );
                vst1q_u16(pairs.as_mut_ptr().cast(), rounded(low, high));
                let to = out.add(whole / 2);
                std::ptr::copy_nonoverlapping(pairs.as_ptr(), to, rest.div_ceil(2));
            }
        }
    }

    /// The pairs of two rows, or of one row with 0.
    ///
    /// # Safety
    /// The processor has BF16; each row is `count` numbers, and `out` has as many places.
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "neon,bf16")]
    pub(super) unsafe fn across(
        one: *const f32,
        next: Option<*const f32>,
        count: usize,
        out: *mut Pair,
    ) {
        /// The pairs of four numbers and those below them.
        #[inline]
        #[target_feature(enable = "neon,bf16")]
        fn pairs(one: float32x4_t, next: float32x4_t) -> uint16x8_t {
            let numbers = rounded(one, next);
            vzip1q_u16(numbers, vextq_u16::<4>(numbers, numbers))
        }
        let whole = count / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            // SAFETY: four more numbers and places are there.
            unsafe {
                let below = next.map_or(vdupq_n_f32(0.0), |next| vld1q_f32(next.add(at)));
                vst1q_u16(out.add(at).cast(), pairs(vld1q_f32(one.add(at)), below));
            }
        }
        let rest = count - whole;
        if rest > 0 {
            let mut last = [Pair::default(); LANES];
            // SAFETY: as many numbers are read, and as many places written, as there are.
            unsafe {
                let below = next.map_or(vdupq_n_f32(0.0), |next| first(next.add(whole), rest));
                let last_pairs = pairs(first(one.add(whole), rest), below);
                vst1q_u16(last.as_mut_ptr().cast(), last_pairs);
                std::ptr::copy_nonoverlapping(last.as_ptr(), out.add(whole), rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Numbers of all kinds but those below the normal range, for which the product has 0.
    fn number() -> impl Strategy<Value = f32> {
        prop_oneof![
            8 => -3.0f32..3.0,
            2 => any::<f32>().prop_filter("normal", |x| x.is_normal() || *x == 0.0),
            1 => Just(f32::INFINITY),
            1 => Just(f32::NAN),
        ]
    }

    proptest! {
        #[test]
        fn the_same_pairs_at_every_level(
            values in prop::collection::vec(number(), 0..400),
            stride in 1usize..60,
            past in 0usize..5,
        ) {
            let mut expected = vec![Pair::default(); values.len().div_ceil(2)];
            along::<f32>(Level::Portable, &values, &mut expected);
            let depth = values.len() / stride;
            let (count, width) = (stride.saturating_sub(past), stride + past);
            let mut rows = vec![Pair::default(); depth.div_ceil(2) * width];
            across::<f32>(Level::Portable, &values, stride, depth, count, width, &mut rows);
            for level in Level::available() {
                let mut out = vec![Pair(7); expected.len()];
                along::<f32>(level, &values, &mut out);
                prop_assert_eq!(&out, &expected, "{:?}", level);
                let mut out = vec![Pair(7); rows.len()];
                across::<f32>(level, &values, stride, depth, count, width, &mut out);
                prop_assert_eq!(&out, &rows, "{:?}", level);
            }
        }
    }
}
