//! Hands `portcullis_fuzz::chunked` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::chunked::run(data));
