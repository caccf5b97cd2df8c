//! What must not matter does not: how texts are batched, what is recomputed, how a batch is split.

mod common;

use common::{F32, Texts, assert_near, dora, family, gradients, lora, texts};
use sparsam_adapter::lora::LoraConfig;
use sparsam_adapter::optimizer::Optimizer;
use sparsam_adapter::pass::differentiate;
use sparsam_adapter::trainable::Trainable;
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_base::stack::Checkpointing;
use sparsam_kernels::adamw::AdamW;

/// Uneven, one shorter and one longer than the sliding window of `mistral`.
const LENGTHS: [usize; 8] = [19, 5, 33, 12, 2, 27, 8, 16];

/// How a model is trained.
#[derive(Clone, Copy, Debug)]
enum Way {
    Lora,
    Dora,
    Full,
}

impl Way {
    fn on(self, model: &mut Model) -> Trainable {
        match self {
            Self::Lora => Trainable::lora(model, &lora(), 7),
            Self::Dora => Trainable::lora(model, &dora(), 7),
            Self::Full => Trainable::full(model),
        }
        .expect("trainable")
    }
}

type Gradients = Vec<(String, Vec<f32>)>;

/// Summed loss and gradients of texts, taken in the given parts.
fn pass(
    model: &Model,
    trainable: &mut Trainable,
    parts: &[&[Vec<u32>]],
    checkpointing: Checkpointing,
) -> (f64, Gradients) {
    trainable.clear_gradients().expect("cleared");
    let mut sum = 0.0;
    for part in parts {
        let texts = Texts::new(part);
        let loss = differentiate(model, trainable, texts.input(), 0.01, checkpointing);
        sum += loss.expect("a pass").sum;
    }
    (sum, gradients(trainable))
}

#[test]
fn packed_equals_unpacked() {
    let texts = texts(&LENGTHS);
    let alone: Vec<&[Vec<u32>]> = texts.chunks(1).collect();
    for name in ["llama-tied-bias", "mistral", "qwen2", "qwen3", "smollm3"] {
        for way in [Way::Lora, Way::Dora, Way::Full] {
            let mut model = family(name, F32);
            let mut trainable = way.on(&mut model);
            let (packed, together) = pass(&model, &mut trainable, &[&texts], Checkpointing::Off);
            let (unpacked, apart) = pass(&model, &mut trainable, &alone, Checkpointing::Off);
            let what = format!("{name}, {way:?}");
            assert!(
                (packed - unpacked).abs() < 1e-6 * unpacked,
                "{what}: {packed} and {unpacked}"
            );
            assert_near(&what, &together, &apart, 1e-6);
        }
    }
}

#[test]
fn checkpointing_changes_no_bit() {
    let texts = texts(&LENGTHS);
    for quantize in [Quantize::None, Quantize::Nf4Double] {
        let options = LoadOptions { quantize, ..F32 };
        for way in [Way::Lora, Way::Dora, Way::Full] {
            if quantize != Quantize::None && matches!(way, Way::Full) {
                continue;
            }
            let mut model = family("llama-tied-bias", options);
            let mut trainable = way.on(&mut model);
            let kept = pass(&model, &mut trainable, &[&texts], Checkpointing::Off);
            for again in [Checkpointing::Units, Checkpointing::Blocks] {
                let recomputed = pass(&model, &mut trainable, &[&texts], again);
                assert!(kept == recomputed, "{way:?} on {quantize:?}, {again:?}");
            }
        }
    }
}

/// The recomputed pass sees the masks of the first; another micro-batch sees others.
#[test]
fn checkpointing_changes_no_bit_with_dropout() {
    let texts = texts(&LENGTHS);
    for config in [lora(), dora()] {
        let config = LoraConfig {
            lora_dropout: 0.25,
            ..config
        };
        let mut model = family("qwen3", F32);
        let mut trainable = Trainable::lora(&mut model, &config, 7).expect("trainable");
        let without = pass(&model, &mut trainable, &[&texts], Checkpointing::Off);
        trainable.set_training(Some(3));
        let kept = pass(&model, &mut trainable, &[&texts], Checkpointing::Off);
        for again in [Checkpointing::Units, Checkpointing::Blocks] {
            let recomputed = pass(&model, &mut trainable, &[&texts], again);
            assert!(
                kept == recomputed,
                "use_dora {}, {again:?}",
                config.use_dora
            );
        }
        assert!(kept.0 != without.0, "dropout does nothing");
        trainable.set_training(Some(4));
        let next = pass(&model, &mut trainable, &[&texts], Checkpointing::Blocks);
        assert!(kept.0 != next.0, "every step drops the same");
    }
}

/// Losses of six updates on eight texts, taken `size` at a time.
fn losses(way: Way, size: usize) -> Vec<f64> {
    let texts = texts(&LENGTHS);
    let total = Texts::new(&texts).count();
    let mut model = family("llama", F32);
    let mut trainable = way.on(&mut model);
    let mut optimizer =
        Optimizer::new(&trainable, AdamW::default(), Some(1.0)).expect("an optimiser");
    let mut losses = Vec::new();
    for _ in 0..6 {
        let mut sum = 0.0;
        for part in texts.chunks(size) {
            let part = Texts::new(part);
            let loss = differentiate(
                &model,
                &mut trainable,
                part.input(),
                1.0 / total,
                Checkpointing::Off,
            );
            sum += loss.expect("a pass").sum;
        }
        losses.push(sum / total);
        optimizer.step(&trainable, 2e-3).expect("an update");
    }
    losses
}

#[test]
fn a_split_into_micro_batches_changes_no_loss() {
    for way in [Way::Lora, Way::Dora, Way::Full] {
        let whole = losses(way, 8);
        assert!(
            whole[5] < whole[0] - 0.05,
            "{way:?} learns nothing: {whole:?}"
        );
        for size in [4, 2, 1] {
            for (step, (split, whole)) in losses(way, size).iter().zip(&whole).enumerate() {
                assert!(
                    (split - whole).abs() < 1e-5 * whole,
                    "{way:?}, {size} at a time, step {step}: {split} and {whole}"
                );
            }
        }
    }
}
