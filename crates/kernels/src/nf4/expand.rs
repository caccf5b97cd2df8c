//! From codes of four bits to numbers: each code is an index into a table of sixteen.

use half::bf16;

use crate::cpu::Level;

/// A number that is looked up in a table of sixteen.
pub trait Lookup: Copy {
    /// `out[2i] = table[packed[i] >> 4]`, `out[2i + 1] = table[packed[i] & 15]`; an odd last number has
    /// only the first of the two.
    fn look_up(level: Level, packed: &[u8], table: &[Self; 16], out: &mut [Self]) {
        let _ = level;
        portable(packed, table, out);
    }
}

impl Lookup for f64 {}

macro_rules! by_vectors {
    ($number:ty, $whole:ident) => {
        impl Lookup for $number {
            #[expect(
                unsafe_code,
                reason = "the vector instructions that look up in a register"
            )]
            fn look_up(level: Level, packed: &[u8], table: &[Self; 16], out: &mut [Self]) {
                #[cfg(target_arch = "x86_64")]
                if level >= Level::Avx512 {
                    assert!(packed.len() >= out.len().div_ceil(2));
                    assert!(level <= Level::detect(), "the processor lacks {level:?}");
                    // SAFETY: the processor has AVX-512 F and BW, and there is a byte for every two numbers.
                    let done = unsafe { avx512::$whole(packed, table, out) };
                    return portable(&packed[done / 2..], table, &mut out[done..]);
                }
                #[cfg(target_arch = "aarch64")]
                if level >= Level::Neon {
                    assert!(packed.len() >= out.len().div_ceil(2));
                    // SAFETY: the processor has Advanced SIMD, and there is a byte for every two numbers.
                    let done = unsafe { neon::$whole(packed, table, out) };
                    return portable(&packed[done / 2..], table, &mut out[done..]);
                }
                let _ = level;
                portable(packed, table, out);
            }
        }
    };
}

by_vectors!(f32, plain);
by_vectors!(bf16, rounded);

/// Writes the numbers from index `at` on.
pub(super) fn expand<T: Lookup>(
    level: Level,
    packed: &[u8],
    mut at: usize,
    table: &[T; 16],
    mut out: &mut [T],
) {
    if at % 2 == 1 {
        let Some((first, rest)) = out.split_first_mut() else {
            return;
        };
        *first = table[usize::from(packed[at / 2] & 15)];
        at += 1;
        out = rest;
    }
    T::look_up(
        level,
        &packed[at / 2..][..out.len().div_ceil(2)],
        table,
        out,
    );
}

fn portable<T: Copy>(packed: &[u8], table: &[T; 16], out: &mut [T]) {
    let mut pairs = out.chunks_exact_mut(2);
    for (pair, byte) in (&mut pairs).zip(packed) {
        pair[0] = table[usize::from(byte >> 4)];
        pair[1] = table[usize::from(byte & 15)];
    }
    if let ([last], Some(byte)) = (pairs.into_remainder(), packed.last()) {
        *last = table[usize::from(byte >> 4)];
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    #[allow(clippy::wildcard_imports, reason = "the vector instructions")]
    use std::arch::x86_64::*;

    use super::bf16;

    /// Writes whole vectors of numbers; returns how many numbers that is.
    ///
    /// # Safety
    /// The processor has AVX-512 F; `packed` has a byte for every two numbers of `out`.
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn plain(packed: &[u8], table: &[f32; 16], out: &mut [f32]) -> usize {
        const NUMBERS: usize = 16;
        // SAFETY: the table holds sixteen f32.
        let table = unsafe { _mm512_loadu_ps(table.as_ptr()) };
        let low = _mm512_set1_epi64(15);
        for (out, packed) in out
            .chunks_exact_mut(NUMBERS)
            .zip(packed.chunks_exact(NUMBERS / 2))
        {
            // SAFETY: eight bytes are read, sixteen f32 written.
            unsafe {
                let bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64(packed.as_ptr().cast()));
                // The high half of each byte in the lower, the low half in the upper of two indices.
                let second = _mm512_slli_epi64::<32>(_mm512_and_si512(bytes, low));
                let indices = _mm512_or_si512(_mm512_srli_epi64::<4>(bytes), second);
                _mm512_storeu_ps(out.as_mut_ptr(), _mm512_permutexvar_ps(indices, table));
            }
        }
        out.len() / NUMBERS * NUMBERS
    }

    /// As [`plain`], of bf16.
    ///
    /// # Safety
    /// The processor has AVX-512 F and BW; `packed` has a byte for every two numbers of `out`.
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn rounded(packed: &[u8], table: &[bf16; 16], out: &mut [bf16]) -> usize {
        const NUMBERS: usize = 32;
        // SAFETY: the table holds sixteen bf16, 32 bytes.
        let table = unsafe { _mm256_loadu_si256(table.as_ptr().cast()) };
        let table = _mm512_castsi256_si512(table);
        let low = _mm512_set1_epi32(15);
        for (out, packed) in out
            .chunks_exact_mut(NUMBERS)
            .zip(packed.chunks_exact(NUMBERS / 2))
        {
            // SAFETY: sixteen bytes are read, 32 bf16 written; no index is above 15, the table's end.
            unsafe {
                let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(packed.as_ptr().cast()));
                let second = _mm512_slli_epi32::<16>(_mm512_and_si512(bytes, low));
                let indices = _mm512_or_si512(_mm512_srli_epi32::<4>(bytes), second);
                let numbers = _mm512_permutexvar_epi16(indices, table);
                _mm512_storeu_si512(out.as_mut_ptr().cast(), numbers);
            }
        }
        out.len() / NUMBERS * NUMBERS
    }
}

