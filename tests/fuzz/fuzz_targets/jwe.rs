//! Hands `portcullis_fuzz::jwe` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::jwe::run(data));
