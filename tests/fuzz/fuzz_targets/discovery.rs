//! Hands `portcullis_fuzz::discovery` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::discovery::run(data));
