//! Hands `portcullis_fuzz::escape` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::escape::run(data));
