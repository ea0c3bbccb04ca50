//! The OVF of an oVirt machine.
//!
//! Holds: no panic, no hang, and no more taken out of the document than stands in it.

#![no_main]

use annals::format::ovf::Ovf;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(ovf) = Ovf::parse(bytes) else { return };
    let images: usize = ovf.images.iter().map(|image| image.image.len() + image.file.len()).sum();
    let snapshots: usize = ovf.snapshots.iter().map(|snapshot| snapshot.id.len() + snapshot.description.len()).sum();
    assert!(images + snapshots <= bytes.len() * 3, "{} bytes out of {}", images + snapshots, bytes.len());
});
