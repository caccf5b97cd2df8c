//! Loops compiled once for each instruction level, and the exponential they share.
//!
//! A loop over slices is written once, plainly, in [`levels!`]; the macro compiles it for the
//! baseline of the target and, on x86-64, for AVX2 with FMA and for AVX-512, on AArch64 with fused
//! multiplication and addition, and the compiler vectorises each. A call names the [`Level`](crate::cpu::Level), so that tests can compare the twins. Loops work on
//! [`LANES`] independent partial results, which also fixes the order of every sum.

use half::bf16;

use crate::gemm::{Kernel, Pooled};
use crate::host::Element;
use crate::nf4::Lookup;

/// Partial results that a reduction carries along; a multiple of every vector's width.
pub(crate) const LANES: usize = 16;
/// Numbers whose sum is formed in the element type before it is added to a sum in f64.
const SUM_BLOCK: usize = 16 * LANES;

/// An element type with the operations that the vectorised loops need.
pub trait Real: Element + Kernel + Lookup + Pooled {
    /// `self · b + c`, rounded once where `FMA` says that the instruction is at hand.
    fn mul_add<const FMA: bool>(self, b: Self, c: Self) -> Self;
    /// `eˣ` without a call or a branch, within 2 ulp; f64 uses the standard library's.
    fn exp_inline<const FMA: bool>(self) -> Self;
    /// The error function.
    fn erf(self) -> Self;
    /// The same numbers, if they are f32.
    fn as_f32(values: &[Self]) -> Option<&[f32]>;
}

impl Real for f32 {
    #[inline(always)]
    fn mul_add<const FMA: bool>(self, b: Self, c: Self) -> Self {
        if FMA {
            f32::mul_add(self, b, c)
        } else {
            self * b + c
        }
    }

    /// Cephes' `expf` (S. Moshier, netlib.org/cephes): `x = n ln 2 + r` with ln 2 in two parts, a
    /// polynomial of degree 7 in `r`, and a scaling by `2ⁿ` in two steps, so that results below the
    /// normal range and infinity come out right.
    #[inline(always)]
    fn exp_inline<const FMA: bool>(self) -> Self {
        /// Adding and subtracting it rounds to a whole number: 1.5 · 2²³.
        const ROUND: f32 = 12_582_912.0;
        let x = if self > 89.0 { 89.0 } else { self };
        let x = if x < -104.0 { -104.0 } else { x };
        let shifted = <f32 as Real>::mul_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = <f32 as Real>::mul_add::<FMA>(n, -0.693_359_4, x);
        let r = <f32 as Real>::mul_add::<FMA>(n, 2.121_944_4e-4, r);
        let mut p = 1.987_569_1e-4;
        for c in [
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            5e-1,
        ] {
            p = <f32 as Real>::mul_add::<FMA>(p, r, c);
        }
        p = <f32 as Real>::mul_add::<FMA>(p, r * r, r) + 1.0;
        let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
        let half = n >> 1;
        let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
        p * power(half) * power(n.wrapping_sub(half))
    }

    fn erf(self) -> Self {
        candle_core::cpu::erf::erf_f64(f64::from(self)) as f32
    }

    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }
}

impl Real for f64 {
    #[inline(always)]
    fn mul_add<const FMA: bool>(self, b: Self, c: Self) -> Self {
        if FMA {
            f64::mul_add(self, b, c)
        } else {
            self * b + c
        }
    }

    #[inline(always)]
    fn exp_inline<const FMA: bool>(self) -> Self {
        f64::exp(self)
    }

    fn erf(self) -> Self {
        candle_core::cpu::erf::erf_f64(self)
    }

    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
}

/// Compiles one function of slices for every instruction level.
///
/// The function is generic over a type (a [`Real`], as a rule) and gains a first argument, the level; its body may use
/// the constant `FMA`.
macro_rules! levels {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$t:ident: $bound:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "enters code compiled for wider instruction sets"))]
        $vis fn $name<$t: $bound>(level: $crate::cpu::Level, $($arg: $ty),*) $(-> $ret)? {
            #[allow(clippy::inline_always, clippy::extra_unused_type_parameters, reason = "must be compiled within each of its callers")]
            #[inline(always)]
            fn body<$t: $bound, const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<$t: $bound>($($arg: $ty),*) $(-> $ret)? {
                body::<$t, true>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")]
            fn avx512<$t: $bound>($($arg: $ty),*) $(-> $ret)? {
                body::<$t, true>($($arg),*)
            }

            assert!(level <= $crate::cpu::Level::detect(), "the processor lacks {level:?}");
            match level {
                $crate::cpu::Level::Portable => body::<$t, false>($($arg),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the processor has the instructions of `level`, by the assertion.
                $crate::cpu::Level::Avx2 => unsafe { avx2::<$t>($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Level::Avx512 | $crate::cpu::Level::Avx512Bf16 | $crate::cpu::Level::AmxBf16 => {
                    // SAFETY: as above.
                    unsafe { avx512::<$t>($($arg),*) }
                },
                // Vectors of Advanced SIMD are what the target guarantees.
                #[cfg(target_arch = "aarch64")]
                $crate::cpu::Level::Neon | $crate::cpu::Level::NeonBf16 => body::<$t, true>($($arg),*),
            }
        }
    };
}
pub(crate) use levels;

/// Asks the second-level cache for numbers that will be read soon. Rows that lie apart, as those of a panel do, the
/// processor does not foresee by itself.
#[inline]
#[cfg_attr(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    expect(unsafe_code, reason = "an instruction without a name in the language")
)]
pub(crate) fn prefetch<T>(values: &[T]) {
    for line in values.chunks((64 / size_of::<T>()).max(1)) {
        let line = line.as_ptr();
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint, of an address that may be read.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(line.cast());
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("prfm pldl2keep, [{line}]", line = in(reg) line, options(nostack, readonly, preserves_flags));
        }
        let _ = line;
    }
}

