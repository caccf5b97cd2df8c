//! Published models by year and parameters, those with published emissions marked, and the base models of
//! the report's runs among them.

use super::data::RunData;
use super::plots::{Plot, Speech, WIDTH, shortened};
use super::published::KNOWN;
use super::svg::{Anchor, Frame, Scale, Svg, fill_class};

const HEIGHT: f64 = 400.0;

/// A mark: its model, year, billions of parameters, and what it is.
struct Mark {
    name: String,
    year: f64,
    billions: f64,
    what: What,
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    With,
    Without,
    Own,
}

/// The picture with its table.
pub(super) fn by_year(runs: &[&RunData], id: &str, speech: Speech) -> Plot {
    let w = speech.words;
    let mut marks: Vec<Mark> = KNOWN
        .iter()
        .map(|known| Mark {
            name: known.model.to_owned(),
            year: f64::from(known.year),
            billions: known.billions,
            what: if known.emissions.is_some() {
                What::With
            } else {
                What::Without
            },
        })
        .collect();
    marks.extend(own(runs));
    let years = || marks.iter().map(|mark| mark.year);
    let (first, last) = (
        years().fold(f64::INFINITY, f64::min),
        years().fold(0.0, f64::max),
    );
    let frame = Frame {
        left: 66.0,
        top: 34.0,
        right: WIDTH - 20.0,
        bottom: HEIGHT - 52.0,
        x: Scale::Linear {
            low: first - 0.5,
            high: last + 0.9,
        },
        y: Scale::log(marks.iter().map(|mark| mark.billions * 1e9)),
    };
    let mut svg = Svg::new(WIDTH, HEIGHT, w.models, w.models_about);
    axes(&mut svg, &frame, (first as i64, last as i64), speech);
    let class = |what: What| match what {
        What::With => fill_class(0),
        What::Without => "hollow".to_owned(),
        What::Own => fill_class(1),
    };
    let mut x = frame.left;
    for (what, name) in [
        (What::With, w.with_emissions),
        (What::Without, w.without_emissions),
        (What::Own, w.this_run),
    ] {
        if what == What::Own && !marks.iter().any(|mark| mark.what == What::Own) {
            continue;
        }
        svg.circle((x + 7.0, 13.0), 5.0, &class(what), name);
        svg.text((x + 18.0, 17.0), Anchor::Start, "tick", name);
        x += 34.0 + 7.4 * name.chars().count() as f64;
    }
    // From the top down; a name that would lie on another goes below it.
    marks.sort_by(|a, b| b.billions.total_cmp(&a.billions));
    let mut taken: Vec<(f64, f64)> = Vec::new();
    let mut marks_at: Vec<(f64, f64)> = Vec::new();
    for mark in &marks {
        let mut at = frame.at(mark.year, mark.billions * 1e9);
        // Two of one year and nearly one size stand beside each other.
        if marks_at
            .iter()
            .any(|(x, y): &(f64, f64)| (x - at.0).abs() < 1.0 && (y - at.1).abs() < 9.0)
        {
            at.0 -= 9.5;
        }
        marks_at.push(at);
        let column = frame.across(mark.year);
        let says = format!(
            "{}, {}: {}",
            mark.name,
            mark.year,
            size(mark.billions, speech)
        );
        svg.circle(at, 5.0, &class(mark.what), &says);
        let mut y = at.1 + 4.0;
        while taken
            .iter()
            .any(|(tx, ty)| (tx - column).abs() < 1.0 && (ty - y).abs() < 14.0)
        {
            y += 7.0;
        }
        taken.push((column, y));
        let style = if mark.what == What::Own {
            "tick strong"
        } else {
            "tick"
        };
        svg.text(
            (column + 9.0, y),
            Anchor::Start,
            style,
            &shortened(&mark.name, 14),
        );
    }
    let mut rows: Vec<Vec<String>> = KNOWN
        .iter()
        .map(|known| {
            vec![
                known.model.to_owned(),
                known.year.to_string(),
                size(known.billions, speech),
                known.emissions.unwrap_or(w.without_emissions).to_owned(),
                known.source.to_owned(),
            ]
        })
        .collect();
    rows.extend(
        marks
            .iter()
            .filter(|mark| mark.what == What::Own)
            .map(|mark| {
                vec![
                    mark.name.clone(),
                    mark.year.to_string(),
                    size(mark.billions, speech),
                    w.this_run.to_owned(),
                    String::new(),
                ]
            }),
    );
    Plot {
        id: id.to_owned(),
        title: w.models.to_owned(),
        about: w.models_about.to_owned(),
        svg: svg.inline(id),
        file: svg.file(),
        head: [w.model, w.year, w.parameters, w.emissions, w.source]
            .map(str::to_owned)
            .to_vec(),
        rows,
    }
}

/// The base models of the runs, each once, in the year of the run.
fn own(runs: &[&RunData]) -> Vec<Mark> {
    let mut marks: Vec<Mark> = Vec::new();
    for run in runs {
        let Some(record) = &run.record else { continue };
        let name = record.base.model.trim_end_matches('/');
        let name = name.rsplit(['/', ':']).next().unwrap_or(name);
        let year = record.started.get(..4).and_then(|year| year.parse().ok());
        let (Some(year), false) = (year, marks.iter().any(|mark| mark.name == name)) else {
            continue;
        };
        marks.push(Mark {
            name: name.to_owned(),
            year,
            billions: record.base.parameters as f64 / 1e9,
            what: What::Own,
        });
    }
    marks
}

fn axes(svg: &mut Svg, frame: &Frame, (first, last): (i64, i64), speech: Speech) {
    for tick in frame.y.ticks() {
        let y = frame.up(tick);
        svg.line((frame.left, y), (frame.right, y), "grid");
        svg.text(
            (frame.left - 6.0, y + 4.0),
            Anchor::End,
            "tick",
            &size(tick / 1e9, speech),
        );
    }
    for year in first..=last {
        let x = frame.across(year as f64);
        svg.text(
            (x, frame.bottom + 18.0),
            Anchor::Middle,
            "tick",
            &year.to_string(),
        );
    }
    svg.line(
        (frame.left, frame.bottom),
        (frame.right, frame.bottom),
        "axis",
    );
    let middle = f64::midpoint(frame.left, frame.right);
    let words = speech.words;
    svg.text(
        (middle, frame.bottom + 38.0),
        Anchor::Middle,
        "name",
        words.year,
    );
    svg.upright(
        (14.0, f64::midpoint(frame.top, frame.bottom)),
        "name",
        words.parameters,
    );
}

/// `7.3B`, `117M`, as the field writes it.
fn size(billions: f64, speech: Speech) -> String {
    if billions >= 1.0 {
        format!("{}B", speech.number(billions, 3))
    } else {
        format!("{}M", speech.number(billions * 1e3, 3))
    }
}
