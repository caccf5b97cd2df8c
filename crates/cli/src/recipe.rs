//! The recipe: everything a run is told, in one file.
//!
//! The structures below are the only description of the keys. Their doc comments are the text of
//! `sparsam recipe` and of `sparsam train --help`, their `Default` is the default, and the JSON
//! schema is derived from them, so that nothing about a key is said twice. [`tree`] reads YAML
//! with its line numbers and lays `key=value` arguments over it, [`decode`] turns the tree into
//! these structures strictly, [`check`] refuses impossible values, and [`manual`] prints.
//!
//! A [`Recipe`] that came out of [`RecipeFile::load`] has been checked once and is trusted from
//! then on. Names are those of PEFT and of transformers' `TrainingArguments` wherever the field
//! has a word.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sparsam_base::stack::Checkpointing;
use sparsam_hub::grid::{Grid, without_secrets};

use crate::error::Failure;

pub(crate) mod check;
mod decode;
pub(crate) mod manual;
mod suggest;
mod tree;
mod values;

pub(crate) use values::{Cadence, Names, TargetModules};

/// A recipe for `sparsam train`. Paths are relative to the directory the command is run in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Recipe {
    /// The base model: a folder in Hugging Face's layout, a .gguf file, a name on the Hub, or
    /// `builtin:sprout`, the small model inside this program. The base stays as it is with
    /// `method: lora`; its size decides memory and speed more than any other key.
    #[schemars(example = &"builtin:sprout")]
    pub(crate) model: String,

    /// Branch, tag or commit of a model named on the Hub. A commit makes the run repeatable; a
    /// branch may move.
    #[schemars(example = &"main")]
    pub(crate) revision: Option<String>,

    /// What the model is to do: go on with a text, or say of which class it is. A classifier gets a head over the
    /// classes of the training data, which are texts with a `label`; its steps are counted in texts, a row each,
    /// never packed. `auto` classifies with a model that can do nothing else (BERT and its kind).
    pub(crate) task: Task,

    /// What is trained. LoRA needs a fraction of the memory and publishes a file of megabytes;
    /// full training can learn more and costs memory for the gradient and optimiser state of
    /// every weight.
    pub(crate) method: Method,

    /// How the frozen base is held in memory. Four bits let a model four times as large fit, at
    /// a small loss of quality and usually of speed. Only with `method: lora`.
    pub(crate) quantize: Quantize,

    /// The type the base computes in. The adapter and its gradients are always f32, and so is
    /// the optimiser unless `optim` says otherwise.
    pub(crate) dtype: Dtype,

    /// Where it is computed: `cpu`, `cuda:0` for an NVIDIA GPU by its number, or `auto`, the first
    /// GPU where this program was built for them and one can be used, else the processor.
    pub(crate) device: String,

    /// The adapter. Used with `method: lora` only.
    pub(crate) lora: Lora,

    /// Continue from an existing adapter: a folder in PEFT's layout, or a name on the Hub. Its own rank, targets and
    /// scaling are used instead of the `lora` keys.
    #[schemars(example = &"runs/quickstart")]
    pub(crate) adapter: Option<PathBuf>,

    /// What is learned from, and what is learned.
    pub(crate) data: Data,

    /// A chat template to use instead of the model's own: a file with a Jinja template, or the
    /// name of a built-in one (`chatml`, `llama3`, `mistral`). The adapter must later be used with
    /// the same template.
    #[schemars(example = &"chatml")]
    pub(crate) chat_template: Option<String>,

    /// The longest example, in tokens. Longer ones are cut and counted in the log. Memory for
    /// activations grows with it.
    pub(crate) max_length: usize,

    /// Put several short examples into one row of `max_length` tokens. They do not see each
    /// other. Saves the padding; a step then holds more examples than `batch_size`.
    pub(crate) packing: bool,

    /// How often the data is gone through; may be a fraction. Give this or `max_steps`. More
    /// passes fit the data closer and, on small sets, begin to memorise it: watch the
    /// evaluation loss.
    pub(crate) epochs: Option<f64>,

    /// Stop after this many optimiser steps, whatever the size of the data. Give this or
    /// `epochs`.
    #[schemars(example = 1000)]
    pub(crate) max_steps: Option<usize>,

    /// Rows computed at once: packed rows, or examples without packing. Larger is faster until
    /// memory or the processor is full.
    pub(crate) batch_size: usize,

    /// Batches added up before the optimiser takes a step. The same result as a batch that many
    /// times larger, in the memory of one; the loss is weighted by tokens, not by batch.
    pub(crate) gradient_accumulation_steps: usize,

    /// Keep less of each block and compute the rest again on the way back; same result. `selective`
    /// keeps what attention needs, not the wide inner numbers of the unit: half the memory for
    /// activations, for about a seventh more time. `true` keeps the block's input alone: a seventh of
    /// the memory, for about a quarter more time. `offload` lets those inputs wait in the computer's own memory
    /// while a GPU works; on a processor it is as `true`.
    pub(crate) gradient_checkpointing: GradientCheckpointing,

    /// What the blocks below the lowest trained one make of a text is the same in every epoch, so it is computed
    /// once and kept; same result, bit for bit on a processor. Has an effect where `lora.layers_to_transform` names
    /// upper blocks alone.
    pub(crate) prefix_cache: PrefixCache,

    /// The highest learning rate. LoRA likes 1e-4 to 3e-4, full training about a tenth of that.
    /// Too high and the loss jumps or turns into NaN, too low and little is learned.
    pub(crate) learning_rate: f64,

    /// How the learning rate moves after the warm-up.
    pub(crate) lr_scheduler: LrScheduler,

    /// The share of all steps over which the learning rate rises from 0. Give this or
    /// `warmup_steps`.
    pub(crate) warmup_ratio: Option<f64>,

    /// The number of steps over which the learning rate rises from 0. Give this or
    /// `warmup_ratio`.
    #[schemars(example = 10)]
    pub(crate) warmup_steps: Option<usize>,

    /// Where `linear` and `cosine` end, as a share of `learning_rate`.
    pub(crate) min_lr_ratio: f64,

    /// The optimiser. Eight bits save six bytes a trained weight, much in full training and little
    /// with LoRA, and learn nearly as well. Tensors of fewer than 4096 numbers and embeddings keep
    /// f32, as with bitsandbytes and transformers.
    pub(crate) optim: Optim,

    /// AdamW's decay of the trained weights per step, times the learning rate. Of little use
    /// with LoRA; 0.01 to 0.1 is common in full training.
    pub(crate) weight_decay: f64,

    /// AdamW's memory of the gradient.
    pub(crate) adam_beta1: f64,

    /// AdamW's memory of the squared gradient. 0.95 follows changes faster, 0.999 is calmer.
    pub(crate) adam_beta2: f64,

    /// AdamW's guard against division by zero.
    pub(crate) adam_epsilon: f64,

    /// Gradients with a larger norm are scaled down to it. 0 switches clipping off.
    pub(crate) max_grad_norm: f64,

    /// When `data.eval` is measured: a number of steps, `epoch` (at the end of each), or `never`.
    /// It is always measured before the first and after the last step. Each evaluation costs
    /// time and energy, which the record shows on a line of its own.
    pub(crate) eval_steps: Cadence,

    /// Let the model write answers to the evaluation examples before and after the training, and
    /// count those that are exactly right. Generation is slow beside training: limit `samples`.
    pub(crate) eval_generation: Option<EvalGeneration>,

    /// By which figure of the evaluation the best adapter is chosen, and a run stops early. `macro_f1` needs a
    /// classifier; it counts rare classes as much as common ones.
    pub(crate) metric_for_best_model: BestMetric,

    /// Stop when the evaluation loss no longer falls; the best adapter is kept. Saves energy on
    /// runs whose length was a guess.
    pub(crate) early_stopping: Option<EarlyStopping>,

    /// What the whole run may use: energy, emissions or time, evaluation and answers included. The
    /// learning rate is laid out for it, and the training stops in time for the last evaluation; the
    /// best adapter is kept. `epochs` or `max_steps` still hold where they come first. A run that a
    /// budget ends is not repeatable bit for bit, as its length hangs on the machine.
    pub(crate) budget: Option<Budget>,

    /// When a checkpoint is written from which `--resume` continues bit for bit: a number of
    /// steps, `epoch`, or `never`. Costs a moment and the size of the optimiser state on disk.
    pub(crate) save_steps: Cadence,

    /// The seed of everything random: order of the data, first adapter weights, dropout. The same
    /// recipe and seed on the same machine give the same adapter, bit for bit.
    pub(crate) seed: u64,

    /// Processor threads to use. All that the process may use by default. The result does not
    /// depend on it.
    #[schemars(example = 4)]
    pub(crate) threads: Option<usize>,

    /// Where the electricity is used, as an ISO code (DEU or DE) or an English name. Never
    /// guessed: without it, and without `SPARSAM_COUNTRY` in the environment, the card states the
    /// energy and a range of emissions over countries.
    #[schemars(example = &"DEU")]
    pub(crate) country: Option<String>,

    /// What is known about the place and the machine, for the energy record.
    pub(crate) energy: Energy,

    /// What the model is for, in a sentence or two. Goes on the card.
    #[schemars(example = &"Sorts residents' messages about street trees.")]
    pub(crate) description: Option<String>,

    /// The licence of what is published, as the Hub spells it. Goes on the card.
    #[schemars(example = &"apache-2.0")]
    pub(crate) license: Option<String>,

    /// Languages of the data as ISO 639-1 codes, one or a list. Goes on the card.
    #[schemars(example = ["de", "en"])]
    pub(crate) language: Names,

    /// The name of the data set on the card. That on the Hub, or of the folder of `data.train`, by default.
    #[schemars(example = &"city-trees")]
    pub(crate) dataset_name: Option<String>,

    /// Further tags for the card, one or a list.
    #[schemars(example = ["trees"])]
    pub(crate) tags: Names,

    /// What is written while the run goes on.
    pub(crate) logging: Logging,

    /// What the card calls the training. `pre-training` is for a model whose weights were random.
    pub(crate) training_type: TrainingType,

    /// The part of a project the run belongs to, by which `sparsam ledger` sums. `search` is for runs that
    /// are made to choose settings, such as the arms of a comparison.
    pub(crate) stage: Stage,

    /// The folder for everything the run leaves: adapter, card, record, checkpoints. Created if
    /// it does not exist. A folder that already holds a run is only continued, with `--resume`.
    pub(crate) output_dir: PathBuf,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            model: String::new(),
            revision: None,
            task: Task::Auto,
            method: Method::Lora,
            quantize: Quantize::None,
            dtype: Dtype::Auto,
            device: "auto".to_owned(),
            lora: Lora::default(),
            adapter: None,
            data: Data::default(),
            chat_template: None,
            max_length: 1024,
            packing: true,
            epochs: Some(3.0),
            max_steps: None,
            batch_size: 8,
            gradient_accumulation_steps: 1,
            gradient_checkpointing: GradientCheckpointing::Off,
            prefix_cache: PrefixCache::default(),
            learning_rate: 2e-4,
            lr_scheduler: LrScheduler::Cosine,
            warmup_ratio: Some(0.03),
            warmup_steps: None,
            min_lr_ratio: 0.0,
            optim: Optim::Adamw,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            eval_steps: Cadence::Epoch,
            eval_generation: None,
            metric_for_best_model: BestMetric::Loss,
            early_stopping: None,
            budget: None,
            save_steps: Cadence::Epoch,
            seed: 42,
            threads: None,
            country: None,
            energy: Energy::default(),
            description: None,
            license: None,
            language: Names::default(),
            dataset_name: None,
            tags: Names::default(),
            logging: Logging::default(),
            training_type: TrainingType::FineTuning,
            stage: Stage::Train,
            output_dir: PathBuf::from("runs/latest"),
        }
    }
}

