//! Hands `portcullis_fuzz::router` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::router::run(data));
