//! A small table of processors: rated power and threads, from the manufacturers' product pages. It is
//! no database: a processor that is missing gets the range of those in the table, thread for thread,
//! and the user can state its power instead.

use std::sync::OnceLock;

use crate::range::Range;

/// The table, with its sources in the first lines.
const TABLE: &str = include_str!("../../data/processors.csv");

/// One processor, one socket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Known {
    /// The words that name it.
    pub name: &'static str,
    /// Rated power, W.
    pub tdp_watts: f64,
    /// Hardware threads.
    pub threads: u32,
    /// `server`, `desktop` or `laptop`.
    pub class: &'static str,
    /// Year of the launch.
    pub year: u16,
}

/// All rows.
pub fn table() -> &'static [Known] {
    static ROWS: OnceLock<Vec<Known>> = OnceLock::new();
    ROWS.get_or_init(|| {
        TABLE
            .lines()
            .filter(|line| !line.starts_with('#'))
            .skip(1)
            .filter_map(parse_row)
            .collect()
    })
}

/// `match,tdp_w,threads,class,year`.
fn parse_row(line: &'static str) -> Option<Known> {
    let mut fields = line.split(',');
    Some(Known {
        name: fields.next()?,
        tdp_watts: fields.next()?.parse().ok()?,
        threads: fields.next()?.parse().ok()?,
        class: fields.next()?,
        year: fields.next()?.parse().ok()?,
    })
}

/// The row for a name as `/proc/cpuinfo` gives it. Where several match, the longest does.
pub fn find(model_name: &str) -> Option<&'static Known> {
    let words = words(model_name);
    table()
        .iter()
        .filter(|row| {
            let wanted = self::words(row.name);
            words.windows(wanted.len()).any(|part| same(part, &wanted))
        })
        .max_by_key(|row| row.name.len())
}

/// Lower-case words, without trade marks: `Intel(R) Xeon(R) CPU E5-2620 v3 @ 2.40GHz` becomes
/// `intel xeon e5-2620 v3 @ 2.40ghz`.
fn words(name: &str) -> Vec<String> {
    name.to_lowercase()
        .replace("(r)", " ")
        .replace("(tm)", " ")
        .split_whitespace()
        .filter(|word| *word != "cpu")
        .map(str::to_owned)
        .collect()
}

/// Words are equal, but for the last letters by which makers mark variants of the same power: `7763v`
/// and `8480+` are `7763` and `8480`. Variants of another power (`8468V`) have rows of their own, and
/// the longer name wins.
fn same(part: &[String], wanted: &[String]) -> bool {
    part.iter().zip(wanted).all(|(have, want)| {
        have == want
            || have
                .strip_prefix(want.as_str())
                .is_some_and(|rest| matches!(rest, "p" | "v" | "+" | "c"))
    })
}

/// Rated watts per thread of an unknown processor: the 10th, 50th and 90th percentile of the table,
/// of its servers alone where the name is that of a server.
pub fn watts_per_thread(model_name: Option<&str>) -> Range {
    let name = model_name.unwrap_or_default().to_lowercase();
    let server = name.contains("epyc") || name.contains("xeon");
    let mut ratios: Vec<f64> = table()
        .iter()
        .filter(|row| !server || row.class == "server")
        .map(|row| row.tdp_watts / f64::from(row.threads))
        .collect();
    ratios.sort_by(f64::total_cmp);
    let percentile = |share: f64| {
        let index = (share * (ratios.len().saturating_sub(1)) as f64).round() as usize;
        ratios.get(index).copied().unwrap_or_default()
    };
    Range::new(percentile(0.1), percentile(0.5), percentile(0.9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_read_and_sane() {
        let rows = TABLE.lines().filter(|line| !line.starts_with('#')).count() - 1;
        assert_eq!(table().len(), rows);
        for row in table() {
            let per_thread = row.tdp_watts / f64::from(row.threads);
            assert!((1.0..15.0).contains(&per_thread), "{row:?}");
            assert!(
                ["server", "desktop", "laptop"].contains(&row.class),
                "{row:?}"
            );
            assert!((2010..2030).contains(&row.year), "{row:?}");
            assert_eq!(find(row.name), Some(row));
        }
    }

    #[test]
    fn names_are_found_as_processors_give_them() {
        for (name, tdp) in [
            ("Intel(R) Xeon(R) CPU E5-2620 v3 @ 2.40GHz", 85.0),
            ("Intel(R) Xeon(R) Platinum 8480+", 350.0),
            ("Intel(R) Xeon(R) Platinum 8468V CPU @ 2.40GHz", 330.0),
            ("Intel(R) Xeon(R) Platinum 8468 CPU @ 2.10GHz", 350.0),
            ("AMD EPYC 7763 64-Core Processor", 280.0),
            ("AMD EPYC 7763v 64-Core Processor", 280.0),
            ("AMD Ryzen Threadripper PRO 5995WX 64-Cores", 280.0),
            ("12th Gen Intel(R) Core(TM) i7-1260P", 28.0),
            ("AMD Ryzen 9 5950X 16-Core Processor", 105.0),
        ] {
            assert_eq!(find(name).map(|row| row.tdp_watts), Some(tdp), "{name}");
        }
        for name in [
            "AMD EPYC",
            "Intel Xeon Processor",
            "",
            "Cortex-A76",
            "Core i7-77",
        ] {
            assert_eq!(find(name), None, "{name}");
        }
    }

    #[test]
    fn an_unknown_processor_has_a_range() {
        let any = watts_per_thread(None);
        let server = watts_per_thread(Some("AMD EPYC"));
        for range in [any, server] {
            assert!(
                range.low < range.central && range.central < range.high,
                "{range:?}"
            );
        }
        assert!(server.high < any.high);
    }
}
