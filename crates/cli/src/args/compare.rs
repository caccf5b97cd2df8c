//! What is typed for `compare`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::RangedU64ValueParser;

/// Train in several ways on the same work, and say what each achieved and cost
///
/// The arms of the file take turns, with a pause between and other seeds for each repeat; data, order,
/// tokens, batch and evaluation are the same in all, which is checked. Runs that are finished are kept: the
/// same command goes on where it was stopped. Leaves in `output_dir`: `comparison.json`, `.csv` and `.md`,
/// `pareto.svg`, `report.html`, and every run.
#[derive(Debug, Args)]
#[command(after_help = "Example: sparsam compare configs/compare-city-trees.yaml")]
pub(crate) struct CompareArgs {
    /// The comparison, a YAML file
    pub(crate) comparison: PathBuf,

    /// Check everything, say what would be run in which order, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Make this run alone, by its line in what `--dry-run` prints, and stop; for job arrays of a cluster
    #[arg(long, value_name = "N", conflicts_with = "dry_run",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) run: Option<usize>,

    /// Make no run: put the figures of those that are finished side by side
    #[arg(long, conflicts_with_all = ["dry_run", "run"])]
    pub(crate) result: bool,
}
