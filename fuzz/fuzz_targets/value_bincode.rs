//! `value` of `src/fuzz.rs`, for libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| quorate_fuzz::run("value_bincode", input));
