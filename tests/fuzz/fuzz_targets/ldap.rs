//! Hands `portcullis_fuzz::ldap` to libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::ldap::run(data));
