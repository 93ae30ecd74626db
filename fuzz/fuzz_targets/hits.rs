#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| knockd_fuzz::hits(bytes));
