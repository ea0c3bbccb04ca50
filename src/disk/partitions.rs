//! The partitions of a flattened disk: its table, and what each of them holds.

use super::flat::Disk;
use crate::base::error::ResultExt;
use crate::base::{Error, ErrorKind, GuestOffset, GuestRange, Result};
use crate::format::filesystem;
use crate::format::partition::{self, Scheme};
use crate::format::window::Window;

/// One partition of a disk. It is not empty and lies within the disk; it may overlap others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// As Linux numbers it, from 1 on; logical partitions from 5 on.
    pub number: u32,
    /// Which bytes of the disk it is.
    pub range: GuestRange,
    /// The kind of table that names it.
    pub scheme: Scheme,
    /// The type as the table spells it: a GUID in lower case, or the MBR's byte as `0x83`.
    pub type_code: String,
    /// What the type is called, for those that guests really have.
    pub type_name: Option<&'static str>,
    /// The GPT's name for it, without control characters.
    pub label: Option<String>,
    /// What its first bytes say it holds: `ext4`, `xfs`, `LVM2`, …; `None` where they say nothing, cannot be read or were
    /// not looked at ([`layout`]).
    pub content: Option<&'static str>,
}

/// A disk's partition table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartitionTable {
    /// The partitions in the order of their numbers, at most 255.
    pub partitions: Vec<Partition>,
    /// What is wrong with the table, a sentence each: partitions left out or cut, a damaged header.
    pub problems: Vec<String>,
}

/// The partitions of `disk`, by the rules of [`partition::parse`]; none where it has no table.
///
/// An error means that the table itself cannot be read now.
pub fn partitions(disk: &Disk) -> Result<Vec<Partition>> {
    Ok(partition_table(disk)?.partitions)
}

/// The same with what is wrong with the table.
///
/// Reads the table, and 4 KiB to 200 KiB of each partition for what it holds.
pub fn partition_table(disk: &Disk) -> Result<PartitionTable> {
    let mut table = layout(disk)?;
    for partition in &mut table.partitions {
        partition.content = content(disk, partition.range);
    }
    Ok(table)
}

/// The same without looking into the partitions: `content` stays `None`. Reads a few sectors.
pub fn layout(disk: &Disk) -> Result<PartitionTable> {
    let read = |buf: &mut [u8], at: GuestOffset| read_exact(disk, buf, at);
    let window = Window::new(disk.size(), &read);
    let Some(table) = partition::parse(&window).context(|| "cannot read the partition table")? else {
        return Ok(PartitionTable::default());
    };
    let describe = |entry: partition::Entry| Partition {
        number: entry.number,
        range: entry.range,
        scheme: table.scheme,
        type_code: entry.type_code,
        type_name: entry.type_name,
        label: entry.label,
        content: None,
    };
    Ok(PartitionTable { partitions: table.entries.into_iter().map(describe).collect(), problems: table.problems })
}

/// What the first bytes of `range` say it holds; `None` where they say nothing or cannot be read.
#[must_use]
pub fn content(disk: &Disk, range: GuestRange) -> Option<&'static str> {
    let read = |buf: &mut [u8], at: GuestOffset| read_exact(disk, buf, at);
    filesystem::identify(&Window::new(disk.size(), &read).slice(range)).unwrap_or(None)
}

fn read_exact(disk: &Disk, buf: &mut [u8], at: GuestOffset) -> Result<()> {
    match disk.read_at(buf, at)? {
        all if all == buf.len() => Ok(()),
        got => Err(Error::new(ErrorKind::Corrupt, format!("the disk ends {got} bytes into a read at {at}"))),
    }
}
