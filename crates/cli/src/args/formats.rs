//! What is typed for the commands that make files for other programs.

use std::path::PathBuf;

use candle_core::DType;
use clap::{Args, ValueEnum};
use sparsam_base::files::gguf_types::FileType;
use sparsam_base::model::Quantize;

use super::bench;

/// Merge an adapter into its base model
///
/// Writes a model in Hugging Face's layout that needs no adapter, for programs that cannot load one. An
/// adapter of a quantised run goes into the base as it was before quantisation, or with `--dequantized`
/// into the weights that the run has seen. How far the logits of either lie from those of base and
/// adapter as trained is measured on a probe prompt and printed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sparsam merge runs/quickstart -o merged\n  \
    sparsam merge runs/qlora --base models/qwen3 --dequantized -o merged --max-shard-size 1GB")]
pub(crate) struct MergeArgs {
    /// The adapter, a folder in PEFT's layout such as the output folder of a run
    pub(crate) adapter: PathBuf,

    /// The base model; the one that the adapter names, if not given
    #[arg(long, short, value_name = "MODEL")]
    pub(crate) base: Option<String>,

    /// The folder to write; must not exist yet or be empty
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: PathBuf,

    /// Merge into what quantisation has left of the base: as the run has quantised it, or nf4, nf4-dq
    /// or int8
    #[arg(long, value_name = "KIND", num_args = 0..=1, require_equals = true, value_parser = quantized)]
    #[expect(
        clippy::option_option,
        reason = "clap's form of a flag with an optional value"
    )]
    pub(crate) dequantized: Option<Option<Quantize>>,

    /// The type of the numbers: f32, bf16 or f16; that of the base, if not given
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    pub(crate) dtype: Option<DType>,

    /// Begin another file when one would become larger
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    pub(crate) max_shard_size: u64,

    /// The text on which drift is measured
    #[arg(long, value_name = "TEXT", default_value = crate::probe_file::PROMPT)]
    pub(crate) prompt: String,

    /// Do not measure drift, which needs the model in memory
    #[arg(long)]
    pub(crate) no_drift: bool,
}

/// Write a model quantised, as bitsandbytes or llama.cpp do
///
/// Writes a checkpoint that transformers loads with bitsandbytes, with its `quantization_config`: the
/// matrices of the blocks are quantised; embedding, head and norms stay as they are. Or one GGUF file for
/// llama.cpp, with the tokenizer in it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sparsam quantize models/qwen3 --to nf4-dq -o models/qwen3-nf4\n  \
    sparsam quantize models/qwen3 --to gguf:Q4_K_M -o qwen3-q4_k_m.gguf")]
pub(crate) struct QuantizeArgs {
    /// The model, a folder or a built-in one
    pub(crate) model: String,

    /// To what: nf4 (4.5 bits a weight), nf4-dq (4.13 bits, scales quantised too), int8, or gguf:TYPE with
    /// Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, Q4_0, F16, BF16 or F32
    #[arg(long, value_name = "KIND", value_parser = goal)]
    pub(crate) to: Goal,

    /// The folder to write, which must not exist yet or be empty, or the GGUF file
    #[arg(long, short, value_name = "PATH")]
    pub(crate) output: PathBuf,

    /// Begin another file when one would become larger
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    pub(crate) max_shard_size: u64,
}

/// Write an adapter for other programs
///
/// What a format cannot hold, such as DoRA in a GGUF adapter, is refused and said.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  \
    sparsam export runs/quickstart --format gguf-lora -o adapter.gguf\n  \
    sparsam export runs/quickstart --format gguf --type q8_0 -o model.gguf\n  \
    sparsam export runs/quickstart --format mlx -o mlx-adapter")]
pub(crate) struct ExportArgs {
    /// The adapter, a folder in PEFT's layout such as the output folder of a run
    pub(crate) adapter: PathBuf,

    /// The base model; the one that the adapter names, if not given
    #[arg(long, short, value_name = "MODEL")]
    pub(crate) base: Option<String>,

    /// What to write
    #[arg(long, short, value_enum)]
    pub(crate) format: ExportFormat,

    /// How numbers are stored in GGUF, f16 unless given: f32, f16 or bf16; models also in q8_0, q6_k, q5_k_m,
    /// q5_k_s, q4_k_m, q4_k_s or q4_0
    #[arg(long = "type", value_name = "TYPE", value_parser = file_type)]
    pub(crate) file_type: Option<FileType>,

    /// The file to write, or the folder for mlx; must not exist yet
    #[arg(long, short, value_name = "PATH")]
    pub(crate) output: PathBuf,
}

