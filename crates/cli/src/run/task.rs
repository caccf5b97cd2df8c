//! What the model of a recipe is to do, where the recipe leaves that to the model.
//!
//! Settled once before anything else is read: from then on a recipe says `causal_lm` or `classification`, and what
//! follows from that for the keys it does not give.

use crate::classifier::{self, Named};
use crate::device::Choice;
use crate::error::Failure;
use crate::recipe::check::classifies_quietly;
use crate::recipe::{Recipe, RecipeFile, Task};

/// The recipe with its task settled.
///
/// # Errors
/// A model that means nothing here, or keys that do not go with its task.
pub(super) fn settled(file: &RecipeFile, quiet: bool) -> anyhow::Result<RecipeFile> {
    let mut file = file.clone();
    let (model, revision) = (file.recipe.model.clone(), file.recipe.revision.clone());
    let named = Named {
        model: &model,
        revision: revision.as_deref(),
        max_length: 0,
    };
    let encoder = match file.recipe.task {
        Task::CausalLm => false,
        // What cannot be read is told where the model is opened, at the commit that a resumed run began with.
        Task::Auto => classifier::is_an_encoder(&named, quiet).unwrap_or(false),
        Task::Classification => classifier::is_an_encoder(&named, quiet)?,
    };
    file.recipe.task = match file.recipe.task {
        Task::Auto if encoder => Task::Classification,
        Task::Auto => Task::CausalLm,
        given => given,
    };
    if file.recipe.task == Task::CausalLm {
        return Ok(file);
    }
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
    if encoder {
        on_the_processor(&mut file.recipe)?;
    }
    Ok(file)
}

/// Encoders compute on the processor.
fn on_the_processor(recipe: &mut Recipe) -> Result<(), Failure> {
    if let Ok(Choice::Cuda(_)) = recipe.device.parse::<Choice>() {
        return Err(Failure::usage(format!(
            "`device: {}` is asked for, but encoders such as `{}` compute on the processor alone",
            recipe.device, recipe.model
        ))
        .hint("write `device: cpu`, or classify with a decoder"));
    }
    "cpu".clone_into(&mut recipe.device);
    Ok(())
}

/// Refuses a classifier's recipe where only language models are understood.
///
/// # Errors
/// `what` cannot be done with a classifier.
pub(crate) fn only_language(file: &RecipeFile, what: &str) -> anyhow::Result<()> {
    if settled(file, true)?.recipe.task != Task::Classification {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "`sparsam {what}` knows language models alone, not classifiers"
    ))
    .hint("`sparsam train RECIPE --dry-run` checks the recipe and says how long it is")
    .into())
}
