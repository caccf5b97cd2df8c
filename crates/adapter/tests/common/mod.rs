//! What the tests of this crate share: models and texts of the fixtures, and comparisons.

#![allow(dead_code, reason = "no test needs all of it")]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use sparsam_adapter::lora::{Init, LoraConfig};
use sparsam_adapter::pass::Input;
use sparsam_adapter::trainable::Trainable;
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_base::stack::Checkpointing;
use sparsam_kernels::Documents;
use sparsam_kernels::cross_entropy::IGNORE;

/// Beside the crate: where cargo, or who carried the program to another machine, says that it is.
pub(crate) fn fixtures() -> PathBuf {
    let here = std::env::var("CARGO_MANIFEST_DIR");
    let here = here.as_deref().unwrap_or(env!("CARGO_MANIFEST_DIR"));
    Path::new(here).join("../../tests/fixtures")
}

/// All that may be computed again.
pub(crate) const WAYS: [Checkpointing; 4] = [
    Checkpointing::Off,
    Checkpointing::Units,
    Checkpointing::Blocks,
    Checkpointing::Parked,
];

pub(crate) const F32: LoadOptions = LoadOptions {
    quantize: Quantize::None,
    dtype: DType::F32,
    max_length: 512,
};

/// Where models are computed: on the first GPU if `SPARSAM_TEST_DEVICE=cuda`, where the tests are built for it.
pub(crate) fn device() -> Device {
    if std::env::var("SPARSAM_TEST_DEVICE").as_deref() != Ok("cuda") {
        return Device::Cpu;
    }
    #[cfg(feature = "cuda")]
    {
        use std::sync::LazyLock;
        static OPENED: LazyLock<Device> =
            LazyLock::new(|| sparsam_kernels::cuda::open(0).expect("a GPU"));
        OPENED.clone()
    }
    #[cfg(not(feature = "cuda"))]
    panic!("these tests were built without support for GPUs")
}

fn placed(folder: &Path, options: LoadOptions) -> Model {
    Model::from_folder_to(folder, options, &device(), DType::F32).expect("a model")
}

pub(crate) fn model(folder: &Path) -> Model {
    placed(folder, F32)
}

/// A model of the fixtures.
pub(crate) fn family(name: &str, options: LoadOptions) -> Model {
    placed(&fixtures().join("families").join(name), options)
}

/// Texts as one batch in which every next token of a text is a target.
pub(crate) struct Texts {
    ids: Vec<u32>,
    targets: Vec<u32>,
    documents: Documents,
}

impl Texts {
    pub(crate) fn new(texts: &[Vec<u32>]) -> Self {
        let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
        let targets = texts
            .iter()
            .flat_map(|text| text[1..].iter().copied().chain([IGNORE]))
            .collect();
        Self {
            ids: texts.concat(),
            targets,
            documents: Documents::from_lengths(&lengths),
        }
    }

    pub(crate) fn input(&self) -> Input<'_> {
        Input {
            ids: &self.ids,
            targets: &self.targets,
            documents: &self.documents,
        }
    }

    pub(crate) fn count(&self) -> f64 {
        let targets = self.targets.iter().filter(|target| **target != IGNORE);
        targets.count() as f64
    }
}

/// Texts of the given lengths in tokens of the fixtures' vocabulary, as if drawn.
pub(crate) fn texts(lengths: &[usize]) -> Vec<Vec<u32>> {
    let mut state = 12345u32;
    let mut token = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        3 + (state >> 16) % 93
    };
    lengths
        .iter()
        .map(|length| (0..*length).map(|_| token()).collect())
        .collect()
}

pub(crate) fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor
        .to_dtype(DType::F32)
        .and_then(|t| t.flatten_all()?.to_vec1())
        .expect("numbers")
}

/// All-linear LoRA whose `B` is not zero, so that every gradient is at work.
pub(crate) fn lora() -> LoraConfig {
    LoraConfig {
        r: 4,
        lora_alpha: 4.0,
        init: Init::Random,
        ..LoraConfig::default()
    }
}

pub(crate) fn dora() -> LoraConfig {
    LoraConfig {
        use_dora: true,
        ..lora()
    }
}

/// Every gradient by name.
pub(crate) fn gradients(trainable: &Trainable) -> Vec<(String, Vec<f32>)> {
    let registry = trainable.registry().iter();
    registry
        .map(|(name, trained)| (name.clone(), numbers(&trained.grad)))
        .collect()
}

/// Fails unless every tensor is within `tolerance` of the other, by their norms. Vectors on k (its
/// bias, its magnitude) are allowed ten times that: attention is blind to what all keys share, so their
/// gradients are what is left of terms that cancel.
#[track_caller]
pub(crate) fn assert_near(
    what: &str,
    found: &[(String, Vec<f32>)],
    expected: &[(String, Vec<f32>)],
    tolerance: f64,
) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    for ((name, found), (other, expected)) in found.iter().zip(expected) {
        assert_eq!(name, other, "{what}");
        let size = norm(&mut expected.iter().map(|v| f64::from(*v)));
        let pairs = found.iter().zip(expected);
        let apart = norm(&mut pairs.map(|(x, y)| f64::from(*x) - f64::from(*y)));
        assert!(
            size > 0.0,
            "{what}: {name} is zero, this would prove nothing"
        );
        let cancels = name.contains(".k_proj.") && !name.ends_with(".weight");
        let tolerance = if cancels { 10.0 * tolerance } else { tolerance };
        assert!(
            apart <= tolerance * size,
            "{what}: {name} is off by {:e} of its norm",
            apart / size
        );
    }
}
