//! Parquet files as records, read row by row without arrow.

use std::fs::File;
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::error::{DataError, Place};

/// Calls `each` with every row of a Parquet file. Numbers and dates become their text, as they would
/// be in a CSV file; structs, lists and maps become objects and lists.
pub(super) fn records(
    path: &Path,
    file: File,
    mut each: impl FnMut(Map<String, Value>, Place) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let malformed = |place: Place, error: &parquet::errors::ParquetError| DataError::Malformed {
        place,
        reason: format!("not a Parquet file that can be read: {error}"),
    };
    let reader =
        SerializedFileReader::new(file).map_err(|error| malformed(Place::whole(path), &error))?;
    let rows = reader
        .get_row_iter(None)
        .map_err(|error| malformed(Place::whole(path), &error))?;
    for (i, row) in rows.enumerate() {
        let place = Place::row(path, i as u64 + 1);
        let row = row.map_err(|error| malformed(place.clone(), &error))?;
        let fields = object(&row).ok_or_else(|| DataError::NotUtf8 {
            place: place.clone(),
        })?;
        each(fields, place)?;
    }
    Ok(())
}

/// `None` where a byte column is not UTF-8.
fn object(row: &Row) -> Option<Map<String, Value>> {
    row.get_column_iter()
        .map(|(name, field)| Some((name.clone(), value(field)?)))
        .collect()
}

fn value(field: &Field) -> Option<Value> {
    Some(match field {
        Field::Null => Value::Null,
        Field::Str(text) => Value::from(text.as_str()),
        Field::Bytes(bytes) => Value::from(std::str::from_utf8(bytes.data()).ok()?),
        Field::Group(row) => Value::Object(object(row)?),
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().map(value).collect::<Option<_>>()?)
        }
        Field::MapInternal(map) => {
            let entries = map.entries().iter();
            let entries = entries.map(|(key, item)| Some((text(key), value(item)?)));
            Value::Object(entries.collect::<Option<_>>()?)
        }
        other => Value::from(text(other)),
    })
}

/// A plain value as text, strings without quotes.
fn text(field: &Field) -> String {
    match field {
        Field::Str(text) => text.clone(),
        other => other.to_string(),
    }
}
