//! From the recipe's words to what the libraries are told. Nothing is decided here.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use candle_core::{DType, Device, DeviceLocation};
use sparsam_adapter::data::{Batches, Columns, Format, PrepareOptions};
use sparsam_adapter::data::{Overlong, PromptFormat, TrainOn};
use sparsam_adapter::lora::{Bias, Init, LoraConfig};
use sparsam_adapter::optimizer::{Optimizer, StateType};
use sparsam_adapter::schedule::{Schedule, Scheduler};
use sparsam_adapter::targets::{ALL_LINEAR, Targets};
use sparsam_adapter::train::{BestBy, Cadence, EarlyStopping, Settings, steps_per_epoch};
use sparsam_adapter::trainable::Trainable;
use sparsam_base::model::Quantize;
use sparsam_base::prefix::Store;
use sparsam_kernels::adamw::AdamW;
use sparsam_tracker::{Gpus, Options, Stage, StatedIntensity};

use super::material::{Data, Ready};
use crate::grid;
use crate::recipe::{self, Recipe, RunLength, TargetModules, Warmup};

pub(crate) fn quantize(recipe: &Recipe) -> Quantize {
    match recipe.quantize {
        recipe::Quantize::None => Quantize::None,
        recipe::Quantize::Int8 => Quantize::Int8,
        recipe::Quantize::Nf4 => Quantize::Nf4,
        recipe::Quantize::Nf4Dq => Quantize::Nf4Double,
    }
}

/// The most that is kept of the frozen prefix, bytes.
pub(super) fn prefix_bytes(recipe: &Recipe) -> u64 {
    recipe.prefix_cache.max_mb.saturating_mul(1_000_000)
}

/// Whether a run goes through any of its texts more than once; held-out ones are measured before and after.
pub(super) fn seen_again(data: &Data, planned: &Settings) -> bool {
    let per_epoch = steps_per_epoch(&data.train, planned.accumulation);
    data.eval.is_some() || planned.schedule.total_steps > per_epoch
}

/// Lets what lies below the lowest trained block be computed once, if the recipe allows it, something does lie there
/// and texts are seen again; a file for it is made in `folder`. Says whether it is so.
pub(super) fn keep_prefix(
    recipe: &Recipe,
    ready: &mut Ready,
    seen_again: bool,
    folder: &Path,
) -> anyhow::Result<bool> {
    if ready.trainable.lowest_block() == 0 || !seen_again {
        return Ok(false);
    }
    let store = match recipe.prefix_cache.store {
        recipe::PrefixStore::None => return Ok(false),
        recipe::PrefixStore::Memory => Store::Memory,
        recipe::PrefixStore::File => Store::File(
            tempfile::tempfile_in(folder)
                .with_context(|| format!("cannot write a file in `{}`", folder.display()))?,
        ),
    };
    let most = prefix_bytes(recipe);
    ready
        .trainable
        .keep_prefix(&ready.opened.model, store, most);
    Ok(true)
}

/// The type of the base; None where the program is to choose.
pub(super) fn dtype(recipe: &Recipe, device: &Device) -> Option<DType> {
    match recipe.dtype {
        recipe::Dtype::F32 => Some(DType::F32),
        recipe::Dtype::Bf16 => Some(DType::BF16),
        // Weights that are trained keep their digits; a frozen base is read in the type that a GPU multiplies
        // fastest.
        recipe::Dtype::Auto if !device.is_cpu() && recipe.method == recipe::Method::Lora => {
            Some(DType::BF16)
        }
        recipe::Dtype::Auto => None,
    }
}

