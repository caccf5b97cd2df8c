//! How much memory a recipe needs, from the shape of its model: what is stored, what training adds, and
//! what a batch leaves between its forward and its backward pass. For this program's own engine: the
//! counts follow `block.rs`, which says what a block keeps, and `cross_entropy.rs`, which says how many
//! logits exist at a time. Activations are f32 whatever the weights are, but for gate and up, which a GPU, and a processor
//! that multiplies in bf16, keep so.

use serde::{Deserialize, Serialize};
use sparsam_adapter::optimizer::{BYTES_EIGHT_BIT, BYTES_F32, MIN_EIGHT_BIT};
use sparsam_base::config::ModelConfig;
use sparsam_base::encoder::config::EncoderConfig;
use sparsam_kernels::cross_entropy::{LOGITS_ON_GPU, logits_at_a_time};
use sparsam_kernels::lora::rounding_is_faster;

use crate::recipe::{Dtype, GradientCheckpointing, Method, Optim, Quantize, Recipe};

/// Bytes of an f32.
const F32: f64 = 4.0;
/// Bytes of a number in bf16.
const BF16: f64 = 2.0;

/// The program itself, its threads and what the allocator holds: our own runs with the smallest model.
pub(super) const PROGRAM: f64 = 70e6;

/// Memory by part, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Weights of the base as stored.
    pub(crate) weights: f64,
    /// What is trained, beside the base.
    pub(crate) adapter: f64,
    /// Gradients and the optimiser's two moments.
    pub(crate) optimiser: f64,
    /// What the blocks keep for their backward pass.
    pub(crate) activations: f64,
    /// The head's logits and the gradient of the hidden states.
    pub(crate) head: f64,
    /// What one block's backward pass needs for a moment, the data, and the program.
    pub(crate) scratch: f64,
}

impl Memory {
    pub(crate) fn total(&self) -> f64 {
        self.weights + self.adapter + self.optimiser + self.activations + self.head + self.scratch
    }

    /// Names and parts, in order.
    pub(crate) fn parts(&self) -> [(&'static str, f64); 6] {
        [
            ("weights", self.weights),
            ("adapter", self.adapter),
            ("optimiser", self.optimiser),
            ("activations", self.activations),
            ("head, loss", self.head),
            ("scratch", self.scratch),
        ]
    }
}

/// The shape of a model, as far as memory and arithmetic go by it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Shape {
    hidden: f64,
    q: f64,
    kv: f64,
    wide: f64,
    /// Whether the unit has a gate beside the way up.
    gated: bool,
    /// Whether its blocks are decoders', which keep gate and up in bf16 where products are of such numbers alone.
    decoder: bool,
    on_gpu: bool,
    vocabulary: f64,
    layers: f64,
    heads: f64,
    /// Tables of the vocabulary that are stored.
    tables: f64,
    /// Those of them that every token is multiplied with.
    multiplied: f64,
}

impl Shape {
    /// Of a language model.
    pub(crate) fn of(config: &ModelConfig) -> Self {
        let head = config.head_dim as f64;
        Self {
            hidden: config.hidden_size as f64,
            q: config.num_attention_heads as f64 * head,
            kv: config.num_key_value_heads as f64 * head,
            wide: config.intermediate_size as f64,
            gated: true,
            decoder: true,
            on_gpu: false,
            vocabulary: config.vocab_size as f64,
            layers: config.num_hidden_layers as f64,
            heads: config.num_attention_heads as f64,
            tables: if config.tie_word_embeddings { 1.0 } else { 2.0 },
            multiplied: 1.0,
        }
    }

    /// Of an encoder.
    pub(crate) fn of_encoder(config: &EncoderConfig) -> Self {
        let hidden = config.hidden_size as f64;
        Self {
            hidden,
            q: hidden,
            kv: hidden,
            wide: config.intermediate_size as f64,
            gated: config.modern.is_some(),
            decoder: false,
            on_gpu: false,
            vocabulary: config.vocab_size as f64,
            layers: config.num_hidden_layers as f64,
            heads: config.num_attention_heads as f64,
            tables: 1.0,
            multiplied: 0.0,
        }
    }

    /// The same model with a head over classes in the place of that over the vocabulary, which is of no account.
    pub(crate) fn classifier(self) -> Self {
        Self {
            tables: 1.0,
            multiplied: 0.0,
            ..self
        }
    }

    /// The same model on a GPU.
    pub(crate) fn elsewhere(self) -> Self {
        Self {
            on_gpu: true,
            ..self
        }
    }

    /// Bytes of a number of gate and up, as `Block` keeps them: `Hook::takes_bf16` says when.
    fn unit_bytes(&self, recipe: &Recipe) -> f64 {
        let lora = &recipe.lora;
        let rounds = self.on_gpu || rounding_is_faster() && lora.dropout == 0.0;
        let alone = recipe.method == Method::Lora && !lora.use_dora;
        if self.decoder && rounds && alone && recipe.dtype == Dtype::Bf16 {
            BF16
        } else {
            F32
        }
    }

