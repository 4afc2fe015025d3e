//! Hands `portcullis_fuzz::log_format` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::log_format::run(data));
