//! Hands `portcullis_fuzz::args` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::args::run(data));
