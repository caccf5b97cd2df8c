//! Bars: what runs, or the arms of a comparison, took side by side.

use sparsam_tracker::range::{Range, Span};

use super::data::RunData;
use super::plots::{ENERGY, Plot, Speech, WIDTH, shortened, unit};
use super::svg::{Anchor, Frame, Scale, Svg, fill_class};

/// Height of a bar with the room around it.
const ROW: f64 = 34.0;

/// A bar: name, value, bounds, what is said, and the series that paints it.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) bounds: Option<(f64, f64)>,
    pub(super) says: String,
    pub(super) series: usize,
}

/// Bars from the left, one below the other.
pub(super) fn bars(title: &str, about: &str, x_title: &str, bars: &[Bar], speech: Speech) -> Svg {
    let height = 76.0 + ROW * bars.len() as f64;
    let reach = bars
        .iter()
        .flat_map(|bar| [bar.value, bar.bounds.map_or(0.0, |b| b.1)]);
    let frame = Frame {
        left: 180.0,
        top: 12.0,
        right: WIDTH - 86.0,
        bottom: height - 52.0,
        x: Scale::linear(reach, true),
        y: Scale::linear([], true),
    };
    let mut svg = Svg::new(WIDTH, height, title, about);
    frame.draw_x(&mut svg, x_title, &speech.tick());
    for (index, bar) in bars.iter().enumerate() {
        let y = frame.top + 6.0 + ROW * index as f64;
        svg.text(
            (frame.left - 8.0, y + 15.0),
            Anchor::End,
            "label",
            &shortened(&bar.name, 24),
        );
        let end = frame.across(bar.value);
        svg.rect(
            (frame.left, y),
            (end - frame.left, 22.0),
            &fill_class(bar.series),
            &bar.says,
        );
        let mut reached = end;
        if let Some((low, high)) = bar.bounds {
            let (low, high) = (frame.across(low), frame.across(high));
            for class in ["halo", "axis range"] {
                svg.line((low, y + 11.0), (high, y + 11.0), class);
                for x in [low, high] {
                    svg.line((x, y + 6.0), (x, y + 16.0), class);
                }
            }
            reached = reached.max(high);
        }
        svg.text(
            (reached + 6.0, y + 15.0),
            Anchor::Start,
            "tick",
            &speech.number(bar.value, 3),
        );
    }
    svg
}

/// What a run, or an arm of a comparison, took.
#[derive(Debug, Clone)]
pub(super) struct Side {
    pub(super) name: String,
    pub(super) energy_kwh: Range,
    /// As the energy is worded, where that is not the range above.
    pub(super) emissions_g: Option<Span>,
    pub(super) minutes: Range,
    /// The most memory of the process, bytes.
    pub(super) memory: Option<Range>,
    /// Size of what is published, bytes.
    pub(super) published: Option<f64>,
}

/// Each run by itself: the range of its energy is the meters'.
pub(super) fn of_runs(runs: &[&RunData]) -> Vec<Side> {
    runs.iter()
        .map(|run| {
            let record = run.record.as_ref();
            let peak = record.and_then(|record| record.results.as_ref()?.peak_memory_bytes);
            Side {
                name: run.name.clone(),
                energy_kwh: run.energy.energy_kwh,
                emissions_g: Some(run.energy.emissions_g),
                minutes: Range::exactly(run.energy.duration_seconds / 60.0),
                memory: peak.map(|bytes| Range::exactly(bytes as f64)),
                published: record.and_then(|record| record.published_bytes().map(|b| b as f64)),
            }
        })
        .collect()
}

const BYTES: [(&str, f64); 3] = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
const MINUTES: [(&str, f64); 3] = [("h", 120.0), ("min", 1.0), ("s", 1.0 / 60.0)];

/// Minutes of one `h`, `min`, `s`.
fn minutes_of(name: &str) -> f64 {
    match name {
        "h" => 60.0,
        "min" => 1.0,
        _ => 1.0 / 60.0,
    }
}

