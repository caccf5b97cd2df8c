//! What is typed for the commands about training data.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Look at training data as the model will see it
#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    #[command(subcommand)]
    pub(crate) command: DataCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Show examples of a recipe's data with what is trained in them, and count
    Inspect(InspectArgs),
}

/// Show examples of a recipe's data with what is trained in them, and count
///
/// The examples are shown token for token as `train` makes them, special tokens and template
/// included. What is trained stands between ⟦ and ⟧, or in colour on a terminal. Below stand the
/// lengths, what was cut, and whether the token that ends an answer is trained. Data in which nothing
/// is trained is refused. The model's weights are not read.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sparsam data inspect configs/quickstart.yaml\n  \
    sparsam data inspect my-recipe.yaml max_length=256 --examples 10\n  \
    sparsam data inspect my-recipe.yaml --json | jq .sets[0].statistics")]
pub(crate) struct InspectArgs {
    /// The recipe, a YAML file
    pub(crate) recipe: PathBuf,

    /// Keys to change, such as `max_length=256`; values are read as YAML
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,

    /// How many examples to show
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) examples: usize,

    /// Print JSON instead, every token with its id
    #[arg(long)]
    pub(crate) json: bool,
}
