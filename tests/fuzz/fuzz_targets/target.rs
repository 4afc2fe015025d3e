//! Hands `portcullis_fuzz::target` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::target::run(data));
