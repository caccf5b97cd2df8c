//! The ledger in words: a screen for the terminal, and a section for a model card. Both say the same.

use std::fmt::Write as _;

use super::{Expectation, Lifecycle, Requests, StageTotal, State, Way};
use crate::format;
use crate::range::Range;

/// One screen. Columns are aligned; no colour.
pub fn lines(ledger: &Lifecycle) -> Vec<String> {
    let mut lines = vec![
        format!("runs       {}", ends(ledger)),
        format!(
            "energy     {}, {} measured, {}",
            format::energy(ledger.energy_kwh),
            format::percent(measured(ledger)),
            format::duration(seconds(ledger)),
        ),
    ];
    for stage in &ledger.stages {
        lines.push(format!(
            " {:10}{}, {} of the energy, {}{}",
            name(stage),
            format::energy(stage.energy_kwh),
            format::percent(share(stage.energy_kwh, ledger.energy_kwh)),
            runs(stage.runs),
            unfinished(stage),
        ));
    }
    lines.push(format!(
        "emissions  {} CO2e",
        format::grams(ledger.emissions_g)
    ));
    for stage in &ledger.stages {
        lines.push(format!(
            " {:10}{}",
            name(stage),
            format::grams(stage.emissions_g)
        ));
    }
    if ledger.emissions_g.central.is_none() {
        lines.push(
            "  some runs state no place, so there is no single figure: give one, as `--country DEU`"
                .to_owned(),
        );
    }
    lines.push(format!("embodied   {}", embodied(ledger)));
    lines.push(format!("water      {}", water(ledger)));
    if let Some(expected) = &ledger.expected {
        lines.push(format!("inference  {}", asked(expected)));
        for way in &expected.ways {
            lines.push(format!("  {}", answering(expected, way)));
        }
    } else if !ledger.inference.is_empty() {
        lines.push(format!(
            "inference  {} measured: `--requests-per-day` says what they will cost",
            ways(ledger.inference.len())
        ));
    }
    lines.extend(
        shared(ledger)
            .into_iter()
            .map(|text| format!("shared     {text}")),
    );
    lines.extend(
        missing(ledger)
            .into_iter()
            .map(|text| format!("missing    {text}")),
    );
    if !ledger.copies.is_empty() {
        lines.push(format!("copies     {}", copies(ledger)));
    }
    lines
}

/// The section `Lifecycle` of a model card, ending in a line feed.
pub fn card_section(ledger: &Lifecycle) -> String {
    let mut out = format!(
        "## Lifecycle\n\nAll runs of this project that were tracked, whatever their end: {}.\n\n\
         | stage | runs | not finished | time | energy | CO2e |\n|---|---|---|---|---|---|\n",
        ends(ledger)
    );
    for stage in &ledger.stages {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            name(stage),
            stage.runs,
            stage.unfinished_runs,
            format::duration(stage.seconds),
            format::energy(stage.energy_kwh),
            format::grams(stage.emissions_g),
        );
    }
    let _ = write!(
        out,
        "| **all** | {} | {} | {} | {} | {} |\n\n",
        ledger.runs.len(),
        ledger
            .stages
            .iter()
            .map(|stage| stage.unfinished_runs)
            .sum::<usize>(),
        format::duration(seconds(ledger)),
        format::energy(ledger.energy_kwh),
        format::grams(ledger.emissions_g),
    );
    let _ = writeln!(
        out,
        "{} of the energy was measured. Beside these figures and not in them:\n\n\
         - making the hardware: {}\n- water: {}",
        format::percent(measured(ledger)),
        embodied(ledger),
        water(ledger),
    );
    if let Some(expected) = &ledger.expected {
        let _ = writeln!(out, "- expected for answering, {}", asked(expected));
        for way in &expected.ways {
            let _ = writeln!(out, "  - {}", escaped(&answering(expected, way)));
        }
    }
    let notes: Vec<String> = shared(ledger).into_iter().chain(missing(ledger)).collect();
    if !notes.is_empty() {
        out.push('\n');
        for note in notes {
            let _ = writeln!(out, "- {}", escaped(&note));
        }
    }
    out
}

/// Paths and names within a paragraph of a card.
fn escaped(text: &str) -> String {
    text.replace('<', "\\<").replace('\n', " ")
}

fn name(stage: &StageTotal) -> &'static str {
    stage.stage.map_or("no stage", super::Stage::name)
}

fn runs(count: usize) -> String {
    match count {
        1 => "1 run".to_owned(),
        count => format!("{count} runs"),
    }
}

/// `30 runs: 19 finished, 3 failed, 8 killed or still running`.
fn ends(ledger: &Lifecycle) -> String {
    let states = [
        State::Finished,
        State::Interrupted,
        State::Failed,
        State::Cut,
    ];
    let counts: Vec<String> = states
        .into_iter()
        .filter_map(|state| {
            let count = ledger.runs.iter().filter(|run| run.state == state).count();
            (count > 0).then(|| format!("{count} {}", state.words()))
        })
        .collect();
    let resumed = ledger.runs.iter().filter(|run| run.sessions > 1).count();
    let resumed = if resumed > 0 {
        format!("; {resumed} of them resumed")
    } else {
        String::new()
    };
    if counts.is_empty() {
        return runs(0);
    }
    format!(
        "{}: {}{resumed}",
        runs(ledger.runs.len()),
        counts.join(", ")
    )
}

