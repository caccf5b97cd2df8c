//! What is typed for the commands about the Hub: `fetch`, `publish`.

use std::path::PathBuf;

use clap::Args;

/// Fetch a model, an adapter or a data set from the Hub
///
/// Only the files needed come, into the cache that Python's huggingface_hub uses too; what is there
/// already is not fetched again, and an interrupted download goes on where it stopped. The folder goes
/// to standard output. HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are respected.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sparsam fetch Qwen/Qwen2.5-0.5B-Instruct\n  \
    sparsam fetch --dataset HuggingFaceH4/no_robots --split test")]
pub(crate) struct FetchArgs {
    /// The name on the Hub, `owner/name`
    pub(crate) name: String,

    /// Branch, tag or commit
    #[arg(long, default_value = "main")]
    pub(crate) revision: String,

    /// The name is that of a data set
    #[arg(long)]
    pub(crate) dataset: bool,

    /// The split of a data set
    #[arg(long, requires = "dataset", default_value = "train")]
    pub(crate) split: String,

    /// Which of several subsets (configurations) of a data set
    #[arg(long, requires = "dataset")]
    pub(crate) subset: Option<String>,
}

/// Publish what a run trained on the Hub, with its card
///
/// Sends the adapter or model, its configuration, the tokenizer's files, the card, `run.json` and plots, as
/// one commit; never data, checkpoints, the journal or the curve. What is there already is not sent again. A card on the Hub
/// keeps what others wrote: only its emissions are brought up to date.
///
/// Refused where the card's emissions could not be read or the base could not be found by others. The
/// token comes from HF_TOKEN or from `hf auth login`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sparsam publish runs/mine me/street-trees --dry-run\n  \
    sparsam publish runs/mine me/street-trees --private")]
pub(crate) struct PublishArgs {
    /// The folder of a finished run
    pub(crate) run: PathBuf,

    /// The name on the Hub, `owner/name`; created if it is not there
    pub(crate) name: String,

    /// In place of the adapter, the model that `sparsam merge` made of it
    #[arg(long, value_name = "DIR", conflicts_with = "gguf")]
    pub(crate) merged: Option<PathBuf>,

    /// In place of the adapter, files that `sparsam export --format gguf` or `sparsam quantize` made of it
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) gguf: Vec<PathBuf>,

    /// Show a new repository to its owner alone
    #[arg(long)]
    pub(crate) private: bool,

    /// Propose the change to a repository instead of making it
    #[arg(long, visible_alias = "pr")]
    pub(crate) pull_request: bool,

    /// Put the run's card in the place of one that is on the Hub, whoever wrote it
    #[arg(long)]
    pub(crate) replace_card: bool,

    /// Say what would be sent, and send nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}
