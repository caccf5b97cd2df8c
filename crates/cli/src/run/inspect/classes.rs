//! Texts and their classes, as a classifier's run would read them.

use std::collections::BTreeMap;
use std::path::Path;

use sparsam_adapter::data::labelled::prepare_labelled;
use sparsam_adapter::data::{Dataset, Labels, Row};
use sparsam_base::tokenizer::Tokenizer;

use super::{Ends, InspectedSet, Inspection, Shown, settings, shown};
use crate::classifier::{Named, open_texts};
use crate::recipe::Recipe;

/// The data of a classifier's recipe; the classes are those of the training data.
pub(super) fn inspect(recipe: &Recipe, count: usize) -> anyhow::Result<Inspection> {
    let named = Named {
        model: &recipe.model,
        revision: recipe.revision.as_deref(),
        max_length: recipe.max_length,
    };
    let tokenizer = open_texts(&named, false)?.tokenizer;
    let mut labels = None;
    let mut sets = Vec::new();
    let named = [
        ("data.train", Some(&recipe.data.train)),
        ("data.eval", recipe.data.eval.as_ref()),
    ];
    for (key, path) in named {
        if let Some(path) = path {
            sets.push(set(recipe, key, path, &tokenizer, &mut labels, count)?);
        }
    }
    Ok(Inspection {
        model: recipe.model.clone(),
        chat_template: "none, texts are classified as they are".to_owned(),
        max_length: recipe.max_length,
        sets,
    })
}

fn set(
    recipe: &Recipe,
    key: &'static str,
    path: &Path,
    tokenizer: &Tokenizer,
    labels: &mut Option<Labels>,
    count: usize,
) -> anyhow::Result<InspectedSet> {
    let columns = settings::columns(recipe)?;
    let dataset = Dataset::load_as(path, &columns, settings::format(recipe))?;
    let labels = match labels {
        Some(labels) => labels,
        none => none.insert(Labels::of(&dataset)?),
    };
    let prepared = prepare_labelled(&dataset, tokenizer, labels, recipe.max_length)?;
    let mut lengths = BTreeMap::new();
    for length in prepared.lengths() {
        *lengths.entry(length).or_default() += 1;
    }
    let mut classes: Vec<(String, usize)> = labels
        .names()
        .iter()
        .map(|name| (name.clone(), 0))
        .collect();
    for example in &prepared.examples {
        if let Some(class) = example
            .label
            .and_then(|label| classes.get_mut(label as usize))
        {
            class.1 += 1;
        }
    }
    classes.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let examples = prepared.examples.iter().zip(&dataset.rows).take(count);
    let examples = examples.map(|(example, (_, row))| {
        let label = match row {
            Row::Labelled { label, .. } => Some(label.clone()),
            _ => None,
        };
        Ok::<_, anyhow::Error>(Shown {
            label,
            ..shown(tokenizer, example)?
        })
    });
    Ok(InspectedSet {
        key,
        path: path.to_owned(),
        found: dataset.describe(),
        statistics: prepared.statistics,
        packed_rows: None,
        lengths,
        ends: Ends {
            tokens: Vec::new(),
            trained_in: 0,
        },
        examples: examples.collect::<Result<_, _>>()?,
        classes,
    })
}
