//! Hands `portcullis_fuzz::cookie` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::cookie::run(data));
