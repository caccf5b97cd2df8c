//! Numbers as people read them: the same spelling in the progress bar and on the end screen.

use std::time::Duration;

/// `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A value with so many significant digits and no exponent: `0.0041`, `0.41`, `41.2`, `4,120`.
pub(crate) fn significant(value: f64, digits: i32) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10().floor() as i32;
    let decimals = (digits - 1 - magnitude).max(0) as usize;
    if decimals == 0 {
        let sign = if value < 0.0 { "-" } else { "" };
        return format!("{sign}{}", thousands(value.abs().round() as u64));
    }
    format!("{value:.decimals$}")
}

/// `42 s`, `2 min 05 s`, `3 h 04 min`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// `812 bytes`, `3.21 MB`, `1.20 GB`; powers of 1000, as on a disk's label.
pub(crate) fn bytes(count: u64) -> String {
    let units = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    let count_f64 = count as f64;
    units
        .iter()
        .find(|(_, size)| count_f64 >= *size)
        .map_or_else(
            || format!("{count} bytes"),
            |(unit, size)| format!("{} {unit}", significant(count_f64 / size, 3)),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_000), "1,000");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(significant(0.004_123, 2), "0.0041");
        assert_eq!(significant(41.234, 3), "41.2");
        assert_eq!(significant(4_123.4, 3), "4,123");
        assert_eq!(significant(0.0, 3), "0");
        assert_eq!(duration(Duration::from_millis(59_400)), "59 s");
        assert_eq!(duration(Duration::from_millis(59_600)), "1 min 00 s");
        assert_eq!(duration(Duration::from_secs(11_040)), "3 h 04 min");
        assert_eq!(bytes(812), "812 bytes");
        assert_eq!(bytes(3_210_000), "3.21 MB");
    }
}
