//! The arguments of `sparsam classify`.

use std::path::PathBuf;
use std::str::FromStr as _;

use clap::Args;

use super::BaseArgs;

/// Say of which class texts are
///
/// Without texts, reads them from standard input, one a line. The answer to a single `--text` is shown class by
/// class; of more texts, each line gives the class, its probability and the text.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sparsam classify --model builtin:sprout --adapter runs/classify-messages --text \"the lime tree is on fire\"\n  \
    sparsam classify --model minilm --adapter runs/letters --file letters.csv -o answers.csv")]
pub(crate) struct ClassifyArgs {
    #[command(flatten)]
    pub(crate) base: BaseArgs,

    /// A text to classify; may be given several times
    #[arg(long, short)]
    pub(crate) text: Vec<String>,

    /// A .csv, .jsonl, .json or .parquet file with a column of texts
    #[arg(long, short, conflicts_with = "text")]
    pub(crate) file: Option<PathBuf>,

    /// The column of the file that holds the texts
    #[arg(long, value_name = "NAME", default_value = "text", requires = "file")]
    pub(crate) column: String,

    /// Write the answers, with the probability of every class, into a .csv or .jsonl file
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// The longest text, in tokens; longer ones are cut. As the model reads at most, or 512, where not given
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) max_length: Option<usize>,

    /// Where to compute: `auto`, `cpu`, or `cuda:0` for an NVIDIA GPU by its number
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = crate::device::Choice::from_str)]
    pub(crate) device: crate::device::Choice,
}
