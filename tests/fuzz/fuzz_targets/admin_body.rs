//! Hands `portcullis_fuzz::admin_body` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::admin_body::run(data));
