//! The LoRA family, PEFT files, data, optimiser, the training loop, checkpoints.
//!
//! [`trainable`] is what a run trains and how it plugs into the base; [`pass`] takes a batch through
//! the model and back; [`optimizer`] and [`schedule`] make the update; [`lora`], [`targets`] and
//! [`peft`] are the adapter as PEFT knows it. This crate knows nothing of energy.

pub mod data;
pub mod error;
pub mod lora;
pub mod optimizer;
pub mod pass;
pub mod peft;
pub mod random;
pub mod schedule;
pub mod targets;
pub mod trainable;
