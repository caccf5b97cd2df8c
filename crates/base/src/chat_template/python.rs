//! Values as Python writes them.
//!
//! Templates are written for Python's Jinja2, where printing `true` gives `True`, a list gets its
//! `repr`, and `tojson` is transformers' call of `json.dumps`. minijinja prints in its own way; a
//! model that saw Python's way in its training has to see it here.

use std::fmt::Write as _;

use minijinja::value::{Value, ValueKind};

/// `str(value)`.
pub(super) fn display(value: &Value) -> String {
    if let Some(text) = value.as_str() {
        return text.to_owned();
    }
    let mut out = String::new();
    repr(value, &mut out);
    out
}

/// `repr(value)`, appended.
fn repr(value: &Value, out: &mut String) {
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => quote_single(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            if let Ok(items) = value.try_iter() {
                for (i, item) in items.enumerate() {
                    if i > 0 {
                        out.push_str(", ");
                    }
                    repr(&item, out);
                }
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            if let Ok(keys) = value.try_iter() {
                for (i, key) in keys.enumerate() {
                    if i > 0 {
                        out.push_str(", ");
                    }
                    repr(&key, out);
                    out.push_str(": ");
                    repr(&value.get_item(&key).unwrap_or_default(), out);
                }
            }
            out.push('}');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

/// Python quotes with `'` unless the text holds one and no `"`.
fn quote_single(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A number as `repr` and `json.dumps` write it: integers plainly, floats in the shortest form that
/// reads back, with an exponent from 1e16 up and below 1e-4.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(float) = f64::try_from(value.clone()) else {
        return value.to_string();
    };
    if float.is_nan() {
        return "NaN".into();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let magnitude = float.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{float:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let text = format!("{float}");
    if text.contains('.') {
        text
    } else {
        format!("{text}.0")
    }
}

/// Arguments of `json.dumps` a template may give; `ensure_ascii` is false by transformers' default.
#[derive(Clone, Debug)]
pub(super) struct Dumps {
    pub(super) ensure_ascii: bool,
    pub(super) indent: Option<usize>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) sort_keys: bool,
}

impl Dumps {
    /// `json.dumps(value)`; an error names what JSON cannot hold.
    pub(super) fn dumps(&self, value: &Value) -> Result<String, String> {
        let mut out = String::new();
        self.write(value, 0, &mut out)?;
        Ok(out)
    }

    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), String> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.quote(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter().map_err(|error| error.to_string())?;
                self.list(
                    ('[', ']'),
                    items.collect(),
                    depth,
                    out,
                    |this, item, out| this.write(&item, depth + 1, out),
                )?;
            }
            ValueKind::Map => {
                let keys = value.try_iter().map_err(|error| error.to_string())?;
                let mut keys: Vec<Value> = keys.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.list(('{', '}'), keys, depth, out, |this, key, out| {
                    let item = value.get_item(&key).map_err(|error| error.to_string())?;
                    match key.as_str() {
                        Some(text) => this.quote(text, out),
                        None => this.quote(&display(&key), out),
                    }
                    out.push_str(&this.key_separator);
                    this.write(&item, depth + 1, out)
                })?;
            }
            kind => return Err(format!("a value of type {kind} cannot be written as JSON")),
        }
        Ok(())
    }

    fn list(
        &self,
        (open, close): (char, char),
        items: Vec<Value>,
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(&Self, Value, &mut String) -> Result<(), String>,
    ) -> Result<(), String> {
        out.push(open);
        let empty = items.is_empty();
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item_separator);
            }
            self.new_line(depth + 1, out);
            write(self, item, out)?;
        }
        if !empty {
            self.new_line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn quote(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' => {
                    let _ = write!(out, "\\u{:04x}", u32::from(c));
                }
                c if self.ensure_ascii && !c.is_ascii() => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn value(json: &serde_json::Value) -> Value {
        Value::from(minijinja::value::Serde(json))
    }

    fn plain() -> Dumps {
        Dumps {
            ensure_ascii: false,
            indent: None,
            item_separator: ", ".into(),
            key_separator: ": ".into(),
            sort_keys: false,
        }
    }

    #[test]
    fn json_as_pythons() {
        let data = value(
            &json!({"b": [1, 2.0, 1e20, 1.5e-7, null, true], "a": "ü\"\n", "e": [], "o": {}}),
        );
        assert_eq!(
            plain().dumps(&data).unwrap(),
            r#"{"b": [1, 2.0, 1e+20, 1.5e-07, null, true], "a": "ü\"\n", "e": [], "o": {}}"#
        );
        let sorted = Dumps {
            sort_keys: true,
            ensure_ascii: true,
            ..plain()
        };
        let data = value(&json!({"b": 1, "a": "ü🌳"}));
        assert_eq!(
            sorted.dumps(&data).unwrap(),
            r#"{"a": "\u00fc\ud83c\udf33", "b": 1}"#
        );
        let indented = Dumps {
            indent: Some(2),
            item_separator: ",".into(),
            ..plain()
        };
        let data = value(&json!({"a": [1, {}], "b": {"c": 2}}));
        assert_eq!(
            indented.dumps(&data).unwrap(),
            "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": {\n    \"c\": 2\n  }\n}"
        );
        assert!(plain().dumps(&Value::UNDEFINED).is_err());
    }

    #[test]
    fn text_as_pythons() {
        let data = value(&json!([true, null, "it's", "a", {"k": 0.1}]));
        assert_eq!(display(&data), r#"[True, None, "it's", 'a', {'k': 0.1}]"#);
        assert_eq!(display(&Value::UNDEFINED), "");
    }
}
