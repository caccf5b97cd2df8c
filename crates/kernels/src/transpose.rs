//! Transposes of pieces of matrices, square tile by square tile.
//!
//! The portable version is the meaning. Numbers of four bytes are turned in registers where the processor has
//! AVX2, AVX-512 or Advanced SIMD: a compiler leaves the loop over a tile as one move for each number, which takes five times as
//! long.

use crate::cpu::Level;

/// What can be moved about without looking at it.
pub(crate) trait Plain: Copy + Default {}
impl<T: Copy + Default> Plain for T {}

/// `to[column · to_stride + row] = from[row · from_stride + column]`
///
/// # Panics
/// If `from` or `to` is too short.
pub(crate) fn transpose<T: Plain>(
    level: Level,
    from: &[T],
    from_stride: usize,
    rows: usize,
    columns: usize,
    to: &mut [T],
    to_stride: usize,
) {
    /// Rows and columns of a tile: its numbers stay in the first-level cache.
    const SIDE: usize = 8;
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(from.len() >= (rows - 1) * from_stride + columns);
    assert!(to.len() >= (columns - 1) * to_stride + rows);
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if size_of::<T>() == size_of::<u32>() && level > Level::Portable {
        assert!(level <= Level::detect(), "the processor lacks {level:?}");
        let turn = match level {
            Level::Portable => unreachable!("it is turned below"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::transpose,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 | Level::AmxBf16 => avx512::transpose,
            #[cfg(target_arch = "aarch64")]
            Level::Neon | Level::NeonBf16 => neon::transpose,
        };
        let (from, to) = (from.as_ptr().cast(), to.as_mut_ptr().cast());
        // SAFETY: the processor has the instructions of `level`; numbers of four bytes are moved whole, and the
        // assertions above bound every place that is read or written.
        #[expect(unsafe_code, reason = "the vector transposes")]
        unsafe {
            turn(from, from_stride, rows, columns, to, to_stride);
        }
        return;
    }
    let _ = level;
    for first_row in (0..rows).step_by(SIDE) {
        for first in (0..columns).step_by(SIDE) {
            for row in first_row..rows.min(first_row + SIDE) {
                for column in first..columns.min(first + SIDE) {
                    to[column * to_stride + row] = from[row * from_stride + column];
                }
            }
        }
    }
}

/// [`transpose`] of numbers of four bytes, of one instruction set: the names of what sets a tile to zero, loads and
/// stores a whole row of it, and loads and stores the first numbers of one by a mask.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! by_tiles {
    ($feature:literal, $zero:expr, $load:expr, $store:expr, $load_first:expr, $store_first:expr) => {
        /// # Safety
        /// The processor has the feature; `from` holds `rows` rows of `columns` numbers and `to` the reverse, as far
        /// apart as is said.
        #[expect(unsafe_code, reason = "vector instructions")]
        #[target_feature(enable = $feature)]
        pub(super) unsafe fn transpose(
            from: *const i32,
            from_stride: usize,
            rows: usize,
            columns: usize,
            to: *mut i32,
            to_stride: usize,
        ) {
            for row in (0..rows).step_by(SIDE) {
                let height = SIDE.min(rows - row);
                for column in (0..columns).step_by(SIDE) {
                    let width = SIDE.min(columns - column);
                    let mut tile = [$zero; SIDE];
                    // SAFETY: both lie within the matrices. There are `height` rows of `width` more numbers from `from`
                    // on, and as many places from `to` on; no others are read or written. Loops of a known length
                    // keep the tile in registers.
                    unsafe {
                        let from = from.add(row * from_stride + column);
                        let to = to.add(column * to_stride + row);
                        if (height, width) == (SIDE, SIDE) {
                            for (r, tile) in tile.iter_mut().enumerate() {
                                *tile = $load(from.add(r * from_stride));
                            }
                            for (c, turned) in turned(&tile).iter().enumerate() {
                                $store(to.add(c * to_stride), *turned);
                            }
                        } else {
                            let (in_row, in_column) = (first(width), first(height));
                            for (r, tile) in tile.iter_mut().enumerate().take(height) {
                                *tile = $load_first(from.add(r * from_stride), in_row);
                            }
                            for (c, turned) in turned(&tile).iter().enumerate().take(width) {
                                $store_first(to.add(c * to_stride), in_column, *turned);
                            }
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    /// Rows and columns of a tile.
    const SIDE: usize = 16;

    by_tiles!(
        "avx512f",
        _mm512_setzero_si512(),
        _mm512_loadu_epi32,
        _mm512_storeu_epi32,
        |at, mask| _mm512_maskz_loadu_epi32(mask, at),
        _mm512_mask_storeu_epi32
    );

    /// A mask of the first `count` of 16.
    fn first(count: usize) -> __mmask16 {
        u16::MAX >> (SIDE - count)
    }

    /// The columns of a tile of rows. Each step doubles the width of what lies in its place.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn turned(rows: &[__m512i; SIDE]) -> [__m512i; SIDE] {
        let mut twos = *rows;
        for i in (0..SIDE).step_by(2) {
            twos[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
            twos[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
        }
        let mut fours = twos;
        for i in (0..SIDE).step_by(4) {
            fours[i] = _mm512_unpacklo_epi64(twos[i], twos[i + 2]);
            fours[i + 1] = _mm512_unpackhi_epi64(twos[i], twos[i + 2]);
            fours[i + 2] = _mm512_unpacklo_epi64(twos[i + 1], twos[i + 3]);
            fours[i + 3] = _mm512_unpackhi_epi64(twos[i + 1], twos[i + 3]);
        }
        // Quarter `q` of `fours[i + c]` is now column `4 q + c` of the rows `i..i + 4`.
        let mut columns = fours;
        for c in 0..4 {
            let [a, b, d, e] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
            let (even_ab, odd_ab) = (
                _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b),
            );
            let (even_de, odd_de) = (
                _mm512_shuffle_i32x4::<0b10_00_10_00>(d, e),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(d, e),
            );
            columns[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(even_ab, even_de);
            columns[8 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(even_ab, even_de);
            columns[4 + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(odd_ab, odd_de);
            columns[12 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(odd_ab, odd_de);
        }
        columns
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    /// Rows and columns of a tile.
    const SIDE: usize = 8;

    by_tiles!(
        "avx2",
        _mm256_setzero_si256(),
        |at: *const i32| _mm256_loadu_si256(at.cast()),
        |at: *mut i32, turned| _mm256_storeu_si256(at.cast(), turned),
        _mm256_maskload_epi32,
        _mm256_maskstore_epi32
    );

    /// A mask of the first `count` of 8.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn first(count: usize) -> __m256i {
        let places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), places)
    }

    /// The columns of a tile of rows. Each step doubles the width of what lies in its place.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn turned(rows: &[__m256i; SIDE]) -> [__m256i; SIDE] {
        let mut twos = *rows;
        for i in (0..SIDE).step_by(2) {
            twos[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
            twos[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
        }
        let mut fours = twos;
        for i in (0..SIDE).step_by(4) {
            fours[i] = _mm256_unpacklo_epi64(twos[i], twos[i + 2]);
            fours[i + 1] = _mm256_unpackhi_epi64(twos[i], twos[i + 2]);
            fours[i + 2] = _mm256_unpacklo_epi64(twos[i + 1], twos[i + 3]);
            fours[i + 3] = _mm256_unpackhi_epi64(twos[i + 1], twos[i + 3]);
        }
        // Half `h` of `fours[i + c]` is now column `4 h + c` of the rows `i..i + 4`.
        let mut columns = fours;
        for c in 0..4 {
            columns[c] = _mm256_permute2x128_si256::<0x20>(fours[c], fours[4 + c]);
            columns[4 + c] = _mm256_permute2x128_si256::<0x31>(fours[c], fours[4 + c]);
        }
        columns
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    /// Rows and columns of a tile.
    const SIDE: usize = 4;

    by_tiles!(
        "neon",
        vdupq_n_s32(0),
        |at: *const i32| vld1q_s32(at),
        |at: *mut i32, turned| vst1q_s32(at, turned),
        |at: *const i32, count: usize| {
            let mut numbers = [0; SIDE];
            std::ptr::copy_nonoverlapping(at, numbers.as_mut_ptr(), count);
            vld1q_s32(numbers.as_ptr())
        },
        |at: *mut i32, count: usize, turned| {
            let mut numbers = [0; SIDE];
            vst1q_s32(numbers.as_mut_ptr(), turned);
            std::ptr::copy_nonoverlapping(numbers.as_ptr(), at, count);
        }
    );

    /// The first `count` of 4: there are no masks.
    fn first(count: usize) -> usize {
        count
    }

    /// The columns of a tile of rows.
    #[inline]
    #[target_feature(enable = "neon")]
    fn turned(rows: &[int32x4_t; SIDE]) -> [int32x4_t; SIDE] {
        let [a, b, c, d] = *rows;
        let (even_ac, odd_ac) = (vzip1q_s32(a, c), vzip2q_s32(a, c));
        let (even_bd, odd_bd) = (vzip1q_s32(b, d), vzip2q_s32(b, d));
        [
            vzip1q_s32(even_ac, even_bd),
            vzip2q_s32(even_ac, even_bd),
            vzip1q_s32(odd_ac, odd_bd),
            vzip2q_s32(odd_ac, odd_bd),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check<T: Plain + PartialEq + std::fmt::Debug>(
        level: Level,
        [rows, columns, past_row, past_column]: [usize; 4],
        number: impl Fn(usize) -> T,
    ) {
        let (from_stride, to_stride) = (columns + past_row, rows + past_column);
        let from: Vec<T> = (1..=rows * from_stride).map(&number).collect();
        let mut to = vec![T::default(); columns * to_stride];
        transpose(level, &from, from_stride, rows, columns, &mut to, to_stride);
        for column in 0..columns {
            for row in 0..to_stride {
                let expected = if row < rows {
                    from[row * from_stride + column]
                } else {
                    T::default()
                };
                assert_eq!(to[column * to_stride + row], expected, "{level:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_shape_at_every_level(rows in 0usize..50, columns in 0usize..50, past in (0usize..9, 0usize..9)) {
            let shape = [rows, columns, past.0, past.1];
            for level in Level::available() {
                check::<f32>(level, shape, |i| i as f32);
                check::<u32>(level, shape, |i| i as u32);
                check::<f64>(level, shape, |i| i as f64);
            }
        }
    }

    #[test]
    fn reads_and_writes_to_the_last_place_only() {
        for level in Level::available() {
            // The last row and the last column end where their slices end.
            let from: Vec<u32> = (0..18 * 20 - 3).collect();
            let mut to = vec![0; 16 * 19 + 18];
            transpose(level, &from, 20, 18, 17, &mut to, 19);
            assert_eq!(to[16 * 19 + 17], from[17 * 20 + 16]);
        }
    }

    #[test]
    #[should_panic(expected = "from.len()")]
    fn a_matrix_that_is_too_short_is_refused() {
        transpose(Level::detect(), &[0u32; 10], 4, 3, 4, &mut [0; 12], 3);
    }
}
