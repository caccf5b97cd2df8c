//! Lengths as bars of text.

use std::collections::BTreeMap;

use crate::figures::thousands;

/// Most bars.
const BARS: usize = 10;
/// Longest bar, in characters.
const WIDTH: usize = 40;

/// One line for each range of lengths: the range, a bar, the number of examples in it.
pub(super) fn histogram(lengths: &BTreeMap<usize, usize>) -> Vec<String> {
    let (Some(shortest), Some(longest)) = (lengths.keys().next(), lengths.keys().next_back())
    else {
        return Vec::new();
    };
    let step = step(*shortest, *longest);
    let first = shortest / step;
    let mut bins = vec![0usize; longest / step - first + 1];
    for (length, count) in lengths {
        bins[length / step - first] += count;
    }
    let most = bins.iter().copied().max().unwrap_or(1).max(1);
    let number = longest.to_string().len();
    bins.iter()
        .enumerate()
        .map(|(bin, &count)| {
            let from = (first + bin) * step;
            // A bin that holds something is never shown as empty.
            let bar = "█".repeat((count * WIDTH).div_ceil(most));
            let space = if bar.is_empty() { "" } else { " " };
            let range = if step == 1 {
                format!("{from:>number$}")
            } else {
                format!("{from:>number$}–{:<number$}", from + step - 1)
            };
            format!("{range}  {bar}{space}{}", thousands(count as u64))
        })
        .collect()
}

/// The smallest of 1, 2, 5, 10, 20, 50, … that needs no more than [`BARS`] bars.
fn step(shortest: usize, longest: usize) -> usize {
    let fits = |step: &usize| longest / step - shortest / step < BARS;
    let decades = (0u32..18).map(|exponent| 10usize.pow(exponent));
    decades
        .flat_map(|decade| [decade, 2 * decade, 5 * decade])
        .find(fits)
        .unwrap_or(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_in_a_bar_of_its_length() {
        let lengths = BTreeMap::from([(3, 1), (12, 80), (19, 40), (61, 1)]);
        let rows = histogram(&lengths);
        assert_eq!(rows.len(), 7);
        assert_eq!(rows[0], " 0–9   █ 1");
        assert_eq!(rows[1], format!("10–19  {} 120", "█".repeat(40)));
        assert_eq!(rows[2], "20–29  0");
        assert_eq!(rows[6], "60–69  █ 1");
        assert!(histogram(&BTreeMap::new()).is_empty());
    }

    #[test]
    fn steps_are_round_and_bars_few() {
        for (shortest, longest, wanted) in [(1, 1, 1), (1, 10, 1), (1, 11, 2), (0, 2048, 500)] {
            assert_eq!(step(shortest, longest), wanted, "{shortest} to {longest}");
        }
    }
}