/// What the model is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Task {
    /// what the model's architecture is made for
    Auto,
    /// go on with a text
    CausalLm,
    /// say of which class a text is
    Classification,
}

/// By which figure an evaluation is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BestMetric {
    /// the lowest mean loss
    Loss,
    /// the highest mean F1 over the classes
    MacroF1,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Method {
    /// small matrices beside the frozen base
    Lora,
    /// every weight of the model
    Full,
}

/// What the card calls the training, in the Hub's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TrainingType {
    /// from a model that someone trained
    FineTuning,
    /// from random weights
    PreTraining,
}

/// The part of a project that a training belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// training what is used
    Train,
    /// choosing settings
    Search,
}

/// How the frozen base is held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum Quantize {
    /// as the checkpoint has it
    #[serde(rename = "none")]
    None,
    /// one byte a weight, the arithmetic of bitsandbytes' LLM.int8
    #[serde(rename = "int8")]
    Int8,
    /// 4.5 bits a weight, bitsandbytes' NF4
    #[serde(rename = "nf4")]
    Nf4,
    /// 4.13 bits a weight: NF4, its scales quantised too, as QLoRA does
    #[serde(rename = "nf4-dq")]
    Nf4Dq,
}

/// The type the base computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dtype {
    /// exact, and fast on any processor
    F32,
    /// half the memory; fast where the processor or GPU multiplies it
    Bf16,
    /// bf16 for a frozen base on a GPU, f32 elsewhere
    Auto,
}

