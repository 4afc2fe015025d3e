//! Hands `portcullis_fuzz::config` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::config::run(data));
