//! File formats that weights come in.

mod bitsandbytes;
pub mod gguf;
pub mod safetensors;
