//! Whatever a store or a person may spell: times, guests, references, paths, backing names.
//!
//! Holds: what is accepted prints as something that is accepted again and means the same; no accepted path leads out of
//! its directory.

#![no_main]

use annals::base::Timestamp;
use annals::catalog::{BackupRef, GuestId};
use annals::format::ImageFormat;
use annals::nbd::Uri;
use annals::storage::memory::MemoryGate;
use annals::storage::{LayerSource, RelPath};

fn is_plain(path: &RelPath) -> bool {
    let plain = |name: &str| !matches!(name, "" | "." | "..") && !name.contains('\0');
    path.as_str().split('/').all(plain)
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let from = RelPath::new("qemu-2024-11-07T16-51-22Z/drive-scsi0.qcow2").expect("a plain path");
    if let Ok(path) = MemoryGate::new("100").resolve(&from, bytes) {
        assert!(is_plain(&path), "{path}");
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(time) = Timestamp::parse_file_name(text) {
        assert_eq!(time.file_name(), text);
    }
    if let Some(time) = Timestamp::parse_epoch(text) {
        assert_eq!(time.epoch().to_string(), text);
    }
    if let Ok(time) = Timestamp::parse_rfc3339(text) {
        assert_eq!(Timestamp::parse_rfc3339(&time.to_string()).expect("its own form"), time);
        assert_eq!(Timestamp::parse_file_name(&time.file_name()), Some(time));
    }
    if let Ok(guest) = text.parse::<GuestId>() {
        let path = RelPath::new(guest.as_str()).expect("a guest's id is a file name");
        assert!(is_plain(&path) && !path.as_str().contains('/'));
        assert!(format!("{text}@latest").parse::<BackupRef>().is_ok());
    }
    let _ = text.parse::<BackupRef>();
    if let Ok(path) = RelPath::new(text) {
        assert!(is_plain(&path) && path.as_str() == text);
    }
    if let Ok(path) = from.sibling(text) {
        assert!(is_plain(&path), "{path}");
    }
    if let Ok(format) = ImageFormat::parse(text) {
        assert_eq!(format.name(), text);
    }
    if let Ok(uri) = Uri::parse(text) {
        assert_eq!(Uri::parse(&uri.to_string()).expect("its own form"), uri);
    }
});
