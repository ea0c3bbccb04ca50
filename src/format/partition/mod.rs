//! Partition tables: bytes of a disk to a list of ranges. No I/O of its own, and no file systems.
//!
//! What counts as a partition is decided as the Linux kernel decides it (`block/partitions/` of its source: the rules
//! of `efi.c`, `msdos.c` and `core.c`), because that is who mounts them; the places where this differs are named in
//! [`parse`]. The formats: UEFI specification 2.10, chapter 5, for GPT; for MBR what everybody does.

mod gpt;
mod mbr;
mod types;

#[cfg(test)]
mod tests;

use std::fmt;

use super::window::Window;
use crate::base::{GuestOffset, GuestRange, Result};

/// Which kind of table a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// A GUID partition table, behind a protective or hybrid MBR.
    Gpt,
    /// A master boot record, with the chain of its extended partition.
    Mbr,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gpt => "gpt",
            Self::Mbr => "mbr",
        })
    }
}

/// A disk's partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its kind.
    pub scheme: Scheme,
    /// Bytes in the sectors that it counts in: 512 or 4096.
    pub sector_size: u32,
    /// The partitions, in the order of their numbers.
    pub entries: Vec<Entry>,
    /// What is wrong with it, a sentence each: partitions left out or cut, a damaged header.
    pub problems: Vec<String>,
}

/// One partition. Not empty, and within the disk; it may overlap others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As Linux numbers it: the slot in a GPT or MBR from 1 on, logical partitions from 5 on.
    pub number: u32,
    /// Where it lies.
    pub range: GuestRange,
    /// The type as the table spells it: a GUID in lower case, or the MBR's byte as `0x83`.
    pub type_code: String,
    /// What the type is called, for those that guests really have.
    pub type_name: Option<&'static str>,
    /// The GPT's name for it, without control characters; `None` where it is empty.
    pub label: Option<String>,
}

/// The partition table of a disk, or `None` where it has none.
///
/// As Linux does: a GPT counts only behind an MBR that protects it, and then hides that MBR; an MBR in whose four slots
/// a boot flag is neither 0 nor 0x80 is none; GPT partitions that start or end past the disk's end are left out, MBR
/// partitions that start past it are left out and those that end past it are cut; overlaps are kept; numbers up to 255.
///
/// Otherwise than Linux:
/// - Where the primary GPT header or its entries are damaged, the backup in the disk's last sector is used (Linux wants
///   the boot option `gpt` for that).
/// - The disk's sector size is known to Linux; here a GPT is looked for at 512 and then at 4096 bytes, and an MBR is
///   always read in sectors of 512 bytes, since nothing in it tells.
/// - A boot sector of FAT, exFAT or NTFS is a table only if its four slots are free of contradictions, as those of a disk
///   formatted as a whole never are.
/// - The extended partition, which Linux shows as two sectors, is left out: it holds only the chain.
/// - BSD, Solaris, Minix and Unixware tables inside an MBR partition are not looked into.
///
/// Errors are those of reading sector 0, or of reading both headers of a GPT.
pub fn parse(disk: &Window<'_>) -> Result<Option<Table>> {
    let Some(sector) = disk.block::<{ mbr::SECTOR }>(0)? else { return Ok(None) };
    let Some(slots) = mbr::slots(&sector) else { return Ok(None) };
    if slots.iter().any(mbr::Slot::protects_gpt) {
        return gpt::parse(disk).map(Some);
    }
    Ok(mbr::parse(disk, &sector, &slots))
}

/// The last partition number there may be, as in Linux (`DISK_MAX_PARTS` − 1); bounds every list here.
const MAX_NUMBER: u32 = 255;

/// The bytes of `count` sectors from `first` on, or `None` past 64 bits.
fn sectors(first: u64, count: u64, sector_size: u64) -> Option<GuestRange> {
    GuestRange::new(GuestOffset(first.checked_mul(sector_size)?), count.checked_mul(sector_size)?)
}
