//! How far a mean may be off: the bootstrap (Efron 1979). What could have come out differently is drawn
//! again, with replacement: the repeats of an arm, and the rows of the held-out data. All arms are drawn
//! with the same rows, as they were measured on the same, so that a difference between two of them has
//! the spread of the difference and not of both.

use sparsam_adapter::classes::macro_f1;

/// Draws, as many as make the ends of an interval of 95 % steady.
pub(crate) const DRAWS: usize = 2000;

/// A stream of random numbers: `SplitMix64` (Steele, Lea and Flood 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        // The high part of a product: its bias is below one in 2^40 for the counts here.
        usize::try_from((u128::from(self.next()) * bound as u128) >> 64).unwrap_or(0)
    }

    /// As many numbers below `count` as there are of them.
    pub(crate) fn drawn(&mut self, count: usize) -> Vec<usize> {
        (0..count).map(|_| self.below(count)).collect()
    }
}

/// What is measured of a row of the held-out data, or of a batch of rows.
pub(crate) trait Row: Sized {
    /// The figure over some rows of some repeats.
    fn figure(repeats: &[&[Self]], rows: &[usize]) -> f64;
}

/// A value and a weight: the sum of values over the sum of weights.
impl Row for (f64, f64) {
    fn figure(repeats: &[&[Self]], rows: &[usize]) -> f64 {
        let (mut sum, mut weight) = (0.0, 0.0);
        for repeat in repeats {
            for row in rows {
                let (value, w) = repeat[*row];
                sum += value;
                weight += w;
            }
        }
        sum / weight
    }
}

/// The class of a text and what it was given: macro F1, the mean over the repeats.
impl Row for (u32, u32) {
    fn figure(repeats: &[&[Self]], rows: &[usize]) -> f64 {
        let one = |repeat: &&[Self]| macro_f1(rows.iter().map(|row| repeat[*row]));
        repeats.iter().map(one).sum::<f64>() / repeats.len() as f64
    }
}

/// Measurements of one arm, row by row in each repeat.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Measured<R>(pub(crate) Vec<Vec<R>>);

impl<R: Row> Measured<R> {
    /// The figure over all repeats and rows.
    pub(crate) fn figure(&self) -> f64 {
        let every: Vec<usize> = (0..self.0.len()).collect();
        let rows: Vec<usize> = (0..self.rows()).collect();
        self.drawn(&every, &rows)
    }

    /// Itself, unless a repeat has no rows, or there is none.
    pub(crate) fn whole(self) -> Option<Self> {
        (self.rows() > 0).then_some(self)
    }

    /// Rows that all repeats have.
    fn rows(&self) -> usize {
        self.0.iter().map(Vec::len).min().unwrap_or(0)
    }

    fn drawn(&self, repeats: &[usize], rows: &[usize]) -> f64 {
        let repeats: Vec<&[R]> = repeats
            .iter()
            .map(|repeat| self.0[*repeat].as_slice())
            .collect();
        R::figure(&repeats, rows)
    }
}

/// An interval of 95 % around a mean.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Interval {
    pub(crate) low: f64,
    pub(crate) mean: f64,
    pub(crate) high: f64,
}

impl Interval {
    /// Of a mean and its draws.
    fn of(mean: f64, mut draws: Vec<f64>) -> Self {
        draws.retain(|draw| draw.is_finite());
        draws.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let index = (part * draws.len() as f64) as usize;
            draws
                .get(index.min(draws.len().saturating_sub(1)))
                .copied()
                .unwrap_or(mean)
        };
        Self {
            low: at(0.025),
            mean,
            high: at(0.975),
        }
    }

    /// Whether it holds a value.
    pub(crate) fn holds(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}

/// The figure of an arm.
pub(crate) fn mean<R: Row>(arm: &Measured<R>, seed: u64) -> Interval {
    let mut random = Random::new(seed);
    let draws = (0..DRAWS)
        .map(|_| {
            let repeats = random.drawn(arm.0.len());
            let rows = random.drawn(arm.rows());
            arm.drawn(&repeats, &rows)
        })
        .collect();
    Interval::of(arm.figure(), draws)
}

