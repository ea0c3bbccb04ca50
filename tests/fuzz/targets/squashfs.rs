//! A squashfs image of arbitrary bytes, as a tree. Holds what `check_tree` holds.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    annals_fuzz::check_tree(input.to_vec(), annals::archive::ArchiveFormat::Squashfs);
});
