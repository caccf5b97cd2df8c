//! A card as it stands in a file: where its front matter begins and ends, where its lines and headings
//! are. It only finds; what is changed is a matter of [`super::edit`], what is wrong of
//! [`super::lint`]. All offsets are bytes, all line numbers count from 1.
//!
//! The front matter is what `huggingface_hub` takes for it: a first line `---` (blank lines before it
//! are allowed) and the next line that is `---`. A byte order mark before it is kept.

use std::ops::Range as Bytes;

use serde_json::Value;

/// Why a text cannot be used as a card.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CardError {
    /// Not UTF-8.
    #[error("line {line}: not UTF-8")]
    NotUtf8 {
        /// Where.
        line: usize,
    },
    /// The front matter has no second `---`.
    #[error("line {line}: the front matter that opens here is never closed by a line `---`")]
    Unclosed {
        /// Where it opens.
        line: usize,
    },
    /// The front matter is no YAML.
    #[error("line {line}: the front matter is not valid YAML: {reason}")]
    InvalidYaml {
        /// Where.
        line: usize,
        /// What the parser says.
        reason: String,
    },
    /// The front matter is a list or a word.
    #[error("line {line}: the front matter is not a mapping of keys to values")]
    NotMapping {
        /// Where it opens.
        line: usize,
    },
    /// A code block in the body has no end, so that whatever follows would be code.
    #[error("line {line}: the code block that opens here is never closed")]
    OpenFence {
        /// Where it opens.
        line: usize,
    },
    /// The front matter is written in a way in which a key cannot be added or replaced line by line.
    #[error("line {line}: {reason}")]
    Unsupported {
        /// Where.
        line: usize,
        /// Why.
        reason: String,
    },
}

impl CardError {
    /// The line it is about.
    pub fn line(&self) -> usize {
        match self {
            Self::NotUtf8 { line }
            | Self::Unclosed { line }
            | Self::InvalidYaml { line, .. }
            | Self::NotMapping { line }
            | Self::OpenFence { line }
            | Self::Unsupported { line, .. } => *line,
        }
    }
}

/// The parser's reason without its ` at line 2, column 4`, which counts from the front matter's start,
/// and without what it advises programmers.
fn for_people(reason: &str) -> &str {
    let reason = reason.trim_end_matches('.');
    let numbers = |text: &str| {
        text.chars()
            .all(|c| c.is_ascii_digit() || " ,:column".contains(c))
    };
    let words = match reason.rsplit_once(" at line ") {
        Some((words, place)) if numbers(place) => words,
        _ => reason,
    };
    // Advice to those who call the parser.
    words
        .split(", set DuplicateKeyPolicy")
        .next()
        .unwrap_or(words)
}

/// The front matter's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FrontMatter {
    /// The lines between the fences.
    pub(super) content: Bytes<usize>,
    /// Number of the content's first line.
    pub(super) first_line: usize,
}

/// A card's text with its parts found.
#[derive(Debug, Clone)]
pub(super) struct Source<'a> {
    pub(super) text: &'a str,
    /// Bytes of the byte order mark: 0 or 3.
    pub(super) bom: usize,
    pub(super) front: Option<FrontMatter>,
    /// Where the body starts.
    pub(super) body: usize,
    /// The line ending of the first line, `\n` where there is none.
    pub(super) eol: &'static str,
}

/// A line: its bytes with the ending, and its text without.
pub(super) struct Line<'a> {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) text: &'a str,
}

/// The lines of `text` from byte `from` on.
pub(super) fn lines(text: &str, from: usize) -> impl Iterator<Item = Line<'_>> {
    let mut start = from;
    text[from..].split_inclusive('\n').map(move |line| {
        let end = start + line.len();
        let found = Line {
            start,
            end,
            text: line.trim_end_matches('\n').trim_end_matches('\r'),
        };
        start = end;
        found
    })
}

