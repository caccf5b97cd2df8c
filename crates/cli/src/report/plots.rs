//! The report's pictures. Each comes with a table of its numbers, for those who cannot see it and for
//! those who want the numbers.

use serde::Serialize;
use sparsam_tracker::accounting;
use sparsam_tracker::format::{self, plain_decimal};
use sparsam_tracker::range::{Range, Span};

use super::bars::{Bar, bars};
use super::data::{RunData, thinned};
use super::language::{Language, Words};
use super::published::PUBLISHED;
use super::svg::{Anchor, Frame, Scale, Svg, fill_class, line_class, tick};
use crate::figures::thousands;

/// Width of every picture.
pub(super) const WIDTH: f64 = 720.0;
/// Height of those with two axes.
const HEIGHT: f64 = 320.0;
/// Points of a curve, more than there are pixels to tell them apart.
const POINTS: usize = 300;
/// Rows of a table, which is there to be read.
const ROWS: usize = 24;

/// A picture with what belongs to it.
#[derive(Debug, Serialize)]
pub(super) struct Plot {
    /// Its own within the page, and the name of its file.
    pub(super) id: String,
    pub(super) title: String,
    pub(super) about: String,
    pub(super) svg: String,
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
    #[serde(skip)]
    pub(super) file: String,
}

/// The words and the way to write numbers.
#[derive(Clone, Copy)]
pub(super) struct Speech {
    pub(super) language: Language,
    pub(super) words: &'static Words,
}

impl Speech {
    pub(super) fn new(language: Language) -> Self {
        Self {
            language,
            words: language.words(),
        }
    }

    pub(super) fn number(self, value: f64, digits: usize) -> String {
        let sign = if value < 0.0 { "-" } else { "" };
        self.language
            .figure(&format!("{sign}{}", plain_decimal(value.abs(), digits)))
    }

    pub(super) fn tick(self) -> impl Fn(f64) -> String {
        move |value| self.language.figure(&tick(value))
    }

    pub(super) fn energy(self, kwh: Range) -> String {
        self.language.figure(&format::energy(kwh))
    }

    pub(super) fn grams(self, grams: Span) -> String {
        self.language
            .figure(&format!("{} CO2e", format::grams(grams)))
    }

    pub(super) fn duration(self, seconds: f64) -> String {
        self.language.figure(&format::duration(seconds))
    }
}

