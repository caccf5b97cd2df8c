//! What is typed for `ledger`.

use std::path::PathBuf;

use clap::Args;

use super::energy::PlaceArgs;

/// Add up all runs below some folders, failed ones included
///
/// Finds every run of `train` and `track` below the folders, whatever its end: finished, failed, killed,
/// resumed. Sums by stage, each with its range. Nothing is counted twice: a copy of a run is left out,
/// and what several runs counted on one machine at the same time is counted once. Making the hardware
/// and water have lines of their own.
///
/// A run of `train` is in the stage `train`; `track --stage` says it for any other program.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sparsam ledger runs\n  \
    sparsam ledger --json runs > laptop.json\n  \
    sparsam ledger laptop.json server.json")]
pub(crate) struct LedgerArgs {
    /// Folders with runs below them, or ledgers of other machines in JSON
    #[arg(required = true, value_name = "DIR")]
    pub(crate) paths: Vec<PathBuf>,

    /// Print the ledger with all its runs as JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// For runs that were measured without a country
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
}
