//! Three images of arbitrary bytes, each of which may name the others: the flattener.
//!
//! The input is cut at two places that its first four bytes say. Holds what `qcow2` holds.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((cuts, bytes)) = input.split_at_checked(4) else { return };
    let cut = |at: usize| usize::from(u16::from_le_bytes([cuts[at], cuts[at + 1]])) * 8;
    let first = cut(0).min(bytes.len());
    let second = (first + cut(2)).min(bytes.len());
    let files = [("a", &bytes[..first]), ("b", &bytes[first..second]), ("c", &bytes[second..])];
    annals_fuzz::check_chain(&annals_fuzz::gate(&files), "a");
});