/// A unit in which the largest value is at least one.
pub(super) fn unit(largest: f64, units: &[(&'static str, f64)]) -> (&'static str, f64) {
    units
        .iter()
        .copied()
        .find(|(_, size)| largest >= *size)
        .or_else(|| units.last().copied())
        .unwrap_or(("", 1.0))
}

const TIME: [(&str, f64); 3] = [("h", 7200.0), ("min", 120.0), ("s", 1.0)];
pub(super) const ENERGY: [(&str, f64); 4] =
    [("MWh", 1e3), ("kWh", 1.0), ("Wh", 1e-3), ("mWh", 1e-6)];
const MASS: [(&str, f64); 4] = [("t", 1e6), ("kg", 1e3), ("g", 1.0), ("mg", 1e-3)];

/// Seconds of one `h`, `min`, `s`.
fn seconds_of(name: &str) -> f64 {
    match name {
        "h" => 3600.0,
        "min" => 60.0,
        _ => 1.0,
    }
}

fn frame(x: Scale, y: Scale) -> Frame {
    Frame {
        left: 66.0,
        top: 30.0,
        right: WIDTH - 16.0,
        bottom: HEIGHT - 52.0,
        x,
        y,
    }
}

/// Names of series above a frame, from the left.
fn legend(svg: &mut Svg, entries: &[(String, String)]) {
    let mut x = 66.0;
    for (name, class) in entries {
        // About seven pixels a letter; a name that no longer fits is in the table.
        let width = 30.0 + 7.4 * name.chars().count() as f64;
        if x + width > WIDTH {
            break;
        }
        if class.starts_with("fill") {
            svg.rect((x, 7.0), (14.0, 12.0), class, name);
        } else {
            svg.line((x, 13.0), (x + 18.0, 13.0), class);
        }
        svg.text((x + 23.0, 17.0), Anchor::Start, "tick", name);
        x += width + 12.0;
    }
}

/// Every so manieth, so that at most [`ROWS`] are left, the last among them.
fn some<T: Clone>(items: &[T]) -> Vec<T> {
    let every = items.len().div_ceil(ROWS).max(1);
    let mut kept: Vec<T> = items.iter().step_by(every).cloned().collect();
    if let Some(last) = items.last()
        && !(items.len() - 1).is_multiple_of(every)
    {
        kept.push(last.clone());
    }
    kept
}

/// The losses of runs over their steps. None where no run has any.
pub(super) fn losses(runs: &[&RunData], id: &str, speech: Speech) -> Option<Plot> {
    let w = speech.words;
    let all = || {
        runs.iter()
            .flat_map(|run| run.losses.iter().chain(&run.evaluations))
            .copied()
    };
    all().next()?;
    let smooth: Vec<Vec<(f64, f64)>> = runs.iter().map(|run| thinned(&run.losses, 120)).collect();
    let raw: Vec<Vec<(f64, f64)>> = runs
        .iter()
        .map(|run| thinned(&run.losses, POINTS))
        .collect();
    let drawn = smooth.iter().chain(&raw).flatten();
    let evaluated = runs.iter().flat_map(|run| &run.evaluations);
    let frame = frame(
        Scale::linear(all().map(|p| p.0), true),
        Scale::linear(drawn.chain(evaluated).map(|p| p.1), false),
    );
    let several = runs.len() > 1;
    let mut svg = Svg::new(WIDTH, HEIGHT, w.loss_curve, w.loss_about);
    frame.draw(&mut svg, (w.step, w.loss), &speech.tick());
    let mut entries = Vec::new();
    let mut rows = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let place = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
            points.iter().map(|(x, y)| frame.at(*x, *y)).collect()
        };
        let class = line_class(index);
        if !several {
            svg.curve(&place(&raw[index]), &format!("{class} thin"));
        }
        svg.curve(&place(&smooth[index]), &class);
        let marks = if several { index } else { 1 };
        let name = run.name.clone();
        for (step, loss) in &run.evaluations {
            let says = format!(
                "{name}, {} {}: {} {}",
                w.step,
                speech.number(*step, 6),
                w.evaluation,
                speech.number(*loss, 4)
            );
            svg.circle(frame.at(*step, *loss), 4.0, &fill_class(marks), &says);
            rows.push(vec![
                name.clone(),
                speech.number(*step, 6),
                w.evaluation.to_owned(),
                speech.number(*loss, 4),
            ]);
        }
        for (step, loss) in some(&thinned(&run.losses, ROWS)) {
            rows.push(vec![
                name.clone(),
                speech.number(step.round(), 6),
                w.training.to_owned(),
                speech.number(loss, 4),
            ]);
        }
        if several {
            entries.push((name, class));
        }
    }
    if !several {
        entries = vec![
            (w.training.to_owned(), line_class(0)),
            (w.evaluation.to_owned(), fill_class(1)),
        ];
    }
    legend(&mut svg, &entries);
    Some(Plot {
        id: id.to_owned(),
        title: w.loss_curve.to_owned(),
        about: w.loss_about.to_owned(),
        svg: svg.inline(id),
        file: svg.file(),
        head: [w.run, w.step, "", w.loss].map(str::to_owned).to_vec(),
        rows,
    })
}

