//! The picture of the dashboard, for a terminal of any size. What does not fit is left out, the least
//! important first.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{
    Axis, Block, Borders, Chart, Dataset, Gauge, GraphType, Paragraph, Sparkline,
};

use super::State;
use crate::figures::{significant, thousands};

/// Below this there is no room for pictures.
const PICTURE_HEIGHT: u16 = 6;
/// Columns of the box with the power.
const POWER_WIDTH: u16 = 32;

const SOFT: Style = Style::new().add_modifier(Modifier::DIM);
const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);

pub(super) fn draw(frame: &mut Frame, state: &State) {
    let area = frame.area();
    let figures = figures(state, area.width);
    let budget = u16::from(state.budget.is_some());
    let said = (state.said.len() as u16).clamp(1, 4);
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(budget),
        Constraint::Length(figures.len() as u16),
        Constraint::Fill(1),
        Constraint::Length(if area.height >= 18 { said + 1 } else { 0 }),
        Constraint::Length(u16::from(area.height >= 12)),
    ])
    .split(area);
    head(frame, rows[0], state);
    steps(frame, rows[1], state);
    if let Some(budget) = &state.budget {
        let words = format!("budget {}", budget.words);
        gauge(frame, rows[2], budget.used, &words, Color::Yellow);
    }
    frame.render_widget(Paragraph::new(figures), rows[3]);
    if rows[4].height >= PICTURE_HEIGHT {
        let wide = rows[4].width >= 2 * POWER_WIDTH;
        let parts = Layout::horizontal([
            Constraint::Fill(1),
            Constraint::Length(if wide { POWER_WIDTH } else { 0 }),
        ])
        .split(rows[4]);
        losses(frame, parts[0], state);
        if wide {
            power(frame, parts[1], state);
        }
    }
    if rows[5].height > 0 {
        let lines = rows[5].height as usize - 1;
        let from = state.said.len().saturating_sub(lines);
        let text: Vec<Line> = state
            .said
            .iter()
            .skip(from)
            .map(|s| Line::from(s.as_str()))
            .collect();
        let block = Block::new().borders(Borders::TOP).border_style(SOFT);
        frame.render_widget(Paragraph::new(text).block(block), rows[5]);
    }
    let help = Line::styled("Ctrl-C stops after this step and writes a checkpoint", SOFT);
    frame.render_widget(Paragraph::new(help), rows[6]);
}

fn head(frame: &mut Frame, area: Rect, state: &State) {
    frame.render_widget(Line::styled(state.title.as_str(), STRONG), area);
    let doing = Line::styled(state.doing(), Style::new().fg(Color::Cyan));
    // What is done must not cover the name.
    if doing.width() + state.title.chars().count() < usize::from(area.width) {
        frame.render_widget(Paragraph::new(doing).alignment(Alignment::Right), area);
    }
}

fn steps(frame: &mut Frame, area: Rect, state: &State) {
    let done = state.step as f64 / state.total.max(1) as f64;
    let text = format!(
        "{} of {} steps",
        thousands(state.step),
        thousands(state.total)
    );
    gauge(frame, area, done, &text, Color::Green);
}

fn gauge(frame: &mut Frame, area: Rect, part: f64, text: &str, colour: Color) {
    let part = if part.is_finite() {
        part.clamp(0.0, 1.0)
    } else {
        0.0
    };
    let gauge = Gauge::default()
        .ratio(part)
        .label(text.to_owned())
        .use_unicode(true)
        .gauge_style(Style::new().fg(colour));
    frame.render_widget(gauge, area);
}

/// The figures in as many columns as fit, each as `name value`.
fn figures(state: &State, width: u16) -> Vec<Line<'static>> {
    let figures = state.figures();
    let of = |(name, value): &(&'static str, String)| name.len() + 1 + value.chars().count();
    let widest = figures.iter().map(of).max().unwrap_or(1) + 2;
    let columns = (usize::from(width) / widest).clamp(1, 3);
    figures
        .chunks(columns)
        .map(|row| {
            let spans = row.iter().flat_map(|figure| {
                let fill = " ".repeat(widest.saturating_sub(of(figure)));
                [
                    Span::styled(format!("{} ", figure.0), SOFT),
                    Span::raw(format!("{}{fill}", figure.1)),
                ]
            });
            spans.collect::<Line>()
        })
        .collect()
}