pub(super) fn lora(recipe: &Recipe) -> LoraConfig {
    let lora = &recipe.lora;
    let targets = |targets: &TargetModules| match targets {
        TargetModules::AllLinear => Targets::Text(ALL_LINEAR.to_owned()),
        TargetModules::List(names) => Targets::List(names.clone()),
        TargetModules::Regex(expression) => Targets::Text(expression.clone()),
    };
    let plain = LoraConfig {
        r: lora.r,
        lora_alpha: lora.alpha,
        lora_dropout: lora.dropout,
        target_modules: targets(&lora.target_modules),
        exclude_modules: lora.exclude_modules.as_ref().map(targets),
        use_rslora: lora.use_rslora,
        use_dora: lora.use_dora,
        rank_pattern: lora.rank_pattern.clone().into_iter().collect(),
        alpha_pattern: lora.alpha_pattern.clone().into_iter().collect(),
        layers_to_transform: lora.layers_to_transform.clone(),
        layers_pattern: lora.layers_pattern.clone().into_iter().collect(),
        modules_to_save: lora.modules_to_save.clone(),
        bias: match lora.bias {
            recipe::Bias::None => Bias::None,
            recipe::Bias::All => Bias::All,
            recipe::Bias::LoraOnly => Bias::LoraOnly,
        },
        init: Init::Kaiming,
    };
    LoraConfig {
        init: match lora.init_lora_weights {
            recipe::InitLoraWeights::True => Init::Kaiming,
            recipe::InitLoraWeights::Gaussian => Init::Gaussian,
            recipe::InitLoraWeights::False => Init::Random,
            recipe::InitLoraWeights::Pissa => return plain.for_principal(),
        },
        ..plain
    }
}

pub(super) fn columns(recipe: &Recipe) -> anyhow::Result<Columns> {
    let columns = &recipe.data.columns;
    // ShareGPT calls its list of messages `conversations`.
    let sharegpt = recipe.data.format == recipe::DataFormat::Sharegpt;
    let messages = if sharegpt {
        "conversations"
    } else {
        "messages"
    };
    let named = [
        (messages, &columns.messages),
        ("prompt", &columns.prompt),
        ("completion", &columns.completion),
        ("instruction", &columns.instruction),
        ("input", &columns.input),
        ("output", &columns.output),
        ("system", &columns.system),
        ("text", &columns.text),
        ("label", &columns.label),
    ];
    let given = named.into_iter().filter_map(|(ours, theirs)| {
        let theirs = theirs.as_ref()?;
        Some((ours.to_owned(), theirs.clone()))
    });
    let columns = Columns::new(given.collect::<BTreeMap<_, _>>())?;
    Ok(columns.with_label_field(recipe.data.label_field.clone()))
}

pub(super) fn format(recipe: &Recipe) -> Option<Format> {
    match recipe.data.format {
        recipe::DataFormat::Auto if recipe.task == recipe::Task::Classification => {
            Some(Format::Labelled)
        }
        recipe::DataFormat::Auto => None,
        recipe::DataFormat::Messages => Some(Format::Messages),
        recipe::DataFormat::PromptCompletion => Some(Format::PromptCompletion),
        recipe::DataFormat::Alpaca => Some(Format::Alpaca),
        recipe::DataFormat::Sharegpt => Some(Format::ShareGpt),
        recipe::DataFormat::Text => Some(Format::Text),
    }
}

pub(super) fn prompt_format(recipe: &Recipe) -> PromptFormat {
    match recipe.data.prompt_format {
        recipe::PromptFormat::Chat => PromptFormat::Chat,
        recipe::PromptFormat::Plain => PromptFormat::Plain,
    }
}

pub(super) fn prepare(recipe: &Recipe) -> PrepareOptions {
    PrepareOptions {
        max_length: recipe.max_length,
        train_on: match recipe.data.train_on {
            recipe::TrainOn::Assistant => TrainOn::Assistant,
            recipe::TrainOn::All => TrainOn::All,
        },
        prompt_format: prompt_format(recipe),
        overlong: Overlong::Auto,
    }
}

fn adamw(recipe: &Recipe) -> AdamW {
    AdamW {
        lr: recipe.learning_rate,
        beta1: recipe.adam_beta1,
        beta2: recipe.adam_beta2,
        eps: recipe.adam_epsilon,
        weight_decay: recipe.weight_decay,
    }
}

/// The optimiser of a recipe for what is trained.
pub(super) fn optimizer(
    recipe: &Recipe,
    trainable: &Trainable,
) -> sparsam_adapter::error::Result<Optimizer> {
    let state = match recipe.optim {
        recipe::Optim::Adamw => StateType::F32,
        recipe::Optim::Adamw8bit => StateType::EightBit,
    };
    let mut optimizer =
        Optimizer::with_state(trainable, adamw(recipe), max_grad_norm(recipe), state)?;
    if recipe.method == recipe::Method::Lora {
        optimizer.b_ratio = recipe.lora.loraplus_lr_ratio;
    }
    Ok(optimizer)
}

