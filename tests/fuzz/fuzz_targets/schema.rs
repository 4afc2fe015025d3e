//! Hands `portcullis_fuzz::schema` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::schema::run(data));
