//! `sparsam recipe`: the manual as a recipe, the schema, or a recipe checked and filled in.

use std::io::{self, Write};

use crate::args::RecipeArgs;
use crate::recipe::{RecipeFile, manual};

pub(crate) fn run(args: &RecipeArgs) -> anyhow::Result<()> {
    let text = match &args.recipe {
        Some(path) => manual::effective(&RecipeFile::load(path, &args.overrides)?.recipe)?,
        None if args.schema => format!("{:#}\n", manual::schema()),
        None => manual::commented_recipe(),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}
