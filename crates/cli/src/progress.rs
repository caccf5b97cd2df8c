//! How a run looks while it goes on.
//!
//! A bar on a terminal, or the dashboard where it is asked for; a plain line every few seconds where
//! standard error is a file or a pipe; nothing with `--quiet`. All of it goes to standard error. What is shown is given in a
//! [`Status`] after each step; this file measures nothing but the time left.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sparsam_tracker::Gauge;

use crate::dashboard::{Budgeted, Dashboard};
use crate::figures::{duration, significant, thousands};

/// Seconds between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What is known after a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Status {
    /// Optimiser steps done, of the whole run.
    pub(crate) step: u64,
    /// Mean loss per trained token of the last step.
    pub(crate) loss: f64,
    /// Tokens gone through per second.
    pub(crate) tokens_per_second: f64,
    /// Power now, in watts, where it is known.
    pub(crate) watts: Option<f64>,
    /// Emissions so far, gCO2e, where the place is known.
    pub(crate) grams: Option<f64>,
}

/// Where progress goes.
#[derive(Debug)]
enum Output {
    Bar(ProgressBar),
    Dashboard(Dashboard),
    Lines { last: Option<Instant> },
    Quiet,
}

/// How progress is to be shown.
#[derive(Debug)]
pub(crate) enum Look<'a> {
    Quiet,
    /// A bar, or lines where there is no terminal.
    Usual,
    /// A screen under this title with these figures, or lines where there is no terminal.
    Dashboard(&'a str, Gauge),
}

/// The progress of one run.
#[derive(Debug)]
pub(crate) struct Progress {
    output: Output,
    total: u64,
    first: u64,
    started: Instant,
}

impl Progress {
    /// Begins to show a run of `total` steps of which `done` were made by an earlier session.
    pub(crate) fn start(total: u64, done: u64, look: Look) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let output = match look {
            Look::Quiet => Output::Quiet,
            _ if !io::stderr().is_terminal() => Output::Lines { last: None },
            Look::Dashboard(title, gauge) if !dumb => {
                match Dashboard::open(title, gauge, total, done) {
                    Ok(dashboard) => Output::Dashboard(dashboard),
                    Err(_) => Output::Lines { last: None },
                }
            }
            _ => Output::Bar(bar(total, done)),
        };
        Self {
            output,
            total,
            first: done,
            started: Instant::now(),
        }
    }

    /// Shows the state after a step. The `budget` is asked for where there is room for it.
    pub(crate) fn update(&mut self, status: &Status, budget: impl FnOnce() -> Option<Budgeted>) {
        let left = time_left(
            self.started.elapsed(),
            status.step.saturating_sub(self.first),
            self.total.saturating_sub(status.step),
        );
        match &mut self.output {
            Output::Bar(bar) => {
                bar.set_position(status.step);
                bar.set_message(figures(status, left));
            }
            Output::Dashboard(dashboard) => dashboard.stepped(
                (status.step, status.loss, status.tokens_per_second),
                budget(),
            ),
            Output::Lines { last } => {
                let due = last.is_none_or(|last| last.elapsed() >= LINE_EVERY);
                if due || status.step == self.total {
                    *last = Some(Instant::now());
                    line(&format!(
                        "step {}/{}  {}",
                        status.step,
                        self.total,
                        figures(status, left)
                    ));
                }
            }
            Output::Quiet => {}
        }
    }

    /// Shows a line of its own, above the bar.
    pub(crate) fn note(&self, text: &str) {
        match &self.output {
            Output::Bar(bar) => bar.suspend(|| line(text)),
            Output::Dashboard(dashboard) => dashboard.note(text),
            Output::Lines { .. } => line(text),
            Output::Quiet => {}
        }
    }

    /// Says what is being done between steps, such as `evaluating`, in place of the figures.
    pub(crate) fn doing(&self, what: &str) {
        match &self.output {
            Output::Bar(bar) => bar.set_message(what.to_owned()),
            Output::Dashboard(dashboard) => dashboard.doing(what),
            Output::Lines { .. } | Output::Quiet => {}
        }
    }

    /// The evaluation data was measured after a step; the dashboard draws it.
    pub(crate) fn evaluated(&self, step: u64, loss: f64, best: bool) {
        if let Output::Dashboard(dashboard) = &self.output {
            dashboard.evaluated(step, loss, best);
        }
    }

    /// Takes the bar away, and gives the terminal back.
    pub(crate) fn finish(self) {
        match self.output {
            Output::Bar(bar) => bar.finish_and_clear(),
            Output::Dashboard(dashboard) => drop(dashboard),
            Output::Lines { .. } | Output::Quiet => {}
        }
    }
}

fn bar(total: u64, done: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    // The template is a constant; should it ever be wrong, indicatif's own bar is shown instead.
    if let Ok(style) = ProgressStyle::with_template("{bar:16} {pos}/{len}  {wide_msg}") {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.set_position(done);
    bar
}

/// A progress line that cannot be written is no reason to end a run.
fn line(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The time for `remaining` steps at the mean pace of this session. `None` before the first.
fn time_left(elapsed: Duration, done: u64, remaining: u64) -> Option<Duration> {
    let done = u32::try_from(done).ok().filter(|&done| done > 0)?;
    let remaining = u32::try_from(remaining).ok()?;
    Some((elapsed / done).saturating_mul(remaining))
}

/// Loss, speed, time left, watts and emissions in one short line.
fn figures(status: &Status, left: Option<Duration>) -> String {
    let mut parts = vec![
        format!("loss {:.4}", status.loss),
        format!("{} tokens/s", thousands(status.tokens_per_second as u64)),
    ];
    parts.extend(left.map(|left| format!("{} left", duration(left))));
    parts.extend(status.watts.map(|watts| format!("{watts:.0} W")));
    parts.extend(
        status
            .grams
            .map(|grams| format!("{} gCO2e", significant(grams, 2))),
    );
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_is_known_and_no_more() {
        let mut status = Status {
            step: 120,
            loss: 1.234_56,
            tokens_per_second: 12_345.6,
            watts: Some(23.4),
            grams: Some(0.0123),
        };
        assert_eq!(
            figures(&status, Some(Duration::from_secs(125))),
            "loss 1.2346  12,345 tokens/s  2 min 05 s left  23 W  0.012 gCO2e"
        );
        status.watts = None;
        status.grams = None;
        assert_eq!(figures(&status, None), "loss 1.2346  12,345 tokens/s");
    }

    #[test]
    fn time_left_is_the_mean_pace_of_this_session() {
        let elapsed = Duration::from_secs(20);
        assert_eq!(time_left(elapsed, 10, 30), Some(Duration::from_secs(60)));
        assert_eq!(time_left(elapsed, 0, 30), None);
        assert_eq!(time_left(elapsed, 10, 0), Some(Duration::ZERO));
    }
}
