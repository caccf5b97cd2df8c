//! Pictures as SVG: a writer for the few shapes a plot needs, scales, and the frame of axes.
//!
//! A picture has classes and no colours. Inside the report the page's style paints it, so that it follows
//! light, dark and print; as a file of its own it carries the same rules. Every picture has a title and a
//! description, which is what a screen reader says.

use std::fmt::Write as _;

use sparsam_tracker::format::plain_decimal;

/// The rules by which pictures are painted; the page and every file hold them.
pub(crate) const STYLE: &str = include_str!("plot.css");

/// Colours in light and dark, as variables.
pub(crate) const COLOURS: &str = include_str!("colours.css");

/// Series have five colours, and dashes after that.
const COLOUR_COUNT: usize = 5;

/// Where a text is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }
}

/// A picture. Coordinates are pixels at its natural size, from the upper left corner.
#[derive(Debug, Clone)]
pub(crate) struct Svg {
    width: f64,
    height: f64,
    title: String,
    description: String,
    body: String,
}

impl Svg {
    pub(crate) fn new(width: f64, height: f64, title: &str, description: &str) -> Self {
        Self {
            width,
            height,
            title: title.to_owned(),
            description: description.to_owned(),
            body: String::new(),
        }
    }

    pub(crate) fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let _ = write!(
            self.body,
            "<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" class=\"{class}\"/>",
            pixel(from.0),
            pixel(from.1),
            pixel(to.0),
            pixel(to.1)
        );
    }

    /// A rectangle with what is said when a pointer rests on it.
    pub(crate) fn rect(&mut self, at: (f64, f64), size: (f64, f64), class: &str, says: &str) {
        let _ = write!(
            self.body,
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" class=\"{class}\"><title>{}</title></rect>",
            pixel(at.0),
            pixel(at.1),
            pixel(size.0.max(0.0)),
            pixel(size.1.max(0.0)),
            escaped(says)
        );
    }

    pub(crate) fn circle(&mut self, at: (f64, f64), radius: f64, class: &str, says: &str) {
        let _ = write!(
            self.body,
            "<circle cx=\"{}\" cy=\"{}\" r=\"{}\" class=\"{class}\"><title>{}</title></circle>",
            pixel(at.0),
            pixel(at.1),
            pixel(radius),
            escaped(says)
        );
    }

    /// A line through points.
    pub(crate) fn curve(&mut self, points: &[(f64, f64)], class: &str) {
        if points.is_empty() {
            return;
        }
        let _ = write!(
            self.body,
            "<path d=\"{}\" class=\"{class}\"/>",
            path(points)
        );
    }

    /// The area between two lines over the same places, given from left to right.
    pub(crate) fn area(&mut self, upper: &[(f64, f64)], lower: &[(f64, f64)], class: &str) {
        if upper.is_empty() || lower.is_empty() {
            return;
        }
        let back: Vec<(f64, f64)> = lower.iter().rev().copied().collect();
        let there = path(upper);
        let back = path(&back).replacen('M', "L", 1);
        let _ = write!(self.body, "<path d=\"{there}{back}Z\" class=\"{class}\"/>");
    }

    pub(crate) fn text(&mut self, at: (f64, f64), anchor: Anchor, class: &str, text: &str) {
        let _ = write!(
            self.body,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"{}\" class=\"{class}\">{}</text>",
            pixel(at.0),
            pixel(at.1),
            anchor.name(),
            escaped(text)
        );
    }

    /// A text that reads upwards.
    pub(crate) fn upright(&mut self, at: (f64, f64), class: &str, text: &str) {
        let _ = write!(
            self.body,
            "<text transform=\"translate({} {}) rotate(-90)\" text-anchor=\"middle\" class=\"{class}\">{}</text>",
            pixel(at.0),
            pixel(at.1),
            escaped(text)
        );
    }

    /// For a page. `id` is its own within the page.
    pub(crate) fn inline(&self, id: &str) -> String {
        format!(
            "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-labelledby=\"{id}-title {id}-description\">\
             <title id=\"{id}-title\">{}</title><desc id=\"{id}-description\">{}</desc>{}</svg>",
            pixel(self.width),
            pixel(self.height),
            escaped(&self.title),
            escaped(&self.description),
            self.body
        )
    }

    /// As a file of its own.
    pub(crate) fn file(&self) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" \
             role=\"img\"><title>{2}</title><desc>{3}</desc><style>{COLOURS}{STYLE}</style>\
             <rect width=\"100%\" height=\"100%\" class=\"paper\"/>{4}</svg>\n",
            pixel(self.width),
            pixel(self.height),
            escaped(&self.title),
            escaped(&self.description),
            self.body
        )
    }
}

