//! Sparse maps: where a member's data lies in the file that it stands for.

use super::header::{BLOCK, Header, number};
use super::pax::decimal;
use crate::base::{Error, ErrorKind, Result};

/// A run of data in the file, in bytes. Runs are stored one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

/// A map that holds together: ascending, disjoint, within the file's size and the data stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseMap {
    extents: Vec<Extent>,
    stored: u64,
}

impl SparseMap {
    /// Checks `extents` against the file's size and the number of bytes stored for it; drops empty runs, joins adjacent ones.
    pub fn new(mut extents: Vec<Extent>, size: u64, stored: u64) -> Result<Self> {
        let broken = |message: String| Error::new(ErrorKind::Corrupt, message);
        let (mut end, mut sum) = (0_u64, 0_u64);
        for Extent { offset, len } in &extents {
            let next = offset.checked_add(*len).filter(|next| *next <= size);
            let Some(next) = next.filter(|_| *offset >= end) else {
                return Err(broken(format!(
                    "its sparse map has {len} bytes at {offset}, after {end} bytes of a file of {size}"
                )));
            };
            end = next;
            // Disjoint runs within the size cannot add up to more than it.
            sum = sum.saturating_add(*len);
        }
        if sum > stored {
            return Err(broken(format!("its sparse map wants {sum} bytes of data, {stored} are stored")));
        }
        extents.retain(|extent| extent.len > 0);
        extents.dedup_by(|next, last| {
            let adjacent = last.offset.checked_add(last.len) == Some(next.offset);
            if adjacent {
                last.len = last.len.saturating_add(next.len);
            }
            adjacent
        });
        Ok(Self { extents, stored: sum })
    }

    /// The runs of data, ascending.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Bytes that are data.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.stored
    }
}

/// How many extents a header of the old GNU form holds.
pub const OLD_EXTENTS_IN_HEADER: usize = 4;
/// How many extents each extension block of that form holds.
pub const OLD_EXTENTS_IN_BLOCK: usize = 21;

const IN_HEADER_AT: usize = 386;
const IN_HEADER_MORE: usize = 482;
const IN_BLOCK_MORE: usize = 504;
const OLD_EXTENT: usize = 24;

/// The extents of an old GNU header, or of one of the extension blocks that follow it, and whether another one follows.
pub fn old_extents(header: Option<&Header<'_>>, block: &[u8; BLOCK], into: &mut Vec<Extent>) -> Result<bool> {
    let (block, at, count, more) = match header {
        Some(header) => (header.block(), IN_HEADER_AT, OLD_EXTENTS_IN_HEADER, IN_HEADER_MORE),
        None => (block, 0, OLD_EXTENTS_IN_BLOCK, IN_BLOCK_MORE),
    };
    let table = block.get(at..at + count * OLD_EXTENT).unwrap_or_default();
    for entry in table.chunks_exact(OLD_EXTENT) {
        let (offset, len) = entry.split_at(OLD_EXTENT / 2);
        // An unused entry is all NULs; one that ends the file has a length of 0.
        if len.first() == Some(&0) {
            break;
        }
        let value = |field| number(field).and_then(|n| u64::try_from(n).ok());
        let (Some(offset), Some(len)) = (value(offset), value(len)) else {
            return Err(Error::new(ErrorKind::Corrupt, "its sparse map holds something that is no number"));
        };
        into.push(Extent { offset, len });
    }
    Ok(block.get(more).is_some_and(|more| *more != 0))
}

/// Reads the map of PAX form 1.0, which stands before the data: decimal numbers, one a line; first how many extents there
/// are, then offset and length of each; padded to a block.
#[derive(Debug)]
pub struct MapReader {
    limit: u64,
    line: Vec<u8>,
    announced: Option<u64>,
    seen: u64,
    offset: Option<u64>,
    extents: Vec<Extent>,
}

impl MapReader {
    /// A reader that refuses maps of more than `limit` extents.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, line: Vec::new(), announced: None, seen: 0, offset: None, extents: Vec::new() }
    }

    /// Takes more of the map's bytes; `true` when its end is among them.
    pub fn take(&mut self, bytes: &[u8]) -> Result<bool> {
        const LONGEST_NUMBER: usize = 20;
        for byte in bytes {
            if *byte != b'\n' {
                if self.line.len() == LONGEST_NUMBER {
                    return Err(self.broken());
                }
                self.line.push(*byte);
                continue;
            }
            let value = decimal(&self.line).ok_or_else(|| self.broken())?;
            self.line.clear();
            match (self.announced, self.offset.take()) {
                (None, _) if value > self.limit => {
                    let limit = self.limit;
                    return Err(Error::new(
                        ErrorKind::Limit,
                        format!("its sparse map has {value} extents, at most {limit} are read"),
                    ));
                }
                (None, _) => self.announced = Some(value),
                (Some(_), None) => self.offset = Some(value),
                (Some(_), Some(offset)) => {
                    self.extents.push(Extent { offset, len: value });
                    self.seen = self.seen.saturating_add(1);
                }
            }
            if self.announced == Some(self.seen) && self.offset.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The extents read since this was last asked; for whoever has no use for all of them at once.
    pub fn drain(&mut self) -> impl Iterator<Item = Extent> {
        self.extents.drain(..)
    }

    /// The extents read.
    #[must_use]
    pub fn finish(self) -> Vec<Extent> {
        self.extents
    }

    fn broken(&self) -> Error {
        Error::new(ErrorKind::Corrupt, format!("its sparse map is no list of numbers after extent {}", self.seen))
    }
}
