//! The end screen: what the run achieved, what it cost, where the files are. 80 columns.
//!
//! A [`Summary`] is filled from the record of the run; energy and emissions come worded by the
//! tracker, so that terminal and card cannot disagree.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use sparsam_adapter::classes::ClassMetrics;

use crate::figures::{bytes, duration, significant, thousands};
use crate::run_record::{Classified, Quality};
use crate::terminal::Paint;

/// Columns of the screen.
const WIDTH: usize = 80;
/// Columns of a label, with its space.
const LABEL: usize = 16;

/// What the end screen says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Summary {
    /// The first line: how the run ended, such as `Finished` or `Stopped early at step 300`.
    pub(crate) ending: String,
    /// Time of the whole run.
    pub(crate) time: Duration,
    /// Optimiser steps.
    pub(crate) steps: u64,
    /// Numbers that were trained.
    pub(crate) trainable: u64,
    /// Numbers in the base.
    pub(crate) parameters: u64,
    /// Held-out quality before the run.
    pub(crate) before: Option<Quality>,
    /// Held-out quality of what was kept.
    pub(crate) after: Option<Quality>,
    /// How well classes are told apart, of a classifier.
    pub(crate) classes: Option<Classified>,
    /// Tokens per second of training.
    pub(crate) tokens_per_second: f64,
    /// Most memory held, in bytes.
    pub(crate) peak_memory: Option<u64>,
    /// The same of a GPU's.
    pub(crate) peak_gpu_memory: Option<u64>,
    /// Energy, emissions and what belongs to them: label and text.
    pub(crate) energy: Vec<(String, String)>,
    /// Files: path and what it is.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// What to do next.
    pub(crate) next: Vec<String>,
}

impl Summary {
    /// The screen as text.
    pub(crate) fn render(&self, paint: Paint) -> String {
        let mut text = String::new();
        let opening = format!(
            "{} in {}: {} steps, {} of {} weights trained",
            self.ending,
            duration(self.time),
            thousands(self.steps),
            thousands(self.trainable),
            thousands(self.parameters),
        );
        let _ = writeln!(text, "{}\n", paint.bold(&opening));

        if let Some(after) = self.after {
            quality(&mut text, self.before, after, self.classes.as_ref(), paint);
            text.push('\n');
        }

        let mut rows = vec![(
            "speed".to_owned(),
            format!("{} tokens/s", thousands(self.tokens_per_second as u64)),
        )];
        let peaks = [
            ("peak memory", self.peak_memory),
            ("  of the GPU", self.peak_gpu_memory),
        ];
        for (label, peak) in peaks {
            rows.extend(peak.map(|peak| (label.to_owned(), bytes(peak))));
        }
        rows.extend(self.energy.iter().cloned());
        for (label, words) in rows {
            row(&mut text, &label, &words, paint);
        }

        if !self.files.is_empty() {
            text.push('\n');
            let longest = self
                .files
                .iter()
                .map(|(path, _)| path.display().to_string().chars().count())
                .max()
                .unwrap_or(0);
            for (path, what) in &self.files {
                let path = path.display().to_string();
                let what = paint.dim(what);
                let _ = writeln!(text, "  {path:longest$}  {what}");
            }
        }
        if !self.next.is_empty() {
            text.push('\n');
            for line in &self.next {
                let _ = writeln!(text, "  {}", paint.cyan(line));
            }
        }
        text
    }
}

fn quality(
    text: &mut String,
    before: Option<Quality>,
    after: Quality,
    classes: Option<&Classified>,
    paint: Paint,
) {
    let column = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let _ = writeln!(
        text,
        "  {:LABEL$}{:>10}{:>10}",
        "held-out data", "before", "after"
    );
    let mut line = |label: &str, value: &dyn Fn(&Quality) -> Option<String>, note: &str| {
        let Some(after) = value(&after) else { return };
        let after = paint.green(&format!("{after:>10}"));
        let before = column(before.as_ref().and_then(value));
        let _ = writeln!(
            text,
            "{}",
            format!("  {label:LABEL$}{before:>10}{after}{note}").trim_end()
        );
    };
    line("loss", &|quality| Some(format!("{:.4}", quality.loss)), "");
    if let Some(classes) = classes {
        let figures: [(&str, fn(&ClassMetrics) -> f64); 3] = [
            ("accuracy", |metrics| metrics.accuracy),
            ("macro F1", |metrics| metrics.macro_f1),
            ("calibration off", |metrics| metrics.calibration_error),
        ];
        for (label, figure) in figures {
            let before = column(classes.before.as_ref().map(|m| percent(figure(m))));
            let after = paint.green(&format!("{:>10}", percent(figure(&classes.after))));
            let _ = writeln!(text, "  {label:LABEL$}{before:>10}{after}");
        }
        return;
    }
    line(
        "perplexity",
        &|quality| Some(significant(quality.perplexity(), 4)),
        "",
    );
    let note = after
        .answers
        .map(|answers| format!("  of {} answers", thousands(answers)))
        .unwrap_or_default();
    line(
        "exact match",
        &|quality| quality.exact_match.map(percent),
        &note,
    );
}