    /// Bytes of a number of q, k and v, and of one of what attention gives, as a block keeps them: a GPU's tensor cores
    /// take and give them in bf16, for heads that `AttentionShape::takes_bf16`.
    fn attention_bytes(&self, recipe: &Recipe) -> (f64, f64) {
        let head = self.q / self.heads;
        let takes = self.on_gpu && self.decoder && head <= 128.0 && head % 8.0 == 0.0;
        if takes && recipe.dtype == Dtype::Bf16 {
            (BF16, self.unit_bytes(recipe))
        } else {
            (F32, F32)
        }
    }

    /// Inputs and outputs of the projections of a block.
    fn projections(&self) -> Vec<(f64, f64)> {
        let mut all = vec![
            (self.hidden, self.q),
            (self.hidden, self.kv),
            (self.hidden, self.kv),
            (self.q, self.hidden),
            (self.hidden, self.wide),
            (self.wide, self.hidden),
        ];
        if self.gated {
            all.push((self.hidden, self.wide));
        }
        all
    }

    fn block(&self) -> f64 {
        self.projections().iter().map(|(a, b)| a * b).sum()
    }

    /// Numbers that every token is multiplied with.
    pub(crate) fn products(&self) -> f64 {
        self.layers * self.block() + self.multiplied * self.vocabulary * self.hidden
    }

    /// Bytes that a block keeps for a token: its input, q, k, v, the attended values, the sum before the unit, and of
    /// the unit two numbers for each of its width (gate and up, or before and after the bend), and a logarithm
    /// for each head.
    fn kept(&self, recipe: &Recipe) -> f64 {
        self.kept_before_unit(recipe) + 2.0 * self.wide * self.unit_bytes(recipe)
    }

    /// Numbers of the logits that exist at a time, of so many tokens that are learned.
    fn logits(&self, recipe: &Recipe, targets: f64) -> f64 {
        if self.on_gpu {
            let chunks = (targets * self.vocabulary / LOGITS_ON_GPU as f64).ceil();
            return (targets / chunks.max(1.0)).ceil() * self.vocabulary;
        }
        let saved = |module: &str| recipe.lora.modules_to_save.iter().any(|m| m == module);
        let trained = recipe.method == Method::Full || saved("lm_head");
        let rounded = recipe.dtype == Dtype::Bf16;
        logits_at_a_time(targets as usize, self.vocabulary as usize, trained, rounded) as f64
    }

    /// Bytes of the largest quantised weight as a GPU expands it for its product; a processor expands a few rows.
    fn expanded(&self, recipe: &Recipe) -> f64 {
        if !self.on_gpu || recipe.quantize == Quantize::None {
            return 0.0;
        }
        let sizes = self.projections().into_iter().map(|(a, b)| a * b);
        let each = if recipe.dtype == Dtype::F32 { F32 } else { 2.0 };
        sizes.fold(0.0, f64::max) * each
    }

    /// Those of them that come before its unit.
    fn kept_before_unit(&self, recipe: &Recipe) -> f64 {
        let (narrow, attended) = self.attention_bytes(recipe);
        let qkv = (self.q + 2.0 * self.kv) * narrow;
        (2.0 * self.hidden + self.heads) * F32 + qkv + self.q * attended
    }
}

/// Bytes of a number in the projections.
fn projection_bytes(recipe: &Recipe) -> f64 {
    match recipe.quantize {
        Quantize::None => dense_bytes(recipe),
        Quantize::Int8 => 1.0,
        // Four bits and a scale of four bytes for 64; doubly quantised, 4.127 bits.
        Quantize::Nf4 => 0.5 + F32 / 64.0,
        Quantize::Nf4Dq => 4.127 / 8.0,
    }
}

fn dense_bytes(recipe: &Recipe) -> f64 {
    match recipe.dtype {
        Dtype::Bf16 => 2.0,
        Dtype::F32 | Dtype::Auto => F32,
    }
}

/// Numbers in a model of that shape, its norms left out.
pub(crate) fn parameters(shape: &Shape) -> f64 {
    shape.layers * shape.block() + shape.tables * shape.vocabulary * shape.hidden
}

/// Numbers that an adapter on every projection has.
pub(crate) fn adapter_parameters(shape: &Shape, rank: usize) -> f64 {
    let w = shape;
    let widths: f64 = w.projections().iter().map(|(a, b)| a + b).sum();
    w.layers * rank as f64 * widths
}

/// The share of what is trained whose moments are in eight bits: all but small matrices and the embedding.
fn eight_bit_share(shape: &Shape, recipe: &Recipe) -> f64 {
    if recipe.optim == Optim::Adamw {
        return 0.0;
    }
    let large = |numbers: f64| {
        if numbers >= MIN_EIGHT_BIT as f64 {
            numbers
        } else {
            0.0
        }
    };
    let in_blocks = |of: &dyn Fn((f64, f64)) -> f64| -> f64 {
        shape.layers * shape.projections().into_iter().map(of).sum::<f64>()
    };
    if recipe.method == Method::Full {
        let table = shape.vocabulary * shape.hidden;
        let head = (shape.tables - 1.0) * large(table);
        // Of an encoder or a tied head there is the embedding alone.
        (in_blocks(&|(a, b)| large(a * b)) + head) / parameters(shape)
    } else {
        let rank = recipe.lora.r as f64;
        in_blocks(&|(a, b)| large(rank * a) + large(rank * b)) / in_blocks(&|(a, b)| rank * (a + b))
    }
}

