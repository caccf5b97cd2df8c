//! Dropout whose mask is a function of where it is used, and is therefore never stored.
//!
//! A number's fate depends on the run's seed, the step, the place in the model and the number's
//! index, through the counter-based generator Philox4x32-10 (Salmon, Moraes, Dror and Shaw,
//! "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011). The backward pass, a recomputed forward
//! pass and a resumed run see the same mask, on any number of threads.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::by_element;
use crate::cpu::Level;
use crate::host::{Fresh, tensor, view};
use crate::vector::{Real, levels};

/// Numbers of one task, a multiple of what a group of counters yields.
const CHUNK: usize = 1 << 13;
/// Counters that are run side by side.
const GROUP: usize = 16;
/// Random numbers of one counter.
const WORDS: usize = 4;

/// Where in a run a dropout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutKey {
    /// The run's seed.
    pub seed: u64,
    /// The micro-step, counted over the whole run.
    pub step: u64,
    /// The place in the model, different for every dropout of a step.
    pub site: u32,
}

/// Sets each number to zero with probability `p`, and scales the others by `1 / (1 − p)`.
///
/// The function is its own adjoint: the same call on the gradient gives the gradient of `x`. On a GPU they may be of bf16.
///
/// # Errors
/// `p` outside `[0, 1)`, a tensor of more than 2³⁴ numbers, or one that is not contiguous on the CPU.
pub fn dropout(x: &Tensor, p: f64, key: DropoutKey) -> Result<Tensor> {
    if !(0.0..1.0).contains(&p) {
        bail!("`dropout`: the probability {p} lies outside [0, 1)");
    }
    if x.elem_count().div_ceil(WORDS) > u32::MAX as usize {
        bail!(
            "`dropout`: a tensor of {} numbers is too large",
            x.elem_count()
        );
    }
    // Kept where the random word reaches the threshold: the share of words below it is p.
    let threshold = (p * 2f64.powi(32)).round() as u32;
    let scale = 1.0 / (1.0 - p);
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::dropout(x, threshold, scale, key);
    }
    let level = Level::detect();
    by_element!(x, T => {
        let values = view::<T>(x)?;
        let mut y = Fresh::<T>::new(values.len());
        y.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).enumerate().for_each(
            |(chunk, (y, x))| {
                let first = (chunk * (CHUNK / WORDS)) as u32;
                mask::<T>(level, x, first, key, threshold, scale, y);
            },
        );
        tensor(y.done(), x.shape())
    })
}

levels! {
    fn mask<T: Real>(
        x: &[T],
        first_counter: u32,
        key: DropoutKey,
        threshold: u32,
        scale: f64,
        y: &mut [T],
    ) {
        let scale = T::of(scale);
        let chunks = x.chunks(GROUP * WORDS).zip(y.chunks_mut(GROUP * WORDS));
        for (group, (x, y)) in chunks.enumerate() {
            let words = words(first_counter.wrapping_add((group * GROUP) as u32), key);
            let words = words.as_flattened();
            for ((y, x), word) in y.iter_mut().zip(x).zip(words) {
                *y = if *word >= threshold { *x * scale } else { T::ZERO };
            }
        }
    }
}

/// The words of [`GROUP`] counters from `first` on, word by word: `[word][counter]`.
#[inline(always)]
fn words(first: u32, key: DropoutKey) -> [[u32; GROUP]; WORDS] {
    let mut state = [
        [first; GROUP],
        [key.site; GROUP],
        [key.step as u32; GROUP],
        [(key.step >> 32) as u32; GROUP],
    ];
    for (lane, counter) in state[0].iter_mut().enumerate() {
        *counter = counter.wrapping_add(lane as u32);
    }
    philox(state, [key.seed as u32, (key.seed >> 32) as u32])
}

/// Ten rounds of Philox4x32 on `N` counters side by side.
#[inline(always)]
fn philox<const N: usize>(mut state: [[u32; N]; WORDS], mut key: [u32; 2]) -> [[u32; N]; WORDS] {
    const ROUNDS: usize = 10;
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    /// The golden ratio and √3 − 1, as fractions of 2³².
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for _ in 0..ROUNDS {
        let mut next = [[0; N]; WORDS];
        for lane in 0..N {
            let first = u64::from(MULTIPLIERS[0]) * u64::from(state[0][lane]);
            let second = u64::from(MULTIPLIERS[1]) * u64::from(state[2][lane]);
            next[0][lane] = (second >> 32) as u32 ^ state[1][lane] ^ key[0];
            next[1][lane] = second as u32;
            next[2][lane] = (first >> 32) as u32 ^ state[3][lane] ^ key[1];
            next[3][lane] = first as u32;
        }
        state = next;
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    state
}

#[cfg(test)]
mod tests {
    use super::philox;

    /// The known answers that accompany the authors' implementation, Random123 (`kat_vectors`).
    #[test]
    fn philox_gives_the_published_answers() {
        let answer = |counter: [u32; 4], key| philox(counter.map(|word| [word]), key).map(|w| w[0]);
        assert_eq!(
            answer([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            answer([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            answer(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }
}
