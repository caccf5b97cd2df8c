//! `{% generation %} … {% endgeneration %}`: where the assistant speaks.
//!
//! transformers adds this pair of tags to Jinja so that a template can say which part of its output
//! is the assistant's. minijinja does not know them. Both are renamed to the `filter` block, which
//! has the same whitespace rules; the filter puts a mark at either end of its text, and the marks
//! are taken out of the rendered text again, leaving byte ranges.

use std::ops::Range;

/// Name of the filter the tags are rewritten to.
pub(super) const FILTER: &str = "sparsam_generation";

/// Marks around the assistant's text: Unicode noncharacters, reserved for use inside a program.
pub(super) const START: char = '\u{FDD0}';
pub(super) const END: char = '\u{FDD1}';

/// Renames the two tags; `None` where the template has none. Comments, expressions and raw blocks
/// are left alone, as are line numbers.
pub(super) fn rewrite(source: &str) -> Option<String> {
    let mut out = String::with_capacity(source.len() + 64);
    let mut rest = source;
    let mut found = false;
    let mut raw = false;
    while let Some(at) = rest.find('{') {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        let length = match tail.as_bytes().get(1) {
            Some(b'#') if !raw => tail.find("#}").map_or(tail.len(), |end| end + 2),
            Some(b'{') if !raw => closing(tail, "}}"),
            Some(b'%') => closing(tail, "%}"),
            _ => 1,
        };
        let (tag, after) = tail.split_at(length);
        rest = after;
        if !tag.starts_with("{%") {
            out.push_str(tag);
            continue;
        }
        let inner = tag.trim_start_matches("{%").trim_end_matches("%}");
        let word = inner.trim_matches(['-', '+']).trim();
        match word {
            "raw" => raw = true,
            "endraw" => raw = false,
            _ => {}
        }
        match word {
            "generation" if !raw => {
                found = true;
                out.push_str(&tag.replacen("generation", &format!("filter {FILTER}"), 1));
            }
            "endgeneration" if !raw => {
                found = true;
                out.push_str(&tag.replacen("endgeneration", "endfilter", 1));
            }
            _ => out.push_str(tag),
        }
    }
    out.push_str(rest);
    found.then_some(out)
}

/// Length of a tag up to and with its closing mark, which does not count inside a string.
fn closing(tail: &str, mark: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in tail.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            None if c == '"' || c == '\'' => quote = Some(c),
            None if tail[at..].starts_with(mark) => return at + mark.len(),
            _ => {}
        }
    }
    tail.len()
}

/// Takes the marks out of a rendered text and returns what was between them as byte ranges.
pub(super) fn take_marks(marked: &str) -> (String, Vec<Range<usize>>) {
    let mut text = String::with_capacity(marked.len());
    let mut ranges = Vec::new();
    let mut start = None;
    for c in marked.chars() {
        match c {
            START => start = Some(text.len()),
            END => {
                if let Some(start) = start.take()
                    && start < text.len()
                {
                    ranges.push(start..text.len());
                }
            }
            _ => text.push(c),
        }
    }
    (text, ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_renamed_with_their_whitespace_control() {
        let source = "{%- generation -%}\n a {%endgeneration+%} b";
        let expected = "{%- filter sparsam_generation -%}\n a {%endfilter+%} b";
        assert_eq!(rewrite(source).as_deref(), Some(expected));
    }

    #[test]
    fn everything_else_is_left_alone() {
        for source in [
            "{# {% generation %} #}",
            "{{ '{% generation %}' }}",
            "{% set x = '%} {% generation %}' %}",
            "{% raw %}{% generation %}{% endraw %}",
            "{% set generation = 1 %}{ {% if add_generation_prompt %}x{% endif %}",
            "{% unclosed 'string",
        ] {
            assert_eq!(rewrite(source), None, "{source}");
        }
    }

    #[test]
    fn marks_become_ranges() {
        let marked = format!("ü{START}ab{END}c{START}{END}{START}d{END}");
        let (text, ranges) = take_marks(&marked);
        assert_eq!(text, "üabcd");
        assert_eq!(ranges, [2..4, 5..6]);
    }
}
