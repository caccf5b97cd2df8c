#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sparsam_fuzz::files::gguf(data));
