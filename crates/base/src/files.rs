//! File formats that weights come in.

pub mod safetensors;
