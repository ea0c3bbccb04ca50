//! A disk of arbitrary bytes, with the checksums of its GPT headers put right so that what lies behind them is reached.
//!
//! The first two bytes say how many zeros follow the rest, in sectors. Holds: every partition lies within the disk and is
//! not empty, numbers rise to at most 255, labels hold no control characters, and little is read.

#![no_main]

use std::cell::Cell;

use annals::base::{GuestOffset, Result};
use annals::format::window::Window;
use annals::format::{filesystem, partition};

/// Puts right the checksums of the header at `at` and of its entries, where they lie within the bytes.
fn mend(bytes: &mut [u8], at: usize, sector: usize) {
    let Some(header) = bytes.get(at..at + 92).filter(|header| header.starts_with(b"EFI PART")) else { return };
    let le32 = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize;
    let (size, start, len) = (le32(12), le32(72).saturating_mul(sector), le32(80).saturating_mul(le32(84)));
    if let Some(entries) = bytes.get(start..start.saturating_add(len)) {
        let crc = crc32fast::hash(entries);
        bytes[at + 88..at + 92].copy_from_slice(&crc.to_le_bytes());
    }
    bytes[at + 16..at + 20].fill(0);
    if let Some(header) = bytes.get(at..at.saturating_add(size)) {
        let crc = crc32fast::hash(header);
        bytes[at + 16..at + 20].copy_from_slice(&crc.to_le_bytes());
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((more, bytes)) = input.split_at_checked(2) else { return };
    let mut bytes = bytes.to_vec();
    for sector in [512, 4096] {
        mend(&mut bytes, sector, sector);
        let last = (bytes.len() / sector).saturating_sub(1) * sector;
        mend(&mut bytes, last, sector);
    }
    let size = bytes.len() as u64 + u64::from(u16::from_le_bytes([more[0], more[1]])) * 512;
    let taken = Cell::new(0);
    let read = |buf: &mut [u8], at: GuestOffset| -> Result<()> {
        assert!(at.0 + buf.len() as u64 <= size, "read past the end of the disk");
        taken.set(taken.get() + buf.len());
        buf.fill(0);
        if let Some(rest) = bytes.get(at.0 as usize..) {
            let len = rest.len().min(buf.len());
            buf[..len].copy_from_slice(&rest[..len]);
        }
        Ok(())
    };
    let disk = Window::new(size, &read);
    let _ = filesystem::identify(&disk);
    let Ok(Some(table)) = partition::parse(&disk) else { return };
    assert!(taken.get() < 20 << 20, "{} bytes were read", taken.get());
    let mut last = 0;
    for entry in &table.entries {
        assert!(entry.number > last && entry.number <= 255, "{table:?}");
        last = entry.number;
        assert!(!entry.range.is_empty() && entry.range.end().0 <= size, "{table:?}");
        assert!(entry.label.as_ref().is_none_or(|label| !label.is_empty() && !label.chars().any(char::is_control)));
        let _ = filesystem::identify(&disk.slice(entry.range));
    }
});