/// The least and the greatest of some values, with a little room.
fn bounds(values: impl Iterator<Item = f64>) -> [f64; 2] {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return [0.0, 1.0];
    }
    let room = ((high - low) * 0.05).max(high.abs() * 1e-3).max(1e-6);
    [low - room, high + room]
}

fn losses(frame: &mut Frame, area: Rect, state: &State) {
    let (raw, smooth) = (&state.losses.points, &state.smooth.points);
    let all = raw.iter().chain(&state.evaluations).map(|p| p.1);
    let y = bounds(all);
    let x = [state.first as f64, state.step.max(state.first + 1) as f64];
    let series = |name: &'static str, points, marker, kind, colour| {
        Dataset::default()
            .name(name)
            .data(points)
            .marker(marker)
            .graph_type(kind)
            .style(Style::new().fg(colour))
    };
    let datasets = vec![
        series(
            "each step",
            raw.as_slice(),
            Marker::Braille,
            GraphType::Scatter,
            Color::DarkGray,
        ),
        series(
            "smoothed",
            smooth.as_slice(),
            Marker::Braille,
            GraphType::Line,
            Color::Cyan,
        ),
        series(
            "held-out",
            &state.evaluations,
            Marker::Dot,
            GraphType::Scatter,
            Color::Yellow,
        ),
    ];
    let number = |value: f64| Span::styled(significant(value, 3), SOFT);
    let step = |value: f64| Span::styled(thousands(value as u64), SOFT);
    let chart = Chart::new(datasets)
        .block(
            Block::new()
                .borders(Borders::TOP)
                .border_style(SOFT)
                .title("Loss"),
        )
        .x_axis(
            Axis::default()
                .bounds(x)
                .labels([step(x[0]), step(x[1])])
                .style(SOFT),
        )
        .y_axis(
            Axis::default()
                .bounds(y)
                .labels([
                    number(y[0]),
                    number(f64::midpoint(y[0], y[1])),
                    number(y[1]),
                ])
                .style(SOFT),
        );
    frame.render_widget(chart, area);
}

fn power(frame: &mut Frame, area: Rect, state: &State) {
    let block = Block::new()
        .borders(Borders::TOP | Borders::LEFT)
        .border_style(SOFT)
        .title("Power");
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let components = &state.components;
    let total: f64 = components.iter().map(|(_, watts)| watts).sum();
    if components.is_empty() {
        frame.render_widget(Line::styled("no reading yet", SOFT), inner);
        return;
    }
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length((components.len() as u16).min(inner.height.saturating_sub(3))),
        Constraint::Fill(1),
    ])
    .split(inner);
    frame.render_widget(Line::styled(format!("{total:.0} W"), STRONG), rows[0]);
    let width = usize::from(inner.width);
    let lines: Vec<Line> = components
        .iter()
        .map(|(name, watts)| {
            let value = format!("{watts:.0} W");
            let room = width.saturating_sub(value.len() + 1);
            let name: String = name.chars().take(room).collect();
            let fill = " ".repeat(room.saturating_sub(name.chars().count()));
            Line::from(vec![
                Span::styled(name, SOFT),
                Span::raw(format!("{fill} {value}")),
            ])
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), rows[1]);
    // As many of the last readings as there are columns, from zero.
    let points = &state.watts.points;
    let from = points.len().saturating_sub(width);
    let history: Vec<u64> = points[from..]
        .iter()
        .map(|p| p.1.max(0.0).round() as u64)
        .collect();
    let highest = history.iter().copied().max().unwrap_or(0).max(1);
    let line = Sparkline::default()
        .data(history)
        .max(highest)
        .style(Style::new().fg(Color::Magenta));
    frame.render_widget(line, rows[2]);
}
