//! What is typed for `report`.

use std::path::PathBuf;

use clap::Args;

use crate::report::Language;

/// Show runs as one page with pictures, to read and to pass on
///
/// One HTML file that asks nothing of any network: loss, power over time, energy by phase, emissions so
/// far, and where the run lies among published models. Several runs are compared. Beside it the same
/// pictures as SVG files, for a card. Works for runs of `train` and of `track`, whatever their end.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sparsam report runs/quickstart\n  \
    sparsam report --language de -o bericht.html runs/a runs/b")]
pub(crate) struct ReportArgs {
    /// Folders of runs
    #[arg(required = true, value_name = "DIR")]
    pub(crate) folders: Vec<PathBuf>,

    /// The page to write; `report.html` in the run's folder by default, or here for several runs
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// The language of the page
    #[arg(long, value_enum, default_value_t = Language::En)]
    pub(crate) language: Language,
}
