//! Making the hardware: a run's share is its hours over the hours of the hardware's life. Published
//! figures for the same product differ by a factor of two and more, so every line has three values, and
//! it stands beside the operational emissions and never in them. What has no published figure is named
//! as missing.
//!
//! The amortisation is that of Luccioni et al. 2022 ("Estimating the carbon footprint of BLOOM"):
//! hours / (years × 8,760 × share of the time in use).

use serde::{Deserialize, Serialize};

use crate::hardware::{self, Accelerator};
use crate::range::Range;

/// The longest life in use, hours: 6 years at 85 % (Luccioni et al. 2022). It makes the low bound.
pub const LONG_LIFE_HOURS: f64 = 44_676.0;

/// The shortest, hours: 3 years (Boavizta's default for GPUs). It makes the high bound.
pub const SHORT_LIFE_HOURS: f64 = 26_280.0;

/// Accelerators in a server of the kinds below.
const PER_SERVER: f64 = 8.0;

/// A run's share of making some hardware.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embodied {
    /// Line by line.
    pub lines: Vec<EmbodiedLine>,
    /// Their sum, gCO2e.
    pub grams: Range,
    /// What has no published figure and is missing from the sum.
    pub missing: Vec<String>,
}

/// One kind of hardware.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbodiedLine {
    /// `8 x NVIDIA A100 SXM4 80GB`, `their share of a server`.
    pub label: String,
    /// Unit-hours: units × hours of the run.
    pub unit_hours: f64,
    /// Making one unit, kgCO2e.
    pub made_kg: Range,
    /// Hours of use over a unit's life, in the order of the result: the longest makes the low bound.
    pub life_hours: [f64; 3],
    /// The share, gCO2e.
    pub grams: Range,
    /// Where the figures come from.
    pub source: String,
}

/// The server around eight accelerators, without them: low, central, high kgCO2e; source.
fn host(key: &str) -> Option<(Range, &'static str)> {
    match key {
        "bloom" => Some((
            Range::new(1000.0, 2500.0, 5700.0),
            "2,500 kg a server (Luccioni et al. 2022), bounds: EcoDiag's -60 %, EcoLogits' 5,700 kg",
        )),
        "p5" => Some((
            Range::new(2388.0, 5700.0, 9120.0),
            "5,700 kg a server (EcoLogits 0.9, 2025), bounds: 3,700 kg a node less 8 GPUs (Morrison et \
             al. 2025), EcoDiag's +60 %",
        )),
        _ => None,
    }
}

fn made_words(key: &str) -> &'static str {
    match key {
        "bloom" => {
            "150 kg (Luccioni et al. 2022), bounds: EcoDiag's -60 %, 318 kg of Chien et al. 2023"
        }
        "hgx" => "164 kg (NVIDIA's HGX H100 footprint / 8), bounds: EcoDiag's +-60 %",
        _ => "60 kg +-60 % for any GPU (EcoDiag)",
    }
}

fn share(label: String, unit_hours: f64, made_kg: Range, life: f64, source: &str) -> EmbodiedLine {
    let life_hours = [life.max(LONG_LIFE_HOURS), life, life.min(SHORT_LIFE_HOURS)];
    let grams = |kg: f64, life: f64| kg * 1e3 * unit_hours / life;
    EmbodiedLine {
        label,
        unit_hours,
        made_kg,
        life_hours,
        grams: Range::new(
            grams(made_kg.low, life_hours[0]),
            grams(made_kg.central, life_hours[1]),
            grams(made_kg.high, life_hours[2]),
        ),
        source: format!("{source}; {life:.0} h of use"),
    }
}

/// The share of `count` accelerators used for `hours`, and of the servers around them where those have
/// a figure.
pub fn of_accelerator(row: &Accelerator, count: f64, hours: f64) -> Vec<EmbodiedLine> {
    let mut lines = vec![share(
        format!("{count} x {}", row.name),
        count * hours,
        row.made_kg,
        row.life_hours,
        made_words(row.made_source),
    )];
    if let Some((kg, source)) = row.host.and_then(host) {
        lines.push(share(
            "their share of servers of eight".to_owned(),
            count * hours / PER_SERVER,
            kg,
            row.life_hours,
            source,
        ));
    }
    lines
}

/// The share of a run on GPUs of those names. None where there are none: a processor's own making has
/// no figure here.
pub fn of_gpus(names: &[String], hours: f64) -> Option<Embodied> {
    if names.is_empty() {
        return None;
    }
    let mut kinds: Vec<(&str, f64)> = Vec::new();
    for name in names {
        match kinds.iter_mut().find(|(kind, _)| kind == name) {
            Some((_, count)) => *count += 1.0,
            None => kinds.push((name, 1.0)),
        }
    }
    let mut lines = Vec::new();
    let mut missing = Vec::new();
    for (name, count) in kinds {
        match hardware::find(name) {
            Some(row) => {
                lines.extend(of_accelerator(row, count, hours));
                if row.host.is_none() {
                    missing.push(format!("the machine around {}", row.name));
                }
            }
            None => missing.push(name.to_owned()),
        }
    }
    (!lines.is_empty()).then(|| Embodied::sum(lines, missing))
}

impl Embodied {
    /// Lines with their sum.
    pub fn sum(lines: Vec<EmbodiedLine>, missing: Vec<String>) -> Self {
        Self {
            grams: lines.iter().map(|line| line.grams).sum(),
            lines,
            missing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_over_life_and_the_bounds_take_the_lives_with_them() {
        let names = vec!["NVIDIA A100-SXM4-80GB".to_owned(); 8];
        let embodied = of_gpus(&names, 100.0).unwrap();
        assert_eq!(embodied.lines.len(), 2);
        let gpus = &embodied.lines[0];
        assert!((gpus.grams.central - 150e3 * 800.0 / 44_676.0).abs() < 1e-6);
        assert!((gpus.grams.high - 318e3 * 800.0 / 26_280.0).abs() < 1e-6);
        assert!((embodied.lines[1].grams.central - 2500e3 * 100.0 / 44_676.0).abs() < 1e-6);
        assert_eq!(
            embodied.grams.central,
            gpus.grams.central + embodied.lines[1].grams.central
        );
    }

    #[test]
    fn what_has_no_figure_is_named_and_a_processor_alone_has_none() {
        assert_eq!(of_gpus(&[], 1.0), None);
        assert_eq!(of_gpus(&["Frobnicator 9".to_owned()], 1.0), None);
        let embodied = of_gpus(&["Frobnicator 9".to_owned(), "Tesla T4".to_owned()], 1.0).unwrap();
        assert_eq!(
            embodied.missing,
            ["Frobnicator 9", "the machine around NVIDIA T4"]
        );
    }
}
