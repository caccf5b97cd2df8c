//! The LoRA family, PEFT files, data, optimiser, the training loop, checkpoints.
//!
//! [`trainable`] is what a run trains and how it plugs into the base; [`pass`] takes a batch through
//! the model and back; [`mod@classify`] does so for classifiers, which [`classes`] judges; [`optimizer`] and [`schedule`] make the update; [`train`] is the loop over
//! them, with [`checkpoint`] to go on from and [`evaluate`] to see how good it is; [`lora`],
//! [`targets`] and [`peft`] are the adapter as PEFT knows it, [`principal`] one way to begin it; [`parts`] and [`merge`] bring it into its
//! base, [`export`] into the formats of other programs; [`mod@verify`] examines
//! it. This crate knows nothing of energy.

pub mod audit;
pub mod checkpoint;
pub mod classes;
pub mod classify;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod files;
pub mod lora;
pub mod merge;
pub mod optimizer;
pub mod parts;
pub mod pass;
pub mod peft;
pub mod principal;
pub mod random;
pub mod schedule;
pub mod targets;
pub mod train;
pub mod trainable;
pub mod verify;
