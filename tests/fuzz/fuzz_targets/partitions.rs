//! Partition tables.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sendense_fuzzing::disk("partitions", input));
