//! Hands `portcullis_fuzz::jwt` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::jwt::run(data));
