//! JSON Lines and JSON files as records.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Map, Value};

use super::error::{DataError, Place};

/// Calls `each` with every record of a file of JSON lines. Only one line is held at a time; empty
/// lines are passed over.
pub(super) fn lines(
    path: &Path,
    reader: impl Read,
    mut each: impl FnMut(Map<String, Value>, Place) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut reader = BufReader::with_capacity(1 << 16, reader);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let read = reader.read_until(b'\n', &mut bytes);
        let read = read.map_err(|source| DataError::Read {
            path: path.into(),
            source,
        })?;
        if read == 0 {
            break;
        }
        let place = Place::line(path, line);
        let Ok(text) = std::str::from_utf8(&bytes) else {
            return Err(DataError::NotUtf8 { place });
        };
        let text = text.trim_start_matches('\u{FEFF}').trim();
        if text.is_empty() {
            continue;
        }
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => each(fields, place)?,
            Ok(_) => {
                let reason = "the line is not a JSON object".into();
                return Err(DataError::Malformed { place, reason });
            }
            Err(error) => {
                let reason = format!("the line is not valid JSON: {}", message(&error, false));
                return Err(DataError::Malformed { place, reason });
            }
        }
    }
    Ok(())
}

/// Whether the text is one JSON value rather than lines of them.
pub(super) fn is_single(text: &str) -> bool {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => values.next().is_none(),
        // Where even the first value is broken, the first line decides which message helps.
        _ => text
            .lines()
            .next()
            .is_some_and(|line| serde_json::from_str::<serde::de::IgnoredAny>(line).is_err()),
    }
}

/// Calls `each` with every record of a JSON file: a list of objects, or an object with one list.
pub(super) fn single(
    path: &Path,
    text: &str,
    mut each: impl FnMut(Map<String, Value>, Place) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let malformed = |reason| DataError::Malformed {
        place: Place::whole(path),
        reason,
    };
    let value: Value = serde_json::from_str(text)
        .map_err(|error| malformed(format!("not valid JSON: {}", message(&error, true))))?;
    let rows = match value {
        Value::Array(rows) => rows,
        Value::Object(object) => {
            let mut lists = object.into_iter().filter_map(|(_, value)| match value {
                Value::Array(rows) => Some(rows),
                _ => None,
            });
            match (lists.next(), lists.next()) {
                (Some(rows), None) => rows,
                (found, _) => {
                    let found = if found.is_some() {
                        "several lists"
                    } else {
                        "no list"
                    };
                    return Err(malformed(format!(
                        "a JSON file is a list of objects or an object with one list; this object has {found}"
                    )));
                }
            }
        }
        _ => {
            return Err(malformed(
                "a JSON file is a list of objects or an object with one list".into(),
            ));
        }
    };
    for (i, row) in rows.into_iter().enumerate() {
        let place = Place::row(path, i as u64 + 1);
        match row {
            Value::Object(fields) => each(fields, place)?,
            _ => {
                return Err(DataError::Malformed {
                    place,
                    reason: "the row is not a JSON object".into(),
                });
            }
        }
    }
    Ok(())
}

/// serde_json's message, with its own idea of the place where that says more.
fn message(error: &serde_json::Error, with_line: bool) -> String {
    let text = error.to_string();
    if with_line {
        return text;
    }
    let text = text.split(" at line ").next().unwrap_or(&text).to_owned();
    format!("{text} (column {})", error.column())
}