/// Power over time, the components on top of each other.
pub(super) fn power(run: &RunData, id: &str, speech: Speech) -> Option<Plot> {
    let w = speech.words;
    let stretches = run.power.thinned(POINTS);
    let last = stretches.last()?.1;
    let (time, _) = unit(last, &TIME);
    let seconds = seconds_of(time);
    let totals = stretches
        .iter()
        .map(|(_, _, watts)| watts.iter().sum::<f64>());
    let frame = frame(
        Scale::linear([0.0, last / seconds], true),
        Scale::linear(totals, true),
    );
    let mut svg = Svg::new(WIDTH, HEIGHT, w.power, w.power_about);
    frame.draw(
        &mut svg,
        (&format!("{}, {time}", w.time), w.watts),
        &speech.tick(),
    );
    let mut below = vec![0.0; stretches.len()];
    let mut entries = Vec::new();
    for (index, label) in run.power.labels.iter().enumerate() {
        let (mut upper, mut lower) = (Vec::new(), Vec::new());
        for ((from, to, watts), base) in stretches.iter().zip(&mut below) {
            let top = *base + watts[index].max(0.0);
            for moment in [from, to] {
                upper.push(frame.at(moment / seconds, top));
                lower.push(frame.at(moment / seconds, *base));
            }
            *base = top;
        }
        svg.area(&upper, &lower, &fill_class(index));
        entries.push((label.clone(), fill_class(index)));
    }
    for moment in &run.power.resumed {
        let x = frame.across(moment / seconds);
        svg.line((x, frame.top), (x, frame.bottom), "axis dash");
        svg.text(
            (x + 4.0, frame.top + 12.0),
            Anchor::Start,
            "tick",
            w.resumed,
        );
    }
    legend(&mut svg, &entries);
    let mut head = vec![format!("{}, {time}", w.time)];
    head.extend(run.power.labels.iter().map(|label| format!("{label}, W")));
    let rows = some(&stretches)
        .into_iter()
        .map(|(from, to, watts)| {
            let middle = f64::midpoint(from, to) / seconds;
            std::iter::once(middle)
                .chain(watts)
                .map(|value| speech.number(value, 3))
                .collect()
        })
        .collect();
    Some(Plot {
        id: id.to_owned(),
        title: w.power.to_owned(),
        about: w.power_about.to_owned(),
        svg: svg.inline(id),
        file: svg.file(),
        head,
        rows,
    })
}

pub(super) fn shortened(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.to_owned();
    }
    let kept: String = text.chars().take(letters - 1).collect();
    format!("{kept}…")
}

/// Energy of the windows of a run.
pub(super) fn phases(run: &RunData, id: &str, speech: Speech) -> Option<Plot> {
    let w = speech.words;
    let windows = &run.energy.windows;
    let largest = windows
        .iter()
        .map(|window| window.energy_kwh.central)
        .fold(0.0, f64::max);
    if largest <= 0.0 {
        return None;
    }
    let (name, size) = unit(largest, &ENERGY);
    let drawn: Vec<Bar> = windows
        .iter()
        .map(|window| Bar {
            name: window.path.clone(),
            value: window.energy_kwh.central / size,
            bounds: None,
            says: format!("{}: {}", window.path, speech.energy(window.energy_kwh)),
            series: 0,
        })
        .collect();
    let svg = bars(
        w.phases,
        w.phases_about,
        &format!("{}, {name}", w.energy),
        &drawn,
        speech,
    );
    Some(Plot {
        id: id.to_owned(),
        title: w.phases.to_owned(),
        about: w.phases_about.to_owned(),
        svg: svg.inline(id),
        file: svg.file(),
        head: [w.phase, w.time, w.energy].map(str::to_owned).to_vec(),
        rows: windows
            .iter()
            .map(|window| {
                vec![
                    window.path.clone(),
                    speech.duration(window.seconds),
                    speech.energy(window.energy_kwh),
                ]
            })
            .collect(),
    })
}