/// The memory of a recipe whose largest batch has so many tokens, of which `targets` are learned.
/// `trainable` is what is trained where that is known.
pub(crate) fn estimate(
    shape: &Shape,
    recipe: &Recipe,
    tokens: f64,
    targets: f64,
    trainable: Option<f64>,
) -> Memory {
    let w = shape;
    let weights = w.layers * w.block() * projection_bytes(recipe)
        + w.tables * w.vocabulary * w.hidden * dense_bytes(recipe);
    let full = recipe.method == Method::Full;
    // Blocks below the lowest adapted one keep nothing for the way back.
    let named = recipe.lora.layers_to_transform.as_deref();
    let (differentiated, adapted) = match named.filter(|layers| !full && !layers.is_empty()) {
        Some(layers) => {
            let lowest = layers.iter().min().map_or(0.0, |lowest| *lowest as f64);
            ((w.layers - lowest).max(1.0), layers.len() as f64)
        }
        None => (w.layers, w.layers),
    };
    let trained = trainable.unwrap_or_else(|| {
        if full {
            parameters(shape)
        } else {
            adapter_parameters(shape, recipe.lora.r) * adapted / w.layers
        }
    });
    // A weight of the base that is trained is its own value, or has a master in f32 beside it. A branch has a copy in bf16
    // beside it where a GPU multiplies in that.
    let adapter = match (full, recipe.dtype) {
        (false, Dtype::Bf16) if w.on_gpu => trained * (F32 + BF16),
        (true, Dtype::Bf16) | (false, _) => trained * F32,
        (true, _) => 0.0,
    };
    let narrow = eight_bit_share(w, recipe);
    let moments = narrow * BYTES_EIGHT_BIT + (1.0 - narrow) * BYTES_F32;
    // The reduced inputs of the branches: of all, and of q, k, v and o, which come before the unit.
    let rank = if full { 0.0 } else { recipe.lora.r as f64 };
    let kept = tokens * (w.kept(recipe) + w.projections().len() as f64 * rank * F32);
    let before_unit = tokens * (w.kept_before_unit(recipe) + 4.0 * rank * F32);
    // While the head computes, and the most there is later, when a block has been computed again.
    let (at_head, activations) = match recipe.gradient_checkpointing {
        GradientCheckpointing::Off => (differentiated * kept, differentiated * kept),
        GradientCheckpointing::Selective => (
            differentiated * before_unit,
            (differentiated - 1.0) * before_unit + kept,
        ),
        GradientCheckpointing::Full | GradientCheckpointing::Offload => {
            let elsewhere =
                recipe.gradient_checkpointing == GradientCheckpointing::Offload && w.on_gpu;
            // The last block's stays, and while a block is computed again the next one's comes back.
            let [at_head, later] = [1.0, 2.0].map(|most| {
                let inputs = if elsewhere {
                    differentiated.min(most)
                } else {
                    differentiated
                };
                inputs * tokens * w.hidden * F32
            });
            (at_head, later + kept)
        }
    };
    let logits = w.multiplied * w.logits(recipe, targets);
    // A GPU has the gradient of bf16 logits in both types for a moment.
    let rounded = w.on_gpu && recipe.dtype == Dtype::Bf16;
    let head = logits * if rounded { 6.0 } else { F32 } + 3.0 * tokens * w.hidden * F32;
    let (head, scratch) = if w.on_gpu {
        // The gated product and its gradient, of the branches' own too if they drop, and two of the residual's width. What
        // a GPU's pool gives back it gives out again, so that this and the head, which is gone by then, do not add up.
        let drops = recipe.method == Method::Lora && recipe.lora.dropout > 0.0;
        let unit = if drops { 4.0 } else { 2.0 } * w.wide * w.unit_bytes(recipe);
        let moment = tokens * (unit + 2.0 * w.hidden * F32) + w.expanded(recipe);
        let most = (at_head + head).max(activations + moment) - activations;
        let head = head.min(most);
        (head, most - head)
    } else {
        // The gated product and its gradient; q, k, v; three of the residual's width. Gate and up in bf16 come of those
        // in f32, which is the most there is at a time then.
        let of_unit = if w.unit_bytes(recipe) < F32 { 2.5 } else { 2.0 };
        let moment = tokens * (of_unit * w.wide + w.q + 2.0 * w.kv + 3.0 * w.hidden) * F32;
        (head, moment)
    };
    Memory {
        weights,
        adapter,
        optimiser: trained * (F32 + moments),
        activations,
        head,
        scratch: scratch + PROGRAM,
    }
}
