#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sparsam_fuzz::front_matter(data));