/// A label and its words, broken so that they stay in their column.
fn row(text: &mut String, label: &str, words: &str, paint: Paint) {
    let mut lines: Vec<String> = vec![String::new()];
    for word in words.split_whitespace() {
        let last = lines.last_mut();
        match last {
            Some(line)
                if line.is_empty()
                    || line.chars().count() + 1 + word.chars().count() <= WIDTH - LABEL - 2 =>
            {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    for (index, line) in lines.iter().enumerate() {
        let label = paint.dim(&format!("{:LABEL$}", if index == 0 { label } else { "" }));
        let _ = writeln!(text, "  {label}{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        Summary {
            ending: "Finished".to_owned(),
            time: Duration::from_secs(151),
            steps: 600,
            trainable: 98_304,
            parameters: 3_211_264,
            before: Some(Quality {
                loss: 3.412,
                exact_match: Some(0.0),
                answers: Some(300),
            }),
            after: Some(Quality {
                loss: 0.3121,
                exact_match: Some(0.713),
                answers: Some(300),
            }),
            classes: None,
            tokens_per_second: 12_345.6,
            peak_memory: Some(412_000_000),
            peak_gpu_memory: None,
            energy: vec![
                (
                    "energy".to_owned(),
                    "1.52 Wh (1.10 to 2.10), modelled from the load of the processor and the memory in use, because no meter can be read here".to_owned(),
                ),
                ("emissions".to_owned(), "0.53 gCO2e (0.38 to 0.74)".to_owned()),
            ],
            files: vec![
                (
                    PathBuf::from("runs/quickstart/adapter_model.safetensors"),
                    "the adapter".to_owned(),
                ),
                (PathBuf::from("runs/quickstart/README.md"), "its card".to_owned()),
            ],
            next: vec!["sparsam chat --model builtin:sprout --adapter runs/quickstart".to_owned()],
        }
    }

    #[test]
    fn one_screen() {
        let screen = summary().render(Paint::Plain);
        assert!(screen.lines().all(|line| line.chars().count() <= WIDTH));
        assert!(screen.lines().count() <= 24);
        insta::assert_snapshot!(screen);
    }

    #[test]
    fn colour_changes_nothing_but_colour() {
        let painted = summary().render(Paint::Colour);
        let mut stripped = String::new();
        let mut rest = painted.as_str();
        while let Some((before, after)) = rest.split_once('\u{1b}') {
            stripped.push_str(before);
            rest = after.split_once('m').map_or("", |(_, rest)| rest);
        }
        stripped.push_str(rest);
        assert_eq!(stripped, summary().render(Paint::Plain));
    }

    #[test]
    fn a_gpu_s_memory_stands_below_the_process_s() {
        let screen = Summary {
            peak_gpu_memory: Some(1_230_000_000),
            ..summary()
        };
        let text = screen.render(Paint::Plain);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let at = lines
            .iter()
            .position(|line| line.starts_with("peak memory"));
        let below = at.map(|at| lines[at + 1]);
        assert!(
            below.is_some_and(|line| line.starts_with("of the GPU") && line.ends_with("1.23 GB")),
            "{text}"
        );
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let screen = Summary {
            before: None,
            after: None,
            peak_memory: None,
            peak_gpu_memory: None,
            energy: Vec::new(),
            files: Vec::new(),
            next: Vec::new(),
            ..summary()
        }
        .render(Paint::Plain);
        insta::assert_snapshot!(screen);
    }
}
