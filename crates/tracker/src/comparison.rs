//! Emissions in terms people know. Each comparison is a division by one published figure, which it
//! carries with its source and year; none of them is part of any sum.

use serde::{Deserialize, Serialize};

use crate::format::plain_decimal;
use crate::range::Span;

/// One comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// What is counted: `km in a new car`.
    pub of: String,
    /// How many of it, with a central value where the emissions have one.
    pub amount: Span,
    /// gCO2e of one.
    pub g_each: f64,
    /// Where `g_each` comes from, with its year.
    pub source: String,
}

/// What is compared with: name, gCO2e of one, source and year.
const TABLE: [(&str, f64, &str); 4] = [
    // Average test-cycle emissions of cars newly registered in the EU, Iceland and Norway in 2020.
    (
        "km in a new EU car",
        107.5,
        "European Environment Agency, cars registered in 2020",
    ),
    // World average of network, data centre and device.
    (
        "hours of streamed video",
        36.0,
        "International Energy Agency, as revised in 2020",
    ),
    (
        "phone charges",
        8.22,
        "US EPA, Greenhouse Gas Equivalencies Calculator, edition not noted",
    ),
    // 6,385 km of great circle x 171 g per passenger-kilometre, economy class of long flights. The
    // British government's conversion factors span 139 to 244 g for the classes.
    (
        "seats Berlin to New York, one way",
        1_091_835.0,
        "6385 km x 171 g/km in economy class, Green Algorithms, data v2.2 (read in 2025)",
    ),
];

/// The emissions in all the terms of the table.
pub fn of(emissions_g: Span) -> Vec<Comparison> {
    TABLE
        .iter()
        .map(|(of, g_each, source)| Comparison {
            of: (*of).to_owned(),
            amount: Span {
                low: emissions_g.low / g_each,
                central: emissions_g.central.map(|grams| grams / g_each),
                high: emissions_g.high / g_each,
            },
            g_each: *g_each,
            source: (*source).to_owned(),
        })
        .collect()
}

impl Comparison {
    /// `4.25 km in a new EU car`, or the bounds where there is no central value.
    pub fn words(&self) -> String {
        let number = |value| plain_decimal(value, 2);
        match self.amount.central {
            Some(central) => format!("{} {}", number(central), self.of),
            None => format!(
                "{} to {} {}",
                number(self.amount.low),
                number(self.amount.high),
                self.of
            ),
        }
    }
}

/// Those that are neither vanishing nor beyond imagination: at least a tenth of one. Where all are
/// smaller, the largest, down to a thousandth.
pub fn telling(comparisons: &[Comparison]) -> Vec<&Comparison> {
    let size = |c: &Comparison| c.amount.central.unwrap_or(c.amount.high);
    let telling: Vec<&Comparison> = comparisons.iter().filter(|c| size(c) >= 0.1).collect();
    if telling.is_empty() {
        comparisons
            .iter()
            .max_by(|a, b| size(a).total_cmp(&size(b)))
            .filter(|c| size(c) >= 0.001)
            .into_iter()
            .collect()
    } else {
        telling
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::Range;

    #[test]
    fn a_seat_to_new_york_is_about_a_tonne_and_a_kilogram_is_nine_kilometres() {
        let all = of(Range::exactly(1000.0).into());
        assert_eq!(all[0].words(), "9.3 km in a new EU car");
        assert_eq!(all[1].words(), "28 hours of streamed video");
        assert!((all[3].amount.central.unwrap() * 1.091_835e6 - 1000.0).abs() < 1e-6);
        assert_eq!(
            telling(&all).len(),
            3,
            "a thousandth of a seat says nothing"
        );
    }

    #[test]
    fn an_unknown_place_compares_by_its_bounds() {
        let all = of(Span {
            low: 8.22,
            central: None,
            high: 82.2,
        });
        assert_eq!(all[2].words(), "1 to 10 phone charges");
    }

    #[test]
    fn the_smallest_run_still_has_one_comparison_and_nothing_has_none() {
        assert_eq!(telling(&of(Range::exactly(0.01).into())).len(), 1);
        assert!(telling(&of(Range::ZERO.into())).is_empty());
    }
}