/// 0 in the recipe means no clipping.
fn max_grad_norm(recipe: &Recipe) -> Option<f64> {
    Some(recipe.max_grad_norm).filter(|norm| *norm > 0.0)
}

pub(super) fn training(recipe: &Recipe, train: &Batches) -> Settings {
    let cadence = |cadence| match cadence {
        recipe::Cadence::Epoch => Cadence::Epoch,
        recipe::Cadence::Never => Cadence::Never,
        recipe::Cadence::Steps(steps) => Cadence::Steps(steps),
    };
    let accumulation = recipe.gradient_accumulation_steps;
    let total_steps = match recipe.length() {
        RunLength::Steps(steps) => steps,
        RunLength::Epochs(epochs) => {
            let steps = steps_per_epoch(train, accumulation) as f64 * epochs;
            (steps.ceil() as usize).max(1)
        }
    };
    let warmup_steps = match recipe.warmup() {
        Warmup::Steps(steps) => steps,
        Warmup::Ratio(ratio) => (ratio * total_steps as f64).ceil() as usize,
    };
    Settings {
        schedule: Schedule {
            peak: recipe.learning_rate,
            scheduler: match recipe.lr_scheduler {
                recipe::LrScheduler::Constant => Scheduler::Constant,
                recipe::LrScheduler::Linear => Scheduler::Linear,
                recipe::LrScheduler::Cosine => Scheduler::Cosine,
            },
            warmup_steps,
            total_steps,
            min_ratio: recipe.min_lr_ratio,
        },
        accumulation,
        checkpointing: recipe.gradient_checkpointing.way(),
        evaluate: cadence(recipe.eval_steps),
        save: cadence(recipe.save_steps),
        early_stopping: recipe.early_stopping.as_ref().map(|early| EarlyStopping {
            patience: early.patience,
            min_delta: early.min_delta,
        }),
        best_by: match recipe.metric_for_best_model {
            recipe::BestMetric::Loss => BestBy::Loss,
            recipe::BestMetric::MacroF1 => BestBy::MacroF1,
        },
    }
}

/// The GPUs that belong to a run.
pub(crate) fn gpus(device: &Device) -> Gpus {
    match device.location() {
        DeviceLocation::Cuda { gpu_id } => Gpus::Number(gpu_id),
        _ => Gpus::None,
    }
}

/// What the tracker is told. The place is the recipe's, else that of the grid it asks, else that of
/// `SPARSAM_COUNTRY`.
pub(super) fn tracker(
    recipe: &Recipe,
    device: &Device,
    folder: &Path,
    name: String,
    resume: bool,
) -> Options {
    let energy = &recipe.energy;
    let stated = energy
        .intensity_g_per_kwh
        .zip(energy.intensity_source.clone());
    // A figure of one's own is the account's; the grid then says when to start, and no more.
    let live = recipe.live_grid().filter(|_| stated.is_none());
    Options {
        name,
        resume,
        stage: Some(match recipe.stage {
            recipe::Stage::Train => Stage::Train,
            recipe::Stage::Search => Stage::Search,
        }),
        interval: Duration::from_secs_f64(energy.interval_seconds),
        country: recipe
            .country_of_run()
            .or_else(grid::country_of_environment),
        live: live.map(grid::live),
        intensity: stated.map(|(g_per_kwh, source)| StatedIntensity { g_per_kwh, source }),
        pue: Some(energy.pue),
        cpu_watts: energy.cpu_watts,
        ram_watts: energy.ram_watts,
        node_idle_watts: energy.node_idle_watts,
        baseline_seconds: energy.baseline_seconds,
        water_site_l_per_kwh: energy.water_site_l_per_kwh,
        water_grid_l_per_kwh: energy.water_grid_l_per_kwh,
        gpus: gpus(device),
        ..Options::in_folder(folder)
    }
}
