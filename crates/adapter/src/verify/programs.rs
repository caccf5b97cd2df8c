//! Which programs can use an adapter, and why not.
//!
//! What each takes is read from its source, in the versions named at each rule. A program that takes an
//! adapter and computes something else counts as one that cannot use it.

use serde::Serialize;
use sparsam_base::config::ModelConfig;
use sparsam_base::files::gguf_names::architecture;

use crate::lora::{Bias, LoraConfig};
use crate::parts::Parts;

/// A program that runs models with adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Program {
    /// Hugging Face's PEFT.
    #[serde(rename = "peft")]
    Peft,
    /// llama.cpp and what is built on it.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// mistral.rs.
    #[serde(rename = "mistral.rs")]
    MistralRs,
    /// vLLM.
    #[serde(rename = "vllm")]
    Vllm,
    /// mlx-lm.
    #[serde(rename = "mlx")]
    Mlx,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Peft,
        Self::LlamaCpp,
        Self::MistralRs,
        Self::Vllm,
        Self::Mlx,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Peft => "PEFT",
            Self::LlamaCpp => "llama.cpp",
            Self::MistralRs => "mistral.rs",
            Self::Vllm => "vLLM",
            Self::Mlx => "mlx",
        }
    }
}

/// Whether a program can use an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// As the folder is.
    Yes,
    /// After an export that keeps what it computes.
    Exported,
    /// Not as an adapter; the merged model is another matter.
    No,
}

/// What is said about a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Which.
    pub program: Program,
    /// Whether it can.
    pub answer: Answer,
    /// Why, or what to heed.
    pub reason: String,
}

/// The verdict of every program on an adapter that is sound.
pub fn verdicts(parts: &Parts, config: &ModelConfig) -> Vec<Verdict> {
    let verdict = |program| {
        let (answer, reason) = match program {
            Program::Peft => peft(parts),
            Program::LlamaCpp => llama_cpp(parts, config),
            Program::MistralRs => mistral_rs(&parts.config.lora),
            Program::Vllm => vllm(parts),
            Program::Mlx => mlx(parts),
        };
        Verdict {
            program,
            answer,
            reason,
        }
    };
    Program::ALL.map(verdict).to_vec()
}

/// The verdict of every program on an adapter that is not.
pub fn none(reason: &str) -> Vec<Verdict> {
    let verdict = |program| Verdict {
        program,
        answer: Answer::No,
        reason: reason.to_owned(),
    };
    Program::ALL.map(verdict).to_vec()
}

fn no(reason: impl Into<String>) -> (Answer, String) {
    (Answer::No, reason.into())
}

fn yes(reason: impl Into<String>) -> (Answer, String) {
    (Answer::Yes, reason.into())
}

/// PEFT 0.21: the format is its own.
fn peft(parts: &Parts) -> (Answer, String) {
    let lora = &parts.config.lora;
    let mut used = Vec::new();
    if lora.use_dora {
        used.push("DoRA");
    }
    if lora.use_rslora {
        used.push("rsLoRA");
    }
    if !parts.whole.is_empty() {
        used.push("whole parameters");
    }
    if used.is_empty() {
        yes("names, shapes and settings are those PEFT saves")
    } else {
        yes(format!("with its {}", used.join(", ")))
    }
}

/// `llama-adapter.cpp` and `convert_lora_to_gguf.py` of 2026.
fn llama_cpp(parts: &Parts, config: &ModelConfig) -> (Answer, String) {
    let lora = &parts.config.lora;
    if lora.use_dora {
        return no("a GGUF adapter has no place for DoRA's magnitudes; merge it");
    }
    if let Some(name) = parts.whole.keys().next() {
        return no(format!(
            "a GGUF adapter has no place for `{name}`; merge it"
        ));
    }
    if architecture(config).is_err() {
        return no(format!(
            "its name for the family `{}` is not known here",
            config.family
        ));
    }
    let folded = lora.use_rslora || !lora.alpha_pattern.is_empty();
    let folded = if folded {
        ", which folds the scales into B"
    } else {
        ""
    };
    (
        Answer::Exported,
        format!("with `sparsam export --format gguf-lora`{folded}"),
    )
}

/// Why programs that serve plain low-rank branches refuse an adapter that holds more.
fn beyond_branches(lora: &LoraConfig) -> Option<&'static str> {
    if lora.use_dora {
        Some("it refuses DoRA")
    } else if !lora.modules_to_save.is_empty() {
        Some("it refuses `modules_to_save`")
    } else if lora.bias != Bias::None {
        Some("it refuses trained biases")
    } else {
        None
    }
}

/// `LoraConfig::validate_dynamic` of mistral.rs 0.9.
fn mistral_rs(lora: &LoraConfig) -> (Answer, String) {
    if let Some(reason) = beyond_branches(lora) {
        return no(reason);
    }
    yes("it reads PEFT folders, rsLoRA and patterns too, also on GGUF bases")
}

/// `PEFTHelper` of vLLM: one scale and no patterns; ranks up to `max_lora_rank`, 16 by default, in the
/// steps that `--max-lora-rank` knows.
fn vllm(parts: &Parts) -> (Answer, String) {
    const DEFAULT: usize = 16;
    const STEPS: [usize; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];
    let lora = &parts.config.lora;
    if let Some(reason) = beyond_branches(lora) {
        return no(reason);
    }
    if !lora.rank_pattern.is_empty() || !lora.alpha_pattern.is_empty() {
        return no(
            "it ignores `rank_pattern` and `alpha_pattern` and would compute with other scales",
        );
    }
    let rank = lora.r;
    match STEPS.iter().find(|step| **step >= rank) {
        _ if rank <= DEFAULT => yes("rank and scale as it reads them"),
        Some(step) => yes(format!(
            "start it with `--max-lora-rank {step}`, the rank is {rank}"
        )),
        None => no(format!("its greatest rank is 512, this one is {rank}")),
    }
}

/// `mlx_lm/tuner/utils.py` of mlx-lm 0.32.
fn mlx(parts: &Parts) -> (Answer, String) {
    if parts.config.lora.use_dora {
        return no("its DoRA files are not written by this version; merge it");
    }
    if let Some(name) = parts.whole.keys().next() {
        return no(format!("its adapters have no place for `{name}`; merge it"));
    }
    (
        Answer::Exported,
        "with `sparsam export --format mlx`, it does not read PEFT folders".to_owned(),
    )
}
