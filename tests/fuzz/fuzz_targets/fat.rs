//! FAT12, FAT16 and FAT32.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sendense_fuzzing::file_system("fat", "vfat", input));
