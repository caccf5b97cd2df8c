//! Numbers as people and the Hub read them. Terminal and card both print through this file, so that a
//! figure looks the same wherever it stands.

use crate::range::{Range, Span};

/// The most significant digits a figure is given.
pub const SIGNIFICANT: usize = 6;

/// `value` with at most `digits` significant digits, plain: no exponent, separator or trailing zeros.
/// A value that is not finite gives `0`, which no figure of this crate is.
pub fn plain_decimal(value: f64, digits: usize) -> String {
    if value == 0.0 || !value.is_finite() {
        return "0".to_owned();
    }
    // The exponent form rounds correctly and says where the first digit stands.
    let scientific = format!("{value:.*e}", digits.saturating_sub(1));
    let rounded: f64 = scientific.parse().unwrap_or(value);
    let exponent: i32 = scientific
        .split_once('e')
        .and_then(|(_, exponent)| exponent.parse().ok())
        .unwrap_or(0);
    let decimals = usize::try_from(digits as i32 - 1 - exponent).unwrap_or(0);
    let text = format!("{rounded:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// A unit, its size in the base unit, and the value from which it is used, largest first. The last one
/// is used for all that is smaller. Below the unit of daily use two decimals come before another unit:
/// 0.46 g is easier to read beside the grams of the front matter than 460 mg.
type Units = &'static [(&'static str, f64, f64)];

/// In kWh.
const ENERGY: Units = &[
    ("MWh", 1e3, 1e3),
    ("kWh", 1.0, 1.0),
    ("Wh", 1e-3, 1e-5),
    ("mWh", 1e-6, 0.0),
];

/// In grams of CO2e.
const MASS: Units = &[
    ("t", 1e6, 1e6),
    ("kg", 1e3, 1e3),
    ("g", 1.0, 0.01),
    ("mg", 1e-3, 0.0),
];

fn unit_for(value: f64, units: Units) -> (&'static str, f64) {
    let fits = units.iter().find(|(_, _, from)| value.abs() >= *from);
    fits.map_or(("", 1.0), |(unit, size, _)| (unit, *size))
}

fn ranged(central: Option<f64>, low: f64, high: f64, units: Units) -> String {
    let (unit, size) = unit_for(central.unwrap_or(high), units);
    let number = |value: f64| plain_decimal(value / size, 3);
    match central {
        Some(central) if low == high => format!("{} {unit}", number(central)),
        Some(central) => format!(
            "{} {unit} ({} to {})",
            number(central),
            number(low),
            number(high)
        ),
        None => format!("{} to {} {unit}", number(low), number(high)),
    }
}

/// `12.3 Wh (9.1 to 16)`.
pub fn energy(kwh: Range) -> String {
    ranged(Some(kwh.central), kwh.low, kwh.high, ENERGY)
}

/// `12.3 Wh`.
pub fn energy_central(kwh: f64) -> String {
    ranged(Some(kwh), kwh, kwh, ENERGY)
}

/// `9.1 to 16 Wh`, in the unit that fits the upper bound.
pub fn energy_bounds(kwh: Range) -> String {
    ranged(None, kwh.low, kwh.high, ENERGY)
}

/// `4.56 g (3.1 to 6.2)`, or `0.2 to 13 g` where there is no central value.
pub fn grams(grams: Span) -> String {
    ranged(grams.central, grams.low, grams.high, MASS)
}

/// `1 h 02 min`, `3 min 04 s`, `12.3 s`.
pub fn duration(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
    }
}

/// `63 %`. What is not all is not 100 %, and what is not nothing is not 0 %.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 99.5 && percent < 100.0 {
        "over 99 %".to_owned()
    } else if percent > 0.0 && percent < 0.5 {
        "under 1 %".to_owned()
    } else {
        format!("{:.0} %", percent.abs())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decimals_are_plain_from_nano_to_giga() {
        for (value, text) in [
            (1e-9, "0.000000001"),
            (1.234_567_89e-9, "0.00000000123457"),
            (0.000_012, "0.000012"),
            (0.5, "0.5"),
            (12.345_678, "12.3457"),
            (999_999.7, "1000000"),
            (123_456_789.0, "123457000"),
            (1e9, "1000000000"),
            (0.0, "0"),
        ] {
            assert_eq!(plain_decimal(value, SIGNIFICANT), text);
        }
        assert_eq!(plain_decimal(0.999_96, 4), "1");
    }

    proptest! {
        #[test]
        fn a_plain_decimal_reads_back_within_its_digits(exponent in -9.0f64..9.0) {
            let value = 10f64.powf(exponent);
            let text = plain_decimal(value, SIGNIFICANT);
            prop_assert!(text.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
            let back: f64 = text.parse().unwrap();
            prop_assert!((back / value - 1.0).abs() < 1e-5);
            let digits = text.trim_start_matches(['0', '.']).replace('.', "");
            prop_assert!(digits.trim_end_matches('0').len() <= SIGNIFICANT);
        }
    }

    #[test]
    fn figures_take_the_unit_that_fits() {
        assert_eq!(
            energy(Range::new(0.0009, 0.0012, 0.0016)),
            "1.2 Wh (0.9 to 1.6)"
        );
        assert_eq!(energy_central(2.5), "2.5 kWh");
        assert_eq!(energy_central(4.2e-8), "0.042 mWh");
        assert_eq!(energy_central(0.0002), "0.2 Wh");
        assert_eq!(grams(Range::exactly(0.457).into()), "0.457 g");
        assert_eq!(
            energy_bounds(Range::new(0.0006, 0.001, 0.0018)),
            "0.6 to 1.8 Wh"
        );
        assert_eq!(grams(Range::exactly(1234.0).into()), "1.23 kg");
        assert_eq!(
            grams(Span {
                low: 0.02,
                central: None,
                high: 1.3
            }),
            "0.02 to 1.3 g"
        );
        assert_eq!(grams(Range::ZERO.into()), "0 mg");
    }

    #[test]
    fn durations_and_shares() {
        assert_eq!(duration(12.34), "12.3 s");
        assert_eq!(duration(184.0), "3 min 04 s");
        assert_eq!(duration(3720.0), "1 h 02 min");
        assert_eq!(percent(-0.0), "0 %");
        assert_eq!(percent(0.634), "63 %");
        assert_eq!(percent(0.999), "over 99 %");
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(percent(0.001), "under 1 %");
    }
}
