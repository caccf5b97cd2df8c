//! What a run will need, before it is made: memory by part, time, energy and emissions, for a recipe and
//! beside it for full training, LoRA and LoRA on four bits.
//!
//! On this machine a few real steps are made, each arm in a process of its own so that its memory is its
//! own, and kept for the next time. Where an arm would not fit it is not started: its memory is computed
//! and its time taken from an arm that was measured. For another machine all of it is arithmetic, from a
//! table, with a range that says so.

use serde::{Deserialize, Serialize};
use sparsam_tracker::accounting::{kwh, operational_g};
use sparsam_tracker::{Range, range::Span};

use crate::recipe::{GradientCheckpointing, Method, Quantize, Recipe};
use crate::run::{Again, Calibration, Work};

pub(crate) mod cache;
pub(crate) mod hardware;
pub(crate) mod knobs;
pub(crate) mod memory;
pub(crate) mod words;

use hardware::Device;
use knobs::Knob;
use memory::{Memory, Shape};

/// A calibrated time is expected to be met within this part. Steps vary with the length of documents, and
/// machines with their heat and their other work.
const WITHIN: f64 = 0.15;

/// Passes of arithmetic over the weights: two operations for each weight and token in the forward pass,
/// two for the gradient of the input, two for that of the weight.
const FULL_OPERATIONS: f64 = 6.0;
/// With the base frozen.
const LORA_OPERATIONS: f64 = 4.0;
/// Another forward pass, without the way down out of the unit, which has about a quarter of a block's weights.
const RECOMPUTE: f64 = 1.5;
/// Another pass through gate and up, which have about half of a block's weights.
const RECOMPUTE_UNITS: f64 = 1.0;

/// How much slower a base of four bits is: published tables put QLoRA between the same time and 1.8 times
/// that of LoRA (LLaMA-Factory, torchtune, Unsloth, litgpt; 2023 to 2026).
const FOUR_BITS: Range = Range::new(1.0, 1.3, 1.8);

/// A plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Plan {
    /// The machine, in words.
    pub(crate) machine: String,
    /// Bytes that may be used there, where they are known.
    pub(crate) available_bytes: Option<f64>,
    /// What the run will do.
    pub(crate) work: Work,
    /// The recipe first.
    pub(crate) arms: Vec<Arm>,
    /// What to change where the recipe does not fit.
    pub(crate) knobs: Vec<Knob>,
    /// How emissions are computed.
    pub(crate) emissions: String,
    /// What is not in the figures.
    pub(crate) notes: Vec<String>,
}

/// One way to train.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Arm {
    pub(crate) name: String,
    /// How the figures were won.
    pub(crate) how: How,
    /// By part, bytes.
    pub(crate) memory: Memory,
    /// The most at once, bytes.
    pub(crate) peak_bytes: Range,
    pub(crate) seconds: Range,
    pub(crate) energy_kwh: Range,
    pub(crate) emissions_g: Span,
    /// Whether it fits; none where it is not known what is there.
    pub(crate) fits: Option<bool>,
}

/// How the figures of an arm were won.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum How {
    /// By steps on this machine.
    Calibrated,
    /// From the steps of another arm.
    Scaled,
    /// By arithmetic alone.
    Computed,
}

/// What electricity emits.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Grid {
    pub(crate) pue: f64,
    pub(crate) g_per_kwh: Span,
}

/// The arms beside a recipe: name, and the keys that make it.
pub(crate) const BESIDE: [(&str, &[&str]); 3] = [
    ("full", &["method=full", "quantize=none"]),
    ("LoRA", &["method=lora", "quantize=none"]),
    ("LoRA on NF4", &["method=lora", "quantize=nf4"]),
];

/// Whether a recipe is the arm of that name already.
pub(crate) fn is_arm(recipe: &Recipe, name: &str) -> bool {
    matches!(
        (name, recipe.method, recipe.quantize),
        ("full", Method::Full, _)
            | ("LoRA", Method::Lora, Quantize::None)
            | ("LoRA on NF4", Method::Lora, Quantize::Nf4)
    )
}

/// Computes the memory of a recipe.
pub(crate) fn computed_memory(shape: &Shape, recipe: &Recipe, work: &Work) -> Memory {
    let (tokens, targets) = work.largest_batch;
    memory::estimate(shape, recipe, tokens as f64, targets as f64, None)
}

