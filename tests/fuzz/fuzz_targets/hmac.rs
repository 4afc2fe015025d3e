//! Hands `portcullis_fuzz::hmac` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::hmac::run(data));