/// How the learning rate moves after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LrScheduler {
    /// stays where it is; easy to extend later
    Constant,
    /// falls in a straight line
    Linear,
    /// falls slowly, then fast, then slowly
    Cosine,
}

/// The optimiser, in the words of transformers' `TrainingArguments`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum Optim {
    /// AdamW, its two moments in f32: 8 bytes a trained weight
    #[serde(rename = "adamw")]
    Adamw,
    /// the same, its moments in eight bits block by block: 2.03 bytes
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
}

/// The low-rank adapter, in PEFT's words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Lora {
    /// The rank. More learns more and costs memory and file size in proportion; 8 to 64 is
    /// common.
    pub(crate) r: usize,

    /// The adapter is scaled by alpha / r. Twice the rank is a good start.
    pub(crate) alpha: f64,

    /// The share of the adapter's inputs set to 0 at each step. 0 is fastest; 0.05 to 0.1 helps
    /// against memorising small data.
    pub(crate) dropout: f64,

    /// The projections that get an adapter: `all-linear`, a list of names such as
    /// `[q_proj, v_proj]`, or a regular expression that matches the whole name. Adapting
    /// all learns best; attention alone is smaller and faster.
    pub(crate) target_modules: TargetModules,

    /// Projections to leave out of `target_modules`, in the same forms.
    #[schemars(example = ["down_proj"])]
    pub(crate) exclude_modules: Option<TargetModules>,

    /// Scale by alpha / √r instead, which keeps high ranks learning.
    pub(crate) use_rslora: bool,

    /// DoRA: train the length of every weight row apart from its direction. Often learns better
    /// at ranks up to 16; each step is slower and takes more memory.
    pub(crate) use_dora: bool,

    /// Another rank for projections whose name ends in, or matches, the given one.
    #[schemars(example = IndexMap::from([("k_proj".to_owned(), 8usize)]))]
    pub(crate) rank_pattern: IndexMap<String, usize>,

    /// Another alpha for projections whose name ends in, or matches, the given one.
    #[schemars(example = IndexMap::from([("k_proj".to_owned(), 16.0f64)]))]
    pub(crate) alpha_pattern: IndexMap<String, f64>,

    /// Adapt only these layers, counted from 0. All by default. Needs a list or `all-linear` in
    /// `target_modules`.
    #[schemars(example = [0usize, 1])]
    pub(crate) layers_to_transform: Option<Vec<usize>>,

    /// The name under which the layers stand in the model, if it is an unusual one.
    #[schemars(example = &"layers")]
    pub(crate) layers_pattern: Option<String>,

    /// Modules trained and saved whole, such as `[lm_head]`. Each adds its full size to the
    /// adapter file.
    #[schemars(example = ["lm_head"])]
    pub(crate) modules_to_save: Vec<String>,

    /// Biases of the base to train beside the adapter. Adds little, and the base without the
    /// adapter is then no longer the original.
    pub(crate) bias: Bias,

    /// How the adapter starts.
    pub(crate) init_lora_weights: InitLoraWeights,

    /// LoRA+: the second half of every branch (B) learns so many times as fast as the first. Often learns
    /// faster at a lower `learning_rate`; 16 is usual, 1 is plain LoRA.
    pub(crate) loraplus_lr_ratio: f64,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            r: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: TargetModules::AllLinear,
            exclude_modules: None,
            use_rslora: false,
            use_dora: false,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            layers_to_transform: None,
            layers_pattern: None,
            modules_to_save: Vec::new(),
            bias: Bias::None,
            init_lora_weights: InitLoraWeights::True,
            loraplus_lr_ratio: 1.0,
        }
    }
}

