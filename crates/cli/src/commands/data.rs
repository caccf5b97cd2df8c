//! `sparsam data inspect`: examples as the model will see them, with what is trained in them.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use crate::args::data::{DataArgs, DataCommand, InspectArgs};
use crate::figures::thousands;
use crate::recipe::RecipeFile;
use crate::run::inspect::{InspectedSet, Inspection, Shown, inspect};
use crate::terminal::{Paint, paint_stdout};

mod histogram;

use histogram::histogram;

pub(super) fn run(args: &DataArgs) -> anyhow::Result<()> {
    match &args.command {
        DataCommand::Inspect(args) => run_inspect(args),
    }
}

fn run_inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let file = RecipeFile::load(&args.recipe, &args.overrides)?;
    let inspection = inspect(&file, args.examples)?;
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&inspection)?)
    } else {
        screen(&inspection, paint_stdout())
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// Everything as text. Colour is not the only bearer of anything: without it, marks stand around what
/// is trained.
fn screen(inspection: &Inspection, paint: Paint) -> String {
    let mut text = String::new();
    let legend = match paint {
        Paint::Colour => format!("{}, {}", paint.green("trained"), paint.dim("given")),
        Paint::Plain => "⟦trained⟧, given".to_owned(),
    };
    let mut line = |label: &str, rest: &str| {
        let _ = writeln!(text, "{}{rest}", paint.bold(&format!("{label:<11}")));
    };
    line("model", &inspection.model);
    if inspection.sets.iter().all(|set| set.classes.is_empty()) {
        line("template", &inspection.chat_template);
        line("tokens", &legend);
    }
    for set in &inspection.sets {
        text.push('\n');
        text.push_str(&screen_of(set, inspection.max_length, paint));
    }
    text
}

fn screen_of(set: &InspectedSet, max_length: usize, paint: Paint) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} {}: {}",
        paint.bold(set.key),
        set.path.display(),
        set.found
    );
    for (index, example) in set.examples.iter().enumerate() {
        if let Some(label) = &example.label {
            let name = paint.bold(&format!("example {}", index + 1));
            let label = paint.green(label);
            let _ = writeln!(
                text,
                "\n{name} {} tokens, of class {label}",
                example.tokens.len()
            );
            text.push_str(&marked(example, paint));
            continue;
        }
        let trained = example.tokens.iter().filter(|token| token.trained).count();
        let _ = writeln!(
            text,
            "\n{} {} tokens, {trained} trained",
            paint.bold(&format!("example {}", index + 1)),
            example.tokens.len()
        );
        text.push_str(&marked(example, paint));
    }
    let statistics = &set.statistics;
    text.push('\n');
    let mut line = |label: &str, rest: String| {
        let _ = writeln!(text, "{}{rest}", paint.bold(&format!("{label:<11}")));
    };
    let count = |count: usize| thousands(count as u64);
    if !set.classes.is_empty() {
        line(
            "texts",
            format!(
                "{}, {} tokens",
                count(statistics.rows),
                count(statistics.tokens)
            ),
        );
        line(
            "classes",
            format!("{}, by the number of their texts", set.classes.len()),
        );
        for (label, number) in &set.classes {
            line("", format!("{:>8}  {}", count(*number), visible(label)));
        }
        if statistics.truncated > 0 {
            line(
                "",
                format!("{} cut at `max_length`", rows(statistics.truncated)),
            );
        }
        text.push_str(&lengths(set, max_length, paint));
        return text;
    }
    line(
        "rows",
        format!(
            "{}, examples made of them: {}",
            count(statistics.rows),
            count(statistics.examples)
        ),
    );
    line(
        "tokens",
        format!(
            "{}, {} of them trained ({} %)",
            count(statistics.tokens),
            count(statistics.trained_tokens),
            (100 * statistics.trained_tokens).div_ceil(statistics.tokens.max(1))
        ),
    );
    if let Some(packed) = set.packed_rows {
        line(
            "packed",
            format!("into {} of at most {max_length} tokens", rows(packed)),
        );
    }
    line("ends", ends(set));
    for (number, what) in [
        (statistics.truncated, "cut at `max_length`"),
        (statistics.split, "split at `max_length`"),
        (statistics.dropped, "dropped, nothing in them is trained"),
    ] {
        if number > 0 {
            line("", format!("{} {what}", rows(number)));
        }
    }
    text.push_str(&lengths(set, max_length, paint));
    text
}