/// The number of the line in which byte `at` lies.
pub(super) fn line_number(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

impl<'a> Source<'a> {
    /// Finds the parts of a card.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, CardError> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = &bytes[..error.valid_up_to()];
            CardError::NotUtf8 {
                line: before.split(|b| *b == b'\n').count(),
            }
        })?;
        let bom = if text.starts_with('\u{feff}') { 3 } else { 0 };
        let eol = match text.find('\n') {
            Some(at) if text[..at].ends_with('\r') => "\r\n",
            _ => "\n",
        };
        let mut source = Self {
            text,
            bom,
            front: None,
            body: bom,
            eol,
        };
        let mut all = lines(text, bom).skip_while(|line| line.text.trim().is_empty());
        let Some(open) = all.next().filter(|line| line.text == "---") else {
            return Ok(source);
        };
        let Some(close) = all.find(|line| line.text == "---") else {
            return Err(CardError::Unclosed {
                line: line_number(text, open.start),
            });
        };
        source.front = Some(FrontMatter {
            content: open.end..close.start,
            first_line: line_number(text, open.start) + 1,
        });
        source.body = close.end;
        Ok(source)
    }

    /// The front matter as a mapping; an empty one where there is none.
    pub(super) fn parse(&self) -> Result<serde_json::Map<String, Value>, CardError> {
        let Some(front) = &self.front else {
            return Ok(serde_json::Map::new());
        };
        parse(&self.text[front.content.clone()], front.first_line)
    }
}

/// YAML of which the first line has the number `first_line`, as a mapping.
pub(super) fn parse(
    yaml: &str,
    first_line: usize,
) -> Result<serde_json::Map<String, Value>, CardError> {
    if yaml
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return Ok(serde_json::Map::new());
    }
    let value: Value = serde_saphyr::from_str(yaml).map_err(|error| {
        let line = error
            .location()
            .map_or(1, |at| usize::try_from(at.line()).unwrap_or(1));
        let reason = error.without_snippet().to_string();
        CardError::InvalidYaml {
            line: first_line + line.saturating_sub(1),
            reason: for_people(reason.lines().next().unwrap_or("unreadable")).to_owned(),
        }
    })?;
    match value {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(serde_json::Map::new()),
        _ => Err(CardError::NotMapping { line: first_line }),
    }
}

/// The bytes of a top-level key and its value within block YAML, whole lines; comments and blank lines
/// after the value are not part of it.
pub(super) fn key_lines(yaml: &str, key: &str) -> Option<Bytes<usize>> {
    let is_key = |line: &str| {
        [key.to_owned(), format!("\"{key}\""), format!("'{key}'")]
            .iter()
            .any(|written| {
                line.strip_prefix(written.as_str()).is_some_and(|rest| {
                    let rest = rest.trim_start();
                    rest == ":" || rest.starts_with(": ") || rest.starts_with(":\t")
                })
            })
    };
    let mut all = lines(yaml, 0);
    let first = all.find(|line| is_key(line.text))?;
    let mut end = first.end;
    for line in all {
        let belongs = line.text.starts_with([' ', '\t', '}', ']'])
            || line.text == "-"
            || line.text.starts_with("- ");
        let blank = line.text.trim().is_empty();
        let comment = line.text.trim_start().starts_with('#');
        if blank || comment {
            continue; // Part of the value only if more of it follows.
        }
        if !belongs {
            break;
        }
        end = line.end;
    }
    Some(first.start..end)
}

/// A heading of the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heading<'a> {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) level: usize,
    pub(super) text: &'a str,
}

