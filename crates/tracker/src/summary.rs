//! The record in a few lines for a terminal. The same phrases stand on the card.

use crate::format;
use crate::record::EnergyRecord;

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
    if record.place.is_none() && record.emissions_g.central.is_none() {
        lines.push(
            "  set `country: DEU` (or your own) in the recipe, or SPARSAM_COUNTRY, for one figure"
                .to_owned(),
        );
    }
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
    let Some(central) = span.central else {
        return format!(
            "energy x PUE {pue} x {:.0} to {:.0} g/kWh ({})",
            span.low, span.high, record.intensity.source
        );
    };
    let mut from = Vec::new();
    from.extend(record.place.as_ref().map(|place| place.name.clone()));
    from.extend(record.intensity.year.map(|year| year.to_string()));
    from.push(record.intensity.source.clone());
    format!(
        "energy x PUE {pue} x {} g/kWh ({})",
        format::plain_decimal(central, 4),
        from.join(", ")
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
