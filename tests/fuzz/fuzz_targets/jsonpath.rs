//! Hands `portcullis_fuzz::jsonpath` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::jsonpath::run(data));
