//! A small table of accelerators: board power from the manufacturers' data sheets, and the emissions of
//! making one where somebody has published them. Names are found as NVML, data sheets and people write
//! them. Processors have a table of their own, [`crate::meter::processors`].

use std::sync::OnceLock;

use crate::meter::processors;
use crate::range::Range;

/// The table, with its sources in the first lines.
const TABLE: &str = include_str!("../data/accelerators.csv");

/// One accelerator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accelerator {
    /// Product name.
    pub name: &'static str,
    /// Ways of writing it, separated by `|`.
    patterns: &'static str,
    /// Board power, W.
    pub watts: f64,
    /// Year of the launch.
    pub year: u16,
    /// Emissions of making one, kgCO2e.
    pub made_kg: Range,
    /// Hours of use over its life.
    pub life_hours: f64,
    /// Key of the source of `made_kg`: `bloom`, `hgx` or `generic`.
    pub made_source: &'static str,
    /// Key of the server's figure, where there is one for servers of eight: `bloom` or `p5`.
    pub host: Option<&'static str>,
}

/// All rows.
pub fn accelerators() -> &'static [Accelerator] {
    static ROWS: OnceLock<Vec<Accelerator>> = OnceLock::new();
    ROWS.get_or_init(|| {
        TABLE
            .lines()
            .filter(|line| !line.starts_with('#'))
            .skip(1)
            .filter_map(parse_row)
            .collect()
    })
}

fn parse_row(line: &'static str) -> Option<Accelerator> {
    let fields: Vec<&'static str> = line.split(',').collect();
    let [
        name,
        patterns,
        watts,
        year,
        low,
        central,
        high,
        life,
        made,
        host,
    ] = fields[..]
    else {
        return None;
    };
    Some(Accelerator {
        name,
        patterns,
        watts: watts.parse().ok()?,
        year: year.parse().ok()?,
        made_kg: Range::new(low.parse().ok()?, central.parse().ok()?, high.parse().ok()?),
        life_hours: life.parse().ok()?,
        made_source: made,
        host: (!host.is_empty()).then_some(host),
    })
}

/// Lower-case words; spaces, hyphens and underscores part them.
fn words(name: &str) -> Vec<String> {
    name.to_lowercase()
        .split([' ', '-', '_', '/'])
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The row for a name. Where several match, the one with the longest pattern does.
pub fn find(name: &str) -> Option<&'static Accelerator> {
    let given = words(name);
    accelerators()
        .iter()
        .filter_map(|row| {
            let longest = row
                .patterns
                .split('|')
                .map(words)
                .filter(|wanted| given.windows(wanted.len()).any(|part| part == wanted))
                .map(|wanted| wanted.iter().map(String::len).sum::<usize>())
                .max()?;
            Some((longest, row))
        })
        .max_by_key(|(longest, _)| *longest)
        .map(|(_, row)| row)
}

/// Names of the tables that share the most words with `name`, at most five, best first.
pub fn near(name: &str) -> Vec<&'static str> {
    let given = words(name);
    let shared = |candidate: &str| {
        words(candidate)
            .iter()
            .filter(|word| {
                !matches!(word.as_str(), "nvidia" | "amd" | "geforce" | "intel")
                    && given.contains(word)
            })
            .map(String::len)
            .sum::<usize>()
    };
    let mut scored: Vec<(usize, &'static str)> = accelerators()
        .iter()
        .map(|row| row.name)
        .chain(processors::table().iter().map(|row| row.name))
        .map(|candidate| (shared(candidate), candidate))
        .filter(|(score, _)| *score > 0)
        .collect();
    scored.sort_by_key(|(score, _)| std::cmp::Reverse(*score));
    scored.into_iter().take(5).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_read_and_finds_itself() {
        let rows = TABLE.lines().filter(|line| !line.starts_with('#')).count() - 1;
        assert_eq!(accelerators().len(), rows);
        for row in accelerators() {
            assert!((50.0..=1500.0).contains(&row.watts), "{row:?}");
            assert!((2014..2030).contains(&row.year), "{row:?}");
            let kg = row.made_kg;
            assert!(kg.low < kg.central && kg.central < kg.high, "{row:?}");
            for pattern in row.patterns.split('|') {
                assert_eq!(find(pattern).map(|r| r.name), Some(row.name), "{pattern}");
            }
            assert_eq!(find(row.name).map(|r| r.name), Some(row.name));
        }
    }

    #[test]
    fn names_are_found_as_nvml_and_people_write_them() {
        for (name, watts) in [
            ("NVIDIA A100-SXM4-80GB", 400.0),
            ("NVIDIA A100 SXM4 80GB", 400.0),
            ("NVIDIA A100 80GB PCIe", 300.0),
            ("NVIDIA H100 80GB HBM3", 700.0),
            ("NVIDIA H200", 700.0),
            ("Tesla V100-SXM2-16GB", 300.0),
            ("Tesla T4", 70.0),
            ("NVIDIA GeForce RTX 3090 Ti", 450.0),
            ("NVIDIA GeForce RTX 3090", 350.0),
            ("NVIDIA L40S", 350.0),
            ("AMD Instinct MI250X", 560.0),
        ] {
            assert_eq!(find(name).map(|row| row.watts), Some(watts), "{name}");
        }
        for name in ["A100", "GPU", "", "RTX 30900"] {
            assert_eq!(find(name), None, "{name}");
        }
        assert!(near("A100").iter().all(|name| name.contains("A100")));
        assert!(near("frobnicator").is_empty());
    }
}
