//! Hands `portcullis_fuzz::resources` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::resources::run(data));
