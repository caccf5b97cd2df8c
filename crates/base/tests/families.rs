//! Logits and losses of every family against transformers, on the seeded models of `tests/fixtures`.

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use sparsam_base::block::Block;
use sparsam_base::files::safetensors::SafetensorsFiles;
use sparsam_base::model::{LoadOptions, Model, Quantize};
use sparsam_base::projection::Frozen;
use sparsam_base::weights::Weights;
use sparsam_kernels::Documents;
use sparsam_kernels::cross_entropy::{IGNORE, Want, linear_cross_entropy};

fn families() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/families")
}

fn ids(weights: &dyn Weights, name: &str) -> Vec<u32> {
    let ids: Vec<i64> = weights
        .tensor(name)
        .expect(name)
        .to_vec1()
        .expect("a list of ids");
    ids.iter().map(|id| *id as u32).collect()
}

fn check(name: &str, tolerance: f64) {
    let folder = families().join(name);
    let options = LoadOptions {
        quantize: Quantize::None,
        dtype: DType::F32,
        max_length: 64,
    };
    let model = Model::from_folder(&folder, options).expect(name);
    assert!(
        model.config.unrecognised.is_empty(),
        "{name}: {:?}",
        model.config.unrecognised
    );
    let expected = SafetensorsFiles::open(&[folder.join("expected.safetensors")]).expect(name);
    let texts = [ids(&expected, "input_ids.0"), ids(&expected, "input_ids.1")];
    let documents = Documents::from_lengths(&[texts[0].len(), texts[1].len()]);
    let packed = texts.concat();
    let logits = model.logits(&packed, &documents, &mut Frozen).expect(name);
    for (i, range) in documents.ranges().enumerate() {
        let expected = expected.tensor(&format!("logits.{i}")).expect("logits");
        let logits = logits
            .narrow(0, range.start, range.len())
            .expect("its rows");
        let difference = largest_difference(&logits, &expected);
        assert!(
            difference < tolerance,
            "{name}: logits of document {i} are off by {difference:e}"
        );
    }
    let mut targets: Vec<u32> = packed[1..].to_vec();
    targets.push(IGNORE);
    targets[texts[0].len() - 1] = IGNORE;
    let x = model.hidden(&packed, &documents, &mut Frozen).expect(name);
    let (x, _) = model.head_input(&x).expect(name);
    let want = Want {
        softcap: model.config.final_softcap,
        ..Want::default()
    };
    let loss = linear_cross_entropy(&x, &model.head, &targets, want).expect(name);
    let expected: Vec<f32> = expected
        .tensor("loss")
        .expect("loss")
        .to_vec1()
        .expect("a number");
    let mean = loss.sum / loss.targets as f64;
    assert!(
        (mean - f64::from(expected[0])).abs() < tolerance,
        "{name}: loss {mean}, expected {}",
        expected[0]
    );
}

fn largest_difference(x: &Tensor, y: &Tensor) -> f64 {
    let difference = (x - y)
        .and_then(|d| d.abs())
        .and_then(|d| d.flatten_all())
        .and_then(|d| d.max(0));
    f64::from(
        difference
            .and_then(|d| d.to_scalar::<f32>())
            .expect("tensors of one shape"),
    )
}

#[test]
fn logits_and_losses_equal_those_of_transformers() {
    for name in [
        "gemma",
        "gemma2",
        "gemma3",
        "granite",
        "llama",
        "llama-linear",
        "llama-tied-bias",
        "llama3",
        "mistral",
        "mistral-head-dim",
        "olmo2",
        "phi3",
        "phi3-long",
        "qwen2",
        "qwen3",
        "sharded",
        "smollm3",
    ] {
        check(name, 1e-4);
    }
}

#[test]
fn a_model_stored_in_bf16_is_read_exactly() {
    check("bf16", 1e-4);
}

#[test]
fn norms_are_stored_without_the_offset_they_compute_with() {
    let folder = families().join("gemma2");
    let options = LoadOptions {
        quantize: Quantize::None,
        dtype: DType::F32,
        max_length: 64,
    };
    let model = Model::from_folder(&folder, options).expect("a model");
    let files = SafetensorsFiles::in_folder(&folder).expect("weights");
    let blocks = model.blocks.iter().flat_map(Block::norms);
    let norms: Vec<_> = blocks.chain([&model.norm]).collect();
    assert_eq!(norms.len(), 9);
    for norm in norms {
        let stored = files.tensor(&norm.name).expect("a norm");
        let found = model.as_stored(&norm.name, &norm.weight).expect("a norm");
        assert!(largest_difference(&found, &stored) < 1e-6, "{}", norm.name);
        assert!(largest_difference(&norm.weight, &stored) > 0.9);
    }
}
