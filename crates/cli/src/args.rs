//! The command line.
//!
//! Only what is typed; what a run does is said in its recipe. The keys of the recipe in the help
//! of `train` come from [`crate::recipe::manual`].

use std::path::PathBuf;
use std::str::FromStr as _;

use candle_core::DType;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use sparsam_adapter::optimizer::StateType;
use sparsam_base::model::Quantize;

use crate::commands::bench;
use crate::recipe::manual;

pub(crate) mod bench_generate;
pub(crate) mod classify;
pub(crate) mod compare;
pub(crate) mod data;
pub(crate) mod energy;
pub(crate) mod formats;
pub(crate) mod hub;
pub(crate) mod ledger;
pub(crate) mod plan;
pub(crate) mod report;

use bench_generate::BenchGenerateArgs;
use classify::ClassifyArgs;
use compare::CompareArgs;
use data::DataArgs;
use energy::{CardArgs, DoctorArgs, EstimateArgs, TrackArgs};
use formats::{CombineArgs, ExportArgs, MergeArgs, QuantizeArgs, VerifyArgs};
use hub::{FetchArgs, PublishArgs};
use ledger::LedgerArgs;
use plan::{CalibrateArgs, PlanArgs};
use report::ReportArgs;

/// Fine-tunes language models on the machine you have, and says what it cost.
#[derive(Debug, Parser)]
#[command(
    name = "sparsam",
    version,
    about,
    after_help = "To try it out: sparsam train configs/quickstart.yaml",
    max_term_width = 100,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// Say nothing but errors and results
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train an adapter, or a whole model, as a recipe says
    Train(TrainArgs),
    /// Print a recipe to start from, or check one
    Recipe(RecipeArgs),
    /// Look at training data as the model will see it
    Data(DataArgs),
    /// Let a model answer one prompt
    Generate(GenerateArgs),
    /// Talk with a model
    Chat(ChatArgs),
    /// Say of which class texts are
    Classify(ClassifyArgs),
    /// Merge an adapter into its base model
    Merge(MergeArgs),
    /// Make one adapter of several
    Combine(CombineArgs),
    /// Check an adapter before it is published or served
    Verify(VerifyArgs),
    /// Write an adapter for llama.cpp or mlx-lm
    Export(ExportArgs),
    /// Write a model quantised, as bitsandbytes or llama.cpp do
    Quantize(QuantizeArgs),
    /// Measure any program: what it draws, what it emits
    Track(TrackArgs),
    /// Estimate a run that nobody measured
    Estimate(EstimateArgs),
    /// Say what a recipe will need before it runs: memory, time, energy, emissions
    Plan(PlanArgs),
    /// Train in several ways on the same work, and say what each achieved and cost
    Compare(CompareArgs),
    /// Show runs as one page with pictures, to read and to pass on
    Report(ReportArgs),
    /// Measure what a model takes to answer: energy and time of 1,000 generated tokens
    BenchGenerate(BenchGenerateArgs),
    /// Add up all runs below some folders, failed ones included
    Ledger(LedgerArgs),
    /// Say what can be measured here, and how to make the rest measurable
    Doctor(DoctorArgs),
    /// Write the model card of a run again, update any card, check cards
    Card(CardArgs),
    /// Fetch a model, an adapter or a data set from the Hub
    Fetch(FetchArgs),
    /// Publish what a run trained on the Hub, with its card
    Publish(PublishArgs),
    /// Write a built-in model out as a Hugging Face folder
    Unpack(UnpackArgs),
    /// Make the assets of a built-in model of a Hugging Face folder
    #[command(hide = true)]
    PackBuiltin(PackBuiltinArgs),
    /// Make a few steps of a recipe and print what they took, as JSON
    #[command(hide = true)]
    Calibrate(CalibrateArgs),
    /// Train on prepared batches and print how fast
    #[command(hide = true)]
    Bench(BenchArgs),
    /// Write the logits of a text into a file
    #[command(hide = true)]
    Probe(ProbeArgs),
}

