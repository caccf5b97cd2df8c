//! Which vector instructions this processor has, found once at run time.
//!
//! Kernels are compiled for the baseline of the target and, beside it, for wider instruction sets;
//! [`Level::detect`] chooses among them, so that one binary serves every machine. The environment
//! variable `SPARSAM_CPU_LEVEL` (`portable`, `avx2`, `avx512`, `avx512bf16`) lowers the level for tests and
//! measurements; it can never raise it above what the processor has.

use std::sync::OnceLock;

/// A set of vector instructions, from the least to the most capable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the compilation target guarantees.
    Portable,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL and DQ, besides AVX2 and FMA.
    Avx512,
    /// x86-64 with AVX-512 BF16 too: products of bf16 numbers, summed in f32, at twice the rate of f32.
    Avx512Bf16,
}

impl Level {
    /// All levels, from the least to the most capable.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// The levels of this processor.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL
            .into_iter()
            .filter(|level| *level <= Self::detect())
    }

    /// The highest level of this processor, cached.
    pub fn detect() -> Self {
        static LEVEL: OnceLock<Level> = OnceLock::new();
        *LEVEL.get_or_init(|| {
            let found = Self::of_processor();
            match std::env::var("SPARSAM_CPU_LEVEL").as_deref() {
                Ok("portable") => Self::Portable,
                Ok("avx2") => found.min(Self::Avx2),
                Ok("avx512") => found.min(Self::Avx512),
                _ => found,
            }
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn of_processor() -> Self {
        let avx2 = std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma");
        let avx512 = std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512dq");
        let bf16 = std::arch::is_x86_feature_detected!("avx512bf16");
        match (avx2, avx512, bf16) {
            (true, true, true) => Self::Avx512Bf16,
            (true, true, false) => Self::Avx512,
            (true, false, _) => Self::Avx2,
            _ => Self::Portable,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn of_processor() -> Self {
        Self::Portable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_never_above_the_processor() {
        assert!(Level::detect() <= Level::of_processor());
    }
}
