//! CSV files with a header line as records of strings.

use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use super::error::{DataError, Place};

/// Calls `each` with every record of a CSV text. The separator is a comma, a semicolon (as
/// spreadsheets write it where the comma is the decimal mark) or a tab, whichever the header line has
/// most of.
pub(super) fn records(
    path: &Path,
    mut reader: impl Read,
    mut each: impl FnMut(Map<String, Value>, Place) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut bytes = Vec::new();
    reader
        .read_to_end(&mut bytes)
        .map_err(|source| DataError::Read {
            path: path.into(),
            source,
        })?;
    let bytes = bytes.strip_prefix("\u{FEFF}".as_bytes()).unwrap_or(&bytes);
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter(bytes))
        .from_reader(bytes);
    let headers = reader
        .headers()
        .map_err(|error| malformed(path, &error))?
        .clone();
    let mut record = csv::StringRecord::new();
    while reader
        .read_record(&mut record)
        .map_err(|error| malformed(path, &error))?
    {
        let line = record.position().map_or(0, csv::Position::line);
        let fields = headers
            .iter()
            .zip(&record)
            .map(|(name, value)| (name.trim().to_owned(), Value::from(value)))
            .collect();
        each(fields, Place::line(path, line))?;
    }
    Ok(())
}

fn delimiter(bytes: &[u8]) -> u8 {
    let mut counts = [(b',', 0), (b';', 0), (b'\t', 0)];
    let mut quoted = false;
    for &byte in bytes {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' if !quoted => break,
            _ if quoted => {}
            _ => {
                if let Some((_, count)) = counts.iter_mut().find(|(mark, _)| *mark == byte) {
                    *count += 1;
                }
            }
        }
    }
    let most = counts.iter().map(|&(_, count)| count).max().unwrap_or(0);
    counts
        .iter()
        .find(|&&(_, count)| count == most)
        .map_or(b',', |&(mark, _)| mark)
}

fn malformed(path: &Path, error: &csv::Error) -> DataError {
    let line = error.position().map_or(1, csv::Position::line);
    let place = Place::line(path, line);
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => DataError::NotUtf8 { place },
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => DataError::Malformed {
            place,
            reason: format!("the row has {len} columns, the header {expected_len}"),
        },
        _ => DataError::Malformed {
            place,
            reason: error.to_string(),
        },
    }
}
