//! ext2, ext3 and ext4.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sendense_fuzzing::file_system("ext", "ext4", input));
