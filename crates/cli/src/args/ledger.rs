//! What is typed for `ledger`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::RangedU64ValueParser;

use super::energy::PlaceArgs;

/// Add up all runs below some folders, failed ones included
///
/// Finds every run of `train` and `track` below the folders, whatever its end: finished, failed, killed,
/// resumed. Sums by stage, each with its range. Nothing is counted twice: a copy of a run is left out,
/// and what several runs counted on one machine at the same time is counted once. Making the hardware
/// and water have lines of their own.
///
/// A run of `train` is in the stage its recipe says, `train` by default; `track --stage` says it for any
/// other program. What answering will cost has a line of its own, for each way that `bench-generate` has
/// measured, where the expected requests are given.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sparsam ledger runs\n  \
    sparsam ledger --json runs > laptop.json\n  \
    sparsam ledger laptop.json server.json\n  \
    sparsam ledger runs --requests-per-day 1000 --days 365")]
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

    #[command(flatten)]
    pub(crate) requests: RequestsArgs,
}

/// Requests that are expected.
#[derive(Debug, Args)]
pub(crate) struct RequestsArgs {
    /// Requests that will be answered each day
    #[arg(long, value_name = "N", value_parser = above_zero)]
    pub(crate) requests_per_day: Option<f64>,

    /// For how many days
    #[arg(long, value_name = "N", default_value_t = 365.0, value_parser = above_zero,
          requires = "requests_per_day")]
    pub(crate) days: f64,

    /// Tokens of each answer; as many as were measured by default
    #[arg(long, value_name = "N", requires = "requests_per_day",
          value_parser = RangedU64ValueParser::<u32>::new().range(1..))]
    pub(crate) tokens_per_request: Option<u32>,

    /// Tokens that each request brings; as many as were measured by default
    #[arg(long, value_name = "N", requires = "requests_per_day",
          value_parser = RangedU64ValueParser::<u32>::new().range(1..))]
    pub(crate) prompt_tokens_per_request: Option<u32>,

    /// A run of `bench-generate` to go by, in place of all that are found; may be given again
    #[arg(long, value_name = "RUN", requires = "requests_per_day")]
    pub(crate) inference: Vec<PathBuf>,
}

fn above_zero(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("expected a number above 0".to_owned()),
    }
}
