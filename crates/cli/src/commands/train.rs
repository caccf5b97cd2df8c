//! `sparsam train`: reads the recipe and runs it.

use crate::args::TrainArgs;
use crate::recipe::RecipeFile;
use crate::run::{self, Start};
use crate::threads;

pub(super) fn run(args: &TrainArgs, quiet: bool) -> anyhow::Result<()> {
    let file = RecipeFile::load(&args.recipe, &args.overrides)?;
    if args.dry_run {
        return run::rehearse(&file);
    }
    let start = match &args.resume {
        None => Start::Fresh,
        Some(from) => Start::Resume(from.as_deref()),
    };
    threads::within(file.recipe.threads, || {
        run::train(&file, start, quiet, args.dashboard)
    })
}