/// Biases to train beside the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bias {
    /// none of them
    None,
    /// those of the whole model
    All,
    /// those of the adapted projections
    LoraOnly,
}

/// How the adapter starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum InitLoraWeights {
    /// A uniform (Kaiming), B zero: the model begins unchanged
    True,
    /// A normal with deviation 1/r, B zero: it begins unchanged too
    Gaussian,
    /// A and B both random: it begins changed, for tests
    False,
    /// PiSSA: begins as what each weight does most; saved as plain LoRA
    Pissa,
}

/// What is learned from, and what is learned.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Data {
    /// The training data: a .jsonl, .json, .csv or .parquet file, a folder of .txt files, or the name
    /// of a data set on the Hub.
    #[schemars(example = &"datasets/city-trees/train.jsonl")]
    pub(crate) train: PathBuf,

    /// Held-out data in the same form, never trained on. Without it nobody can say whether the
    /// run learned or memorised.
    #[schemars(example = &"datasets/city-trees/eval.jsonl")]
    pub(crate) eval: Option<PathBuf>,

    /// The split of a data set on the Hub that `train` means; `train` if not given.
    #[schemars(example = &"train")]
    pub(crate) split: Option<String>,

    /// The split of a data set on the Hub that `eval` means; `test` if not given.
    #[schemars(example = &"test")]
    pub(crate) eval_split: Option<String>,

    /// Which of several subsets (configurations) of a data set on the Hub is meant. Its default one, if not
    /// given.
    #[schemars(example = &"default")]
    pub(crate) subset: Option<String>,

    /// Branch, tag or commit of data sets named on the Hub. A commit makes the run repeatable;
    /// `refs/convert/parquet` has most data sets as Parquet.
    #[schemars(example = &"main")]
    pub(crate) revision: Option<String>,

    /// The form of a row. Found by looking at the first rows, and said, unless given here.
    pub(crate) format: DataFormat,

    /// Which columns hold what, where they have other names than the form expects.
    pub(crate) columns: Columns,

    /// Of a classifier: the field that is the class, where the label column holds lines such as `Urgency: low`, or
    /// an object.
    #[schemars(example = &"Urgency")]
    pub(crate) label_field: Option<String>,

    /// Which tokens are learned.
    pub(crate) train_on: TrainOn,

    /// How a prompt and its completion become text. Use the form in which the adapter will be
    /// asked later.
    pub(crate) prompt_format: PromptFormat,
}

