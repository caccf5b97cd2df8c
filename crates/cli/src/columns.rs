//! The tracker's lines in 80 columns. They come as `label      text`, or indented below such a line;
//! what does not fit goes on in the column where the text began. Commands to be copied stay whole.

use crate::terminal::Paint;

/// Columns of the screen.
const WIDTH: usize = 80;
/// Where the text behind a label begins.
const LABEL: usize = 11;
/// Indentation of a command to be copied.
const COMMAND: &str = "    ";

/// The lines as one text, ending in a line feed.
pub(crate) fn fit(lines: &[String], paint: Paint) -> String {
    let mut text = String::new();
    for line in lines {
        if line.starts_with(COMMAND) && !line.starts_with(&" ".repeat(LABEL)) {
            text.push_str(line);
            text.push('\n');
            continue;
        }
        let (label, body) = split(line);
        let indent = label.chars().count();
        let hang = if label.trim().is_empty() && indent < LABEL {
            indent + 2
        } else {
            indent
        };
        for (number, part) in broken(body, WIDTH - indent, WIDTH - hang)
            .iter()
            .enumerate()
        {
            if number == 0 {
                text.push_str(&if label.trim().is_empty() {
                    label.to_owned()
                } else {
                    paint.bold(label)
                });
            } else {
                text.push_str(&" ".repeat(hang));
            }
            text.push_str(part);
            text.push('\n');
        }
    }
    text
}

/// The label with its spaces, or the indentation, and the rest.
fn split(line: &str) -> (&str, &str) {
    let indent = line.len() - line.trim_start().len();
    if indent > 0 {
        return line.split_at(indent);
    }
    match line.find("  ").filter(|end| *end < LABEL) {
        Some(end) => {
            let spaces = line[end..].len() - line[end..].trim_start().len();
            line.split_at(end + spaces)
        }
        None => ("", line),
    }
}

/// The words of `text` in lines of at most `first` and then `rest` characters, runs of spaces kept
/// inside a line. A word longer than a line has one of its own.
fn broken(text: &str, first: usize, rest: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut length = 0;
    let mut gap = "";
    for piece in pieces(text) {
        if piece.starts_with(' ') {
            gap = piece;
            continue;
        }
        let width = if lines.len() == 1 { first } else { rest };
        let wanted = piece.chars().count();
        if length > 0 && length + gap.len() + wanted > width {
            lines.push(String::new());
            length = 0;
            gap = "";
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(gap);
            line.push_str(piece);
        }
        length += gap.len() + wanted;
        gap = "";
    }
    lines
}

/// Words and the spaces between them, in turn.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let spaces = rest.starts_with(' ');
        let end = rest
            .find(|c: char| (c == ' ') != spaces)
            .unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_go_on_where_their_text_began() {
        let words = "word ".repeat(20);
        let command = format!("    echo '{words}'");
        let lines = [
            format!("energy     {words}"),
            format!("  part  1 {words}"),
            command.clone(),
        ];
        let text = fit(&lines, Paint::Plain);
        let got: Vec<&str> = text.lines().collect();
        let end = |count: usize| vec!["word"; count].join(" ");
        assert_eq!(
            got,
            [
                &format!("energy     {}", end(14)),
                &format!("           {}", end(6)),
                &format!("  part  1 {}", end(14)),
                &format!("    {}", end(6)),
                &command,
            ]
        );
    }

    #[test]
    fn a_word_longer_than_a_line_stays_whole() {
        let word = "x".repeat(100);
        let text = fit(&[format!("energy     {word} y")], Paint::Plain);
        assert_eq!(text, format!("energy     {word}\n           y\n"));
    }
}
