//! A random order that is the same everywhere.
//!
//! The order of an epoch is a function of the seed and the number of the epoch alone, so a run that
//! is resumed needs no state of a generator, and a new version of a library cannot change old runs.

use crate::random::Random;

/// Uniform in `0..bound` without bias, by rejection (Lemire: "Fast random integer generation in an
/// interval", 2019).
fn below(random: &mut Random, bound: u64) -> u64 {
    loop {
        let wide = u128::from(random.word()) * u128::from(bound);
        if wide as u64 >= bound.wrapping_neg() % bound {
            return (wide >> 64) as u64;
        }
    }
}

/// A permutation of `0..length` by Fisher and Yates, from the seed and the epoch.
pub fn permutation(length: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut random = Random::new(seed, &format!("order of epoch {epoch}"));
    let mut order: Vec<usize> = (0..length).collect();
    for i in (1..length).rev() {
        order.swap(i, below(&mut random, i as u64 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_never_changes() {
        assert_eq!(permutation(8, 42, 0), [0, 6, 5, 1, 7, 2, 4, 3]);
    }

    #[test]
    fn orders_are_permutations_and_differ() {
        let sorted = |mut order: Vec<usize>| {
            order.sort_unstable();
            order
        };
        assert_eq!(
            sorted(permutation(1000, 42, 3)),
            (0..1000).collect::<Vec<_>>()
        );
        assert_ne!(permutation(100, 42, 0), permutation(100, 42, 1));
        assert_ne!(permutation(100, 42, 0), permutation(100, 43, 0));
        assert!(permutation(0, 1, 1).is_empty());
    }

    #[test]
    fn every_place_is_equally_likely() {
        let mut counts = [[0; 4]; 4];
        for epoch in 0..4000 {
            for (place, item) in permutation(4, 7, epoch).into_iter().enumerate() {
                counts[place][item] += 1;
            }
        }
        // Standard deviation of a count is 27.
        assert!(
            counts
                .iter()
                .flatten()
                .all(|count| (860..1140).contains(count)),
            "{counts:?}"
        );
    }
}
