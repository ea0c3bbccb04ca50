//! The master boot record and the chain of its extended partition.

use std::collections::HashSet;

use super::{Entry, MAX_NUMBER, Scheme, Table, sectors, types};
use crate::base::{GuestOffset, GuestRange};
use crate::format::filesystem::is_boot_sector;
use crate::format::window::{Window, le16, le32};

/// Bytes in a sector of an MBR.
pub(super) const SECTOR: usize = 512;
const SECTOR_SIZE: u64 = 512;

/// The four slots stand here, 16 bytes each, and then the signature.
const SLOTS: usize = 446;
const SIGNATURE: usize = 510;
const SIGNATURE_VALUE: u16 = 0xaa55;

const FIRST_LOGICAL: u32 = 5;
/// Links that the chain of an extended partition may have in a row without a partition, as in Linux.
const EMPTY_LINKS: u32 = 100;

const TYPE_GPT: u8 = 0xee;

/// One slot of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    boot_flag: u8,
    type_byte: u8,
    /// First sector, counted from where the table's kind says.
    first: u32,
    count: u32,
}

impl Slot {
    /// Whether it says "here is a GPT": then the MBR's other slots are not partitions of their own.
    pub(super) fn protects_gpt(&self) -> bool {
        self.type_byte == TYPE_GPT
    }

    fn is_extended(&self) -> bool {
        matches!(self.type_byte, 0x05 | 0x0f | 0x85)
    }

    fn is_used(&self) -> bool {
        self.count != 0
    }

    fn has_boot_flag(&self) -> bool {
        matches!(self.boot_flag, 0 | 0x80)
    }

    /// The bytes it means, where its own count of sectors starts at `base`.
    fn range(&self, base: u64) -> GuestRange {
        // 33 bits of sectors and 9 of bytes: it never fails.
        sectors(base.saturating_add(u64::from(self.first)), u64::from(self.count), SECTOR_SIZE)
            .unwrap_or(GuestRange::between(GuestOffset(u64::MAX), GuestOffset(u64::MAX)))
    }
}

/// The four slots of a boot record, or `None` where it has no signature.
fn signed_slots(sector: &[u8; SECTOR]) -> Option<[Slot; 4]> {
    let slot = |index: usize| {
        let at = SLOTS + 16 * index;
        Slot {
            boot_flag: sector[at],
            type_byte: sector[at + 4],
            first: le32(sector, at + 8),
            count: le32(sector, at + 12),
        }
    };
    (le16(sector, SIGNATURE) == SIGNATURE_VALUE).then(|| [slot(0), slot(1), slot(2), slot(3)])
}

/// The four slots of sector 0, or `None` where it is no MBR.
pub(super) fn slots(sector: &[u8; SECTOR]) -> Option<[Slot; 4]> {
    signed_slots(sector).filter(|slots| slots.iter().all(Slot::has_boot_flag))
}

/// The table of an MBR that protects no GPT.
pub(super) fn parse(disk: &Window<'_>, sector: &[u8; SECTOR], slots: &[Slot; 4]) -> Option<Table> {
    if is_boot_sector(sector) && !is_plausible(slots, disk.size()) {
        return None;
    }
    let mut table = Table { scheme: Scheme::Mbr, sector_size: 512, entries: Vec::new(), problems: Vec::new() };
    let mut chain = Chain { disk, next_number: FIRST_LOGICAL, seen: HashSet::new() };
    for (number, slot) in (1..).zip(slots) {
        match slot {
            empty if !empty.is_used() => {}
            extended if extended.is_extended() => chain.follow(*extended, &mut table),
            data => add(&mut table, number, data, data.range(0), disk.size()),
        }
    }
    table.entries.sort_by_key(|entry| entry.number);
    (!table.entries.is_empty() || !table.problems.is_empty()).then_some(table)
}