/// An arm whose steps were measured.
pub(crate) fn calibrated(
    name: &str,
    shape: &Shape,
    recipe: &Recipe,
    work: &Work,
    calibration: &Calibration,
    grid: &Grid,
    available: Option<f64>,
) -> Arm {
    let (tokens, targets) = work.largest_batch;
    let kept = calibration
        .again
        .map_or(0.0, |again| again.more_bytes as f64);
    let trainable = Some(calibration.trainable as f64);
    let mut memory = memory::estimate(shape, recipe, tokens as f64, targets as f64, trainable);
    memory.weights = calibration.weight_bytes as f64;
    let peak = calibration.peak_bytes.map(|bytes| bytes as f64);
    if let Some(peak) = peak {
        // What was measured is right, and what is known by counting; the rest is the remainder.
        let counted = memory.total() - memory.scratch;
        memory.scratch = (peak - counted).max(0.0);
        if counted > peak {
            let less = counted - peak;
            memory.activations = (memory.activations - less).max(0.0);
        }
    }
    memory.scratch += kept;
    let a_token = calibration.step_seconds / calibration.tokens.max(1) as f64;
    let once = (a_token, calibration.evaluation_seconds);
    let (training, evaluations) = work_seconds(work, once, calibration.again);
    let other = calibration.load_seconds
        + evaluations
        + calibration.answer_seconds.0
        + calibration.answer_seconds.1
        + work.saves as f64 * calibration.save_seconds;
    let (train_watts, other_watts) = watts(calibration);
    let joules = train_watts.scale(training) + other_watts.scale(other);
    let energy_kwh = kwh(Range::new(
        joules.low * (1.0 - WITHIN),
        joules.central,
        joules.high * (1.0 + WITHIN),
    ));
    arm(
        name,
        How::Calibrated,
        memory,
        Range::around(memory.total(), 0.05),
        Range::around(training + other, WITHIN),
        energy_kwh,
        grid,
        available,
    )
}

/// Seconds of training and of all evaluations, from those of a token and of one evaluation. Where the part of the
/// lower blocks is kept, texts cost less from the second time on, as far as there is room for them.
fn work_seconds(work: &Work, once: (f64, f64), again: Option<Again>) -> (f64, f64) {
    let (tokens, evaluations) = (work.tokens as f64, work.evaluations as f64);
    let (a_token, evaluation) = once;
    let Some(again) = again else {
        return (tokens * a_token, evaluations * evaluation);
    };
    let reused = |all: f64, once: f64| (all - once).max(0.0) * again.share;
    let (tokens_again, evaluations_again) = (
        reused(tokens, work.epoch_tokens as f64),
        reused(evaluations, 1.0),
    );
    let a_token_again = again.step_seconds / again.tokens.max(1) as f64;
    (
        (tokens - tokens_again) * a_token + tokens_again * a_token_again,
        (evaluations - evaluations_again) * evaluation
            + evaluations_again * again.evaluation_seconds,
    )
}

/// Watts while steps are made, and in the rest of a calibration.
fn watts(calibration: &Calibration) -> (Range, Range) {
    let energy = &calibration.energy;
    let per_second = |kwh: Range, seconds: f64| kwh.scale(3.6e6 / seconds.max(1e-3));
    let whole = per_second(energy.energy_kwh, energy.duration_seconds);
    let Some(train) = energy.windows.iter().find(|window| window.path == "train") else {
        return (whole, whole);
    };
    let rest = energy.duration_seconds - train.seconds;
    let other = if rest > 0.5 {
        per_second(energy.energy_kwh - train.energy_kwh, rest)
    } else {
        whole
    };
    (per_second(train.energy_kwh, train.seconds), other)
}

/// An arm that was not started here, from one that was.
pub(crate) fn scaled(
    name: &str,
    recipe: &Recipe,
    memory: Memory,
    (measured, of): (&Arm, &Recipe),
    grid: &Grid,
    available: Option<f64>,
) -> Arm {
    let factor = relative(recipe, of);
    let seconds = times(measured.seconds, factor);
    let energy_kwh = times(measured.energy_kwh, factor);
    let peak = Range::around(memory.total(), 0.15);
    arm(
        name,
        How::Scaled,
        memory,
        peak,
        seconds,
        energy_kwh,
        grid,
        available,
    )
}

/// How much longer one recipe takes than another of the same data.
fn relative(recipe: &Recipe, of: &Recipe) -> Range {
    let by_operations = operations(recipe) / operations(of);
    let bits = |recipe: &Recipe| {
        let four = matches!(recipe.quantize, Quantize::Nf4 | Quantize::Nf4Dq);
        if four { FOUR_BITS } else { Range::exactly(1.0) }
    };
    let (ours, theirs) = (bits(recipe), bits(of));
    Range::new(
        ours.low / theirs.high,
        ours.central / theirs.central,
        ours.high / theirs.low,
    )
    .scale(by_operations)
}

fn times(value: Range, factor: Range) -> Range {
    Range::new(
        value.low * factor.low,
        value.central * factor.central,
        value.high * factor.high,
    )
}

/// Operations for each weight and trained token.
fn operations(recipe: &Recipe) -> f64 {
    let passes = match recipe.method {
        Method::Full => FULL_OPERATIONS,
        Method::Lora => LORA_OPERATIONS,
    };
    passes
        + match recipe.gradient_checkpointing {
            GradientCheckpointing::Off => 0.0,
            GradientCheckpointing::Selective => RECOMPUTE_UNITS,
            GradientCheckpointing::Full | GradientCheckpointing::Offload => RECOMPUTE,
        }
}

