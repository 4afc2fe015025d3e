//! Hands `portcullis_fuzz::jwks` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::jwks::run(data));
