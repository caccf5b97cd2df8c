//! The plan as one screen.

use std::time::Duration;

use sparsam_tracker::{Range, format};

use super::{Arm, How, Plan};
use crate::figures::{bytes, duration, thousands};

/// The screen. Labels and their text, for [`crate::columns`].
pub(crate) fn lines(plan: &Plan) -> Vec<String> {
    let mut lines = vec![format!("machine    {}", plan.machine)];
    let work = &plan.work;
    lines.push(format!(
        "work       {} steps, {} tokens, {} evaluations; the largest batch has {} tokens",
        thousands(work.steps),
        thousands(work.tokens),
        thousands(work.evaluations),
        thousands(work.largest_batch.0),
    ));
    if let Some(recipe) = plan.arms.first() {
        lines.push(format!(
            "memory     {}{}",
            size(recipe.peak_bytes),
            verdict(plan, recipe)
        ));
        for (name, part) in recipe.memory.parts() {
            lines.push(format!("  {name:13}{}", bytes(part as u64)));
        }
        lines.push(format!("time       {}", time(recipe.seconds)));
        lines.push(format!("energy     {}", format::energy(recipe.energy_kwh)));
        lines.push(format!(
            "emissions  {} CO2e",
            format::grams(recipe.emissions_g)
        ));
        lines.push(format!("  {}", plan.emissions));
    }
    lines.push(String::new());
    lines.push(format!(
        "           {:12}{:>9}{:>12}{:>11} {:>21}",
        "beside it", "memory", "time", "energy", "CO2e"
    ));
    for arm in &plan.arms {
        lines.push(format!("           {}", row(arm)));
    }
    if !plan.knobs.is_empty() {
        lines.push(String::new());
    }
    for (index, knob) in plan.knobs.iter().enumerate() {
        let label = if index == 0 {
            "to fit     "
        } else {
            "           "
        };
        lines.push(format!(
            "{label}`{}` saves {}, leaves {}; costs {}",
            knob.write,
            bytes(knob.saves_bytes as u64),
            bytes(knob.leaves_bytes as u64),
            knob.costs,
        ));
    }
    lines.extend(plan.notes.iter().map(|note| format!("note       {note}")));
    lines
}

fn size(range: Range) -> String {
    format!(
        "{} ({} to {})",
        bytes(range.central as u64),
        bytes(range.low as u64),
        bytes(range.high as u64)
    )
}

fn seconds(value: f64) -> String {
    duration(Duration::try_from_secs_f64(value.max(0.0)).unwrap_or(Duration::MAX))
}

fn time(range: Range) -> String {
    format!(
        "{} ({} to {})",
        seconds(range.central),
        seconds(range.low),
        seconds(range.high)
    )
}

fn verdict(plan: &Plan, arm: &Arm) -> String {
    let there = plan.available_bytes.map_or_else(String::new, |available| {
        format!(" of {}", bytes(available as u64))
    });
    match arm.fits {
        Some(true) => format!("{there}: it fits"),
        Some(false) if plan.knobs.is_empty() => format!("{there}: it does not fit"),
        Some(false) => format!("{there}: it does not fit; what can be changed is below"),
        None => String::new(),
    }
}

fn row(arm: &Arm) -> String {
    let mark = match arm.how {
        How::Calibrated => "",
        How::Scaled => " *",
        How::Computed => " +",
    };
    let fits = if arm.fits == Some(false) { " !" } else { "" };
    let grams = match arm.emissions_g.central {
        Some(central) => format::grams(Range::exactly(central).into()),
        None => format::grams(arm.emissions_g),
    };
    format!(
        "{:12}{:>9}{:>12}{:>11} {:>21}{mark}{fits}",
        arm.name,
        bytes(arm.memory.total() as u64),
        seconds(arm.seconds.central),
        format::energy_central(arm.energy_kwh.central),
        grams,
    )
}
