//! The record in a few lines for a terminal. The same phrases stand on the card.

use crate::comparison::{self, Comparison};
use crate::embodied::Embodied;
use crate::format;
use crate::intensity::LiveReadings;
use crate::range::Range;
use crate::record::{Baseline, EnergyRecord};
use crate::water::Water;

/// Energy, its components, emissions, and what a reader must know. Columns are aligned; no colour.
pub fn summary_lines(record: &EnergyRecord) -> Vec<String> {
    let mut lines = vec![format!(
        "energy     {}, {} measured, {}",
        format::energy(record.energy_kwh),
        format::percent(record.measured_share),
        format::duration(record.duration_seconds),
    )];
    let width = record
        .components
        .iter()
        .map(|c| c.label.chars().count())
        .max()
        .unwrap_or(0);
    for component in &record.components {
        lines.push(format!(
            "  {:width$}  {}, {}: {}",
            component.label,
            format::energy(component.energy_kwh),
            component.method.name(),
            component.source,
        ));
    }
    lines.push(format!(
        "emissions  {} CO2e",
        format::grams(record.emissions_g)
    ));
    lines.push(format!("  {}", formula(record)));
    if !record.contains.is_empty() {
        lines.push(format!("  contains {}", record.contains.join("; ")));
    }
    if record.place.is_none() && record.emissions_g.central.is_none() {
        lines.push(
            "  for one figure name the country: `--country DEU`, `country: DEU` in a recipe, or \
             SPARSAM_COUNTRY=DEU"
                .to_owned(),
        );
    }
    lines.extend(beside(record).into_iter().map(|line| format!("  {line}")));
    if let Some(gaps) = gaps(record) {
        lines.push(format!("  {gaps}"));
    }
    if record.ended_early {
        lines.push(format!("  {}", ended_early(record)));
    }
    lines.extend(record.notes.iter().map(|note| format!("  note: {note}")));
    lines
}

/// How the emissions were computed, with the place, the year and the source of the intensity.
pub fn formula(record: &EnergyRecord) -> String {
    let pue = format::plain_decimal(record.pue.value, 3);
    let span = record.intensity.g_per_kwh;
    let live = record.intensity.live.as_ref().map(LiveReadings::words);
    let Some(central) = span.central else {
        let from: Vec<String> = std::iter::once(record.intensity.source.clone())
            .chain(live)
            .collect();
        return format!(
            "energy x PUE {pue} x {:.0} to {:.0} g/kWh ({})",
            span.low,
            span.high,
            from.join(", ")
        );
    };
    let mut from = Vec::new();
    from.extend(record.place.as_ref().map(|place| place.name.clone()));
    from.extend(record.intensity.year.map(|year| year.to_string()));
    from.push(record.intensity.source.clone());
    from.extend(live);
    format!(
        "energy x PUE {pue} x {} g/kWh ({})",
        format::plain_decimal(central, 4),
        from.join(", ")
    )
}

/// What stands beside the headline and is never in it: energy above idle, the making of the hardware,
/// water, comparisons. One line each, with its source.
pub fn beside(record: &EnergyRecord) -> Vec<String> {
    beside_parts(
        record.net_energy_kwh.zip(record.baseline),
        record.embodied.as_ref(),
        record.water.as_ref(),
        &record.comparisons,
    )
}

/// The same from its parts, which an estimate has too.
pub(crate) fn beside_parts(
    net: Option<(Range, Baseline)>,
    embodied: Option<&Embodied>,
    water: Option<&Water>,
    comparisons: &[Comparison],
) -> Vec<String> {
    let number = |value: f64| format::plain_decimal(value, 3);
    let mut lines = Vec::new();
    if let Some((net, baseline)) = net {
        lines.push(format!(
            "above idle: {} of the energy ({} W idle, measured for {} before the start)",
            format::energy(net),
            number(baseline.watts.central),
            format::duration(baseline.seconds),
        ));
    }
    lines.extend(embodied.map(embodied_line));
    if let Some(water) = water {
        lines.push(format!(
            "water: {} L ({} to {}), {} L/kWh on site and {} L/kWh in the grid ({})",
            number(water.litres.central),
            number(water.litres.low),
            number(water.litres.high),
            number(water.rates.site),
            format::plain_decimal(water.rates.grid, 4),
            water.rates.source,
        ));
    }
    lines.extend(comparison::telling(comparisons).into_iter().map(|c| {
        format!(
            "as much as {} ({} g each; {})",
            c.words(),
            format::plain_decimal(c.g_each, 4),
            c.source
        )
    }));
    lines
}

/// The making of the hardware in one line.
pub(crate) fn embodied_line(embodied: &Embodied) -> String {
    let parts: Vec<String> = embodied
        .lines
        .iter()
        .map(|line| {
            format!(
                "{} {} ({})",
                line.label,
                format::grams(line.grams.into()),
                line.source
            )
        })
        .collect();
    let missing = if embodied.missing.is_empty() {
        String::new()
    } else {
        format!("; without {}", embodied.missing.join(", "))
    };
    format!(
        "making the hardware, by hours over its life: {} CO2e: {}{missing}",
        format::grams(embodied.grams.into()),
        parts.join("; "),
    )
}

/// Readings that failed, and the time whose energy is missing.
pub(crate) fn gaps(record: &EnergyRecord) -> Option<String> {
    if record.gaps == 0 {
        return None;
    }
    let lost = record
        .components
        .iter()
        .map(|c| c.gap_seconds)
        .fold(0.0, f64::max);
    let readings = if record.gaps == 1 {
        "1 reading".to_owned()
    } else {
        format!("{} readings", record.gaps)
    };
    Some(if lost > 0.0 {
        format!(
            "{readings} failed; up to {} of a component are missing",
            format::duration(lost)
        )
    } else {
        format!("{readings} failed; later readings covered their time")
    })
}

/// Said where the last session has no end.
pub(crate) fn ended_early(record: &EnergyRecord) -> String {
    format!(
        "the run ended early: this covers it up to {}, the last line of its journal",
        record.ended
    )
}