/// An arm on a device of the table.
pub(crate) fn computed(
    name: &str,
    shape: &Shape,
    recipe: &Recipe,
    work: &Work,
    device: &Device,
    grid: &Grid,
    available: Option<f64>,
) -> Arm {
    let memory = computed_memory(shape, recipe, work);
    // Answers make one token at a time: most of the time goes to reading weights, not to arithmetic.
    let evaluated = work.evaluation_tokens * work.evaluations;
    let answered = 2 * work.answers * work.answer_tokens;
    let flops = shape.products()
        * (operations(recipe) * work.tokens as f64 + 2.0 * (evaluated + 4 * answered) as f64);
    let used = hardware::UTILISATION;
    let four = matches!(recipe.quantize, Quantize::Nf4 | Quantize::Nf4Dq);
    let slower = if four { FOUR_BITS } else { Range::exactly(1.0) };
    let at = |share: f64| flops / (device.tflops * 1e12 * share);
    let seconds = times(
        Range::new(at(used.high), at(used.central), at(used.low)),
        slower,
    );
    let joules = times(
        Range::new(
            device.watts * hardware::LEAST_LOAD,
            device.watts,
            device.watts,
        ),
        seconds,
    );
    let peak = Range::around(memory.total(), 0.25);
    arm(
        name,
        How::Computed,
        memory,
        peak,
        seconds,
        kwh(joules),
        grid,
        available,
    )
}

fn arm(
    name: &str,
    how: How,
    memory: Memory,
    peak_bytes: Range,
    seconds: Range,
    energy_kwh: Range,
    grid: &Grid,
    available: Option<f64>,
) -> Arm {
    Arm {
        name: name.to_owned(),
        how,
        memory,
        peak_bytes,
        seconds,
        energy_kwh,
        emissions_g: operational_g(energy_kwh, grid.pue, grid.g_per_kwh),
        fits: available.map(|available| peak_bytes.high <= available),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(method: Method, quantize: Quantize, checkpointing: bool) -> Recipe {
        let checkpointing = if checkpointing {
            GradientCheckpointing::Full
        } else {
            GradientCheckpointing::Off
        };
        Recipe {
            method,
            quantize,
            gradient_checkpointing: checkpointing,
            ..Recipe::default()
        }
    }

    #[test]
    fn full_training_is_half_as_much_again_and_four_bits_cost_time() {
        let lora = recipe(Method::Lora, Quantize::None, false);
        let full = recipe(Method::Full, Quantize::None, false);
        let four = recipe(Method::Lora, Quantize::Nf4, false);
        assert_eq!(relative(&full, &lora), Range::exactly(1.5));
        assert_eq!(relative(&four, &lora), FOUR_BITS);
        assert!((relative(&lora, &four).central - 1.0 / 1.3).abs() < 1e-12);
        let again = recipe(Method::Lora, Quantize::None, true);
        assert_eq!(relative(&again, &lora), Range::exactly(1.375));
    }

    #[test]
    fn texts_whose_prefix_is_kept_cost_less_from_the_second_time_on() {
        let work = Work {
            largest_batch: (64, 64),
            evaluation_tokens: 10,
            answers: 0,
            answer_tokens: 0,
            steps: 30,
            tokens: 300,
            epoch_tokens: 100,
            evaluations: 4,
            saves: 0,
        };
        assert_eq!(work_seconds(&work, (2.0, 10.0), None), (600.0, 40.0));
        let again = Again {
            tokens: 50,
            step_seconds: 50.0,
            evaluation_seconds: 4.0,
            share: 1.0,
            more_bytes: 0,
        };
        let all = work_seconds(&work, (2.0, 10.0), Some(again));
        assert_eq!(all, (100.0 * 2.0 + 200.0, 10.0 + 3.0 * 4.0));
        let half = Again {
            share: 0.5,
            ..again
        };
        let some = work_seconds(&work, (2.0, 10.0), Some(half));
        assert_eq!(some, (200.0 * 2.0 + 100.0, 2.5 * 10.0 + 1.5 * 4.0));
        // Less than one pass over the data sees nothing twice.
        let short = Work {
            tokens: 60,
            evaluations: 1,
            ..work
        };
        let first = work_seconds(&short, (2.0, 10.0), Some(again));
        assert_eq!(first, (120.0, 10.0));
    }

    #[test]
    fn a_recipe_is_one_of_the_arms_or_none() {
        assert!(is_arm(&recipe(Method::Full, Quantize::None, false), "full"));
        assert!(is_arm(
            &recipe(Method::Lora, Quantize::Nf4, false),
            "LoRA on NF4"
        ));
        let int8 = recipe(Method::Lora, Quantize::Int8, false);
        assert!(BESIDE.iter().all(|(name, _)| !is_arm(&int8, name)));
    }
}
