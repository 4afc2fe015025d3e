//! Hands `portcullis_fuzz::host` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::host::run(data));