/// Whether every slot could be what a partitioning tool wrote: used ones typed, on the disk, apart from each other.
fn is_plausible(slots: &[Slot; 4], size: u64) -> bool {
    let used: Vec<_> = slots.iter().filter(|slot| slot.is_used() || slot.type_byte != 0).collect();
    let sound = |slot: &&Slot| {
        slot.is_used() && slot.type_byte != 0 && slot.first != 0 && slot.range(0).end() <= GuestOffset(size)
    };
    let apart = |(i, a): (usize, &&Slot)| used[..i].iter().all(|b| a.range(0).intersect(b.range(0)).is_empty());
    !used.is_empty() && used.iter().all(sound) && used.iter().enumerate().all(apart)
}

/// Adds what of the partition lies on the disk.
fn add(table: &mut Table, number: u32, slot: &Slot, range: GuestRange, size: u64) {
    let on_disk = range.intersect(GuestRange::between(GuestOffset(0), GuestOffset(size)));
    if on_disk.is_empty() {
        table.problems.push(format!(
            "partition {number} is left out: it starts at {}, past the end of the disk ({size} bytes)",
            range.start()
        ));
        return;
    }
    if on_disk != range {
        table.problems.push(format!(
            "partition {number} is cut at the end of the disk ({size} bytes): its table says it ends at {}",
            range.end()
        ));
    }
    table.entries.push(Entry {
        number,
        range: on_disk,
        type_code: format!("{:#04x}", slot.type_byte),
        type_name: types::mbr_name(slot.type_byte),
        label: None,
    });
}

/// The walk along extended boot records.
struct Chain<'a> {
    disk: &'a Window<'a>,
    /// Counts on over all extended partitions, also where a partition is left out, as in Linux.
    next_number: u32,
    /// The sectors of the records read: a chain that comes back to one would go round for ever.
    seen: HashSet<u64>,
}

impl Chain<'_> {
    fn follow(&mut self, extended: Slot, table: &mut Table) {
        let base = u64::from(extended.first);
        let mut here = base;
        let mut here_count = u64::from(extended.count);
        let mut empty_links = 0;
        while self.next_number <= MAX_NUMBER {
            if !self.seen.insert(here) {
                table.problems.push(format!("the chain of logical partitions goes in a circle at sector {here}"));
                return;
            }
            empty_links += 1;
            if empty_links > EMPTY_LINKS {
                table.problems.push(format!("the chain of logical partitions has {EMPTY_LINKS} empty links in a row"));
                return;
            }
            let Some(slots) = self.read(here, table) else { return };
            let data = slots.iter().enumerate().filter(|(_, slot)| slot.is_used() && !slot.is_extended());
            for (index, slot) in data {
                // Partitioning tools use two slots; what stands in the others is believed only if it fits.
                if index >= 2 && !fits(slot, here, here_count, &extended) {
                    continue;
                }
                if self.next_number > MAX_NUMBER {
                    break;
                }
                add(table, self.next_number, slot, slot.range(here), self.disk.size());
                self.next_number += 1;
                empty_links = 0;
            }
            let Some(link) = slots.iter().find(|slot| slot.is_used() && slot.is_extended()) else { return };
            here = base + u64::from(link.first);
            here_count = u64::from(link.count);
        }
        table.problems.push(format!("partitions after number {MAX_NUMBER} are left out"));
    }

    /// The slots of the boot record at a sector; `None` ends the chain.
    fn read(&self, sector: u64, table: &mut Table) -> Option<[Slot; 4]> {
        let problem = match self.disk.block::<SECTOR>(sector.saturating_mul(SECTOR_SIZE)) {
            Ok(Some(block)) => match signed_slots(&block) {
                Some(slots) => return Some(slots),
                // An extended partition that was never filled has no record at all.
                None if self.next_number == FIRST_LOGICAL => return None,
                None => "it has no signature".to_owned(),
            },
            Ok(None) => "it lies past the end of the disk".to_owned(),
            Err(error) => error.report(),
        };
        table.problems.push(format!("the chain of logical partitions ends at sector {sector}: {problem}"));
        None
    }
}

/// Whether a slot of the record at `here`, which has `here_count` sectors, lies in it and in the extended partition.
fn fits(slot: &Slot, here: u64, here_count: u64, extended: &Slot) -> bool {
    let end = u64::from(slot.first) + u64::from(slot.count);
    end <= here_count && here + end <= u64::from(extended.first) + u64::from(extended.count)
}
