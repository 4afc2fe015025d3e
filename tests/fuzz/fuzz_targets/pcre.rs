//! Hands `portcullis_fuzz::pcre` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::pcre::run(data));
