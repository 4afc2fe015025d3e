//! Hands `portcullis_fuzz::expr` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::expr::run(data));
