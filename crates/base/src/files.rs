//! File formats that weights come in.

pub mod gguf;
pub mod safetensors;
