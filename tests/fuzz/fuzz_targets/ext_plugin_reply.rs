//! Hands `portcullis_fuzz::ext_plugin_reply` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::ext_plugin_reply::run(data));