/// Emissions from the start to each moment, with the range at that moment.
pub(super) fn cumulative(run: &RunData, id: &str, speech: Speech) -> Option<Plot> {
    let w = speech.words;
    let energy = &run.energy;
    let drawn_joules = |stretches: &[(f64, f64, Vec<f64>)]| -> Vec<(f64, f64)> {
        let mut joules = 0.0;
        std::iter::once((0.0, 0.0))
            .chain(stretches.iter().map(|(from, to, watts)| {
                joules += watts.iter().sum::<f64>() * (to - from);
                (*to, joules)
            }))
            .collect()
    };
    let points = drawn_joules(&run.power.thinned(POINTS));
    let (last, total) = *points.last()?;
    if total <= 0.0 || energy.energy_kwh.central <= 0.0 {
        return None;
    }
    // The curve follows the central energy; its bounds widen as those of the whole run do.
    let grams = energy.emissions_g;
    let highest = grams.high.max(grams.central.unwrap_or(0.0));
    let (name, size) = unit(grams.central.unwrap_or(highest), &MASS);
    let (time, _) = unit(last, &TIME);
    let seconds = seconds_of(time);
    let frame = frame(
        Scale::linear([0.0, last / seconds], true),
        Scale::linear([highest / size], true),
    );
    let mut svg = Svg::new(WIDTH, HEIGHT, w.cumulative, w.cumulative_about);
    frame.draw(
        &mut svg,
        (&format!("{}, {time}", w.time), &format!("{name} CO2e")),
        &speech.tick(),
    );
    // What the short stretches left out belongs to the run too.
    let whole = accounting::kwh(Range::exactly(total)).central / energy.energy_kwh.central;
    let at = |value: f64| -> Vec<(f64, f64)> {
        points
            .iter()
            .map(|(moment, joules)| {
                frame.at(
                    moment / seconds,
                    joules / total * whole.min(1.0) * value / size,
                )
            })
            .collect()
    };
    svg.area(&at(grams.high), &at(grams.low), "fill f0 band");
    if let Some(central) = grams.central {
        svg.curve(&at(central), &line_class(0));
    }
    let rows = some(&points)
        .into_iter()
        .map(|(moment, joules)| {
            let part = joules / total * whole.min(1.0);
            let so_far = Span {
                low: grams.low * part,
                central: grams.central.map(|g| g * part),
                high: grams.high * part,
            };
            vec![speech.number(moment / seconds, 3), speech.grams(so_far)]
        })
        .collect();
    let about = if grams.central.is_some() {
        w.cumulative_about.to_owned()
    } else {
        w.no_place.to_owned()
    };
    Some(Plot {
        id: id.to_owned(),
        title: w.cumulative.to_owned(),
        about,
        svg: svg.inline(id),
        file: svg.file(),
        head: vec![format!("{}, {time}", w.time), w.emissions.to_owned()],
        rows,
    })
}