/// The form of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DataFormat {
    /// found by looking
    #[default]
    Auto,
    /// `messages`: a list of role and content
    Messages,
    /// `prompt` and `completion`
    PromptCompletion,
    /// `instruction`, `input` (may be empty) and `output`
    Alpaca,
    /// `conversations`: a list of from and value
    Sharegpt,
    /// `text`, learned as it stands
    Text,
}

/// Which columns hold what.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Columns {
    /// The column with the list of messages.
    #[schemars(example = &"dialogue")]
    pub(crate) messages: Option<String>,
    /// The column with the prompt.
    #[schemars(example = &"question")]
    pub(crate) prompt: Option<String>,
    /// The column with the completion.
    #[schemars(example = &"answer")]
    pub(crate) completion: Option<String>,
    /// The column with the instruction.
    #[schemars(example = &"task")]
    pub(crate) instruction: Option<String>,
    /// The column with the instruction's input.
    #[schemars(example = &"context")]
    pub(crate) input: Option<String>,
    /// The column with the output.
    #[schemars(example = &"response")]
    pub(crate) output: Option<String>,
    /// The column with the system message.
    #[schemars(example = &"system")]
    pub(crate) system: Option<String>,
    /// The column with plain text, or with what is classified.
    #[schemars(example = &"body")]
    pub(crate) text: Option<String>,
    /// The column with the class: names or whole numbers.
    #[schemars(example = &"category")]
    pub(crate) label: Option<String>,
}

/// Which tokens are learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TrainOn {
    /// the answers, with the token that ends them
    #[default]
    Assistant,
    /// everything, the questions too
    All,
}

/// How a prompt and its completion become text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PromptFormat {
    /// as a question and its answer, through the chat template
    #[default]
    Chat,
    /// one after the other as they are, and the end token
    Plain,
}

/// Answers written by the model on held-out examples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EvalGeneration {
    /// How many evaluation examples are answered, from the first. All if not given.
    #[schemars(example = 100)]
    pub(crate) samples: Option<usize>,
    /// The longest answer, in tokens. One that is longer than any expected beside it is not the right one and
    /// ends a few tokens later.
    pub(crate) max_new_tokens: usize,
    /// Count the answers that equal the expected one but for space at the ends.
    pub(crate) exact_match: bool,
    /// How many answers are shown before and after.
    pub(crate) show: usize,
}

