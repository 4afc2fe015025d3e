//! Hands `portcullis_fuzz::request_line` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::request_line::run(data));
