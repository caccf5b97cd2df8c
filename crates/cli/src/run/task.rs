//! What the model of a recipe is to do, where the recipe leaves that to the model.
//!
//! Settled once before anything else is read: from then on a classifier's recipe says `classification`, and what
//! follows from that for the keys it does not give. That of a language model stays as it is.

use crate::classifier::{self, Named};
use crate::error::Failure;
use crate::recipe::check::classifies_quietly;
use crate::recipe::{Recipe, RecipeFile, Task};

/// The recipe with its task settled, the model being of a commit where a run is continued.
///
/// # Errors
/// A model that means nothing here, or keys that do not go with its task.
pub(crate) fn settled(
    file: &RecipeFile,
    commit: Option<&str>,
    quiet: bool,
) -> anyhow::Result<RecipeFile> {
    let mut file = file.clone();
    let (model, revision) = (file.recipe.model.clone(), file.recipe.revision.clone());
    let named = Named {
        model: &model,
        revision: commit.or(revision.as_deref()),
        max_length: 0,
    };
    let encoder = file.recipe.task != Task::CausalLm && classifier::is_an_encoder(&named, quiet)?;
    if file.recipe.task != Task::Classification && !encoder {
        return Ok(file);
    }
    file.recipe.task = Task::Classification;
    if let Some(key) = classifies_quietly(&file.recipe) {
        return Err(Failure::usage(format!(
            "{}: `{key}` means nothing to `{}`, which classifies texts",
            file.place(key),
            file.recipe.model
        ))
        .hint("leave it out; a row is a text with a label")
        .into());
    }
    // A row is a text, and there is nothing to pack.
    file.recipe.packing = false;
    // What is not given is what the model reads at most.
    if !file.given("max_length") {
        let context = classifier::open_texts(&named, quiet)?.context;
        file.recipe.max_length = file.recipe.max_length.min(context);
    }
    Ok(file)
}

/// Whether a run was made by a recipe, which may leave to the model what the record of a classifier's run says.
pub(crate) fn is_of(recorded: &Recipe, asked: &Recipe) -> bool {
    let mut asked = asked.for_record();
    if recorded.task != Task::Classification {
        return *recorded == asked;
    }
    let usual = Recipe::default();
    asked.task = recorded.task;
    asked.packing = recorded.packing;
    if asked.max_length == usual.max_length {
        asked.max_length = asked.max_length.min(recorded.max_length);
    }
    *recorded == asked
}
