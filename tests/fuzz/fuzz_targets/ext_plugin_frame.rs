//! Hands `portcullis_fuzz::ext_plugin_frame` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::ext_plugin_frame::run(data));
