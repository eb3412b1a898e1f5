#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mt_fuzz::run("ovf_environment", bytes));