impl Default for EvalGeneration {
    fn default() -> Self {
        Self {
            samples: None,
            max_new_tokens: 128,
            exact_match: true,
            show: 1,
        }
    }
}

/// When to stop early.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EarlyStopping {
    /// Evaluations without improvement before the run stops.
    pub(crate) patience: usize,
    /// What counts as an improvement of the evaluation loss.
    pub(crate) min_delta: f64,
}

impl Default for EarlyStopping {
    fn default() -> Self {
        Self {
            patience: 3,
            min_delta: 0.0,
        }
    }
}

/// What a run may use. The first that is used up ends it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Budget {
    /// Energy in kWh.
    #[schemars(example = 0.05)]
    pub(crate) kwh: Option<f64>,
    /// Emissions in gCO2e. Needs a place: `country`, or `energy.intensity_g_per_kwh`.
    #[schemars(example = 20)]
    pub(crate) gco2e: Option<f64>,
    /// Time in minutes.
    #[schemars(example = 30)]
    pub(crate) minutes: Option<f64>,
}

/// What is known about the place and the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Energy {
    /// Emissions of the electricity in gCO2e per kWh, in place of the country's average. Needs
    /// `intensity_source`.
    #[schemars(example = 35)]
    pub(crate) intensity_g_per_kwh: Option<f64>,
    /// Where that figure comes from, with its year. Printed on the card.
    #[schemars(example = &"contract with the municipal utility, 2025")]
    pub(crate) intensity_source: Option<String>,
    /// Power usage effectiveness: energy of the whole site over energy of its computers. 1.0 for
    /// a computer under a desk; a data centre states its own.
    pub(crate) pue: f64,
    /// Power of the processor at full load in watts, where it cannot be measured.
    #[schemars(example = 65)]
    pub(crate) cpu_watts: Option<f64>,
    /// Power of the memory in watts, where it cannot be measured.
    #[schemars(example = 6)]
    pub(crate) ram_watts: Option<f64>,
    /// Constant power of mainboard, disks, fans and network in watts, where you know it. Left out by
    /// default, and named on the card as left out.
    #[schemars(example = 40)]
    pub(crate) node_idle_watts: Option<f64>,
    /// Seconds for which the idle machine is measured before the start, so that the card can also say
    /// what the run added to it. The run waits for them; 10 is enough.
    pub(crate) baseline_seconds: f64,
    /// Litres of water evaporated on the site for each kWh of the computers. A data centre states its
    /// own.
    #[schemars(example = 0.2)]
    pub(crate) water_site_l_per_kwh: Option<f64>,
    /// Litres of water consumed by the power plants for each kWh; known for some countries.
    #[schemars(example = 3.1)]
    pub(crate) water_grid_l_per_kwh: Option<f64>,
    /// Seconds between two readings of the meters.
    pub(crate) interval_seconds: f64,
    /// What says how clean the grid is now: `uk-grid` (Great Britain, no key), `electricity-maps:ZONE` (key
    /// in ELECTRICITY_MAPS_TOKEN), an address, or a file that holds gCO2e per kWh. Asked at the start and
    /// every five minutes, for the emissions and for `start_when`; beside `intensity_g_per_kwh` for
    /// `start_when` alone. Nothing is asked without it.
    #[schemars(example = &"uk-grid")]
    pub(crate) live_intensity: Option<String>,
    /// Wait before the start until the grid is clean. Needs `live_intensity`.
    pub(crate) start_when: Option<StartWhen>,
}

/// What a run waits for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StartWhen {
    /// Begin when the grid emits less than this, in gCO2e per kWh.
    pub(crate) intensity_below: f64,
    /// Begin after so many hours at the latest, whatever the grid emits.
    pub(crate) within_hours: f64,
}

impl Default for StartWhen {
    fn default() -> Self {
        Self {
            intensity_below: 200.0,
            within_hours: 12.0,
        }
    }
}

impl Default for Energy {
    fn default() -> Self {
        Self {
            intensity_g_per_kwh: None,
            intensity_source: None,
            pue: 1.0,
            cpu_watts: None,
            ram_watts: None,
            node_idle_watts: None,
            baseline_seconds: 0.0,
            water_site_l_per_kwh: None,
            water_grid_l_per_kwh: None,
            interval_seconds: 1.0,
            live_intensity: None,
            start_when: None,
        }
    }
}