/// The runs among published models, on an axis of powers of ten.
pub(super) fn among_published(runs: &[&RunData], id: &str, speech: Speech) -> Plot {
    let w = speech.words;
    let mut rows: Vec<(String, Span, Option<&str>)> = PUBLISHED
        .iter()
        .map(|p| {
            (
                p.model.to_owned(),
                Range::exactly(p.grams).into(),
                Some(p.source),
            )
        })
        .collect();
    rows.extend(
        runs.iter()
            .map(|run| (run.name.clone(), run.energy.emissions_g, None)),
    );
    let middle = |span: &Span| {
        span.central
            .unwrap_or_else(|| (span.low * span.high).sqrt())
    };
    rows.sort_by(|a, b| middle(&a.1).total_cmp(&middle(&b.1)));
    let height = 70.0 + 26.0 * rows.len() as f64;
    let frame = Frame {
        left: 190.0,
        top: 10.0,
        right: WIDTH - 90.0,
        bottom: height - 52.0,
        x: Scale::log(
            rows.iter()
                .flat_map(|(_, span, _)| [span.low, middle(span), span.high]),
        ),
        y: Scale::linear([], true),
    };
    let mut svg = Svg::new(WIDTH, height, w.among, w.among_about);
    let mass = |grams: f64| {
        speech
            .language
            .figure(&format::grams(Range::exactly(grams).into()))
    };
    frame.draw_x(&mut svg, "CO2e", &mass);
    for (index, (name, span, source)) in rows.iter().enumerate() {
        let y = frame.top + 15.0 + 26.0 * index as f64;
        let own = source.is_none();
        let class = if own { "label strong" } else { "label" };
        svg.text(
            (frame.left - 10.0, y + 4.0),
            Anchor::End,
            class,
            &shortened(name, 24),
        );
        svg.line((frame.left, y), (frame.across(middle(span)), y), "grid");
        let says = format!("{name}: {}", speech.grams(*span));
        if own {
            svg.line(
                (frame.across(span.low), y),
                (frame.across(span.high), y),
                "line s1 range",
            );
        }
        let mark = if own {
            fill_class(1)
        } else {
            "hollow".to_owned()
        };
        svg.circle(
            (frame.across(middle(span)), y),
            if own { 6.0 } else { 5.0 },
            &mark,
            &says,
        );
        let figure = match span.central {
            None => speech.grams(*span),
            Some(grams) if own => mass(grams),
            // As its source gives it.
            Some(grams) => {
                let (name, size) = unit(grams, &MASS);
                let value = grams / size;
                let digits = if value < 1000.0 {
                    plain_decimal(value, 3)
                } else {
                    thousands(value.round() as u64)
                };
                speech.language.figure(&format!("{digits} {name}"))
            }
        };
        let beside = frame.across(if own { span.high } else { middle(span) }) + 10.0;
        svg.text((beside, y + 4.0), Anchor::Start, "tick", &figure);
    }
    Plot {
        id: id.to_owned(),
        title: w.among.to_owned(),
        about: w.among_about.to_owned(),
        svg: svg.inline(id),
        file: svg.file(),
        head: [w.model, w.emissions, w.source].map(str::to_owned).to_vec(),
        rows: rows
            .iter()
            .map(|(name, span, source)| {
                let source = source.unwrap_or(w.this_run).to_owned();
                vec![name.clone(), speech.grams(*span), source]
            })
            .collect(),
    }
}

/// A place in a plot of quality against energy.
#[derive(Debug, Clone)]
pub(crate) struct Trade {
    pub(crate) name: String,
    /// kWh, low, central, high.
    pub(crate) energy_kwh: Range,
    /// Loss on held-out data; lower is better.
    pub(crate) loss: Range,
}

/// Those that no other beats in both, from the least energy up.
pub(crate) fn frontier(trades: &[Trade]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..trades.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&trades[*a], &trades[*b]);
        a.energy_kwh
            .central
            .total_cmp(&b.energy_kwh.central)
            .then(a.loss.central.total_cmp(&b.loss.central))
    });
    let mut least = f64::INFINITY;
    order.retain(|index| {
        let better = trades[*index].loss.central < least;
        if better {
            least = trades[*index].loss.central;
        }
        better
    });
    order
}

