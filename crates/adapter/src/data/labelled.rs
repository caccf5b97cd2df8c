//! Texts and their classes as examples.
//!
//! The classes are those of the training data, in the order of their names (of their numbers, where all are whole
//! numbers), so that the same data gives the same numbering. A text is tokenised as its tokenizer's post-processor
//! does (`[CLS] … [SEP]`, or BOS before it); one longer than `max_length` is cut at its right end, before the
//! tokens that close it, and counted.

use std::collections::BTreeSet;

use rayon::prelude::*;
use sparsam_base::tokenizer::Tokenizer;

use super::Example;
use super::error::{DataError, Place};
use super::formats::{Dataset, Row};
use super::prepare::{Examples, Statistics};

/// The classes of a data set, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels(Vec<String>);

impl Labels {
    /// Those of labelled training data.
    ///
    /// # Errors
    /// [`DataError::OneLabel`] where there is nothing to tell apart.
    pub fn of(dataset: &Dataset) -> Result<Self, DataError> {
        let labels: BTreeSet<&str> = dataset
            .rows
            .iter()
            .filter_map(|(_, row)| label(row))
            .collect();
        let mut labels: Vec<String> = labels.into_iter().map(str::to_owned).collect();
        if let [label] = labels.as_slice() {
            return Err(DataError::OneLabel {
                place: Place::whole(&dataset.path),
                label: label.clone(),
            });
        }
        if labels.iter().all(|label| label.parse::<i64>().is_ok()) {
            labels.sort_by_key(|label| label.parse::<i64>().unwrap_or(0));
        }
        Ok(Self(labels))
    }

    /// Names in the order of their numbers.
    pub fn from_names(names: Vec<String>) -> Self {
        Self(names)
    }

    /// Names in the order of their numbers.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// The number of a class.
    pub fn number(&self, name: &str) -> Option<u32> {
        let place = self.0.iter().position(|label| label == name);
        place.map(|place| place as u32)
    }
}

fn label(row: &Row) -> Option<&str> {
    match row {
        Row::Labelled { label, .. } => Some(label),
        _ => None,
    }
}

/// Ids of a text with the tokens around it, at most `max_length`, and how many there would have been.
///
/// # Errors
/// A text the tokenizer cannot take.
pub fn ids(
    tokenizer: &Tokenizer,
    text: &str,
    max_length: usize,
) -> Result<(Vec<u32>, usize), sparsam_base::tokenizer::TokenizerError> {
    let (mut ids, _) = tokenizer.encode_with_offsets(text)?;
    let (prefix, suffix) = (tokenizer.prefix(), tokenizer.suffix());
    let around = prefix.len() + suffix.len();
    let length = ids.len() + around;
    ids.truncate(max_length.saturating_sub(around));
    Ok(([prefix, &ids, suffix].concat(), length))
}

/// Turns every labelled row into an example, or every text alone where there are no classes.
///
/// # Errors
/// A class that is not among `labels`, an empty text, or one the tokenizer cannot take, each with its place.
pub fn prepare_labelled(
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    labels: &Labels,
    max_length: usize,
) -> Result<Examples, DataError> {
    let around = tokenizer.prefix().len() + tokenizer.suffix().len();
    if max_length <= around {
        return Err(DataError::Option(format!(
            "`max_length` must be more than {around}, the tokens put around every text"
        )));
    }
    let numbered: std::collections::HashMap<&str, u32> = (0..)
        .zip(labels.names())
        .map(|(number, name)| (name.as_str(), number))
        .collect();
    let rows: Vec<Result<(Example, usize), DataError>> = dataset
        .rows
        .par_iter()
        .map(|(place, row)| {
            let (text, label) = match row {
                Row::Labelled { text, label } => (text, Some(label)),
                Row::Text(text) => (text, None),
                _ => {
                    return Err(DataError::Option(
                        "the rows are no texts with classes".into(),
                    ));
                }
            };
            let number = label.map(|label| {
                numbered
                    .get(label.as_str())
                    .copied()
                    .ok_or_else(|| DataError::UnknownLabel {
                        place: place.clone(),
                        label: label.clone(),
                        known: labels.names().to_vec(),
                    })
            });
            let number = number.transpose()?;
            let (ids, length) =
                ids(tokenizer, text, max_length).map_err(|source| DataError::Tokenizer {
                    place: place.clone(),
                    source,
                })?;
            if ids.is_empty() {
                return Err(DataError::EmptyText {
                    place: place.clone(),
                });
            }
            let example = Example {
                trained: vec![false; ids.len()],
                ids,
                label: number,
            };
            Ok((example, length))
        })
        .collect();
    let mut examples = Vec::with_capacity(rows.len());
    let mut statistics = Statistics {
        rows: rows.len(),
        ..Statistics::default()
    };
    for row in rows {
        let (example, length) = row?;
        statistics.longest = statistics.longest.max(length);
        statistics.truncated += usize::from(length > max_length);
        statistics.tokens += example.ids.len();
        statistics.trained_tokens += example.trained_tokens();
        examples.push(example);
    }
    statistics.examples = examples.len();
    Ok(Examples {
        examples,
        statistics,
    })
}
