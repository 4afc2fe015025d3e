//! Hands `portcullis_fuzz::head` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::head::run(data));