levels! {
    /// `out = values`, exact.
    pub(crate) fn widen<T: Real>(values: &[bf16], out: &mut [T]) {
        for (out, value) in out.iter_mut().zip(values) {
            *out = T::from_bf16_bits(value.to_bits());
        }
    }
}

levels! {
    /// `cap · tanh(x / cap)`, in place; `tanh y = 1 − 2 / (1 + e²ʸ)`.
    pub(crate) fn soften<T: Real>(values: &mut [T], cap: f64) {
        let (double, cap, twice) = (T::of(2.0 / cap), T::of(cap), T::of(2.0 * cap));
        for value in values.iter_mut() {
            let power = (*value * double).exp_inline::<FMA>();
            *value = cap - twice / (T::ONE + power);
        }
    }
}

/// Slope of [`soften`] where its result is `softened`: `1 − (softened / cap)²`.
#[inline(always)]
pub(crate) fn softened_slope<T: Real>(softened: T, cap: f64) -> T {
    let share = softened * T::of(1.0 / cap);
    T::ONE - share * share
}

/// `Σ x·y`: partial sums in the element type over short blocks, then a sum in f64.
#[inline(always)]
pub(crate) fn dot<T: Real, const FMA: bool>(x: &[T], y: &[T]) -> f64 {
    let mut total = 0.0;
    for (x, y) in x.chunks(SUM_BLOCK).zip(y.chunks(SUM_BLOCK)) {
        let mut sums = [T::ZERO; LANES];
        let (x_lanes, x_rest) = x.as_chunks::<LANES>();
        let (y_lanes, y_rest) = y.as_chunks::<LANES>();
        for (x, y) in x_lanes.iter().zip(y_lanes) {
            for lane in 0..LANES {
                sums[lane] = x[lane].mul_add::<FMA>(y[lane], sums[lane]);
            }
        }
        for ((x, y), sum) in x_rest.iter().zip(y_rest).zip(&mut sums) {
            *sum = x.mul_add::<FMA>(*y, *sum);
        }
        total += reduce(sums, |a, b| a + b).to_f64();
    }
    total
}

/// Combines the partial results in a tree.
#[inline(always)]
pub(crate) fn reduce<T: Copy>(mut lanes: [T; LANES], combine: impl Fn(T, T) -> T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The larger of two numbers; the second where the first is none.
#[inline(always)]
pub(crate) fn larger<T: Real>(a: T, b: T) -> T {
    if a > b { a } else { b }
}

/// The greatest of some numbers; −∞ of none.
#[inline(always)]
pub(crate) fn greatest<T: Real>(values: &[T]) -> T {
    let mut lanes = [T::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for part in whole {
        for lane in 0..LANES {
            lanes[lane] = larger(part[lane], lanes[lane]);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = larger(*value, *lane);
    }
    reduce(lanes, larger)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Level;

    levels! {
        fn exponentials<T: Real>(values: &mut [T]) {
            for value in values {
                *value = value.exp_inline::<FMA>();
            }
        }
    }

    #[test]
    fn the_exponential_is_within_two_ulp() {
        for level in Level::available() {
            let x: Vec<f32> = (0..400_000)
                .map(|i| (i as f32 - 210_000.0) * 4.3e-4)
                .collect();
            let mut y = x.clone();
            exponentials::<f32>(level, &mut y);
            for (x, y) in x.iter().zip(y) {
                let exact = f64::from(*x).exp();
                let nearest = exact as f32;
                let ulp = f64::from(nearest.next_up()) - f64::from(nearest);
                assert!(
                    (f64::from(y) - exact).abs() <= 2.0 * ulp || y == nearest,
                    "{level:?}: exp({x}) = {y}, not {exact}"
                );
            }
        }
    }

    #[test]
    fn the_exponential_keeps_its_ends() {
        for level in Level::available() {
            let mut y = [
                0.0,
                -0.0,
                f32::NEG_INFINITY,
                -200.0,
                88.7,
                100.0,
                f32::INFINITY,
                f32::NAN,
            ];
            exponentials::<f32>(level, &mut y);
            assert_eq!(y[..4], [1.0, 1.0, 0.0, 0.0]);
            assert!((y[4] / 88.7f32.exp() - 1.0).abs() < 1e-6);
            assert_eq!(y[5..7], [f32::INFINITY, f32::INFINITY]);
            assert!(y[7].is_nan());
        }
    }

    levels! {
        fn inner<T: Real>(x: &[T], y: &[T]) -> f64 {
            dot::<T, FMA>(x, y)
        }
    }

    #[test]
    fn inner_products_of_every_length() {
        for length in (0..70).chain([255, 256, 257, 1000]) {
            let x: Vec<f32> = (0..length).map(|i| (i % 7) as f32 - 3.0).collect();
            let y: Vec<f32> = (0..length).map(|i| (i % 5) as f32 - 2.0).collect();
            let exact: f32 = x.iter().zip(&y).map(|(x, y)| x * y).sum();
            for level in Level::available() {
                assert_eq!(inner::<f32>(level, &x, &y), f64::from(exact), "{level:?}");
            }
        }
    }
}