/// One picture: a value of each side, where it is known of at least one.
fn picture(
    sides: &[Side],
    (id, title, about): (&str, &str, &str),
    (axis, size): (&str, f64),
    value: &dyn Fn(&Side) -> Option<Range>,
    worded: &dyn Fn(&Side, Range) -> String,
    speech: Speech,
) -> Option<Plot> {
    let known: Vec<(usize, &Side, Range)> = sides
        .iter()
        .enumerate()
        .filter_map(|(index, side)| Some((index, side, value(side)?)))
        .filter(|(_, _, range)| range.central.is_finite())
        .collect();
    if known.iter().all(|(_, _, range)| range.central <= 0.0) {
        return None;
    }
    let drawn: Vec<Bar> = known
        .iter()
        .map(|(index, side, range)| Bar {
            name: side.name.clone(),
            value: range.central / size,
            bounds: (!range.is_exact()).then_some((range.low / size, range.high / size)),
            says: format!("{}: {}", side.name, worded(side, *range)),
            series: *index,
        })
        .collect();
    let svg = bars(title, about, axis, &drawn, speech);
    Some(Plot {
        id: id.to_owned(),
        title: title.to_owned(),
        about: about.to_owned(),
        svg: svg.inline(id),
        file: svg.file(),
        head: vec![speech.words.run.to_owned(), axis.to_owned()],
        rows: known
            .iter()
            .map(|(_, side, range)| vec![side.name.clone(), worded(side, *range)])
            .collect(),
    })
}

/// Energy, time, memory and size of the sides, as far as they are known; nothing for fewer than two.
pub(super) fn compared(sides: &[Side], about: &str, speech: Speech) -> Vec<Plot> {
    let w = speech.words;
    if sides.len() < 2 {
        return Vec::new();
    }
    let largest = |value: &dyn Fn(&Side) -> Option<Range>| {
        let values = sides.iter().filter_map(value);
        values.map(|range| range.central).fold(0.0, f64::max)
    };
    let ranged = |range: Range, size: f64, name: &str| {
        let number = |value: f64| speech.number(value / size, 3);
        let central = format!("{} {name}", number(range.central));
        if range.is_exact() {
            central
        } else {
            let bounds = format!("{} to {}", number(range.low), number(range.high));
            format!("{central} ({})", speech.language.joined(&bounds))
        }
    };
    let energy = |side: &Side| Some(side.energy_kwh);
    let minutes = |side: &Side| Some(side.minutes);
    let memory = |side: &Side| side.memory;
    let published = |side: &Side| side.published.map(Range::exactly);
    let (energy_unit, energy_size) = unit(largest(&energy), &ENERGY);
    let (time_unit, _) = unit(largest(&minutes), &MINUTES);
    let time_size = minutes_of(time_unit);
    let (memory_unit, memory_size) = unit(largest(&memory), &BYTES);
    let (published_unit, published_size) = unit(largest(&published), &BYTES);
    let plots = [
        picture(
            sides,
            ("all-energy", w.compared, about),
            (&format!("{}, {energy_unit}", w.energy), energy_size),
            &energy,
            &|side, range| match side.emissions_g {
                Some(grams) => format!("{}; {}", speech.energy(range), speech.grams(grams)),
                None => speech.energy(range),
            },
            speech,
        ),
        picture(
            sides,
            ("all-time", w.compared_time, about),
            (&format!("{}, {time_unit}", w.time), time_size),
            &minutes,
            &|_, range| ranged(range, time_size, time_unit),
            speech,
        ),
        picture(
            sides,
            ("all-memory", w.compared_memory, w.compared_memory_about),
            (&format!("{}, {memory_unit}", w.memory), memory_size),
            &memory,
            &|_, range| ranged(range, memory_size, memory_unit),
            speech,
        ),
        picture(
            sides,
            ("all-size", w.compared_size, w.compared_size_about),
            (&format!("{}, {published_unit}", w.size), published_size),
            &published,
            &|_, range| ranged(range, published_size, published_unit),
            speech,
        ),
    ];
    plots.into_iter().flatten().collect()
}
