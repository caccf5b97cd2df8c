//! A base kept in bf16 is an f32 base whose weights were rounded: nothing else is computed in bf16.

mod common;

use std::process::Command;

use candle_core::{DType, Tensor};
use common::{
    F32, Texts, assert_near, device, dora, family, fixtures, gradients, lora, numbers, texts,
};
use sparsam_adapter::optimizer::Optimizer;
use sparsam_adapter::pass::{differentiate, evaluate};
use sparsam_adapter::trainable::Trainable;
use sparsam_base::config::ModelConfig;
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::model::{EMBEDDING, LoadOptions, Model};
use sparsam_base::stack::Checkpointing;
use sparsam_base::weights::Weights;
use sparsam_kernels::Weight;
use sparsam_kernels::adamw::AdamW;
use sparsam_kernels::cpu::Level;
use sparsam_kernels::gemm::Kernel;
use sparsam_kernels::host::update;
use sparsam_kernels::lora::rounding_is_faster;

const FAMILY: &str = "qwen2";
const BF16: LoadOptions = LoadOptions {
    dtype: DType::BF16,
    ..F32
};

fn round(tensor: &Tensor) -> candle_core::Result<Tensor> {
    tensor.to_dtype(DType::BF16)?.to_dtype(DType::F32)
}

/// A folder's tensors with every matrix rounded to bf16. Norms and biases stay, as they do on loading.
struct Rounded(SafetensorsFiles);

impl Weights for Rounded {
    fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    fn tensor(&self, name: &str) -> sparsam_base::error::Result<Tensor> {
        let tensor = self.0.tensor(name)?;
        Ok(if tensor.rank() == 2 {
            round(&tensor)?
        } else {
            tensor
        })
    }
}

/// The family in f32 with its matrices rounded beforehand.
fn rounded() -> Model {
    let folder = fixtures().join("families").join(FAMILY);
    let config = std::fs::read_to_string(folder.join("config.json")).expect("a configuration");
    let config = ModelConfig::parse(&config).expect("a configuration");
    let files = SafetensorsFiles::in_folder(&folder).expect("weights");
    Model::load(config, &Rounded(files), F32).expect("a model")
}

fn differentiated(model: &Model, trainable: &mut Trainable) -> (f64, Vec<(String, Vec<f32>)>) {
    let batch = Texts::new(&texts(&[21, 9, 30]));
    let scale = 1.0 / batch.count();
    let loss =
        differentiate(model, trainable, batch.input(), scale, Checkpointing::Off).expect("a pass");
    (loss.sum, gradients(trainable))
}

#[track_caller]
fn assert_equal(
    what: &str,
    narrow: &(f64, Vec<(String, Vec<f32>)>),
    wide: &(f64, Vec<(String, Vec<f32>)>),
) {
    assert!(
        (narrow.0 - wide.0).abs() < 1e-6 * wide.0,
        "{what}: {} and {}",
        narrow.0,
        wide.0
    );
    assert_near(what, &narrow.1, &wide.1, 1e-6);
}

/// Where this processor rounds what it multiplies by a base in bf16, which a base of rounded f32 is spared, runs a
/// test of this file in a process that does not, and says so.
fn ran_without_rounded_products(test: &str) -> bool {
    if !rounding_is_faster() {
        return false;
    }
    let plain = Level::available().filter(|level| !f32::pairs_are_faster(*level));
    let plain = plain.last().expect("the portable one at least");
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args([test, "--exact"])
        .env("SPARSAM_CPU_LEVEL", plain.name())
        .output()
        .expect("a run");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
    true
}

#[test]
fn adapters_learn_the_same_on_bf16_as_on_rounded_f32() {
    if ran_without_rounded_products("adapters_learn_the_same_on_bf16_as_on_rounded_f32") {
        return;
    }
    for config in [lora(), dora()] {
        let (mut narrow, mut wide) = (family(FAMILY, BF16), rounded());
        assert_eq!(embedding(&narrow).dtype(), DType::BF16);
        let mut on_narrow = Trainable::lora(&mut narrow, &config, 3).expect("trainable");
        let mut on_wide = Trainable::lora(&mut wide, &config, 3).expect("trainable");
        let found = differentiated(&narrow, &mut on_narrow);
        let expected = differentiated(&wide, &mut on_wide);
        assert_equal("first pass", &found, &expected);
        for trainable in [&on_narrow, &on_wide] {
            let mut optimizer = Optimizer::new(trainable, AdamW::default(), None).expect("one");
            optimizer.step(trainable, 1e-3).expect("an update");
        }
        let (found, expected) = (
            differentiated(&narrow, &mut on_narrow),
            differentiated(&wide, &mut on_wide),
        );
        assert!(
            (found.0 - expected.0).abs() < 1e-5 * expected.0,
            "after an update: {} and {}",
            found.0,
            expected.0
        );
    }
}

