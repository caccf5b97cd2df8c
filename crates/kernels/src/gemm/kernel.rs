//! The microkernels: one tile of output, a few rows by a few vectors, held in registers.
//!
//! [`Kernel::multiply`] adds `left · right` to a tile, where `left` is read row by row from where it
//! lies and `right` is a packed panel. The portable version is the meaning; the vector versions are
//! tested against it by the property test of the driver.

use crate::cpu::Level;
use crate::host::Element;

/// Rows and columns of the tile a microkernel computes at a time.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    /// Greatest number of rows.
    pub rows: usize,
    /// Number of columns, which is also the width of a packed panel.
    pub columns: usize,
}

/// The operands of one call of a microkernel.
pub struct Product<'a, T> {
    /// Length of the sums.
    pub depth: usize,
    /// Row `r` is `left[r * left_stride..][..depth]`.
    pub left: &'a [T],
    /// Distance of two rows of `left`.
    pub left_stride: usize,
    /// Packed panel, `right[d * columns + column]`.
    pub right: &'a [T],
}

/// An element type with microkernels.
pub trait Kernel: Element {
    /// The tile of the microkernel at this level.
    fn tile(level: Level) -> Tile;

    /// `out = left · right`, or `out += …` if `add`, for `rows` rows of a tile with the given stride.
    fn multiply(
        level: Level,
        rows: usize,
        product: &Product<Self>,
        out: &mut [Self],
        stride: usize,
        add: bool,
    );

    /// The inner product of two slices of equal length.
    fn dot(level: Level, x: &[Self], y: &[Self]) -> Self;
}

const PORTABLE: Tile = Tile {
    rows: 4,
    columns: 8,
};

impl Kernel for f64 {
    fn tile(_: Level) -> Tile {
        PORTABLE
    }

    fn multiply(
        _: Level,
        rows: usize,
        product: &Product<Self>,
        out: &mut [Self],
        stride: usize,
        add: bool,
    ) {
        portable(rows, product, out, stride, add);
    }

    fn dot(_: Level, x: &[Self], y: &[Self]) -> Self {
        portable_dot(x, y)
    }
}

impl Kernel for f32 {
    fn tile(level: Level) -> Tile {
        match level {
            Level::Portable => PORTABLE,
            Level::Avx2 => Tile {
                rows: 6,
                columns: 16,
            },
            Level::Avx512 => Tile {
                rows: 12,
                columns: 32,
            },
        }
    }

    #[expect(unsafe_code, reason = "the vector microkernels")]
    fn multiply(
        level: Level,
        rows: usize,
        product: &Product<Self>,
        out: &mut [Self],
        stride: usize,
        add: bool,
    ) {
        #[cfg(target_arch = "x86_64")]
        {
            let tile = Self::tile(level);
            if level != Level::Portable {
                assert!((1..=tile.rows).contains(&rows));
                assert!(product.left.len() >= (rows - 1) * product.left_stride + product.depth);
                assert!(product.right.len() >= product.depth * tile.columns);
                assert!(out.len() >= (rows - 1) * stride + tile.columns);
            }
            match level {
                Level::Portable => {}
                // SAFETY: the processor has the instructions of `level` (the driver checked it against
                // `Level::detect`), and the assertions above bound every access of the microkernel.
                Level::Avx2 => return unsafe { avx2::dispatch(rows, product, out, stride, add) },
                Level::Avx512 => {
                    // SAFETY: as above.
                    return unsafe { avx512::dispatch(rows, product, out, stride, add) };
                }
            }
        }
        let _ = level;
        portable(rows, product, out, stride, add);
    }

    #[expect(unsafe_code, reason = "the vector inner product")]
    fn dot(level: Level, x: &[Self], y: &[Self]) -> Self {
        assert_eq!(x.len(), y.len());
        #[cfg(target_arch = "x86_64")]
        if level >= Level::Avx2 {
            // SAFETY: the processor has AVX2 and FMA, and the lengths are equal.
            return unsafe { avx2::dot(x, y) };
        }
        let _ = level;
        portable_dot(x, y)
    }
}

fn portable<T: Element>(
    rows: usize,
    product: &Product<T>,
    out: &mut [T],
    stride: usize,
    add: bool,
) {
    const COLUMNS: usize = PORTABLE.columns;
    for row in 0..rows {
        let left = &product.left[row * product.left_stride..][..product.depth];
        let mut sums = [T::ZERO; COLUMNS];
        for (value, right) in left.iter().zip(product.right.chunks_exact(COLUMNS)) {
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum += *value * *right;
            }
        }
        for (out, sum) in out[row * stride..][..COLUMNS].iter_mut().zip(sums) {
            *out = if add { *out + sum } else { sum };
        }
    }
}

