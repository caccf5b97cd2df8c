//! A comparison on one screen, as a table for a card or a paper, and as CSV.

use std::fmt::Write as _;

use sparsam_tracker::format;

use super::bootstrap::Interval;
use super::result::{ArmResult, Outcome};
use crate::figures::{bytes, significant, thousands};

/// The columns of the CSV. Energies are means over an arm's runs.
const CSV: &str = "arm,trainable,repeats,loss,loss_low,loss_high,loss_difference,loss_difference_low,\
    loss_difference_high,exact_match,exact_match_low,exact_match_high,macro_f1,macro_f1_low,macro_f1_high,minutes,peak_memory_bytes,energy_wh,\
    energy_wh_low,energy_wh_high,energy_ratio,energy_ratio_low,energy_ratio_high,emissions_g,published_bytes,\
    wh_to_target,gain_per_wh\n";

/// `1.234 ±` as `1.234 (1.21 to 1.26)`.
fn interval(value: Interval, digits: i32) -> String {
    let number = |value: f64| significant(value, digits);
    format!(
        "{} ({} to {})",
        number(value.mean),
        number(value.low),
        number(value.high)
    )
}

fn percent(value: Interval) -> String {
    format!(
        "{:.1} % ({:.1} to {:.1})",
        value.mean * 100.0,
        value.low * 100.0,
        value.high * 100.0
    )
}

/// The work that all arms had, line by line.
fn common(outcome: &Outcome) -> Vec<String> {
    let common = &outcome.common;
    vec![
        format!(
            "{} on {}; {} steps, {} tokens, {}",
            outcome.recipe,
            common.model,
            thousands(common.steps),
            thousands(common.tokens),
            common.batch
        ),
        format!(
            "{} runs of each arm with seeds of their own; data {}…, held-out data {}…; loss before {}",
            outcome.repeats,
            common.train_blake3.get(..12).unwrap_or_default(),
            common
                .eval_blake3
                .as_deref()
                .and_then(|hash| hash.get(..12))
                .unwrap_or_default(),
            significant(common.loss_before, 4)
        ),
    ]
}

/// One screen, for [`crate::columns`].
pub(crate) fn lines(outcome: &Outcome) -> Vec<String> {
    let mut lines: Vec<String> = common(outcome)
        .into_iter()
        .enumerate()
        .map(|(index, text)| {
            format!(
                "{}{text}",
                if index == 0 {
                    "work       "
                } else {
                    "           "
                }
            )
        })
        .collect();
    lines.push(format!("machine    {}", outcome.common.hardware));
    lines.push(String::new());
    let any = |of: fn(&ArmResult) -> Option<Interval>| outcome.arms.iter().any(|a| of(a).is_some());
    let last = match (any(|arm| arm.macro_f1), any(|arm| arm.exact_match)) {
        (true, _) => "macro F1",
        (false, true) => "exact",
        (false, false) => "trained",
    };
    lines.push(format!(
        "{:12}{:>23}{:>8}{:>10}{:>9}{:>9}{:>9}",
        "arm", "loss, 95 %", "minutes", "energy", "of first", "memory", last
    ));
    for arm in &outcome.arms {
        let mut name: String = arm.name.chars().take(11).collect();
        name.push(' ');
        let loss = format!(
            "{} ({}-{})",
            significant(arm.loss.mean, 4),
            significant(arm.loss.low, 3),
            significant(arm.loss.high, 3)
        );
        lines.push(format!(
            "{name:12}{loss:>23}{:>8}{:>10}{:>9}{:>9}{:>9}",
            significant(arm.minutes, 3),
            format::energy_central(arm.energy_kwh.central),
            arm.energy_ratio
                .map_or_else(|| "-".to_owned(), |r| format!("{:.0} %", r.mean * 100.0)),
            arm.peak_memory_bytes.map_or_else(|| "-".to_owned(), bytes),
            arm.macro_f1.or(arm.exact_match).map_or_else(
                || short(arm.trainable),
                |share| format!("{:.1} %", share.mean * 100.0)
            ),
        ));
    }
    lines.push(String::new());
    for (index, text) in outcome.advice.iter().enumerate() {
        lines.push(format!(
            "{}{text}",
            if index == 0 {
                "advice     "
            } else {
                "           "
            }
        ));
    }
    lines
}

/// `98k`, `3.2M`.
fn short(count: u64) -> String {
    match count {
        0..10_000 => thousands(count),
        10_000..1_000_000 => format!("{}k", count / 1000),
        _ => format!("{}M", significant(count as f64 / 1e6, 2)),
    }
}

