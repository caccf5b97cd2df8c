//! What can be changed so that a recipe fits: in the order in which one would try, each with what it saves
//! and what it costs. Each is computed on top of those before it.

use serde::Serialize;

use super::memory::{self, Shape};
use crate::recipe::{Dtype, GradientCheckpointing, Method, Optim, Quantize, Recipe};
use crate::run::Work;

/// A change of the recipe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Knob {
    /// What to write.
    pub(crate) write: String,
    /// Bytes it saves on top of those before it.
    pub(crate) saves_bytes: f64,
    /// The peak with it and all before it, bytes.
    pub(crate) leaves_bytes: f64,
    /// What it costs, in words.
    pub(crate) costs: &'static str,
}

/// A change: what to write, what it does, what it costs. None where the recipe has it already.
type Change = (String, Recipe, f64, &'static str);

/// The knobs of a recipe whose peak is `peak` bytes, those that save at least a hundredth of it.
pub(crate) fn of(shape: &Shape, recipe: &Recipe, work: &Work, peak: f64) -> Vec<Knob> {
    let (tokens, targets) = work.largest_batch;
    let need = |recipe: &Recipe, rows: f64| {
        memory::estimate(
            shape,
            recipe,
            tokens as f64 * rows,
            targets as f64 * rows,
            None,
        )
        .total()
    };
    // What was measured may differ from what is computed; the savings are taken from the latter.
    let mut now = need(recipe, 1.0);
    let mut leaves = peak;
    let mut changed = recipe.clone();
    let mut rows = 1.0;
    let mut knobs = Vec::new();
    let changes: [fn(&Recipe, f64) -> Option<Change>; 9] = [
        selective_checkpointing,
        checkpointing,
        offload,
        smaller_batches,
        eight_bit_moments,
        narrower,
        adapter,
        four_bits,
        shorter,
    ];
    for change in changes {
        let Some((write, recipe, new_rows, costs)) = change(&changed, rows) else {
            continue;
        };
        let then = need(&recipe, new_rows);
        let saves = now - then;
        if saves < 0.01 * peak {
            continue;
        }
        leaves -= saves;
        knobs.push(Knob {
            write,
            saves_bytes: saves,
            leaves_bytes: leaves.max(then.min(peak)),
            costs,
        });
        (changed, rows, now) = (recipe, new_rows, then);
    }
    knobs
}

fn selective_checkpointing(recipe: &Recipe, rows: f64) -> Option<Change> {
    let mut changed = recipe.clone();
    changed.gradient_checkpointing = GradientCheckpointing::Selective;
    (recipe.gradient_checkpointing == GradientCheckpointing::Off).then(|| {
        let write = "gradient_checkpointing: selective".to_owned();
        (write, changed, rows, "a seventh more time, same result")
    })
}

fn checkpointing(recipe: &Recipe, rows: f64) -> Option<Change> {
    let mut changed = recipe.clone();
    changed.gradient_checkpointing = GradientCheckpointing::Full;
    let has = [GradientCheckpointing::Full, GradientCheckpointing::Offload];
    (!has.contains(&recipe.gradient_checkpointing)).then(|| {
        let write = "gradient_checkpointing: true".to_owned();
        (write, changed, rows, "a quarter more time, same result")
    })
}

/// Saves nothing on a processor, whose memory it is.
fn offload(recipe: &Recipe, rows: f64) -> Option<Change> {
    let mut changed = recipe.clone();
    changed.gradient_checkpointing = GradientCheckpointing::Offload;
    (recipe.gradient_checkpointing != GradientCheckpointing::Offload).then(|| {
        let write = "gradient_checkpointing: offload".to_owned();
        let costs = "the computer's memory in its place, same result";
        (write, changed, rows, costs)
    })
}

fn smaller_batches(recipe: &Recipe, rows: f64) -> Option<Change> {
    let mut changed = recipe.clone();
    changed.batch_size = 1;
    changed.gradient_accumulation_steps *= recipe.batch_size;
    (recipe.batch_size > 1).then(|| {
        let write = format!(
            "batch_size: 1, gradient_accumulation_steps: {}",
            changed.gradient_accumulation_steps
        );
        let rows = rows / recipe.batch_size as f64;
        (write, changed, rows, "some time, same result")
    })
}

fn eight_bit_moments(recipe: &Recipe, rows: f64) -> Option<Change> {
    let mut changed = recipe.clone();
    changed.optim = Optim::Adamw8bit;
    (recipe.optim == Optim::Adamw).then(|| {
        let costs = "up to 6 % more time, a little precision";
        ("optim: adamw_8bit".to_owned(), changed, rows, costs)
    })
}

fn narrower(recipe: &Recipe, rows: f64) -> Option<Change> {
    let mut changed = recipe.clone();
    changed.dtype = Dtype::Bf16;
    let has_effect = recipe.dtype != Dtype::Bf16;
    has_effect.then(|| {
        let costs = "slower on processors without bf16, a little precision";
        ("dtype: bf16".to_owned(), changed, rows, costs)
    })
}

fn adapter(recipe: &Recipe, rows: f64) -> Option<Change> {
    let mut changed = recipe.clone();
    changed.method = Method::Lora;
    (recipe.method == Method::Full).then(|| {
        let costs = "learns a little less on much data; publishes megabytes";
        ("method: lora".to_owned(), changed, rows, costs)
    })
}

fn four_bits(recipe: &Recipe, rows: f64) -> Option<Change> {
    let mut changed = recipe.clone();
    changed.quantize = Quantize::Nf4Dq;
    let narrower = !matches!(recipe.quantize, Quantize::Nf4 | Quantize::Nf4Dq);
    (recipe.method == Method::Lora && narrower).then(|| {
        let costs = "up to 80 % more time, a little quality";
        ("quantize: nf4-dq".to_owned(), changed, rows, costs)
    })
}

fn shorter(recipe: &Recipe, rows: f64) -> Option<Change> {
    let mut changed = recipe.clone();
    changed.max_length = recipe.max_length / 2;
    (recipe.max_length >= 64).then(|| {
        let write = format!("max_length: {}", changed.max_length);
        (write, changed, rows / 2.0, "cuts longer examples")
    })
}

#[cfg(test)]
mod tests {
    use sparsam_base::config::ModelConfig;

    use super::*;

    fn shape() -> Shape {
        shape_of(4096)
    }

    /// The shape of Llama 2 7B, at a width of 4096.
    fn shape_of(hidden: usize) -> Shape {
        let text = r#"{"model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
            "vocab_size": 32000, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
            "tie_word_embeddings": false, "hidden_act": "silu"}"#;
        let text = text.replace("HIDDEN", &hidden.to_string());
        Shape::of(&ModelConfig::parse(&text).unwrap())
    }

    fn work(tokens: u64) -> Work {
        Work {
            largest_batch: (tokens, tokens / 2),
            evaluation_tokens: 0,
            answers: 0,
            answer_tokens: 0,
            steps: 1,
            tokens,
            epoch_tokens: tokens,
            evaluations: 0,
            saves: 0,
        }
    }

    #[test]
    fn a_model_of_seven_billion_takes_what_it_is_known_to_take() {
        let shape = shape();
        let parameters = memory::parameters(&shape);
        assert!((parameters / 6.738e9 - 1.0).abs() < 0.001, "{parameters}");
        let mut recipe = Recipe {
            dtype: Dtype::Bf16,
            ..Recipe::default()
        };
        let memory = |recipe: &Recipe| memory::estimate(&shape, recipe, 2048.0, 1024.0, None);
        assert!((memory(&recipe).weights / 13.48e9 - 1.0).abs() < 0.01);
        // LoRA of rank 16 on every projection: 39,976,960 weights.
        let trained = memory::adapter_parameters(&shape, 16);
        assert_eq!(trained, 39_976_960.0);
        assert_eq!(memory(&recipe).optimiser, trained * 12.0);
        // Two moments of a byte and a 64th each; every branch has 16 times 4096 numbers or more.
        recipe.optim = Optim::Adamw8bit;
        assert!((memory(&recipe).optimiser / (trained * 6.03125) - 1.0).abs() < 1e-12);
        recipe.optim = Optim::Adamw;
        recipe.quantize = Quantize::Nf4Dq;
        // 4.127 bits for the blocks, 16 for embedding and head: 3.34 + 0.52 GB.
        assert!((memory(&recipe).weights / 3.865e9 - 1.0).abs() < 0.01);
        recipe.quantize = Quantize::None;
        recipe.method = Method::Full;
        assert!(
            memory(&recipe).total() > 100e9,
            "full training of 7B needs a server"
        );
    }

    #[test]
    fn moments_that_stay_in_f32_are_counted_as_such() {
        let shape = shape();
        let mut recipe = Recipe {
            optim: Optim::Adamw8bit,
            ..Recipe::default()
        };
        let memory = |recipe: &Recipe| memory::estimate(&shape, recipe, 64.0, 32.0, None).optimiser;
        // The smallest of rank 1 have 4096 numbers, which is just enough.
        recipe.lora.r = 1;
        let trained = memory::adapter_parameters(&shape, 1);
        assert!((memory(&recipe) / (trained * 6.03125) - 1.0).abs() < 1e-12);
        let narrow = shape_of(4032);
        let trained = memory::adapter_parameters(&narrow, 1);
        let wide = 3.0 * 11008.0 * 32.0;
        let expected = wide * 6.03125 + (trained - wide) * 12.0;
        let found = memory::estimate(&narrow, &recipe, 64.0, 32.0, None).optimiser;
        assert!(
            (found / expected - 1.0).abs() < 1e-12,
            "{found}, not {expected}"
        );
        // All but the embedding, of 32000 times 4096.
        recipe.method = Method::Full;
        let table = 32000.0 * 4096.0;
        let narrow = memory::parameters(&shape) - table;
        let expected = narrow * 6.03125 + table * 12.0;
        assert!((memory(&recipe) / expected - 1.0).abs() < 1e-12);
    }

    fn narrow(recipe: &mut Recipe, checkpointing: GradientCheckpointing) {
        recipe.dtype = Dtype::Bf16;
        recipe.quantize = Quantize::Nf4;
        recipe.gradient_checkpointing = checkpointing;
    }

    /// A step of 480 tokens, 193 of them targets, with `builtin:sprout` on the emulated GPU (`tests/cuda`), whose pool
    /// counts every byte as a GPU's does.
    #[test]
    fn a_gpu_s_memory_is_what_its_pool_counts() {
        let text = sparsam_base::builtin::find("sprout").unwrap().config;
        let shape = Shape::of(&ModelConfig::parse(text).unwrap()).elsewhere();
        let mut recipe = Recipe {
            dtype: Dtype::F32,
            ..Recipe::default()
        };
        recipe.lora.r = 8;
        let plain = recipe.clone();
        let measured: [(f64, fn(&mut Recipe)); 10] = [
            (42_656_104.0, |_| ()),
            (34_548_712.0, |recipe| recipe.quantize = Quantize::Nf4),
            (23_238_880.0, |recipe| {
                recipe.gradient_checkpointing = GradientCheckpointing::Full;
            }),
            (21_764_320.0, |recipe| {
                recipe.gradient_checkpointing = GradientCheckpointing::Offload;
            }),
            (29_175_384.0, |recipe| recipe.dtype = Dtype::Bf16),
            (25_786_584.0, |recipe| {
                narrow(recipe, GradientCheckpointing::Off);
            }),
            (14_312_664.0, |recipe| {
                narrow(recipe, GradientCheckpointing::Full);
            }),
            (12_469_464.0, |recipe| {
                narrow(recipe, GradientCheckpointing::Offload);
            }),
            (25_786_584.0, |recipe| {
                narrow(recipe, GradientCheckpointing::Off);
                recipe.lora.dropout = 0.1;
            }),
            (77_184_616.0, |recipe| recipe.method = Method::Full),
        ];
        for (measured, change) in measured {
            let mut recipe = plain.clone();
            change(&mut recipe);
            let plan = memory::estimate(&shape, &recipe, 480.0, 193.0, None);
            let planned = plan.total() - memory::PROGRAM;
            assert!(
                (planned / measured - 1.0).abs() < 0.05,
                "{planned} planned, {measured} measured: {plan:?}"
            );
        }
    }

    #[test]
    fn knobs_save_in_turn_and_what_a_recipe_has_is_not_offered() {
        let shape = shape();
        let recipe = Recipe {
            method: Method::Full,
            batch_size: 8,
            ..Recipe::default()
        };
        let work = work(8192);
        let peak = memory::estimate(&shape, &recipe, 8192.0, 4096.0, None).total();
        let knobs = of(&shape, &recipe, &work, peak);
        assert!(knobs[0].write.starts_with("gradient_checkpointing"));
        assert!(knobs.iter().any(|knob| knob.write == "method: lora"));
        for pair in knobs.windows(2) {
            assert!(pair[1].leaves_bytes < pair[0].leaves_bytes, "{knobs:?}");
        }
        let saved: f64 = knobs.iter().map(|knob| knob.saves_bytes).sum();
        let left = knobs.last().unwrap().leaves_bytes;
        assert!((peak - saved - left).abs() < 1e-3 * peak);
        let has = Recipe {
            gradient_checkpointing: GradientCheckpointing::Full,
            batch_size: 1,
            dtype: Dtype::Bf16,
            quantize: Quantize::Nf4,
            optim: Optim::Adamw8bit,
            ..Recipe::default()
        };
        let knobs = of(&shape, &has, &work, 5e9);
        assert!(
            knobs
                .iter()
                .all(|knob| knob.write.starts_with("max_length")),
            "{knobs:?}"
        );
    }
}
