//! Which vector instructions this processor has, found once at run time.
//!
//! Kernels are compiled for the baseline of the target and, beside it, for wider instruction sets;
//! [`Level::detect`] chooses among them, so that one binary serves every machine of an architecture. The environment
//! variable `SPARSAM_CPU_LEVEL`, a [`Level::name`], lowers the level for tests and measurements; it can never raise it
//! above what the processor has.

use std::sync::OnceLock;

/// The environment variable that lowers the level.
pub const VARIABLE: &str = "SPARSAM_CPU_LEVEL";

/// A set of vector instructions of this architecture, from the least to the most capable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the compilation target guarantees.
    Portable,
    /// x86-64 with AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL and DQ, besides AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// x86-64 with AVX-512 BF16 too: products of bf16 numbers, summed in f32, at twice the rate of f32 on AMD's
    /// processors. On Intel's they take longer than those of f32, so that there this is but a step on the way to AMX.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// x86-64 with AMX for bf16 too, which the system lets this process use: products of bf16 numbers, summed in f32, at
    /// up to sixteen times the rate of f32.
    #[cfg(target_arch = "x86_64")]
    AmxBf16,
    /// AArch64 with Advanced SIMD, which nearly every such processor has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// AArch64 with its BF16 extension too: products of bf16 numbers, summed in f32, at twice the rate of f32.
    #[cfg(target_arch = "aarch64")]
    NeonBf16,
}

impl Level {
    /// All levels of this architecture, from the least to the most capable.
    pub const ALL: &[Self] = &[
        Self::Portable,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512Bf16,
        #[cfg(target_arch = "x86_64")]
        Self::AmxBf16,
        #[cfg(target_arch = "aarch64")]
        Self::Neon,
        #[cfg(target_arch = "aarch64")]
        Self::NeonBf16,
    ];

    /// The levels of this processor.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL
            .iter()
            .copied()
            .filter(|level| *level <= Self::detect())
    }

    /// What `SPARSAM_CPU_LEVEL` calls it: `avx512bf16`, say.
    pub fn name(self) -> String {
        format!("{self:?}").to_ascii_lowercase()
    }

    /// The highest level of this processor, or that of the environment where it is lower, cached. What is no level
    /// there counts as nothing; see [`Level::of_environment`].
    pub fn detect() -> Self {
        static LEVEL: OnceLock<Level> = OnceLock::new();
        *LEVEL.get_or_init(|| {
            let found = Self::of_processor();
            let asked = Self::of_environment().unwrap_or_default();
            asked.map_or(found, |asked| found.min(asked))
        })
    }

    /// The level that the environment names.
    ///
    /// # Errors
    /// The name, if it is none of a level of this architecture.
    pub fn of_environment() -> Result<Option<Self>, String> {
        let Some(name) = std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let name = name.to_string_lossy();
        let level = Self::ALL.iter().find(|level| level.name() == name);
        level.copied().map(Some).ok_or_else(|| name.into_owned())
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
            (true, true, true) if amx() => Self::AmxBf16,
            // Of an Xeon's vector instructions that of bf16, 32 products, takes as long as four of f32, 16 products each
            // (measured on one with AMX).
            (true, true, true) if !of_intel() => Self::Avx512Bf16,
            (true, true, _) => Self::Avx512,
            (true, false, _) => Self::Avx2,
            _ => Self::Portable,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn of_processor() -> Self {
        let neon = std::arch::is_aarch64_feature_detected!("neon");
        let bf16 = std::arch::is_aarch64_feature_detected!("bf16");
        match (neon, bf16) {
            (true, true) => Self::NeonBf16,
            (true, false) => Self::Neon,
            _ => Self::Portable,
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn of_processor() -> Self {
        Self::Portable
    }
}

/// Whether Intel made the processor.
#[cfg(target_arch = "x86_64")]
#[allow(
    unsafe_code,
    unused_unsafe,
    reason = "an instruction, safe to name in newer versions of the language"
)]
fn of_intel() -> bool {
    // SAFETY: every processor of this architecture has the instruction and its leaf 0, which names the maker.
    let leaf = unsafe { std::arch::x86_64::__cpuid_count(0, 0) };
    let maker = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    maker.as_flattened() == b"GenuineIntel"
}

/// Whether the processor has AMX for bf16 and the system lets this process use its registers, which Linux does when it
/// is asked (`Documentation/arch/x86/xstate.rst` of its sources).
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[allow(
    unsafe_code,
    unused_unsafe,
    reason = "an instruction, safe to name in newer versions of the language, and a call of the system"
)]
fn amx() -> bool {
    /// `ARCH_REQ_XCOMP_PERM` of `arch_prctl`.
    const REQUEST: libc::c_long = 0x1023;
    /// The state component of the registers' data, `XTILEDATA`.
    const TILE_DATA: libc::c_long = 18;
    /// AMX-BF16 and AMX-TILE among the features of leaf 7, register EDX.
    const FEATURES: u32 = 1 << 22 | 1 << 24;
    // SAFETY: every processor of this architecture has the instruction, and those of AVX-512, which we know of, the leaf.
    let leaf = unsafe { std::arch::x86_64::__cpuid_count(7, 0) };
    if leaf.edx & FEATURES != FEATURES {
        return false;
    }
    // SAFETY: asks for a permission, and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_never_above_the_processor() {
        assert!(Level::detect() <= Level::of_processor());
    }

    #[test]
    fn every_level_has_a_name_of_its_own() {
        let names: Vec<String> = Level::ALL.iter().map(|level| level.name()).collect();
        assert_eq!(names[0], "portable");
        assert!(names.is_sorted_by(|a, b| a != b), "{names:?}");
    }

    /// A run on an emulated processor says which level that has.
    #[test]
    fn the_level_is_the_one_expected_of_this_processor() {
        if let Ok(expected) = std::env::var("SPARSAM_TEST_LEVEL") {
            assert_eq!(Level::of_processor().name(), expected);
        }
    }
}
