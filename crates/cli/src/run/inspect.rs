//! What a recipe's data becomes, for those who want to look before they train.
//!
//! Rows go through the same template, tokenizer and mask as in a run, by the same settings; only the
//! weights are left alone. How it is shown is the business of `commands/data`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sparsam_adapter::data::pack::{pack, unpacked};
use sparsam_adapter::data::{DataError, Dataset, Example, Statistics, prepare};
use sparsam_base::tokenizer::{Tokenizer, TokenizerError};

use super::settings;
use crate::error::Failure;
use crate::opened::{Texts, open_texts};
use crate::recipe::{Recipe, RecipeFile, Task};

mod classes;

/// The data of a recipe.
#[derive(Debug, Serialize)]
pub(crate) struct Inspection {
    /// The base, as the recipe names it.
    pub(crate) model: String,
    /// Where the chat template comes from.
    pub(crate) chat_template: String,
    /// Longest example, in tokens.
    pub(crate) max_length: usize,
    /// Training data, then held-out data where the recipe names some.
    pub(crate) sets: Vec<InspectedSet>,
}

/// One data set.
#[derive(Debug, Serialize)]
pub(crate) struct InspectedSet {
    /// The recipe's key that names it.
    pub(crate) key: &'static str,
    /// The file or folder.
    pub(crate) path: PathBuf,
    /// What was found there.
    pub(crate) found: String,
    /// Counts.
    pub(crate) statistics: Statistics,
    /// Rows of a batch that the examples fill.
    pub(crate) packed_rows: Option<usize>,
    /// Number of examples by their length in tokens, from the shortest.
    pub(crate) lengths: BTreeMap<usize, usize>,
    /// Whether the model learns to stop.
    pub(crate) ends: Ends,
    /// The first examples.
    pub(crate) examples: Vec<Shown>,
    /// Number of texts of each class, where texts are classified.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) classes: Vec<(String, usize)>,
}

/// The tokens at which training examples end.
#[derive(Debug, Serialize)]
pub(crate) struct Ends {
    /// Tokens at which a generation ends, as the vocabulary spells them.
    pub(crate) tokens: Vec<String>,
    /// Examples in which one of them is trained.
    pub(crate) trained_in: usize,
}

/// An example, token for token.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    /// In order.
    pub(crate) tokens: Vec<ShownToken>,
    /// Its class, where texts are classified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) label: Option<String>,
}

/// A token of an example.
#[derive(Debug, Serialize)]
pub(crate) struct ShownToken {
    /// Its id.
    pub(crate) id: u32,
    /// Its text; empty where a later token completes the character it begins.
    pub(crate) text: String,
    /// Whether it is trained.
    pub(crate) trained: bool,
}

/// Prepares a recipe's data and takes down what became of it, with the first `count` examples.
///
/// # Errors
/// Data that a run would refuse too; so also data in which nothing is trained.
pub(crate) fn inspect(file: &RecipeFile, count: usize) -> anyhow::Result<Inspection> {
    let file = &super::task::settled(file, None, false)?;
    let recipe = &file.recipe;
    file.check_files()?;
    if recipe.task == Task::Classification {
        return classes::inspect(recipe, count);
    }
    let mut texts = open_texts(
        &recipe.model,
        recipe.revision.as_deref(),
        recipe.max_length,
        recipe.chat_template.as_deref(),
        false,
    )?;
    texts.template = texts.template.with_clock(super::now().as_second());
    let mut sets = vec![set(
        recipe,
        "data.train",
        &recipe.data.train,
        &texts,
        count,
    )?];
    if let Some(path) = &recipe.data.eval {
        sets.push(set(recipe, "data.eval", path, &texts, count)?);
    }
    Ok(Inspection {
        model: recipe.model.clone(),
        chat_template: match (&recipe.chat_template, texts.template.origin()) {
            (Some(name), _) => format!("`{name}`, as the recipe says"),
            (None, origin) => origin.to_string(),
        },
        max_length: recipe.max_length,
        sets,
    })
}

fn set(
    recipe: &Recipe,
    key: &'static str,
    path: &Path,
    texts: &Texts,
    count: usize,
) -> anyhow::Result<InspectedSet> {
    let columns = settings::columns(recipe)?;
    let dataset = Dataset::load_as(path, &columns, settings::format(recipe))?;
    let Texts {
        tokenizer,
        template,
        ..
    } = texts;
    let prepared =
        prepare(&dataset, tokenizer, template, &settings::prepare(recipe)).map_err(refusal)?;
    let all = prepared.lengths();
    let rows = if recipe.packing {
        pack(&all, recipe.max_length)
    } else {
        unpacked(all.len())
    };
    let mut lengths = BTreeMap::new();
    for length in all {
        *lengths.entry(length).or_default() += 1;
    }
    let stops = template.end_ids(tokenizer)?;
    let ends = |example: &&Example| {
        let mut tokens = example.ids.iter().zip(&example.trained);
        tokens.any(|(id, trained)| *trained && stops.contains(id))
    };
    Ok(InspectedSet {
        key,
        path: path.to_owned(),
        found: dataset.describe(),
        statistics: prepared.statistics,
        packed_rows: recipe.packing.then_some(rows.len()),
        lengths,
        ends: Ends {
            tokens: stops.iter().map(|id| spelled(tokenizer, *id)).collect(),
            trained_in: prepared.examples.iter().filter(ends).count(),
        },
        examples: prepared
            .examples
            .iter()
            .take(count)
            .map(|example| shown(tokenizer, example))
            .collect::<Result<_, _>>()?,
        classes: Vec::new(),
    })
}

/// A recipe that trains nothing is what was asked to be looked at, and at fault.
fn refusal(error: DataError) -> anyhow::Error {
    match (&error, error.hint()) {
        (DataError::NothingTrained { .. }, Some(hint)) => {
            Failure::usage(error.to_string()).hint(hint).into()
        }
        _ => error.into(),
    }
}

fn spelled(tokenizer: &Tokenizer, id: u32) -> String {
    tokenizer.token(id).unwrap_or_else(|| format!("<{id}>"))
}

/// The tokens of an example with their texts. Those of special tokens are spelled as in the
/// vocabulary; the others decode as one text, so that leading spaces are where the model sees them.
fn shown(tokenizer: &Tokenizer, example: &Example) -> Result<Shown, TokenizerError> {
    let mut tokens: Vec<ShownToken> = example
        .ids
        .iter()
        .zip(&example.trained)
        .map(|(&id, &trained)| ShownToken {
            id,
            text: String::new(),
            trained,
        })
        .collect();
    let mut start = 0;
    while start < tokens.len() {
        if tokenizer.is_special(tokens[start].id) {
            tokens[start].text = spelled(tokenizer, tokens[start].id);
            start += 1;
            continue;
        }
        let mut stream = tokenizer.stream_after(&example.ids[..start]);
        let run = tokens[start..]
            .iter()
            .take_while(|token| !tokenizer.is_special(token.id))
            .count();
        for token in &mut tokens[start..start + run] {
            token.text = stream.push(token.id)?.unwrap_or_default();
        }
        start += run;
        if let Some(rest) = stream.finish()? {
            tokens[start - 1].text.push_str(&rest);
        }
    }
    Ok(Shown {
        tokens,
        label: None,
    })
}
