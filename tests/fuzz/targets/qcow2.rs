//! One image of arbitrary bytes, as the head of a chain that may name itself or a small raw file.
//!
//! Holds: no panic, no hang, bounded memory; every way of asking about the disk gives the same answer.

#![no_main]

use annals::format::qcow2::Header;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // The header alone, also with a file size that the bytes do not have.
    let _ = Header::parse(bytes, bytes.len() as u64);
    let _ = Header::parse(bytes, 1 << 40);
    annals_fuzz::check_chain(&annals_fuzz::gate(&[("a", bytes), ("raw", &[0x55; 1000])]), "a");
});