/// What is kept of the blocks below the lowest trained one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PrefixCache {
    /// Where it is kept.
    pub(crate) store: PrefixStore,
    /// The most it may take, in MB (a million bytes). Texts beyond that are computed in every epoch. A token takes
    /// four bytes for each number of the model's width.
    pub(crate) max_mb: u64,
}

impl Default for PrefixCache {
    fn default() -> Self {
        Self {
            store: PrefixStore::File,
            max_mb: 4000,
        }
    }
}

/// What is computed again on the way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Written", into = "Written")]
#[schemars(with = "Written")]
pub(crate) enum GradientCheckpointing {
    /// `false`
    Off,
    /// `selective`: the units.
    Selective,
    /// `true`: whole blocks.
    Full,
    /// `offload`: whole blocks, whose inputs wait in the host's memory.
    Offload,
}

/// What may be written.
const CHECKPOINTING: &str = "`true`, `false`, `selective` or `offload`";

/// How a recipe says it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged)]
enum Written {
    Switch(bool),
    Named(Named),
}

#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Named {
    Selective,
    Offload,
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = Written;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str(CHECKPOINTING)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Written, E> {
                Ok(Written::Switch(value))
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Written, E> {
                // What stands plainly in a recipe is text until something else is asked for.
                match value {
                    "false" => Ok(Written::Switch(false)),
                    "true" => Ok(Written::Switch(true)),
                    "selective" => Ok(Written::Named(Named::Selective)),
                    "offload" => Ok(Written::Named(Named::Offload)),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }
        }

        from.deserialize_any(Visitor)
    }
}

impl From<Written> for GradientCheckpointing {
    fn from(written: Written) -> Self {
        match written {
            Written::Switch(false) => Self::Off,
            Written::Switch(true) => Self::Full,
            Written::Named(Named::Selective) => Self::Selective,
            Written::Named(Named::Offload) => Self::Offload,
        }
    }
}

impl From<GradientCheckpointing> for Written {
    fn from(checkpointing: GradientCheckpointing) -> Self {
        match checkpointing {
            GradientCheckpointing::Off => Self::Switch(false),
            GradientCheckpointing::Full => Self::Switch(true),
            GradientCheckpointing::Selective => Self::Named(Named::Selective),
            GradientCheckpointing::Offload => Self::Named(Named::Offload),
        }
    }
}

impl std::str::FromStr for GradientCheckpointing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "false" => Ok(Self::Off),
            "selective" => Ok(Self::Selective),
            "true" => Ok(Self::Full),
            "offload" => Ok(Self::Offload),
            _ => Err(format!("it is {CHECKPOINTING}")),
        }
    }
}

impl GradientCheckpointing {
    /// The engine's name for it.
    pub(crate) fn way(self) -> Checkpointing {
        match self {
            Self::Off => Checkpointing::Off,
            Self::Selective => Checkpointing::Units,
            Self::Full => Checkpointing::Blocks,
            Self::Offload => Checkpointing::Parked,
        }
    }
}

/// Where what is computed once is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PrefixStore {
    /// in a file without a name in `output_dir`, gone when the run ends
    File,
    /// in memory
    Memory,
    /// nowhere: all blocks are computed in every epoch
    None,
}

/// What is written while the run goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Logging {
    /// Write event files for TensorBoard beside `metrics.jsonl`.
    pub(crate) tensorboard: bool,
    /// Steps between two lines of `metrics.jsonl` and two points in TensorBoard.
    pub(crate) steps: usize,
}

impl Default for Logging {
    fn default() -> Self {
        Self {
            tensorboard: true,
            steps: 1,
        }
    }
}

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum RunLength {
    /// Passes over the data.
    Epochs(f64),
    /// Optimiser steps.
    Steps(usize),
}

/// How long the learning rate rises.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Warmup {
    /// A share of all steps.
    Ratio(f64),
    /// Optimiser steps.
    Steps(usize),
}

impl Recipe {
    /// How long the run is; loading has made sure that one of the two keys is set.
    pub(crate) fn length(&self) -> RunLength {
        match (self.max_steps, self.epochs) {
            (Some(steps), _) => RunLength::Steps(steps),
            (None, epochs) => RunLength::Epochs(epochs.unwrap_or(3.0)),
        }
    }

