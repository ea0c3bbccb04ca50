//! Raw layers: the host file's own holes are the disk's holes.

use super::map::{Collector, Found};
use crate::base::{Error, ErrorKind, GuestOffset, GuestRange, HostOffset, Result};
use crate::storage::Storage;

/// Maps have no finer unit than this.
const SECTOR: u64 = 512;

/// Says what a raw file holds of `ranges`: everything outside its holes.
pub(super) fn visit(file: &dyn Storage, ranges: &[GuestRange], found: &mut Collector) -> Result<()> {
    for range in ranges {
        let mut at = range.start().0;
        let end = range.end().0;
        while at < end {
            let data = match file.next_data(HostOffset(at))? {
                // A file system whose holes start inside a sector: the rest of the sector reads as zeros all the same.
                Some(data) => (data.0 & !(SECTOR - 1)).max(at),
                None => break,
            };
            if data >= end {
                break;
            }
            let hole = file.next_hole(HostOffset(data.max(at)))?.0;
            // Progress whatever the file system answers.
            let hole = hole.max(data.saturating_add(1)).next_multiple_of(SECTOR).min(end);
            found.push(GuestRange::between(GuestOffset(data), GuestOffset(hole)), Found::Data(HostOffset(data)));
            at = hole;
        }
    }
    Ok(())
}

/// A raw file has no entries that could be bad.
pub(super) fn diagnose(at: GuestOffset) -> Error {
    Error::new(ErrorKind::Changed, format!("the raw file no longer holds what it held at {at}"))
}
