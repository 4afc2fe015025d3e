//! Hands `portcullis_fuzz::session_cookie` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::session_cookie::run(data));
