//! Moments in eight bits on a whole model: what is learned is nearly the same, and the state is as small as said.

mod common;

use common::{F32, Texts, texts};
use sparsam_adapter::optimizer::{
    BYTES_EIGHT_BIT, BYTES_F32, MIN_EIGHT_BIT, Moments, Optimizer, StateType,
};
use sparsam_adapter::pass::differentiate;
use sparsam_adapter::trainable::Trainable;
use sparsam_base::builtin;
use sparsam_base::model::EMBEDDING;
use sparsam_base::stack::Checkpointing;
use sparsam_kernels::adamw::AdamW;

const STEPS: usize = 12;

/// Full fine-tuning of the built-in model on three texts that it has to learn by heart: losses and the optimiser.
fn train(state: StateType) -> (Vec<f64>, Trainable, Optimizer) {
    let sprout = builtin::find("sprout").expect("the built-in model");
    let mut model = sprout.load(F32).expect("a model");
    let mut trainable = Trainable::full(&mut model).expect("trainable");
    let optimizer = Optimizer::with_state(&trainable, AdamW::default(), Some(1.0), state);
    let mut optimizer = optimizer.expect("an optimiser");
    let texts = Texts::new(&texts(&[40, 25, 31]));
    let scale = 1.0 / texts.count();
    let losses = (0..STEPS)
        .map(|_| {
            let off = Checkpointing::Off;
            let loss = differentiate(&model, &mut trainable, texts.input(), scale, off);
            optimizer.step(&trainable, 1e-3).expect("an update");
            loss.expect("a step").sum * scale
        })
        .collect();
    (losses, trainable, optimizer)
}

#[test]
fn losses_stay_near_those_with_moments_in_f32() {
    let (wide, ..) = train(StateType::F32);
    let (narrow, trainable, optimizer) = train(StateType::EightBit);
    assert_eq!(wide[0].to_bits(), narrow[0].to_bits(), "before any step");
    let fall = wide[0] - wide[STEPS - 1];
    assert!(fall > 0.3 * wide[0], "too little is learned: {wide:?}");
    for (step, (wide, narrow)) in wide.iter().zip(&narrow).enumerate() {
        let apart = (wide - narrow).abs() / fall;
        assert!(apart < 0.03, "{step}: {narrow}, with f32 {wide}");
    }
    assert!(
        wide[2..] != narrow[2..],
        "the moments are not rounded at all"
    );

    // Eight bits for all but small tensors and the embedding.
    let mut expected = 0.0;
    for (name, trained) in trainable.registry() {
        let count = trained.value.elem_count();
        let in_f32 = count < MIN_EIGHT_BIT || name == EMBEDDING;
        assert_eq!(
            matches!(optimizer.moments()[name], Moments::F32(..)),
            in_f32,
            "{name}"
        );
        // A last block that is short has a magnitude all the same.
        expected += count as f64 * if in_f32 { BYTES_F32 } else { BYTES_EIGHT_BIT };
    }
    let found = optimizer.state_bytes() as f64;
    assert!(
        (found / expected - 1.0).abs() < 1e-3,
        "{found}, not {expected}"
    );
    let all = trainable.parameters() as f64 * BYTES_F32;
    assert!(found < 0.5 * all, "{found} of {all}");
}
