//! Hands `portcullis_fuzz::basic_auth` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::basic_auth::run(data));