    /// How long the learning rate rises.
    pub(crate) fn warmup(&self) -> Warmup {
        match (self.warmup_steps, self.warmup_ratio) {
            (Some(steps), _) => Warmup::Steps(steps),
            (None, ratio) => Warmup::Ratio(ratio.unwrap_or(0.0)),
        }
    }

    /// What says how clean the grid is; loading has made sure that it can be read.
    pub(crate) fn live_grid(&self) -> Option<Grid> {
        Grid::parse(self.energy.live_intensity.as_deref()?).ok()
    }

    /// As a run's record keeps it, which is published: without the key in an address.
    pub(crate) fn for_record(&self) -> Self {
        let mut recipe = self.clone();
        if let Some(Grid::Address(address)) = self.live_grid() {
            recipe.energy.live_intensity = Some(without_secrets(&address));
        }
        recipe
    }

    /// The country, else that of the grid that is asked.
    pub(crate) fn country_of_run(&self) -> Option<String> {
        let stated = self.country.clone();
        stated.or_else(|| self.live_grid()?.country().map(str::to_owned))
    }
}

/// A checked recipe with what is needed to say where each key came from.
#[derive(Debug, Clone)]
pub(crate) struct RecipeFile {
    /// The recipe, checked.
    pub(crate) recipe: Recipe,
    path: PathBuf,
    tree: tree::Node,
}

impl RecipeFile {
    /// Reads the recipe at `path` and lays the `key=value` arguments over it in their order.
    pub(crate) fn load(path: &Path, overrides: &[String]) -> Result<Self, Failure> {
        let text = fs_err::read(path).map_err(|error| unreadable(path, &error))?;
        let text = String::from_utf8(text).map_err(|_| {
            Failure::usage(format!("`{}` is not a text file in UTF-8", path.display()))
                .hint("a recipe is a YAML file; `sparsam recipe` prints one to start from")
        })?;
        Self::parse(path, &text, overrides)
    }

    /// The same from text already read; `path` is only named in messages.
    pub(crate) fn parse(path: &Path, text: &str, overrides: &[String]) -> Result<Self, Failure> {
        let mut tree = tree::parse(text).map_err(|problem| problem.located(path))?;
        for argument in overrides {
            tree.set(argument)
                .map_err(|problem| problem.located(path))?;
        }
        let mut recipe = decode::decode(&tree).map_err(|problem| problem.located(path))?;
        check::check(&mut recipe, &tree).map_err(|problem| problem.located(path))?;
        Ok(Self {
            recipe,
            path: path.to_owned(),
            tree,
        })
    }

    /// Whether `key` (dotted) was set, and is not a default.
    pub(crate) fn given(&self, key: &str) -> bool {
        self.tree.find(key).is_some()
    }

    /// Where `key` (dotted) was set, for a message about its value: `recipe.yaml:7` or
    /// ``argument `data.train=x.jsonl` ``. The file alone when the value is a default.
    pub(crate) fn place(&self, key: &str) -> String {
        self.tree
            .find(key)
            .map_or(tree::Origin::Whole, |node| node.origin.clone())
            .describe(&self.path)
    }

    /// Refuses data and template paths that do not exist, before anything slow begins. Paths are
    /// relative to the current directory; one that lies beside the recipe instead is pointed out.
    pub(crate) fn check_files(&self) -> Result<(), Failure> {
        let data = &self.recipe.data;
        let named = [
            ("data.train", Some(&data.train)),
            ("data.eval", data.eval.as_ref()),
            ("adapter", self.recipe.adapter.as_ref()),
        ];
        for (key, path) in named {
            let Some(path) = path else { continue };
            if path.exists() || crate::from_hub::hub_path(path).is_some() {
                continue;
            }
            let failure = Failure::usage(format!(
                "{}: `{key}` names `{}`, which does not exist",
                self.place(key),
                path.display()
            ));
            let beside = self.path.parent().map(|folder| folder.join(path));
            return Err(match beside.filter(|beside| beside.exists()) {
                Some(beside) => failure.hint(format!(
                    "paths are relative to the current directory; write `{}`",
                    beside.display()
                )),
                None => failure.hint("paths are relative to the current directory"),
            });
        }
        Ok(())
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::usage(format!(
        "cannot read the recipe `{}`: {}",
        path.display(),
        crate::error::io_reason(error)
    ));
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            failure.hint("`sparsam recipe > recipe.yaml` writes one to start from")
        }
        _ => failure,
    }
}

#[cfg(test)]
mod tests;
