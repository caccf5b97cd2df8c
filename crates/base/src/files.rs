//! File formats that weights come in and leave in.

mod bitsandbytes;
pub mod gguf;
pub mod gguf_names;
pub mod gguf_types;
pub mod gguf_vocabulary;
pub mod gguf_writer;
pub mod safetensors;
pub mod shards;
pub mod staged;