/// The class of a line of series number `index`.
pub(crate) fn line_class(index: usize) -> String {
    let dash = match index / COLOUR_COUNT {
        0 => "",
        1 => " dash",
        _ => " dots",
    };
    format!("line s{}{dash}", index % COLOUR_COUNT)
}

/// The class of an area, bar or mark of series number `index`.
pub(crate) fn fill_class(index: usize) -> String {
    format!("fill f{}", index % COLOUR_COUNT)
}

fn path(points: &[(f64, f64)]) -> String {
    let mut text = String::with_capacity(points.len() * 12);
    for (index, (x, y)) in points.iter().enumerate() {
        let _ = write!(
            text,
            "{}{} {}",
            if index == 0 { 'M' } else { 'L' },
            pixel(*x),
            pixel(*y)
        );
    }
    text
}

/// A tenth of a pixel is finer than anyone sees.
fn pixel(value: f64) -> String {
    let text = format!("{:.1}", if value.is_finite() { value } else { 0.0 });
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// A text within XML.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // No XML holds them.
            c if c.is_control() && c != '\n' && c != '\t' => {}
            c => out.push(c),
        }
    }
    out
}

/// From values to a part of an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scale {
    Linear { low: f64, high: f64 },
    Log { low: f64, high: f64 },
}

impl Scale {
    /// Around all finite values, from zero where asked.
    pub(crate) fn linear(values: impl IntoIterator<Item = f64>, from_zero: bool) -> Self {
        let (mut low, mut high) = bounds(values);
        if from_zero {
            low = low.min(0.0);
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if high - low < f64::EPSILON * high.abs().max(1e-9) {
            let room = if high == 0.0 { 1.0 } else { high.abs() * 0.1 };
            high += room;
            if !from_zero {
                low -= room;
            }
        }
        let room = if from_zero { 0.0 } else { (high - low) * 0.04 };
        Self::Linear {
            low: low - room,
            high: high + (high - low) * 0.04,
        }
    }

    /// Whole powers of ten around all positive values.
    pub(crate) fn log(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = bounds(values.into_iter().filter(|value| *value > 0.0));
        let (low, high) = if low > high { (1.0, 10.0) } else { (low, high) };
        let (low, mut high) = (low.log10().floor(), high.log10().ceil());
        if high <= low {
            high = low + 1.0;
        }
        Self::Log {
            low: 10f64.powf(low),
            high: 10f64.powf(high),
        }
    }

    /// The place of a value: 0 at the low end, 1 at the high end, and never outside.
    pub(crate) fn at(self, value: f64) -> f64 {
        let part = match self {
            Self::Linear { low, high } => (value - low) / (high - low),
            Self::Log { low, high } => {
                (value.max(low).log10() - low.log10()) / (high.log10() - low.log10())
            }
        };
        if part.is_finite() {
            part.clamp(0.0, 1.0)
        } else {
            0.0
        }
    }

    /// Round values in it: about five, or every power of ten, and not more than fit.
    pub(crate) fn ticks(self) -> Vec<f64> {
        match self {
            Self::Linear { low, high } => {
                let step = round_step((high - low) / 5.0);
                let first = (low / step).ceil() as i64;
                let last = (high / step + 1e-9).floor() as i64;
                (first..=last).map(|n| n as f64 * step).collect()
            }
            Self::Log { low, high } => {
                let (low, high) = (low.log10().round() as i32, high.log10().round() as i32);
                let every = usize::try_from((high - low) / 8 + 1).unwrap_or(1);
                (low..=high).step_by(every).map(|n| 10f64.powi(n)).collect()
            }
        }
    }
}

fn bounds(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    values
        .into_iter()
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        })
}