/// The headings (`#` to `######`) of the text from byte `from` on, outside code blocks and HTML
/// comments.
///
/// # Errors
/// A code block is never closed.
pub(super) fn headings(text: &str, from: usize) -> Result<Vec<Heading<'_>>, CardError> {
    let mut found = Vec::new();
    let mut fence: Option<(char, usize, usize)> = None;
    let mut comment = false;
    for line in lines(text, from) {
        let indent = line.text.len() - line.text.trim_start_matches(' ').len();
        let content = line.text.trim_start_matches(' ');
        if comment {
            comment = !content.contains("-->");
            continue;
        }
        if let Some((mark, length, _)) = fence {
            let run = content.chars().take_while(|c| *c == mark).count();
            if indent < 4 && run >= length && content[run..].trim().is_empty() {
                fence = None;
            }
            continue;
        }
        if indent >= 4 {
            continue;
        }
        for mark in ['`', '~'] {
            let run = content.chars().take_while(|c| *c == mark).count();
            if run >= 3 && !(mark == '`' && content[run..].contains('`')) {
                fence = Some((mark, run, line.start));
            }
        }
        if fence.is_some() {
            continue;
        }
        if let Some(opened) = content.strip_prefix("<!--") {
            comment = !opened.contains("-->");
            continue;
        }
        let level = content.bytes().take_while(|b| *b == b'#').count();
        let rest = &content[level..];
        if (1..=6).contains(&level) && (rest.is_empty() || rest.starts_with([' ', '\t'])) {
            found.push(Heading {
                start: line.start,
                end: line.end,
                level,
                text: rest.trim().trim_end_matches('#').trim(),
            });
        }
    }
    match fence {
        Some((_, _, start)) => Err(CardError::OpenFence {
            line: line_number(text, start),
        }),
        None => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_matter_is_found_as_the_hub_finds_it() {
        for (text, content, body) in [
            ("---\na: 1\n---\nx", Some("a: 1\n"), "x"),
            ("\u{feff}---\r\na: 1\r\n---\r\nx", Some("a: 1\r\n"), "x"),
            ("\n\n---\na: 1\n---", Some("a: 1\n"), ""),
            ("# no front matter\n---\n", None, "# no front matter\n---\n"),
            ("", None, ""),
            ("---x\n---\n", None, "---x\n---\n"),
        ] {
            let source = Source::read(text.as_bytes()).unwrap();
            assert_eq!(source.front.map(|f| &text[f.content]), content, "{text:?}");
            assert_eq!(&text[source.body..], body, "{text:?}");
        }
        let error = Source::read(b"---\na: 1\n").unwrap_err();
        assert_eq!(error, CardError::Unclosed { line: 1 });
        assert_eq!(
            Source::read(b"x\n\xff").unwrap_err(),
            CardError::NotUtf8 { line: 2 }
        );
    }

    #[test]
    fn a_key_ends_where_the_next_begins() {
        let yaml = "a: 1\nco2: # why\n  x: 1\n  # inside\n\n  y: 2\n# after\n\nb: |\n  co2:\n";
        let range = key_lines(yaml, "co2").unwrap();
        assert_eq!(&yaml[range], "co2: # why\n  x: 1\n  # inside\n\n  y: 2\n");
        assert_eq!(key_lines("b: |\n  co2:\n", "co2"), None);
        let quoted = "\"co2\": {a: 1,\n b: 2\n}\nc: 1\n";
        assert_eq!(
            &quoted[key_lines(quoted, "co2").unwrap()],
            "\"co2\": {a: 1,\n b: 2\n}\n"
        );
        let list = "co2:\n- 1\n- 2\nd: 1\n";
        assert_eq!(&list[key_lines(list, "co2").unwrap()], "co2:\n- 1\n- 2\n");
    }

    #[test]
    fn headings_in_code_and_comments_are_none() {
        let text = "# A\n```\n# code\n```\n<!--\n# comment\n-->\n    # indented\n## B ##\n#no\n";
        let names: Vec<(usize, &str)> = headings(text, 0)
            .unwrap()
            .into_iter()
            .map(|h| (h.level, h.text))
            .collect();
        assert_eq!(names, [(1, "A"), (2, "B")]);
        assert_eq!(
            headings("x\n```\n# code\n", 0),
            Err(CardError::OpenFence { line: 2 })
        );
    }
}
