//! Chance that repeats: a PCG-64 stream chosen by a seed and a name.
//!
//! Every choice of the generators is drawn from here, so that one seed gives the same bytes on every
//! machine. The name keeps streams apart (training text, held-out text, weights) without the callers
//! having to agree on numbers. Only integer arithmetic and additions of f64 are used: both are exact
//! everywhere, which the logarithms of a textbook normal sampler are not.

use rand_pcg::Pcg64;
use rand_pcg::rand_core::Rng as _;

/// A deterministic source of random choices.
#[derive(Debug, Clone)]
pub struct Dice(Pcg64);

impl Dice {
    /// The stream called `name` of `seed`.
    pub fn new(seed: u64, name: &str) -> Self {
        // FNV-1a, 64 bit: <http://www.isthe.com/chongo/tech/comp/fnv/>
        let stream = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(Pcg64::new(u128::from(seed), u128::from(stream)))
    }

    /// A number in `0..n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        // Lemire's multiply-shift without rejection: the bias is below n / 2^32.
        (((self.0.next_u64() >> 32) * n as u64) >> 32) as usize
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// True with a chance of `percent` in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `items`, which must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// A number of about the standard normal distribution: the sum of twelve uniform numbers, less six
    /// (mean 0, variance 1, cut off at ±6), which needs no library mathematics.
    pub fn normal(&mut self) -> f64 {
        let sum: f64 = (0..12)
            .map(|_| (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64)
            .sum();
        sum - 6.0
    }
}

#[cfg(test)]
mod tests {
    use super::Dice;

    #[test]
    fn streams_repeat_and_differ() {
        let draw = |seed, name| {
            let mut dice = Dice::new(seed, name);
            (0..8).map(|_| dice.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, "train"), draw(1, "train"));
        assert_ne!(draw(1, "train"), draw(1, "eval"));
        assert_ne!(draw(1, "train"), draw(2, "train"));
    }

    #[test]
    fn normal_has_the_right_moments() {
        let mut dice = Dice::new(1, "normal");
        let draws: Vec<f64> = (0..20_000).map(|_| dice.normal()).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.03, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.04, "variance {variance}");
    }
}
