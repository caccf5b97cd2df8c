//! One record of a file, its columns under the names the forms use.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::error::{DataError, Place};

/// Names a mapping may use on its left side.
const KNOWN: [&str; 10] = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "system",
    "text",
    "label",
];

/// Which column of the file stands for which of ours: `{text: "Beschreibung"}`.
///
/// A mapped column takes the place of one that has the name already; columns that are not mapped
/// keep their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    names: BTreeMap<String, String>,
    label_field: Option<String>,
}

impl Columns {
    /// A mapping from our names to the file's.
    ///
    /// # Errors
    /// [`DataError::UnknownColumn`] when a name on the left belongs to no form.
    pub fn new(mapping: BTreeMap<String, String>) -> Result<Self, DataError> {
        match mapping.keys().find(|name| !KNOWN.contains(&name.as_str())) {
            Some(name) => Err(DataError::UnknownColumn {
                column: name.clone(),
            }),
            None => Ok(Self {
                names: mapping,
                label_field: None,
            }),
        }
    }

    /// The class is one field of the label column, which holds lines such as `Urgency: low`, or an object.
    #[must_use]
    pub fn with_label_field(mut self, field: Option<String>) -> Self {
        self.label_field = field;
        self
    }

    /// Renames the columns of a record.
    ///
    /// # Errors
    /// [`DataError::MissingColumn`] when the record lacks a mapped column.
    pub(super) fn apply(
        &self,
        mut fields: Map<String, Value>,
        place: &Place,
    ) -> Result<Record, DataError> {
        let mut renamed = Vec::with_capacity(self.names.len());
        for (ours, theirs) in &self.names {
            let Some(value) = fields.get(theirs) else {
                return Err(DataError::MissingColumn {
                    place: place.clone(),
                    column: theirs.clone(),
                    found: fields.keys().cloned().collect(),
                });
            };
            renamed.push((ours.clone(), value.clone()));
        }
        fields.extend(renamed);
        Ok(Record {
            fields,
            place: place.clone(),
        })
    }

    /// The name the file uses for one of ours, for messages.
    pub(super) fn original<'a>(&'a self, name: &'a str) -> &'a str {
        self.names.get(name).map_or(name, String::as_str)
    }
}

/// A record and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) fields: Map<String, Value>,
    pub(super) place: Place,
}

impl Record {
    /// Whether a column is there and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(|value| !value.is_null())
    }

    /// The value of a column.
    pub(super) fn value(&self, name: &str, columns: &Columns) -> Result<&Value, DataError> {
        match self.fields.get(name) {
            Some(value) if !value.is_null() => Ok(value),
            _ => Err(DataError::MissingColumn {
                place: self.place.clone(),
                column: columns.original(name).into(),
                found: self.fields.keys().cloned().collect(),
            }),
        }
    }

    /// The text of a column.
    pub(super) fn text(&self, name: &str, columns: &Columns) -> Result<String, DataError> {
        let value = self.value(name, columns)?;
        let text = value
            .as_str()
            .ok_or_else(|| self.wrong(columns.original(name), "a string", value));
        text.map(str::to_owned)
    }

    /// The text of a column that may be absent.
    pub(super) fn optional_text(&self, name: &str, columns: &Columns) -> Result<String, DataError> {
        if self.has(name) {
            self.text(name, columns)
        } else {
            Ok(String::new())
        }
    }

    /// The name of the record's class.
    pub(super) fn label(&self, columns: &Columns) -> Result<String, DataError> {
        let value = self.value("label", columns)?;
        let column = columns.original("label");
        let value = match &columns.label_field {
            Some(field) => Self::field(value, field).ok_or_else(|| DataError::NoField {
                place: self.place.clone(),
                column: column.into(),
                field: field.clone(),
            })?,
            None => value.clone(),
        };
        let label = match &value {
            Value::String(text) => text.trim().to_owned(),
            Value::Number(number) if !number.is_f64() => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            other => return Err(self.wrong(column, "a name or a whole number", other)),
        };
        if label.is_empty() {
            return Err(DataError::MissingColumn {
                place: self.place.clone(),
                column: column.into(),
                found: self.fields.keys().cloned().collect(),
            });
        }
        Ok(label)
    }

    /// A field of an object, or of a text of lines such as `Urgency: low`.
    fn field(value: &Value, field: &str) -> Option<Value> {
        match value {
            Value::Object(map) => map.get(field).cloned(),
            Value::String(text) => {
                let lines = text.lines().filter_map(|line| line.split_once(':'));
                let mut values = lines.filter(|(name, _)| name.trim() == field);
                values.next().map(|(_, value)| value.trim().into())
            }
            _ => None,
        }
    }

    /// An error about the type of a value.
    pub(super) fn wrong(&self, column: &str, expected: &'static str, found: &Value) -> DataError {
        DataError::WrongType {
            place: self.place.clone(),
            column: column.into(),
            expected,
            found: kind(found),
        }
    }
}

/// What a value is, in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
