//! What lies below the lowest trained block is computed once; nothing but time tells the difference.

mod common;

use std::fs::File;

use candle_core::DType;
use common::{F32, Texts, family, gradients, lora, texts};
use sparsam_adapter::lora::LoraConfig;
use sparsam_adapter::pass::{differentiate, evaluate};
use sparsam_adapter::targets::Targets;
use sparsam_adapter::trainable::Trainable;
use sparsam_base::model::{LoadOptions, Quantize};
use sparsam_base::prefix::{Counts, Store};
use sparsam_base::projection::Hook as _;
use sparsam_base::stack::Checkpointing;

/// Uneven, with heights of products that the kernels take in different ways.
const LENGTHS: [usize; 9] = [19, 5, 33, 12, 2, 27, 8, 16, 3];

/// An adapter on the last block alone.
fn upper(layer: usize) -> LoraConfig {
    LoraConfig {
        layers_to_transform: Some(vec![layer]),
        target_modules: Targets::List(vec!["q_proj".to_owned(), "down_proj".to_owned()]),
        ..lora()
    }
}

/// Losses and gradients of batches of texts, each given as places in a list, and what was read back.
fn passes(
    name: &str,
    options: LoadOptions,
    batches: &[&[usize]],
    store: Option<(Store, u64)>,
    checkpointing: Checkpointing,
) -> (Vec<(f64, f64, Vec<(String, Vec<f32>)>)>, Option<Counts>) {
    let mut model = family(name, options);
    let layer = model.blocks.len() - 1;
    let mut trainable = Trainable::lora(&mut model, &upper(layer), 7).expect("trainable");
    if let Some((store, most)) = store {
        trainable.keep_prefix(&model, store, most);
    }
    let all = texts(&LENGTHS);
    let mut results = Vec::new();
    for batch in batches {
        let batch: Vec<Vec<u32>> = batch.iter().map(|place| all[*place].clone()).collect();
        let batch = Texts::new(&batch);
        trainable.clear_gradients().expect("cleared");
        let loss = differentiate(&model, &mut trainable, batch.input(), 0.01, checkpointing);
        let gradients = gradients(&trainable);
        let held_out = evaluate(&model, &mut trainable, batch.input()).expect("a loss");
        results.push((loss.expect("a pass").sum, held_out.sum, gradients));
    }
    let counts = trainable.prefix().map(|prefix| prefix.lock().counts());
    (results, counts)
}

/// Every text in other company, in another place, and twice in one batch. The last text is new among known ones, and
/// alone it would be a product of few rows, as are the batches of one short text.
const BATCHES: [&[usize]; 8] = [
    &[0, 1, 2],
    &[3, 4, 5, 6],
    &[2, 7, 0],
    &[6, 3, 8],
    &[1, 1, 5, 4],
    &[0, 1, 2, 3, 4, 5, 6, 7, 8],
    &[6],
    &[4, 8],
];

#[test]
fn losses_and_gradients_are_the_same_bits() {
    let forms = [
        (Quantize::None, DType::F32),
        (Quantize::None, DType::BF16),
        (Quantize::Nf4, DType::BF16),
        (Quantize::Int8, DType::F32),
    ];
    for name in ["llama", "mistral", "qwen3", "gemma2"] {
        for (quantize, dtype) in forms {
            let options = LoadOptions {
                quantize,
                dtype,
                ..F32
            };
            let what = format!("{name}, {quantize:?}, {dtype:?}");
            let (expected, none) = passes(name, options, &BATCHES, None, Checkpointing::Off);
            assert!(none.is_none());
            let file = Store::File(tempfile::tempfile().expect("a file"));
            for (store, checkpointing) in [
                (Store::Memory, Checkpointing::Off),
                (file, Checkpointing::Blocks),
            ] {
                let most = u64::MAX;
                let kept = Some((store, most));
                let (found, counts) = passes(name, options, &BATCHES, kept, checkpointing);
                assert!(found == expected, "{what}, {checkpointing:?}");
                let counts = counts.expect("counts");
                assert_eq!(counts.documents, LENGTHS.len() as u64, "{what}");
                // The text that comes twice was known by then; each batch is seen by two passes. The last text
                // has the two before it as company, and batches of few tokens are computed each time.
                let tokens =
                    |texts: &[usize]| texts.iter().map(|text| LENGTHS[*text]).sum::<usize>();
                let few = tokens(BATCHES[6]) + tokens(BATCHES[7]);
                let computed = LENGTHS.iter().sum::<usize>() + tokens(&[6, 3]) + 2 * few;
                assert_eq!(counts.computed, computed as u64, "{what}");
                let seen = 2 * tokens(&BATCHES.concat());
                assert_eq!(counts.reused, (seen - computed) as u64, "{what}");
            }
        }
    }
}

#[test]
fn what_finds_no_room_is_computed_again() {
    let (expected, _) = passes("llama", F32, &BATCHES, None, Checkpointing::Off);
    let width = family("llama", F32).config.hidden_size as u64;
    // Room for the first two texts and a part of the third.
    let most = (LENGTHS[0] + LENGTHS[1] + 1) as u64 * width * 4;
    let (found, counts) = passes(
        "llama",
        F32,
        &BATCHES,
        Some((Store::Memory, most)),
        Checkpointing::Off,
    );
    assert!(found == expected);
    let counts = counts.expect("counts");
    assert_eq!(counts.documents, 2);
    assert!(counts.bytes <= most && counts.reused > 0);
}

/// A file that cannot be written costs time, and no run.
#[test]
fn a_file_that_cannot_be_written_ends_the_keeping() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("closed");
    std::fs::write(&path, "").expect("a file");
    let file = File::open(&path).expect("read only");
    let (expected, _) = passes("llama", F32, &BATCHES, None, Checkpointing::Off);
    let kept = Some((Store::File(file), u64::MAX));
    let (found, counts) = passes("llama", F32, &BATCHES, kept, Checkpointing::Off);
    assert!(found == expected);
    assert_eq!(counts.expect("counts").documents, 0);
}

#[test]
fn nothing_is_kept_where_the_first_block_is_trained() {
    let mut model = family("llama", F32);
    let mut trainable = Trainable::lora(&mut model, &lora(), 7).expect("trainable");
    trainable.keep_prefix(&model, Store::Memory, u64::MAX);
    assert!(trainable.prefix().is_none());
}