/// The comparison as Markdown, ready for a card or a paper.
pub(crate) fn markdown(outcome: &Outcome) -> String {
    let mut out = String::from("## Comparison\n\n");
    for line in common(outcome) {
        let _ = writeln!(out, "- {line}");
    }
    let _ = writeln!(out, "- {}", outcome.common.hardware);
    for change in &outcome.set {
        let _ = writeln!(out, "- for all arms `{change}`");
    }
    let (task, of): (_, fn(&ArmResult) -> Option<Interval>) =
        if outcome.arms.iter().any(|arm| arm.macro_f1.is_some()) {
            ("macro F1", |arm| arm.macro_f1)
        } else {
            ("exact match", |arm| arm.exact_match)
        };
    let _ = writeln!(
        out,
        "\n| arm | trained weights | loss, 95 % interval | against the first | {task} | time | peak memory | energy \
         | of the first | CO2e | published |\n|---|---|---|---|---|---|---|---|---|---|---|"
    );
    let none = || "–".to_owned();
    for arm in &outcome.arms {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} min | {} | {} | {} | {} | {} |",
            arm.name.replace('|', "\\|"),
            thousands(arm.trainable),
            interval(arm.loss, 4),
            arm.loss_difference
                .map_or_else(none, |difference| interval(difference, 2)),
            of(arm).map_or_else(none, percent),
            significant(arm.minutes, 3),
            arm.peak_memory_bytes.map_or_else(none, bytes),
            format::energy(arm.energy_kwh),
            arm.energy_ratio.map_or_else(none, percent),
            format::grams(arm.emissions_g),
            arm.published_bytes.map_or_else(none, bytes),
        );
    }
    out.push_str("\nWhat each arm changes, and its energy by phase:\n\n");
    for arm in &outcome.arms {
        let keys: Vec<String> = arm.keys.iter().map(|key| format!("`{key}`")).collect();
        let keys = if keys.is_empty() {
            "nothing".to_owned()
        } else {
            keys.join(", ")
        };
        let phases: Vec<String> = arm
            .phases_kwh
            .iter()
            .map(|(path, kwh)| format!("{path} {}", format::energy_central(*kwh)))
            .collect();
        let reached = arm.wh_to_target.map_or_else(String::new, |wh| {
            format!(
                "; {} until the loss was {}",
                format::energy_central(wh / 1e3),
                significant(outcome.target_loss, 4)
            )
        });
        let _ = writeln!(
            out,
            "- **{}** changes {keys}; {}{reached}; {} nats gained for each Wh",
            arm.name,
            phases.join(", "),
            significant(arm.gain_per_wh, 3),
        );
    }
    out.push('\n');
    for text in &outcome.advice {
        let _ = writeln!(out, "{text}\n");
    }
    let _ = writeln!(
        out,
        "Intervals are bootstrapped over repeats and rows of the held-out data, all arms on the same rows. \
         Ranges of energy are those of the meters; {} measured. Emissions are {}.",
        format::percent(outcome.common.measured_share),
        outcome.common.emissions
    );
    out
}

/// The comparison as CSV, a row for each arm.
pub(crate) fn csv(outcome: &Outcome) -> String {
    let mut out = String::from(CSV);
    for arm in &outcome.arms {
        out.push_str(&row(arm, outcome.repeats));
    }
    out
}

fn row(arm: &ArmResult, repeats: usize) -> String {
    let three = |value: Option<Interval>| match value {
        Some(value) => format!("{},{},{}", value.low, value.mean, value.high),
        None => ",,".to_owned(),
    };
    // The mean first, as it is what is read most.
    let turned = |value: Option<Interval>| {
        let text = three(value);
        let parts: Vec<&str> = text.split(',').collect();
        format!("{},{},{}", parts[1], parts[0], parts[2])
    };
    let optional = |value: Option<String>| value.unwrap_or_default();
    let wh = arm.energy_kwh.scale(1e3);
    let fields = [
        quoted(&arm.name),
        arm.trainable.to_string(),
        repeats.to_string(),
        turned(Some(arm.loss)),
        turned(arm.loss_difference),
        turned(arm.exact_match),
        turned(arm.macro_f1),
        arm.minutes.to_string(),
        optional(arm.peak_memory_bytes.map(|bytes| bytes.to_string())),
        format!("{},{},{}", wh.central, wh.low, wh.high),
        turned(arm.energy_ratio),
        optional(arm.emissions_g.central.map(|grams| grams.to_string())),
        optional(arm.published_bytes.map(|bytes| bytes.to_string())),
        optional(arm.wh_to_target.map(|wh| wh.to_string())),
        arm.gain_per_wh.to_string(),
    ];
    fields.join(",") + "\n"
}

/// A field of CSV (RFC 4180).
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_field_for_every_column() {
        let arm = ArmResult {
            name: "full, all".to_owned(),
            keys: Vec::new(),
            trainable: 7,
            loss: Interval {
                low: 1.0,
                mean: 1.5,
                high: 2.0,
            },
            loss_difference: None,
            exact_match: None,
            exact_match_difference: None,
            macro_f1: None,
            macro_f1_difference: None,
            minutes: 1.0,
            minutes_each: Vec::new(),
            peak_memory_each: Vec::new(),
            peak_memory_bytes: None,
            energy_kwh: sparsam_tracker::Range::exactly(0.001),
            energies_kwh: Vec::new(),
            energy_ratio: None,
            emissions_g: sparsam_tracker::Range::exactly(1.0).into(),
            phases_kwh: Vec::new(),
            components_kwh: Vec::new(),
            published_bytes: None,
            wh_to_target: None,
            gain_per_wh: 0.5,
            losses: super::super::bootstrap::Measured::default(),
            answers: None,
            classes: None,
        };
        let row = row(&arm, 3);
        assert!(row.starts_with("\"full, all\",7,3,1.5,1,2,,,,"), "{row}");
        assert_eq!(row.matches(',').count() - 1, CSV.matches(',').count());
    }
}