/// What `quantize` makes of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// A checkpoint for bitsandbytes.
    Checkpoint(Quantize),
    /// A file for llama.cpp.
    Gguf(FileType),
}

/// What `export` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// An adapter for llama.cpp's --lora
    GgufLora,
    /// The merged model with its tokenizer, for llama.cpp and Ollama
    Gguf,
    /// An adapter for mlx-lm
    Mlx,
}

/// Make one adapter of several
///
/// The sum of what they do to their base, each times its weight: exactly, as an ordinary adapter whose ranks are
/// the sums of theirs. Weights of 1 stack them, weights that sum to 1 average them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    sparsam combine runs/facts runs/style -o runs/both\n  \
    sparsam combine runs/seed-1 runs/seed-2 --weights 0.5,0.5 -o runs/mean")]
pub(crate) struct CombineArgs {
    /// The adapters, folders in PEFT's layout or names on the Hub, all trained on one base
    #[arg(required = true, num_args = 2..)]
    pub(crate) adapters: Vec<PathBuf>,

    /// A weight for each of them; 1 unless given
    #[arg(
        long,
        value_name = "W,W,…",
        value_delimiter = ',',
        allow_negative_numbers = true
    )]
    pub(crate) weights: Vec<f64>,

    /// The folder to write; must not exist yet or be empty
    #[arg(long, short, value_name = "DIR")]
    pub(crate) output: PathBuf,
}

/// Check an adapter before it is published or served
///
/// Compares names, shapes, settings and effect with a base model, computes with both, and says for PEFT,
/// llama.cpp, mistral.rs, vLLM and mlx whether they can use the adapter, and why not. Exit code 1 if it
/// does not fit its base.
#[derive(Debug, Args)]
#[command(after_help = "Example: sparsam verify runs/quickstart --base builtin:sprout")]
pub(crate) struct VerifyArgs {
    /// The adapter, a folder in PEFT's layout such as the output folder of a run
    pub(crate) adapter: PathBuf,

    /// The base model; the one that the adapter names, if not given
    #[arg(long, short, value_name = "MODEL")]
    pub(crate) base: Option<String>,

    /// Print JSON instead
    #[arg(long)]
    pub(crate) json: bool,
}

/// A kind of quantisation by the recipe's words; not `none`.
fn quantized(text: &str) -> Result<Quantize, String> {
    match bench::quantize(text) {
        Ok(Quantize::None) | Err(_) => Err("expected nf4, nf4-dq or int8".to_owned()),
        Ok(quantize) => Ok(quantize),
    }
}

/// A file type of llama.cpp.
fn file_type(text: &str) -> Result<FileType, String> {
    FileType::named(text).ok_or_else(|| {
        let names = FileType::ALL.map(FileType::name);
        format!("expected one of {}", names.join(", "))
    })
}

fn goal(text: &str) -> Result<Goal, String> {
    match text.split_once(':') {
        Some((gguf, name)) if gguf.eq_ignore_ascii_case("gguf") => file_type(name).map(Goal::Gguf),
        _ => quantized(text).map(Goal::Checkpoint).map_err(|_| {
            "expected nf4, nf4-dq, int8 or gguf: and a type, such as gguf:Q4_K_M".to_owned()
        }),
    }
}

fn dtype(text: &str) -> Result<DType, String> {
    match text {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        _ => Err("expected f32, bf16 or f16".to_owned()),
    }
}

/// Bytes, as transformers writes sizes: powers of 1000, of 1024 with an `i`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 7] = [
        ("GIB", 1 << 30),
        ("MIB", 1 << 20),
        ("KIB", 1 << 10),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("KB", 1_000),
        ("", 1),
    ];
    let upper = text.trim().to_uppercase();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| Some((upper.strip_suffix(name)?, *unit)))
        .unwrap_or((&upper, 1));
    let bytes = number.trim().parse::<f64>().ok().map(|n| n * unit as f64);
    match bytes {
        Some(bytes) if bytes >= 1.0 && bytes < u64::MAX as f64 => Ok(bytes as u64),
        _ => Err("expected a size such as 5GB, 500MB or 2GiB".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sparsam_base::files::shards::MAX_SHARD_SIZE;

    #[test]
    fn sizes_are_read_as_transformers_reads_them() {
        for (text, bytes) in [
            ("5GB", 5_000_000_000),
            ("1.5 gb", 1_500_000_000),
            ("2GiB", 2 << 30),
            ("200kb", 200_000),
            ("17", 17),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        assert_eq!(size("5GB"), Ok(MAX_SHARD_SIZE));
        for text in ["", "GB", "-1GB", "0", "five", "nan", "1TBB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
