//! Scalars of YAML. A string is written plain where every reader of YAML 1.1 and 1.2 takes it for that
//! string, else in double quotes with escapes. `NO` is Norway and not `false`; `1e3` is a name.

use std::fmt::Write as _;

/// `text` as one YAML scalar.
pub(crate) fn scalar(text: &str) -> String {
    if is_plain(text) {
        text.to_owned()
    } else {
        quoted(text)
    }
}

/// Letters, digits and `-_./ +` that open and close with a letter or digit, with a letter in front, and
/// that are no word of YAML's own. Colons are allowed inside a word (`base_model:adapter:x`).
fn is_plain(text: &str) -> bool {
    /// Words that some version of YAML reads as something else than a string.
    const RESERVED: [&str; 14] = [
        "y", "n", "yes", "no", "true", "false", "on", "off", "null", "nan", "inf", "infinity", "~",
        "",
    ];
    let first = text.bytes().next();
    let last = text.bytes().next_back();
    first.is_some_and(|b| b.is_ascii_alphabetic())
        && last.is_some_and(|b| b.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_./ +:".contains(&b))
        && !text.contains(": ")
        && !RESERVED.contains(&text.to_lowercase().as_str())
}

/// Double quotes. JSON's escapes are YAML's too; what JSON leaves as it is and YAML does not allow
/// (other control characters, line separators, the byte order mark) is written by its number.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control()
                || matches!(
                    c,
                    '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
                ) =>
            {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> serde_json::Value {
        serde_saphyr::from_str(&format!("key: {text}\n")).unwrap()
    }

    #[test]
    fn words_that_yaml_would_read_otherwise_are_quoted() {
        for text in [
            "NO",
            "no",
            "null",
            "1e3",
            "0x10",
            "12",
            "1:30",
            "",
            " a",
            "a ",
            "- a",
            "a: b",
            "#x",
            "@x",
            "2026-01-01",
            "~",
            ".inf",
            "a\nb",
        ] {
            assert!(scalar(text).starts_with('"'), "{text:?}");
            assert_eq!(read(&scalar(text))["key"], text);
        }
        for text in ["peft", "base_model:adapter:a/b-1.0", "Quebec", "v1.2"] {
            assert_eq!(scalar(text), text);
            assert_eq!(read(&scalar(text))["key"], text);
        }
    }

    proptest! {
        #[test]
        fn any_string_reads_back(text in any::<String>()) {
            prop_assert_eq!(&read(&scalar(&text))["key"], &serde_json::Value::String(text));
        }

        #[test]
        fn short_words_read_back(text in "[a-zA-Z0-9:.+ -]{0,6}") {
            prop_assert_eq!(&read(&scalar(&text))["key"], &serde_json::Value::String(text));
        }
    }
}