/// 1, 2 or 5 times a power of ten, at least `step`.
fn round_step(step: f64) -> f64 {
    let size = 10f64.powf(step.log10().floor());
    let part = step / size;
    let round = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|r| part <= r + 1e-9)
        .unwrap_or(10.0);
    round * size
}

/// The place where things are drawn, with its axes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    pub(crate) left: f64,
    pub(crate) top: f64,
    pub(crate) right: f64,
    pub(crate) bottom: f64,
    pub(crate) x: Scale,
    pub(crate) y: Scale,
}

impl Frame {
    /// The pixel of a pair of values.
    pub(crate) fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (self.across(x), self.up(y))
    }

    pub(crate) fn across(&self, x: f64) -> f64 {
        self.left + (self.right - self.left) * self.x.at(x)
    }

    pub(crate) fn up(&self, y: f64) -> f64 {
        self.bottom - (self.bottom - self.top) * self.y.at(y)
    }

    /// Grid, ticks and titles. `number` words a tick.
    pub(crate) fn draw(
        &self,
        svg: &mut Svg,
        (x_title, y_title): (&str, &str),
        number: &dyn Fn(f64) -> String,
    ) {
        for tick in self.y.ticks() {
            let y = self.up(tick);
            svg.line((self.left, y), (self.right, y), "grid");
            svg.text(
                (self.left - 6.0, y + 4.0),
                Anchor::End,
                "tick",
                &number(tick),
            );
        }
        self.draw_x(svg, x_title, number);
        svg.upright(
            (14.0, f64::midpoint(self.top, self.bottom)),
            "name",
            y_title,
        );
    }

    /// The axis below alone.
    pub(crate) fn draw_x(&self, svg: &mut Svg, title: &str, number: &dyn Fn(f64) -> String) {
        for tick in self.x.ticks() {
            let x = self.across(tick);
            svg.line((x, self.top), (x, self.bottom), "grid");
            svg.text(
                (x, self.bottom + 18.0),
                Anchor::Middle,
                "tick",
                &number(tick),
            );
        }
        svg.line((self.left, self.bottom), (self.right, self.bottom), "axis");
        let middle = f64::midpoint(self.left, self.right);
        svg.text((middle, self.bottom + 38.0), Anchor::Middle, "name", title);
    }
}

/// A tick's number, with as many digits as it needs.
pub(crate) fn tick(value: f64) -> String {
    let text = plain_decimal(value.abs(), 4);
    if value < 0.0 && text != "0" {
        format!("-{text}")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let scale = Scale::Linear {
            low: 0.0,
            high: 10.0,
        };
        assert_eq!(scale.ticks(), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        let small: Vec<String> = Scale::linear([0.31, 0.34], false)
            .ticks()
            .into_iter()
            .map(tick)
            .collect();
        assert_eq!(small, ["0.31", "0.32", "0.33", "0.34"]);
        let log = Scale::log([0.02, 4e8]);
        assert_eq!(
            log,
            Scale::Log {
                low: 0.01,
                high: 1e9
            }
        );
        assert!(log.ticks().len() <= 9);
        assert_eq!((log.at(0.01), log.at(1e9), log.at(0.0)), (0.0, 1.0, 0.0));
    }

    #[test]
    fn no_values_one_value_and_values_that_are_none_still_make_a_scale() {
        for values in [
            vec![],
            vec![3.0],
            vec![0.0],
            vec![f64::NAN, 2.0, f64::INFINITY],
        ] {
            for from_zero in [true, false] {
                let scale = Scale::linear(values.clone(), from_zero);
                assert!(scale.ticks().len() >= 2, "{scale:?}");
                assert!((0.0..=1.0).contains(&scale.at(3.0)));
            }
        }
    }

    #[test]
    fn what_users_name_cannot_break_out() {
        let mut svg = Svg::new(10.0, 10.0, "</title><script>", "a & b");
        svg.text((1.0, f64::NAN), Anchor::Start, "tick", "\"<b>\u{7}");
        svg.curve(&[(0.0, 0.04), (1.25, 2.0)], "line s0");
        let text = svg.inline("x");
        assert!(!text.contains("<script>") && !text.contains("<b>") && !text.contains('\u{7}'));
        assert!(text.contains("M0 0L1.2 2"), "{text}");
    }
}