fn portable_dot<T: Element>(x: &[T], y: &[T]) -> T {
    let mut sums = [T::ZERO; 8];
    let (x8, y8) = (x.chunks_exact(8), y.chunks_exact(8));
    let mut sum = T::ZERO;
    for (x, y) in x8.remainder().iter().zip(y8.remainder()) {
        sum += *x * *y;
    }
    for (x, y) in x8.zip(y8) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += *x * *y;
        }
    }
    sum + sums.into_iter().sum()
}

/// A microkernel of `$rows` rows by two vectors, for every number of rows up to that.
#[cfg(target_arch = "x86_64")]
macro_rules! microkernel {
    ($features:literal, $lanes:literal, $load:ident, $store:ident, $zero:ident, $set1:ident, $fma:ident, $add:ident, [$($rows:literal),*]) => {
        use std::arch::x86_64::*;
        use super::Product;

        /// # Safety
        /// The processor has the features; `product` and `out` hold a tile of `rows` rows.
        #[expect(unsafe_code, reason = "vector instructions")]
        pub(super) unsafe fn dispatch(rows: usize, product: &Product<f32>, out: &mut [f32], stride: usize, add: bool) {
            match rows {
                // SAFETY: passed on from the caller, `ROWS` is `rows`.
                $($rows => unsafe { multiply::<$rows>(product, out, stride, add) },)*
                _ => unreachable!("the tile has no {rows} rows"),
            }
        }

        /// # Safety
        /// As [`dispatch`], for `ROWS` rows.
        #[expect(unsafe_code, reason = "vector instructions")]
        #[target_feature(enable = $features)]
        unsafe fn multiply<const ROWS: usize>(product: &Product<f32>, out: &mut [f32], stride: usize, add: bool) {
            let (left, step) = (product.left.as_ptr(), product.left_stride);
            let mut right = product.right.as_ptr();
            let mut sums = [[$zero(); 2]; ROWS];
            for depth in 0..product.depth {
                // SAFETY: `right` holds `depth` times two vectors, each row of `left` `depth` numbers.
                unsafe {
                    let (first, second) = ($load(right), $load(right.add($lanes)));
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let value = $set1(*left.add(row * step + depth));
                        sums[0] = $fma(value, first, sums[0]);
                        sums[1] = $fma(value, second, sums[1]);
                    }
                    right = right.add(2 * $lanes);
                }
            }
            let out = out.as_mut_ptr();
            for (row, [mut first, mut second]) in sums.into_iter().enumerate() {
                // SAFETY: `out` holds `ROWS` rows of two vectors, `stride` apart.
                unsafe {
                    let to = out.add(row * stride);
                    if add {
                        first = $add(first, $load(to));
                        second = $add(second, $load(to.add($lanes)));
                    }
                    $store(to, first);
                    $store(to.add($lanes), second);
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    microkernel!(
        "avx2,fma",
        8,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_setzero_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        _mm256_add_ps,
        [1, 2, 3, 4, 5, 6]
    );

    /// # Safety
    /// The processor has AVX2 and FMA; `x` and `y` are equally long.
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn dot(x: &[f32], y: &[f32]) -> f32 {
        let mut sums = [_mm256_setzero_ps(); 4];
        let (x32, y32) = (x.chunks_exact(32), y.chunks_exact(32));
        let mut rest = 0.0;
        for (x, y) in x32.remainder().iter().zip(y32.remainder()) {
            rest = f32::mul_add(*x, *y, rest);
        }
        for (x, y) in x32.zip(y32) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the chunks hold 32 numbers, `i` is below 4.
                unsafe {
                    let x = _mm256_loadu_ps(x.as_ptr().add(8 * i));
                    let y = _mm256_loadu_ps(y.as_ptr().add(8 * i));
                    *sum = _mm256_fmadd_ps(x, y, *sum);
                }
            }
        }
        let sum = _mm256_add_ps(
            _mm256_add_ps(sums[0], sums[1]),
            _mm256_add_ps(sums[2], sums[3]),
        );
        let mut lanes = [0f32; 8];
        // SAFETY: `lanes` holds eight numbers.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
        rest + lanes.iter().sum::<f32>()
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    microkernel!(
        "avx512f",
        16,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_setzero_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps,
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    );
}