/// Train an adapter, or a whole model, as a recipe says
///
/// Leaves in `output_dir`: the adapter (`adapter_model.safetensors`, `adapter_config.json`), the
/// model card (`README.md`) with energy and emissions, `run.json`, `metrics.jsonl`, and
/// checkpoints while it runs.
///
/// Ctrl-C stops after the current step and writes a checkpoint; a second one ends at once.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: sparsam train configs/quickstart.yaml lora.r=32 epochs=1\n\n\
    `--help` lists every key of a recipe; `sparsam recipe` prints them with their meaning."
)]
pub(crate) struct TrainArgs {
    /// The recipe, a YAML file
    pub(crate) recipe: PathBuf,

    /// Keys to change, such as `lora.r=32`; values are read as YAML
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,

    /// Continue from the last checkpoint in the output folder, or from the folder given
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true)]
    #[expect(
        clippy::option_option,
        reason = "clap's form of a flag with an optional value"
    )]
    pub(crate) resume: Option<Option<PathBuf>>,

    /// Read and check everything, say what would be trained, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Show loss, power, time and energy left as one live screen; lines where there is no terminal
    #[arg(long)]
    pub(crate) dashboard: bool,
}

/// Print a recipe to start from, or check one
///
/// Without a file: a recipe with every key, its default and what it trades off. With a file: the
/// recipe as `train` would understand it, every key filled in, or what is wrong with it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sparsam recipe > my-recipe.yaml\n  \
    sparsam recipe my-recipe.yaml lora.r=32")]
pub(crate) struct RecipeArgs {
    /// A recipe to check
    pub(crate) recipe: Option<PathBuf>,

    /// Keys to change, such as `lora.r=32`; values are read as YAML
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,

    /// Print the JSON schema of recipes instead, for an editor
    #[arg(long, conflicts_with_all = ["recipe", "overrides"])]
    pub(crate) schema: bool,
}

/// The model to use.
#[derive(Debug, Args)]
pub(crate) struct BaseArgs {
    /// A folder, a .gguf file, a name on the Hub, or `builtin:sprout`
    #[arg(long, short)]
    pub(crate) model: String,

    /// Branch, tag or commit of a model named on the Hub
    #[arg(long)]
    pub(crate) revision: Option<String>,

    /// A folder with an adapter in PEFT's layout, such as the output folder of a run, or a name on
    /// the Hub; given several times, what they do is added up
    #[arg(long, short)]
    pub(crate) adapter: Vec<PathBuf>,
}

/// The model to use, and how.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    #[command(flatten)]
    pub(crate) base: BaseArgs,

    /// Where to compute: `auto`, `cpu`, or `cuda:0` for an NVIDIA GPU by its number
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = crate::device::Choice::from_str)]
    pub(crate) device: crate::device::Choice,

    /// A message that sets the role, where the model's chat template knows one
    #[arg(long)]
    pub(crate) system: Option<String>,

    /// The longest answer, in tokens
    #[arg(long, value_name = "N", default_value_t = 256,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) max_new_tokens: usize,

    /// How freely words are chosen: 0 always takes the likeliest, 1 follows the model
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    pub(crate) temperature: f64,

    /// Choose among the likeliest tokens that make up this share
    #[arg(long, value_name = "P", value_parser = share)]
    pub(crate) top_p: Option<f64>,

    /// The seed of the choice; the same seed gives the same answer
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
}

/// Let a model answer one prompt
///
/// The answer goes to standard output as it is written. The prompt is put through the same chat
/// template as in training.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: sparsam generate --model builtin:sprout --adapter runs/quickstart \
    --prompt \"The lime tree in Gartenstr. 4 has lost a big branch\""
)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// What to answer; `-` reads standard input
    #[arg(long, short)]
    pub(crate) prompt: String,

    /// Continue the prompt as plain text, without a chat template
    #[arg(long, conflicts_with = "system")]
    pub(crate) raw: bool,
}

/// Talk with a model
///
/// One line is one message. An empty line or Ctrl-D ends the conversation.
#[derive(Debug, Args)]
#[command(after_help = "Example: sparsam chat --model builtin:sprout --adapter runs/quickstart")]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// Write a built-in model out as a Hugging Face folder
#[derive(Debug, Args)]
#[command(after_help = "Example: sparsam unpack builtin:sprout -o sprout")]
pub(crate) struct UnpackArgs {
    /// The built-in model
    pub(crate) model: String,

