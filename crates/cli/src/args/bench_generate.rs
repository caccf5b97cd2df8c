//! What is typed for `bench-generate`.

use std::path::PathBuf;
use std::str::FromStr as _;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use sparsam_base::model::Quantize;

use super::BaseArgs;
use super::energy::{PlaceArgs, RootsArgs, seconds};
use crate::commands::bench;

/// Measure what a model takes to answer: energy and time of 1,000 generated tokens
///
/// Answers the same number of tokens again and again for some seconds, and does nothing else. What reading
/// the prompt takes is measured apart. Leaves the energy journal and `inference.json` in a folder, which
/// `sparsam ledger` finds and multiplies by the requests you expect.
///
/// The whole machine is measured. Which words are read and written makes no difference, so there is no
/// prompt to give.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sparsam bench-generate --model builtin:sprout --adapter runs/quickstart --country DEU\n  \
    sparsam bench-generate --model builtin:sprout --adapter runs/quickstart --merged\n  \
    sparsam bench-generate --model builtin:sprout --adapter runs/quickstart --quantize nf4\n  \
    sparsam ledger runs --requests-per-day 1000 --days 365\n\n\
    Without --country, the environment variable SPARSAM_COUNTRY is read.")]
pub(crate) struct BenchGenerateArgs {
    #[command(flatten)]
    pub(crate) base: BaseArgs,

    /// Merge the adapter into the base first
    #[arg(long, requires = "adapter")]
    pub(crate) merged: bool,

    /// Quantise the base, or the merged model: none, int8, nf4 or nf4-dq
    #[arg(long, value_name = "KIND", default_value = "none", value_parser = bench::quantize)]
    pub(crate) quantize: Quantize,

    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value_t = 128,
          value_parser = RangedU64ValueParser::<usize>::new().range(2..))]
    pub(crate) tokens: usize,

    /// Tokens that each request brings
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) prompt_tokens: usize,

    /// Requests that are answered at once
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub(crate) batch: usize,

    /// Measure for so long, a quarter of it the reading of prompts alone
    #[arg(long, value_name = "SECONDS", default_value_t = 20.0, value_parser = seconds)]
    pub(crate) seconds: f64,

    /// Where to compute: `auto`, `cpu`, or `cuda:0` for an NVIDIA GPU by its number
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = crate::device::Choice::from_str)]
    pub(crate) device: crate::device::Choice,

    /// The folder for what is measured; `runs/bench-` and the time by default
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    /// Energy of the whole site over energy of its computers: 1 at home, 1.1 to 1.6 in data centres
    #[arg(long)]
    pub(crate) pue: Option<f64>,

    /// Power of the processor at full load in watts, where it cannot be measured
    #[arg(long, value_name = "WATTS")]
    pub(crate) cpu_watts: Option<f64>,

    /// Power of the memory in watts, where it cannot be measured
    #[arg(long, value_name = "WATTS")]
    pub(crate) ram_watts: Option<f64>,

    /// Print the measurement as JSON
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) roots: RootsArgs,
}
