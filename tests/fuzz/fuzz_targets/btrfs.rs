//! btrfs.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sendense_fuzzing::file_system("btrfs", "btrfs", input));