/// Quality against energy. None for fewer than two.
pub(crate) fn pareto(trades: &[Trade], id: &str, language: Language) -> Option<(String, Svg)> {
    let speech = Speech::new(language);
    let w = speech.words;
    if trades.len() < 2 {
        return None;
    }
    let largest = trades
        .iter()
        .map(|trade| trade.energy_kwh.central)
        .fold(0.0, f64::max);
    let (name, size) = unit(largest, &ENERGY);
    let frame = frame(
        Scale::linear(
            trades
                .iter()
                .flat_map(|t| [t.energy_kwh.low, t.energy_kwh.high])
                .map(|kwh| kwh / size),
            true,
        ),
        Scale::linear(trades.iter().flat_map(|t| [t.loss.low, t.loss.high]), false),
    );
    let mut svg = Svg::new(WIDTH, HEIGHT, w.pareto, w.pareto_about);
    frame.draw(
        &mut svg,
        (&format!("{}, {name}", w.energy), w.held_out),
        &speech.tick(),
    );
    let best: Vec<(f64, f64)> = frontier(trades)
        .into_iter()
        .map(|index| {
            frame.at(
                trades[index].energy_kwh.central / size,
                trades[index].loss.central,
            )
        })
        .collect();
    svg.curve(&best, "line s2 dash");
    // From the top down, a label that would lie on another goes below it.
    let mut labels: Vec<(f64, f64, usize)> = Vec::new();
    for (index, trade) in trades.iter().enumerate() {
        let at = frame.at(trade.energy_kwh.central / size, trade.loss.central);
        let class = line_class(index);
        for (from, to) in [
            (
                frame.at(trade.energy_kwh.low / size, trade.loss.central),
                frame.at(trade.energy_kwh.high / size, trade.loss.central),
            ),
            (
                frame.at(trade.energy_kwh.central / size, trade.loss.low),
                frame.at(trade.energy_kwh.central / size, trade.loss.high),
            ),
        ] {
            svg.line(from, to, &format!("{class} thin"));
        }
        let says = format!(
            "{}: {}, {} {}",
            trade.name,
            speech.energy(trade.energy_kwh),
            w.loss,
            speech.number(trade.loss.central, 4)
        );
        svg.circle(at, 5.0, &fill_class(index), &says);
        labels.push((at.0, at.1, index));
    }
    labels.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut taken: Vec<(f64, f64)> = Vec::new();
    for (x, y, index) in labels {
        let mut y = y - 8.0;
        while taken
            .iter()
            .any(|(tx, ty)| (tx - x).abs() < 110.0 && (ty - y).abs() < 14.0)
        {
            y += 14.0;
        }
        taken.push((x, y));
        let (anchor, x) = if x > WIDTH - 130.0 {
            (Anchor::End, x - 9.0)
        } else {
            (Anchor::Start, x + 9.0)
        };
        svg.text((x, y), anchor, "tick", &trades[index].name);
    }
    Some((svg.inline(id), svg))
}

/// The places of the runs of a report.
pub(super) fn trades(runs: &[&RunData]) -> Vec<Trade> {
    runs.iter()
        .filter_map(|run| {
            let after = run.record.as_ref()?.results.as_ref()?.after?;
            after.loss.is_finite().then(|| Trade {
                name: run.name.clone(),
                energy_kwh: run.energy.energy_kwh,
                loss: Range::exactly(after.loss),
            })
        })
        .collect()
}

/// The same with its table.
pub(super) fn trade_off(trades: &[Trade], id: &str, speech: Speech) -> Option<Plot> {
    let w = speech.words;
    let (inline, svg) = pareto(trades, id, speech.language)?;
    Some(Plot {
        id: id.to_owned(),
        title: w.pareto.to_owned(),
        about: w.pareto_about.to_owned(),
        svg: inline,
        file: svg.file(),
        head: [w.run, w.energy, w.held_out].map(str::to_owned).to_vec(),
        rows: trades
            .iter()
            .map(|trade| {
                vec![
                    trade.name.clone(),
                    speech.energy(trade.energy_kwh),
                    speech.number(trade.loss.central, 4),
                ]
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frontier_is_what_nothing_beats() {
        let trade = |kwh: f64, loss: f64| Trade {
            name: String::new(),
            energy_kwh: Range::exactly(kwh),
            loss: Range::exactly(loss),
        };
        let trades = [
            trade(3.0, 1.0),
            trade(1.0, 2.0),
            trade(2.0, 2.5),
            trade(4.0, 1.0),
        ];
        assert_eq!(frontier(&trades), [1, 0]);
    }

    #[test]
    fn tables_stay_readable_and_keep_their_end() {
        let rows: Vec<usize> = (0..1001).collect();
        let kept = some(&rows);
        assert!(kept.len() <= ROWS + 1 && kept[0] == 0 && kept.last() == Some(&1000));
        assert_eq!(some(&rows[..3]), [0, 1, 2]);
    }

    #[test]
    fn units_fit_the_largest_value() {
        assert_eq!(unit(0.5, &ENERGY), ("Wh", 1e-3));
        assert_eq!(unit(1e-9, &ENERGY), ("mWh", 1e-6));
        assert_eq!(unit(30.0, &TIME).0, "s");
    }
}
