//! Hands `portcullis_fuzz::post_body` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::post_body::run(data));
