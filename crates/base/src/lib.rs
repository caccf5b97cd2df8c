//! Frozen, quantised base models.
//!
//! A model folder or a GGUF file becomes a [`model::Model`]: [`config`] says what it is, [`weights`] and [`files`]
//! bring its tensors, [`block`] is the one decoder block all families are configurations of, and
//! [`projection`] is the border at which an adapter may plug in. [`encoder`] is the same for encoders;
//! [`classifier`] puts a head over classes on either, and [`network`] is what whoever trains sees of both. [`generate`] lets a model continue
//! texts, [`tokenizer`] and [`chat_template`] stand between texts and tokens, and [`builtin`] holds the
//! models that come inside the program, [`mod@quantize`] writes checkpoints as bitsandbytes does. This crate never learns what LoRA is.

pub mod block;
pub mod builtin;
pub mod chat_template;
pub mod classifier;
pub mod config;
pub mod encoder;
pub mod error;
pub mod files;
pub mod generate;
pub mod model;
pub mod network;
pub mod prefix;
pub mod projection;
pub mod quantize;
pub mod stack;
pub mod tokenizer;
pub mod weights;
