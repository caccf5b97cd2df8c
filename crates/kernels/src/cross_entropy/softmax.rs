//! The softmax of one token's logits, of which more and more become known.

use crate::cpu::Level;
use crate::vector::{LANES, Real, greatest, larger, levels, reduce, soften, softened_slope};

/// What became of a token with a target.
pub(super) struct Outcome {
    /// Its loss.
    pub(super) nats: f64,
    /// Whether the target was the likeliest token.
    pub(super) likeliest: bool,
}

/// What is known of a token's softmax after some of its logits.
///
/// The target's is kept apart, so that neither the loss nor the gradient is a small difference of great numbers where
/// the target is likely.
#[derive(Clone, Copy)]
pub(super) struct Softmax<T> {
    /// The greatest logit.
    greatest: T,
    /// `Σ e^(z − greatest)` over all logits but the target's.
    others: f64,
    /// The target's logit.
    chosen: T,
}

impl<T: Real> Softmax<T> {
    /// Of no logits.
    pub(super) fn new() -> Self {
        Self {
            greatest: T::NEG_INFINITY,
            others: 0.0,
            chosen: T::NEG_INFINITY,
        }
    }

    /// The target's logit less the greatest.
    fn below(&self) -> f64 {
        self.chosen.to_f64() - self.greatest.to_f64()
    }

    /// `Σ e^(z − greatest)` over all logits.
    pub(super) fn total(&self) -> f64 {
        self.others + self.below().exp()
    }

    /// `total · (1 − p) · slope` of the target with probability `p`: its part of the gradient, times `total`.
    pub(super) fn of_target(&self, softcap: Option<f64>) -> f64 {
        let slope = softcap.map_or(T::ONE, |cap| softened_slope(self.chosen, cap));
        self.others * slope.to_f64()
    }

    pub(super) fn outcome(&self) -> Outcome {
        Outcome {
            nats: self.total().ln() - self.below(),
            likeliest: self.chosen == self.greatest,
        }
    }
}

/// Adds some logits to what is known of their token, with the target's place if it is one of them. They are softened,
/// and become `e^(z − greatest)` times the slope of that; the target's becomes 0. What was summed with the greatest
/// before is to be multiplied with the result.
pub(super) fn absorb<T: Real>(
    level: Level,
    logits: &mut [T],
    target: Option<usize>,
    softcap: Option<f64>,
    softmax: &mut Softmax<T>,
) -> T {
    if let Some(cap) = softcap {
        soften::<T>(level, logits, cap);
    }
    absorb_softened::<T>(level, logits, target, softcap, softmax)
}

levels! {
    fn absorb_softened<T: Real>(
        logits: &mut [T],
        target: Option<usize>,
        softcap: Option<f64>,
        softmax: &mut Softmax<T>,
    ) -> T {
        let before = softmax.greatest;
        softmax.greatest = larger(greatest(logits), before);
        if let Some(target) = target {
            softmax.chosen = std::mem::replace(&mut logits[target], T::NEG_INFINITY);
        }
        let greatest = softmax.greatest;
        let sum = match softcap {
            Some(cap) => powers::<T, FMA>(logits, greatest, |z| softened_slope(z, cap)),
            None => powers::<T, FMA>(logits, greatest, |_| T::ONE),
        };
        if let Some(target) = target {
            logits[target] = T::ZERO;
        }
        let factor = (before - greatest).exp_inline::<FMA>();
        softmax.others = softmax.others * factor.to_f64() + sum;
        factor
    }
}

levels! {
    pub(super) fn scale<T: Real>(values: &mut [T], factor: T) {
        for value in values.iter_mut() {
            *value *= factor;
        }
    }
}

/// The sum of `eᶻ⁻ᵍ` over logits `z`, which become that times their slope.
#[inline(always)]
fn powers<T: Real, const FMA: bool>(logits: &mut [T], greatest: T, slope: impl Fn(T) -> T) -> f64 {
    /// Vectors whose sum is formed in the element type before it is added to a sum in f64.
    const BLOCK: usize = 16;
    let mut sum = 0.0;
    let (whole, rest) = logits.as_chunks_mut::<LANES>();
    for block in whole.chunks_mut(BLOCK) {
        let mut sums = [T::ZERO; LANES];
        for part in block {
            for lane in 0..LANES {
                let power = (part[lane] - greatest).exp_inline::<FMA>();
                part[lane] = power * slope(part[lane]);
                sums[lane] += power;
            }
        }
        sum += reduce(sums, |a, b| a + b).to_f64();
    }
    for logit in rest {
        let power = (*logit - greatest).exp_inline::<FMA>();
        *logit = power * slope(*logit);
        sum += power.to_f64();
    }
    sum
}