/// The figure of `arm` less that of `other`, on the same rows.
pub(crate) fn difference<R: Row>(arm: &Measured<R>, other: &Measured<R>, seed: u64) -> Interval {
    let mut random = Random::new(seed);
    let rows = arm.rows().min(other.rows());
    let draws = (0..DRAWS)
        .map(|_| {
            let ours = random.drawn(arm.0.len());
            let theirs = random.drawn(other.0.len());
            let rows = random.drawn(rows);
            arm.drawn(&ours, &rows) - other.drawn(&theirs, &rows)
        })
        .collect();
    Interval::of(arm.figure() - other.figure(), draws)
}

/// The mean of some numbers over that of others, each drawn again.
pub(crate) fn ratio(ours: &[f64], theirs: &[f64], seed: u64) -> Interval {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let mut random = Random::new(seed);
    let mut draw = |values: &[f64]| {
        let drawn: Vec<f64> = random
            .drawn(values.len())
            .into_iter()
            .map(|i| values[i])
            .collect();
        mean(&drawn)
    };
    let draws = (0..DRAWS).map(|_| draw(ours) / draw(theirs)).collect();
    Interval::of(mean(ours) / mean(theirs), draws)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Normal numbers by the sum of twelve uniform ones.
    fn normal(random: &mut Random) -> f64 {
        (0..12)
            .map(|_| random.below(1 << 30) as f64 / f64::from(1 << 30))
            .sum::<f64>()
            - 6.0
    }

    fn arm(random: &mut Random, repeats: usize, rows: &[f64], shift: f64) -> Measured<(f64, f64)> {
        let repeat = |random: &mut Random| {
            let own = 0.02 * normal(random);
            rows.iter()
                .map(|row| (row + shift + own + 0.05 * normal(random), 1.0))
                .collect()
        };
        Measured((0..repeats).map(|_| repeat(random)).collect())
    }

    /// Of 200 experiments in which nothing differs, the interval of the difference leaves out zero in few,
    /// and in all where the difference is large beside the noise.
    #[test]
    fn intervals_hold_the_truth_about_as_often_as_they_say() {
        let (mut missed, mut seen) = (0, 0);
        let mut random = Random::new(7);
        for seed in 0..200 {
            let rows: Vec<f64> = (0..60).map(|_| 2.0 + 0.5 * normal(&mut random)).collect();
            let a = arm(&mut random, 5, &rows, 0.0);
            let same = arm(&mut random, 5, &rows, 0.0);
            let other = arm(&mut random, 5, &rows, 0.2);
            missed += usize::from(!difference(&a, &same, seed).holds(0.0));
            seen += usize::from(difference(&other, &a, seed).low > 0.0);
        }
        assert!(missed <= 40, "{missed} of 200");
        assert_eq!(seen, 200);
    }

    #[test]
    fn rows_that_are_hard_for_both_do_not_widen_their_difference() {
        let mut random = Random::new(3);
        let rows: Vec<f64> = (0..50).map(|_| 10.0 * normal(&mut random)).collect();
        let a = Measured(vec![rows.iter().map(|row| (*row, 1.0)).collect()]);
        let b = Measured(vec![rows.iter().map(|row| (row + 1.0, 1.0)).collect()]);
        let difference = difference(&b, &a, 1);
        assert!((difference.mean - 1.0).abs() < 1e-9 && difference.high - difference.low < 1e-9);
        let alone = mean(&a, 1);
        assert!(alone.high - alone.low > 3.0);
    }

    #[test]
    fn a_weight_is_a_number_of_tokens() {
        let arm = Measured(vec![vec![(10.0, 10.0), (1.0, 90.0)]]);
        assert!((arm.figure() - 0.11).abs() < 1e-12);
        let one = ratio(&[2.0], &[4.0], 1);
        assert_eq!((one.low, one.mean, one.high), (0.5, 0.5, 0.5));
    }

    /// One class right in both repeats, the other in one of them: F1 of 1 and 1, and of 2/3 and 0.
    #[test]
    fn macro_f1_is_the_mean_over_repeats() {
        let right = vec![(0, 0), (1, 1)];
        let half = vec![(0, 0), (1, 0)];
        let arm = Measured(vec![right, half]);
        assert!((arm.figure() - f64::midpoint(1.0, 1.0 / 3.0)).abs() < 1e-12);
        let interval = mean(&arm, 1);
        assert!(
            interval.low < arm.figure() && interval.high == 1.0,
            "{interval:?}"
        );
        let other = Measured(vec![vec![(0, 0), (1, 1)]; 2]);
        assert!(difference(&other, &arm, 1).low >= 0.0);
    }
}