fn lengths(set: &InspectedSet, max_length: usize, paint: Paint) -> String {
    let mut text = format!(
        "{}in tokens, at most {max_length}; the longest row has {}\n",
        paint.bold(&format!("{:<11}", "lengths")),
        thousands(set.statistics.longest as u64)
    );
    for row in histogram(&set.lengths) {
        let _ = writeln!(text, "  {row}");
    }
    text
}

fn rows(number: usize) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{} row{s}", thousands(number as u64))
}

/// Whether the model learns to stop.
fn ends(set: &InspectedSet) -> String {
    let tokens: Vec<String> = set.ends.tokens.iter().map(|t| format!("`{t}`")).collect();
    let (trained, all) = (set.ends.trained_in, set.statistics.examples);
    let tokens = tokens.join(", ");
    if tokens.is_empty() {
        return "the model has no token that ends an answer".to_owned();
    }
    match trained {
        0 => {
            format!("WARNING: {tokens} is trained in no example; the model will not learn to stop")
        }
        _ if trained == all => format!("{tokens} is trained in every example"),
        _ => format!("{tokens} is trained in {trained} of {all} examples"),
    }
}

/// The text of an example, indented, with what is trained in it set apart.
fn marked(example: &Shown, paint: Paint) -> String {
    let mut text = String::new();
    for run in example
        .tokens
        .chunk_by(|one, next| one.trained == next.trained)
    {
        let words: String = run.iter().map(|token| token.text.as_str()).collect();
        let trained = run.first().is_some_and(|token| token.trained);
        match paint {
            Paint::Plain if trained => {
                let _ = write!(text, "⟦{}⟧", visible(&words));
            }
            Paint::Plain => text.push_str(&visible(&words)),
            // A colour ends with its line, so that a pager shows every line as it is.
            Paint::Colour => {
                for piece in words.split_inclusive('\n') {
                    let (line, feed) = match piece.strip_suffix('\n') {
                        Some(line) => (line, "\n"),
                        None => (piece, ""),
                    };
                    let shown = visible(line);
                    text.push_str(&match trained {
                        true if feed.is_empty() => paint.green(&shown),
                        true => paint.green(&format!("{shown}↵")),
                        false => paint.dim(&shown),
                    });
                    text.push_str(feed);
                }
            }
        }
    }
    let mut indented = String::new();
    for line in text.lines() {
        let _ = writeln!(indented, "  {line}");
    }
    indented
}

/// A text without characters that would move the cursor or change a terminal's state.
fn visible(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c {
            '\n' | '\t' => vec![c],
            c if c.is_control() => c.escape_default().collect(),
            c => vec![c],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::inspect::ShownToken;

    fn example(tokens: &[(&str, bool)]) -> Shown {
        let tokens = tokens.iter().map(|(text, trained)| ShownToken {
            id: 0,
            text: (*text).to_owned(),
            trained: *trained,
        });
        Shown {
            tokens: tokens.collect(),
            label: None,
        }
    }

    #[test]
    fn what_is_trained_stands_between_marks_or_in_colour() {
        let example = example(&[
            ("<s>", false),
            ("a\nb", false),
            (" c", true),
            ("</s>", true),
        ]);
        assert_eq!(marked(&example, Paint::Plain), "  <s>a\n  b⟦ c</s>⟧\n");
        assert_eq!(
            marked(&example, Paint::Colour),
            "  \u{1b}[2m<s>a\u{1b}[0m\n  \u{1b}[2mb\u{1b}[0m\u{1b}[32m c</s>\u{1b}[0m\n"
        );
    }

    #[test]
    fn data_cannot_command_the_terminal() {
        let example = example(&[("\u{1b}[2J\r", true)]);
        assert_eq!(marked(&example, Paint::Plain), "  ⟦\\u{1b}[2J\\r⟧\n");
    }
}
