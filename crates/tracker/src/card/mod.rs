//! The model card, `README.md` of an adapter or model folder: front matter for the Hub, a body for
//! people, both from the same [`EnergyRecord`] as the terminal's lines.

mod body;
mod classes;
pub mod edit;
mod front_matter;
pub mod lint;
mod source;
mod yaml;

pub use classes::Classes;

use crate::record::EnergyRecord;

/// What a card says besides energy. All text is the user's own and is quoted as its place requires.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CardInputs {
    /// Heading of the card, and the model's name in its evaluation.
    pub title: String,
    /// Adapter or whole model.
    pub kind: ModelKind,
    /// The base model. None for a model trained from scratch.
    pub base_model: Option<Origin>,
    /// A licence identifier of the Hub, or any other name.
    pub license: Option<String>,
    /// The data sets.
    pub datasets: Vec<Origin>,
    /// ISO 639-1 codes.
    pub languages: Vec<String>,
    /// Tags beside those the card sets itself.
    pub tags: Vec<String>,
    /// One or two sentences on what the model is for, where the user has given them.
    pub description: Option<String>,
    /// Fine-tuning or pre-training.
    pub training: TrainingKind,
    /// Sentences on the training data: what, how many examples, how masked.
    pub data: Vec<String>,
    /// Rows of the recipe's table: key and value as in the recipe.
    pub recipe: Vec<(String, String)>,
    /// Name of the evaluation data.
    pub evaluation_data: Option<String>,
    /// What the evaluation gave.
    pub metrics: Vec<Metric>,
    /// The sparsam command that generates with this model, as a whole line.
    pub command: Option<String>,
    /// The same with another program, for what Python does not load.
    pub other_command: Option<String>,
    /// A prompt for the snippet.
    pub example_prompt: Option<String>,
    /// Its classes, of a model that tells classes apart.
    pub classes: Option<Classes>,
    /// Whether the model is asked in its chat template.
    pub chat: bool,
    /// The provider's name, for rented machines.
    pub cloud_provider: Option<String>,
    /// The provider's region.
    pub compute_region: Option<String>,
    /// Version of the program that trained.
    pub version: String,
}

impl CardInputs {
    /// The base model's name, or nothing.
    fn base_name(&self) -> &str {
        self.base_model.as_ref().map_or("", |base| &base.name)
    }
}

/// Where a model or data set comes from. Only the caller can know whether `models/small` is a folder or
/// a repository, so it says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The name as the recipe has it: a Hub name, a folder, a file, `builtin:sprout`.
    pub name: String,
    /// Whether it came from the Hub under that name.
    pub on_hub: bool,
}

impl Origin {
    /// From the Hub, under that name.
    pub fn hub(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            on_hub: true,
        }
    }

    /// From a path or from within a program.
    pub fn local(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            on_hub: false,
        }
    }

    /// Whether the front matter may carry the name: it is on the Hub, and is a name the Hub accepts. A
    /// card that gives any other name is refused.
    pub(crate) fn is_on_hub(&self) -> bool {
        self.on_hub && is_hub_name(&self.name)
    }
}

/// Adapter or whole model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ModelKind {
    /// A LoRA adapter in a PEFT folder.
    #[default]
    Adapter,
    /// All weights, in a transformers folder.
    Full,
    /// An adapter merged into its base, in a transformers folder.
    Merged,
    /// An adapter merged into its base, in GGUF files.
    Gguf,
}

impl ModelKind {
    /// The Hub's name of the library that loads it.
    pub(crate) fn library_name(self) -> &'static str {
        match self {
            Self::Adapter => "peft",
            Self::Full | Self::Merged => "transformers",
            Self::Gguf => "gguf",
        }
    }

    /// The same for readers.
    pub(crate) fn library(self) -> &'static str {
        match self {
            Self::Adapter => "PEFT",
            Self::Full | Self::Merged => "transformers",
            Self::Gguf => "llama.cpp",
        }
    }
}

/// Fine-tuning or pre-training, in the Hub's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrainingKind {
    /// From a base model.
    #[default]
    FineTuning,
    /// From random weights.
    PreTraining,
}

impl TrainingKind {
    /// `fine-tuning` or `pre-training`.
    pub fn name(self) -> &'static str {
        match self {
            Self::FineTuning => "fine-tuning",
            Self::PreTraining => "pre-training",
        }
    }
}

/// One figure of the evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// The Hub's name of the metric: `loss`, `perplexity`, `exact_match`.
    pub kind: String,
    /// Name for people.
    pub name: String,
    /// Before training, where it was measured.
    pub before: Option<f64>,
    /// After training.
    pub after: f64,
}

/// The card as a whole file, ending in a line feed.
pub fn render(inputs: &CardInputs, record: &EnergyRecord) -> String {
    format!(
        "---\n{}---\n\n{}",
        front_matter::render(inputs, record),
        body::render(inputs, record)
    )
}

/// The `co2_eq_emissions` block and the Environmental Impact section alone, to be pasted into another
/// card. The first is empty where the place is unknown.
pub fn emissions_block(
    record: &EnergyRecord,
    training: TrainingKind,
    cloud_provider: Option<&str>,
    compute_region: Option<&str>,
) -> (String, String) {
    let inputs = CardInputs {
        training,
        cloud_provider: cloud_provider.map(str::to_owned),
        compute_region: compute_region.map(str::to_owned),
        ..CardInputs::default()
    };
    (
        front_matter::emissions(&inputs, record).unwrap_or_default(),
        body::environmental_impact(
            &inputs,
            record,
            &[],
            "The readings are in `energy.jsonl` of the run's folder, joules by component and time",
        ),
    )
}

/// Whether the name is one a repository of the Hub can have: `owner/name`, or `name` alone for some old
/// ones, each of letters, digits, `-`, `_` and `.`.
fn is_hub_name(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() <= 2
        && parts.iter().all(|part| {
            !part.is_empty()
                && part.len() <= 96
                && !part.starts_with(['.', '-'])
                && !part.ends_with(['.', '-'])
                && !part.contains("..")
                && !part.contains("--")
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        })
}