fn unfinished(stage: &StageTotal) -> String {
    if stage.unfinished_runs == 0 {
        return String::new();
    }
    format!(
        "; {} not finished: {}",
        stage.unfinished_runs,
        format::energy_central(stage.unfinished_kwh.central)
    )
}

fn share(part: Range, whole: Range) -> f64 {
    if whole.central > 0.0 {
        part.central / whole.central
    } else {
        0.0
    }
}

fn measured(ledger: &Lifecycle) -> f64 {
    let measured: f64 = ledger
        .runs
        .iter()
        .map(|run| run.energy_kwh.central * run.measured_share)
        .sum();
    share(Range::exactly(measured), ledger.energy_kwh)
}

fn seconds(ledger: &Lifecycle) -> f64 {
    ledger
        .runs
        .iter()
        .map(|run| run.seconds)
        .fold(0.0, |a, b| a + b)
}

fn embodied(ledger: &Lifecycle) -> String {
    let Some(grams) = ledger.embodied_g else {
        return "no figure for making this hardware".to_owned();
    };
    let mut text = format!(
        "{} CO2e by hours over the hardware's life",
        format::grams(grams.into())
    );
    if let Some(operational) = ledger.emissions_g.central {
        let _ = write!(
            text,
            ", {} of operation and making together",
            format::percent(grams.central / (grams.central + operational))
        );
    }
    if ledger.without_embodied > 0 {
        let _ = write!(
            text,
            "; without the hardware of {}",
            runs(ledger.without_embodied)
        );
    }
    text
}

fn water(ledger: &Lifecycle) -> String {
    let Some(litres) = ledger.water_l else {
        return "not known for the place of these runs".to_owned();
    };
    let number = |value: f64| format::plain_decimal(value, 3);
    let mut text = format!(
        "{} L ({} to {})",
        number(litres.central),
        number(litres.low),
        number(litres.high)
    );
    if ledger.without_water > 0 {
        let _ = write!(text, "; without that of {}", runs(ledger.without_water));
    }
    text
}

fn ways(count: usize) -> String {
    match count {
        1 => "1 way of answering was".to_owned(),
        count => format!("{count} ways of answering were"),
    }
}

/// A number with its thousands set apart: whole ones as they are, others with three digits.
fn count(value: f64) -> String {
    let whole = value.fract() == 0.0 && value < 1e15;
    let plain = format::plain_decimal(value, if whole { 15 } else { 3 });
    let (whole, part) = plain.split_once('.').unwrap_or((&plain, ""));
    let mut text = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if !part.is_empty() {
        text.push('.');
        text.push_str(part);
    }
    text
}

/// `1,000 requests a day for 365 days, not yet made and in no sum above:`.
fn asked(expected: &Expectation) -> String {
    let Requests { per_day, days, .. } = expected.requests;
    format!(
        "{} requests a day for {} days, not made yet and in no sum above:",
        count(per_day),
        count(days)
    )
}

fn answering(expected: &Expectation, way: &Way) -> String {
    let mut text = format!(
        "{}: {}, {} CO2e, at {} tokens read and {} written",
        way.name,
        format::energy(way.energy_kwh),
        format::grams(way.emissions_g),
        count(way.tokens.0),
        count(way.tokens.1),
    );
    if let Some(after) = way.overtakes_after {
        let _ = write!(
            text,
            "; more than all stages before it after {} requests ({} to {}), on day {}",
            count(after.central),
            count(after.low),
            count(after.high),
            count((after.central / expected.requests.per_day).ceil().max(1.0)),
        );
    }
    text
}

fn shared(ledger: &Lifecycle) -> Vec<String> {
    ledger
        .shared
        .iter()
        .map(|shared| {
            let who = listed(&shared.runs);
            let time = format::duration(shared.seconds);
            if shared.certain {
                format!(
                    "{who} ran on one machine at once for {time}: {} were in more than one journal and \
                     are counted once",
                    format::energy_central(shared.counted_twice_kwh.central)
                )
            } else {
                format!(
                    "{who} overlap by {time} and may have shared a machine or parts of it: what they \
                     shared is counted twice"
                )
            }
        })
        .collect()
}

fn missing(ledger: &Lifecycle) -> Vec<String> {
    let mut lines = Vec::new();
    let cut = ledger
        .runs
        .iter()
        .filter(|run| run.state == State::Cut)
        .count();
    if cut > 0 {
        lines.push(format!(
            "what {} drew after the last line of {} journal",
            runs(cut),
            if cut == 1 { "its" } else { "their" }
        ));
    }
    let gaps: Vec<_> = ledger.runs.iter().filter(|run| run.gaps > 0).collect();
    if !gaps.is_empty() {
        let names: Vec<String> = gaps.iter().map(|run| run.path.clone()).collect();
        let count: u64 = gaps.iter().map(|run| run.gaps).sum();
        let lost = gaps.iter().map(|run| run.gap_seconds).sum();
        lines.push(format!(
            "{count} readings failed in {}; {} of a component could not be recovered",
            listed(&names),
            format::duration(lost)
        ));
    }
    lines.extend(ledger.unknown.iter().cloned());
    lines
}

fn copies(ledger: &Lifecycle) -> String {
    format!(
        "{} left out, as the same run is there already",
        listed(&ledger.copies)
    )
}

/// `a, b and 3 more`.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<String> = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    match names.len() {
        count if count > SHOWN => format!("{} and {} more", shown.join(", "), count - SHOWN),
        _ => shown.join(", "),
    }
}
