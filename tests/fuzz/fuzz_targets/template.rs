//! Hands `portcullis_fuzz::template` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::template::run(data));