    /// The folder to write; must not exist yet or be empty
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: PathBuf,
}

/// Make the assets of a built-in model of a Hugging Face folder
///
/// For those who build this program: the folder's matrices are stored in eight bits, with a scale for
/// each row.
#[derive(Debug, Args)]
pub(crate) struct PackBuiltinArgs {
    /// The folder, with config.json, tokenizer.json, tokenizer_config.json, generation_config.json,
    /// README.md and model.safetensors
    pub(crate) folder: PathBuf,

    /// The folder to write
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: PathBuf,
}

/// What `bench` trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchMethod {
    Lora,
    Full,
}

/// Train on prepared batches and print how fast
///
/// For `just peers`; tests/peers/README.md says what it does.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The base model, a folder
    #[arg(long)]
    pub(crate) model: PathBuf,

    /// The A matrices to begin with
    #[arg(long)]
    pub(crate) lora_init: PathBuf,

    /// The token ids
    #[arg(long)]
    pub(crate) batches: PathBuf,

    /// Rows of uneven length instead
    #[arg(long)]
    pub(crate) rows: Option<PathBuf>,

    #[arg(long, value_enum, default_value_t = BenchMethod::Lora)]
    pub(crate) method: BenchMethod,

    #[arg(long, default_value = "f32", value_parser = bench::dtype)]
    pub(crate) dtype: DType,

    #[arg(long, default_value = "none", value_parser = bench::quantize)]
    pub(crate) quantize: Quantize,

    /// As in a recipe
    #[arg(long, default_value = "adamw", value_parser = bench::optim)]
    pub(crate) optim: StateType,

    /// Where to compute: `auto`, `cpu`, or `cuda:0` for an NVIDIA GPU by its number
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = crate::device::Choice::from_str)]
    pub(crate) device: crate::device::Choice,

    /// As in a recipe; `true` where no value is given
    #[arg(
        long,
        value_name = "WHAT",
        default_value = "false",
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        value_parser = crate::recipe::GradientCheckpointing::from_str
    )]
    pub(crate) gradient_checkpointing: crate::recipe::GradientCheckpointing,

    #[arg(long, default_value_t = 4)]
    pub(crate) batch: usize,

    #[arg(long, default_value_t = 256)]
    pub(crate) seq: usize,

    #[arg(long, default_value_t = 12,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) steps: usize,

    /// Print one line of JSON, which is the only form there is
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write the logits of a text into a file
///
/// For `just interop`, which lays them beside those of PEFT.
#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// The base model, a folder or a built-in one
    #[arg(long, short)]
    pub(crate) model: String,

    /// A folder with an adapter in PEFT's layout
    #[arg(long, short)]
    pub(crate) adapter: Option<PathBuf>,

    #[arg(long, default_value = "f32", value_parser = bench::dtype)]
    pub(crate) dtype: DType,

    #[arg(long, default_value = "none", value_parser = bench::quantize)]
    pub(crate) quantize: Quantize,

    /// Where to compute: `auto`, `cpu`, or `cuda:0` for an NVIDIA GPU by its number
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = crate::device::Choice::from_str)]
    pub(crate) device: crate::device::Choice,

    /// The text, as it stands
    #[arg(long, short)]
    pub(crate) prompt: String,

    /// The safetensors file to write, with `input_ids` and `logits`
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("expected a number of 0 or more".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("expected a share above 0 and up to 1".to_owned()),
    }
}

impl Cli {
    /// Reads the process's arguments. The error prints itself; see [`clap::Error::print`].
    pub(crate) fn from_arguments() -> Result<Self, clap::Error> {
        let matches = command().try_get_matches()?;
        Self::from_arg_matches(&matches)
    }
}

fn command() -> clap::Command {
    Cli::command().mut_subcommand("train", |train| {
        let examples = "Example: sparsam train configs/quickstart.yaml lora.r=32 epochs=1";
        train.after_long_help(format!("{examples}\n\n{}", manual::key_list()))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_well_formed() {
        super::command().debug_assert();
    }
}