/// A table has a register for each byte of its numbers; numbers are looked up byte by byte and stored interleaved.
#[cfg(target_arch = "aarch64")]
mod neon {
    #[allow(clippy::wildcard_imports, reason = "the vector instructions")]
    use std::arch::aarch64::*;

    use super::bf16;

    /// Bytes of codes that are read at a time.
    const BYTES: usize = 16;

    /// The codes of sixteen bytes, in their order.
    #[inline]
    #[target_feature(enable = "neon")]
    fn codes(packed: &[u8; BYTES]) -> [uint8x16_t; 2] {
        // SAFETY: sixteen bytes.
        #[expect(unsafe_code, reason = "reads a vector")]
        let bytes = unsafe { vld1q_u8(packed.as_ptr()) };
        let (first, second) = (vshrq_n_u8::<4>(bytes), vandq_u8(bytes, vdupq_n_u8(15)));
        [vzip1q_u8(first, second), vzip2q_u8(first, second)]
    }

    /// Writes whole vectors of numbers; returns how many numbers that is.
    ///
    /// # Safety
    /// The processor has Advanced SIMD; `packed` has a byte for every two numbers of `out`.
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn plain(packed: &[u8], table: &[f32; 16], out: &mut [f32]) -> usize {
        // SAFETY: the table holds sixteen numbers of four bytes, which are parted.
        let table = unsafe { vld4q_u8(table.as_ptr().cast()) };
        let (out, _) = out.as_chunks_mut::<{ 2 * BYTES }>();
        for (out, packed) in out.iter_mut().zip(packed.as_chunks().0) {
            let (halves, _) = out.as_chunks_mut::<BYTES>();
            for (out, codes) in halves.iter_mut().zip(codes(packed)) {
                let numbers = uint8x16x4_t(
                    vqtbl1q_u8(table.0, codes),
                    vqtbl1q_u8(table.1, codes),
                    vqtbl1q_u8(table.2, codes),
                    vqtbl1q_u8(table.3, codes),
                );
                // SAFETY: sixteen numbers of four bytes are written.
                unsafe { vst4q_u8(out.as_mut_ptr().cast(), numbers) };
            }
        }
        out.len() * 2 * BYTES
    }

    /// As [`plain`], of bf16.
    ///
    /// # Safety
    /// As of [`plain`].
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "neon")]
    pub(super) unsafe fn rounded(packed: &[u8], table: &[bf16; 16], out: &mut [bf16]) -> usize {
        // SAFETY: the table holds sixteen numbers of two bytes, which are parted.
        let table = unsafe { vld2q_u8(table.as_ptr().cast()) };
        let (out, _) = out.as_chunks_mut::<{ 2 * BYTES }>();
        for (out, packed) in out.iter_mut().zip(packed.as_chunks().0) {
            let (halves, _) = out.as_chunks_mut::<BYTES>();
            for (out, codes) in halves.iter_mut().zip(codes(packed)) {
                let numbers = uint8x16x2_t(vqtbl1q_u8(table.0, codes), vqtbl1q_u8(table.1, codes));
                // SAFETY: sixteen numbers of two bytes are written.
                unsafe { vst2q_u8(out.as_mut_ptr().cast(), numbers) };
            }
        }
        out.len() * 2 * BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_looks_up_the_same() {
        let packed: Vec<u8> = (0..200u32).map(|i| (i * 37 % 256) as u8).collect();
        let plain: [f32; 16] = std::array::from_fn(|i| i as f32 - 7.5);
        let rounded = plain.map(bf16::from_f32);
        for level in Level::available() {
            for (at, length) in [
                (0, 400),
                (1, 399),
                (3, 64),
                (8, 33),
                (5, 1),
                (0, 0),
                (40, 95),
            ] {
                let code = |i: usize| packed[i / 2] >> (4 * (1 - i % 2)) & 15;
                let codes = (at..at + length).map(|i| usize::from(code(i)));
                let mut numbers = vec![f32::NAN; length];
                expand(level, &packed, at, &plain, &mut numbers);
                assert!(
                    codes.clone().map(|code| plain[code]).eq(numbers),
                    "{level:?} {at} {length}"
                );
                let mut numbers = vec![bf16::NAN; length];
                expand(level, &packed, at, &rounded, &mut numbers);
                assert!(
                    codes.map(|code| rounded[code]).eq(numbers),
                    "{level:?} {at} {length}"
                );
            }
        }
    }
}
