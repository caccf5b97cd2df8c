//! The command line of the generators: which data to write, and where.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sparsam_datasets::{city_trees, corpus, error::Error, seed_model};

/// Writes the data sets of this repository from a seed
#[derive(Debug, Parser)]
#[command(name = "sparsam-datasets", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Text for training the base model from scratch: train.jsonl and eval.jsonl
    Corpus {
        /// The seed: the same seed gives the same bytes
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Size of the training text in megabytes; the held-out text is a hundredth of it
        #[arg(long, default_value_t = 24)]
        megabytes: usize,
        /// The folder to write to
        #[arg(short, long)]
        output: PathBuf,
    },
    /// The data set city-trees: train.jsonl, eval.jsonl and its card
    CityTrees {
        /// The seed: the same seed gives the same bytes
        #[arg(long, default_value_t = 7)]
        seed: u64,
        /// The folder to write to
        #[arg(short, long)]
        output: PathBuf,
    },
    /// The base model before its training: tokenizer, configuration and random weights
    SproutSeed {
        /// The folder that `corpus` wrote
        #[arg(long)]
        corpus: PathBuf,
        /// The seed of the weights
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// The folder to write to
        #[arg(short, long)]
        output: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    match &arguments.what {
        What::Corpus {
            seed,
            megabytes,
            output,
        } => corpus::write(output, *seed, *megabytes),
        What::CityTrees { seed, output } => city_trees::write(output, *seed),
        What::SproutSeed {
            corpus,
            seed,
            output,
        } => seed_model::write(corpus, *seed, &seed_model::SPROUT, output),
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the only place where this binary speaks"
)]
fn report(error: &Error) {
    eprintln!("error: {error}");
    if let Some(hint) = error.hint() {
        eprintln!("hint: {hint}");
    }
}