/// Operands rounded to bf16, by up to 2⁻⁹ of each, as on a GPU, move the loss and the gradients by little; where the
/// processor does not round them, by nothing but the order of sums.
#[test]
fn rounded_products_move_losses_and_gradients_by_little() {
    let (mut narrow, mut wide) = (family(FAMILY, BF16), rounded());
    let mut on_narrow = Trainable::lora(&mut narrow, &lora(), 3).expect("trainable");
    let mut on_wide = Trainable::lora(&mut wide, &lora(), 3).expect("trainable");
    let found = differentiated(&narrow, &mut on_narrow);
    let expected = differentiated(&wide, &mut on_wide);
    let moved = (found.0 / expected.0 - 1.0).abs();
    let (mut apart, mut size) = (0.0, 0.0);
    for ((name, found), (other, expected)) in found.1.iter().zip(&expected.1) {
        assert_eq!(name, other);
        for (found, expected) in found.iter().zip(expected) {
            apart += f64::from(found - expected).powi(2);
            size += f64::from(*expected).powi(2);
        }
    }
    let apart = (apart / size).sqrt();
    let (loss, gradients) = if rounding_is_faster() || device().is_cuda() {
        (1e-3, 0.02)
    } else {
        (1e-6, 1e-5)
    };
    assert!(moved < loss && apart < gradients, "{moved:e} and {apart:e}");
}

/// The rounding is really there: the unrounded model computes something else.
#[test]
fn rounding_to_bf16_moves_the_loss() {
    let (mut wide, mut rounded) = (family(FAMILY, F32), rounded());
    let mut on_wide = Trainable::full(&mut wide).expect("trainable");
    let mut on_rounded = Trainable::full(&mut rounded).expect("trainable");
    let (exact, _) = differentiated(&wide, &mut on_wide);
    let (moved, _) = differentiated(&rounded, &mut on_rounded);
    assert!((exact - moved).abs() > 1e-5 * exact, "{exact} and {moved}");
}

#[test]
fn full_training_keeps_f32_masters_and_refreshes_the_bf16_copy() {
    if ran_without_rounded_products("full_training_keeps_f32_masters_and_refreshes_the_bf16_copy") {
        return;
    }
    let (mut narrow, mut wide) = (family(FAMILY, BF16), rounded());
    let mut on_narrow = Trainable::full(&mut narrow).expect("trainable");
    let mut on_wide = Trainable::full(&mut wide).expect("trainable");
    let found = differentiated(&narrow, &mut on_narrow);
    let expected = differentiated(&wide, &mut on_wide);
    assert_equal("first pass", &found, &expected);

    // Give both the same gradients, so that the masters can be compared bit by bit: Adam's first step
    // is the sign of a gradient, which rounding turns where it is next to nothing.
    for (name, trained) in on_narrow.registry() {
        let same = numbers(&on_wide.registry()[name].grad);
        update(&trained.grad, |grad: &mut [f32]| {
            grad.copy_from_slice(&same);
            Ok(())
        })
        .expect("copied");
    }
    // A step too small to survive in bf16: 8 bits round a weight of 0.2 to steps of 1e-3.
    let step = 1e-5;
    let before_step = numbers(&embedding(&narrow));
    for trainable in [&on_narrow, &on_wide] {
        let mut optimizer = Optimizer::new(trainable, AdamW::default(), None).expect("one");
        optimizer.step(trainable, step).expect("an update");
    }
    let mut moved = 0;
    for (name, trained) in on_narrow.registry() {
        assert_eq!(trained.value.dtype(), DType::F32, "{name}");
        let wide = numbers(&on_wide.registry()[name].value);
        assert!(numbers(&trained.value) == wide, "{name}: masters differ");
        moved += usize::from(round(&trained.value).is_ok_and(|r| numbers(&r) != wide));
    }
    assert!(moved > 10, "the masters hold no more than bf16 does");
    let same = numbers(&embedding(&narrow))
        .iter()
        .zip(&before_step)
        .filter(|(x, y)| x == y)
        .count();
    assert!(
        same * 2 > before_step.len(),
        "the step was to be lost in bf16"
    );

    // The model computes with the masters rounded.
    let copies = [
        (EMBEDDING.to_owned(), embedding(&narrow)),
        dense(&narrow, 0),
        dense(&narrow, 1),
    ];
    for (name, copy) in copies {
        assert_eq!(copy.dtype(), DType::BF16, "{name}");
        let master = &on_narrow.registry()[&name].value;
        let expected = numbers(&round(master).expect("rounded"));
        assert!(numbers(&copy) == expected, "{name}: the copy is stale");
    }

    // After many steps the sum of the small ones arrives in bf16 too, and the loss follows.
    let batch = Texts::new(&texts(&[21, 9, 30]));
    let mut optimizer = Optimizer::new(&on_narrow, AdamW::default(), None).expect("one");
    let before = evaluate(&narrow, &mut on_narrow, batch.input())
        .expect("a loss")
        .sum;
    for _ in 0..60 {
        let scale = 1.0 / batch.count();
        differentiate(
            &narrow,
            &mut on_narrow,
            batch.input(),
            scale,
            Checkpointing::Off,
        )
        .expect("a pass");
        optimizer.step(&on_narrow, step).expect("an update");
    }
    let after = evaluate(&narrow, &mut on_narrow, batch.input())
        .expect("a loss")
        .sum;
    assert!(after < before, "{before} and then {after}");
}

/// The embedding, as the model computes with it.
fn embedding(model: &Model) -> Tensor {
    let Weight::Dense(tensor) = &model.embedding else {
        panic!("a dense embedding")
    };
    tensor.clone()
}

/// The q projection of a block, as the model computes with it.
fn dense(model: &Model, block: usize) -> (String, Tensor) {
    let projection = &model.blocks[block].qkv.projections[0];
    let Weight::Dense(tensor) = &projection.weight else {
        panic!("a dense weight")
    };
    (format!("{}.weight", projection.name), tensor.clone())
}
