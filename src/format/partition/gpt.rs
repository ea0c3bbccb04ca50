//! The GUID partition table.

use super::{Entry, MAX_NUMBER, Scheme, Table, sectors, types};
use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, Result};
use crate::format::window::{Window, field, le16, le32, le64};

/// Sector sizes of disks, the usual one first.
const SECTOR_SIZES: [u32; 2] = [512, 4096];
const SIGNATURE: &[u8; 8] = b"EFI PART";
const PRIMARY_SECTOR: u64 = 1;
const MIN_HEADER: u32 = 92;
/// Entries are 128 bytes times a power of two; only the first 128 bytes have a meaning.
const MIN_ENTRY: u32 = 128;
/// The most bytes of entries that are read, as in Linux: 256 times what every tool writes.
const MAX_ENTRIES_BYTES: u64 = 4 << 20;

/// A header that passed every check, with the entries that it vouches for.
struct Checked {
    sector_size: u32,
    entry_size: usize,
    entries: Vec<u8>,
}

/// The table of a disk whose MBR protects a GPT.
///
/// A primary header of either sector size comes before any backup one.
pub(super) fn parse(disk: &Window<'_>) -> Result<Table> {
    let primaries = SECTOR_SIZES.map(|size| (size, Some(PRIMARY_SECTOR)));
    let backups = SECTOR_SIZES.map(|size| (size, last_sector(disk, size)));
    let mut failures = Vec::new();
    let mut unread = None;
    for (index, (sector_size, at)) in primaries.into_iter().chain(backups).enumerate() {
        let Some(at) = at.filter(|at| index < primaries.len() || *at != PRIMARY_SECTOR) else { continue };
        let problem = match check(disk, sector_size, at) {
            Ok(Some(checked)) => {
                if index >= primaries.len() {
                    failures.push(format!("the backup GPT header in the last sector ({at}) is used"));
                }
                return Ok(table(disk, &checked, failures));
            }
            Ok(None) => continue,
            Err(error) => error,
        };
        let which = if index < primaries.len() { "primary" } else { "backup" };
        failures.push(format!("the {which} GPT header (sector {at} of {sector_size} bytes): {}", problem.report()));
        if problem.kind() != ErrorKind::Corrupt {
            unread = Some(problem);
        }
    }
    // What cannot be read now may be read later: that is not the same as a disk without partitions.
    if let Some(error) = unread {
        return Err(error.context("partition table"));
    }
    if failures.is_empty() {
        failures.push("the disk is marked as partitioned by GPT but holds no GPT header".to_owned());
    }
    Ok(Table { scheme: Scheme::Gpt, sector_size: SECTOR_SIZES[0], entries: Vec::new(), problems: failures })
}

fn last_sector(disk: &Window<'_>, sector_size: u32) -> Option<u64> {
    (disk.size() / u64::from(sector_size)).checked_sub(1)
}

/// Reads and checks the header at a sector, and its entries. `None` where there is no header at all.
fn check(disk: &Window<'_>, sector_size: u32, at: u64) -> Result<Option<Checked>> {
    let size = u64::from(sector_size);
    let Some(mut header) = sectors(at, 1, size)
        .filter(|range| range.end().0 <= disk.size())
        .map(|range| {
            let mut header = vec![0; to_usize(range.len())];
            disk.read_exact(&mut header, range.start().0).map(|()| header)
        })
        .transpose()?
    else {
        return Ok(None);
    };
    if field(&header, 0) != *SIGNATURE {
        return Ok(None);
    }
    let header_size = le32(&header, 12);
    if !(MIN_HEADER..=sector_size).contains(&header_size) {
        return Err(corrupt(format!("its size is given as {header_size} bytes")));
    }
    let stored = le32(&header, 16);
    header[16..20].fill(0);
    let header = header.get(..to_usize(u64::from(header_size))).unwrap_or(&[]);
    if crc32fast::hash(header) != stored {
        return Err(corrupt("its checksum is wrong"));
    }
    if le64(header, 24) != at {
        return Err(corrupt(format!("it says that it lies at sector {}", le64(header, 24))));
    }
    let (first, last) = (le64(header, 40), le64(header, 48));
    if first > last || last_sector(disk, sector_size).is_none_or(|end| last > end) {
        return Err(corrupt(format!(
            "sectors {first} to {last}, which it gives to partitions, are not all on the disk"
        )));
    }
    let (count, entry_size) = (le32(header, 80), le32(header, 84));
    if entry_size < MIN_ENTRY || !entry_size.is_power_of_two() {
        return Err(corrupt(format!("its entries are of {entry_size} bytes")));
    }
    let bytes = u64::from(count) * u64::from(entry_size);
    if bytes == 0 || bytes > MAX_ENTRIES_BYTES {
        return Err(corrupt(format!("it has {count} entries of {entry_size} bytes")));
    }
    let start =
        le64(header, 72).checked_mul(size).ok_or_else(|| corrupt("its entries lie past the end of the disk"))?;
    if start.checked_add(bytes).is_none_or(|end| end > disk.size()) {
        return Err(corrupt("its entries lie past the end of the disk"));
    }
    let mut entries = vec![0; to_usize(bytes)];
    disk.read_exact(&mut entries, start)?;
    if crc32fast::hash(&entries) != le32(header, 88) {
        return Err(corrupt("the checksum of its entries is wrong"));
    }
    Ok(Some(Checked { sector_size, entry_size: to_usize(u64::from(entry_size)), entries }))
}

fn corrupt(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, why)
}

fn table(disk: &Window<'_>, checked: &Checked, problems: Vec<String>) -> Table {
    let mut table = Table { scheme: Scheme::Gpt, sector_size: checked.sector_size, entries: Vec::new(), problems };
    for (number, bytes) in (1..=MAX_NUMBER).zip(checked.entries.chunks_exact(checked.entry_size)) {
        let type_guid: [u8; 16] = field(bytes, 0);
        if type_guid == [0; 16] {
            continue;
        }
        let (first, last) = (le64(bytes, 32), le64(bytes, 40));
        let range = last
            .checked_sub(first)
            .and_then(|count| sectors(first, count.checked_add(1)?, u64::from(checked.sector_size)));
        let Some(range) = range else {
            table.problems.push(format!("partition {number} is left out: it lies from sector {first} to {last}"));
            continue;
        };
        if last_sector(disk, checked.sector_size).is_none_or(|end| last > end) {
            table.problems.push(format!(
                "partition {number} is left out: it ends at {}, past the end of the disk ({} bytes)",
                range.end(),
                disk.size()
            ));
            continue;
        }
        let guid = uuid::Uuid::from_bytes_le(type_guid);
        let type_code = guid.to_string();
        let type_name = types::gpt_name(&type_code);
        table.entries.push(Entry { number, range, type_code, type_name, label: label(bytes) });
    }
    table
}

/// The name of an entry: up to 36 units of UTF-16, ended by a zero.
///
/// A person reads it on a terminal, so control characters become the replacement character.
fn label(entry: &[u8]) -> Option<String> {
    let units = (0..36).map(|i| le16(entry, 56 + 2 * i)).take_while(|unit| *unit != 0);
    let label: String = char::decode_utf16(units)
        .map(|decoded| decoded.ok().filter(|c| !c.is_control()).unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    (!label.is_empty()).then_some(label)
}
