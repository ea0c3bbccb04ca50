//! Single entries of the L1 and L2 tables (specification: "L1 table entry", "L2 table entry", "Extended L2 entries").

use std::fmt;

use super::{Geometry, SUBCLUSTERS};
use crate::base::HostOffset;

/// Bits 9 to 55: an offset in the file.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: refcount is exactly one; of no interest to a reader.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// Why an entry cannot be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryFault {
    /// Bits that the format reserves are set.
    ReservedBits,
    /// The offset is not at the start of a cluster.
    Unaligned,
    /// A zero cluster in a version 2 image, which has none.
    ZeroInVersion2,
    /// A subcluster is marked both allocated and zero, or allocated in no cluster.
    SubclusterContradiction,
}

impl fmt::Display for EntryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReservedBits => "reserved bits are set",
            Self::Unaligned => "its offset is not at the start of a cluster",
            Self::ZeroInVersion2 => "it marks a zero cluster, which version 2 does not have",
            Self::SubclusterContradiction => "its subcluster bits contradict each other",
        })
    }
}

/// What an L1 entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L1Entry {
    /// Nothing in this table's range is in this image.
    Unallocated,
    /// The L2 table starts here, aligned to a cluster.
    Table(HostOffset),
}

/// A compressed cluster's place, as its L2 entry packs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompressedCluster(u64);

/// What an L2 entry says of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cluster {
    /// Not in this image: the backing file has it, or nobody.
    Unallocated,
    /// Reads as zeros, whatever the backing file has.
    Zero,
    /// Stored as it is at this offset, aligned to a cluster.
    Data(HostOffset),
    /// Stored compressed.
    Compressed(CompressedCluster),
}

/// What an extended L2 entry says: the cluster, and each subcluster's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subclusters {
    /// One state for the whole cluster.
    Whole(Cluster),
    /// Bit n of `data` and `zero` speak of subcluster n; neither set: unallocated.
    Mixed {
        /// Where the cluster is stored, if any of it is.
        at: HostOffset,
        /// Subclusters stored at their place in the cluster.
        data: u32,
        /// Subclusters that read as zeros.
        zero: u32,
    },
}

/// Decodes an L1 entry.
pub fn decode_l1(entry: u64, geometry: Geometry) -> Result<L1Entry, EntryFault> {
    if entry & !(OFFSET_MASK | COPIED) != 0 {
        return Err(EntryFault::ReservedBits);
    }
    match HostOffset(entry & OFFSET_MASK) {
        HostOffset(0) => Ok(L1Entry::Unallocated),
        at if at.is_aligned(geometry.cluster_size()) => Ok(L1Entry::Table(at)),
        _ => Err(EntryFault::Unaligned),
    }
}

/// Decodes a standard 64-bit L2 entry of an image of `version`.
pub fn decode_l2(entry: u64, version: u32, geometry: Geometry) -> Result<Cluster, EntryFault> {
    if entry & COMPRESSED != 0 {
        return Ok(Cluster::Compressed(CompressedCluster(entry & (COMPRESSED - 1))));
    }
    if entry & !(OFFSET_MASK | COPIED | ZERO) != 0 {
        return Err(EntryFault::ReservedBits);
    }
    let at = HostOffset(entry & OFFSET_MASK);
    if !at.is_aligned(geometry.cluster_size()) {
        return Err(EntryFault::Unaligned);
    }
    match (entry & ZERO != 0, at.0) {
        (true, _) if version < 3 => Err(EntryFault::ZeroInVersion2),
        (true, _) => Ok(Cluster::Zero),
        (false, 0) => Ok(Cluster::Unallocated),
        (false, _) => Ok(Cluster::Data(at)),
    }
}

/// Decodes an extended L2 entry: the descriptor and its subcluster bitmap.
pub fn decode_l2_extended(entry: u64, bitmap: u64, geometry: Geometry) -> Result<Subclusters, EntryFault> {
    if entry & COMPRESSED != 0 {
        return Ok(Subclusters::Whole(Cluster::Compressed(CompressedCluster(entry & (COMPRESSED - 1)))));
    }
    if entry & !(OFFSET_MASK | COPIED) != 0 {
        return Err(EntryFault::ReservedBits);
    }
    let at = HostOffset(entry & OFFSET_MASK);
    if !at.is_aligned(geometry.cluster_size()) {
        return Err(EntryFault::Unaligned);
    }
    let [data, zero] =
        [bitmap & u64::from(u32::MAX), bitmap >> SUBCLUSTERS].map(|half| u32::try_from(half).unwrap_or(u32::MAX));
    if data & zero != 0 || (at.0 == 0 && data != 0) {
        return Err(EntryFault::SubclusterContradiction);
    }
    Ok(match (data, zero) {
        (0, 0) => Subclusters::Whole(Cluster::Unallocated),
        (u32::MAX, 0) => Subclusters::Whole(Cluster::Data(at)),
        (0, u32::MAX) => Subclusters::Whole(Cluster::Zero),
        _ => Subclusters::Mixed { at, data, zero },
    })
}

/// The L1 entry of the table, or the L2 entry of the stored cluster, at `at`, which nothing else refers to.
#[must_use]
pub fn encode_table_or_data(at: HostOffset) -> u64 {
    COPIED | (at.0 & OFFSET_MASK)
}

impl CompressedCluster {
    /// A compressed cluster of `len` stored bytes at `start`, or `None` where its entry cannot say so.
    #[must_use]
    pub fn new(start: HostOffset, len: u64, geometry: Geometry) -> Option<Self> {
        let offset_bits = Self::offset_bits(geometry);
        let last = start.checked_add(len.checked_sub(1)?)?;
        let sectors = (last.0 >> 9) - (start.0 >> 9);
        let fits = start.0 >> offset_bits == 0 && sectors >> (62 - offset_bits) == 0;
        fits.then_some(Self(sectors << offset_bits | start.0))
    }

    /// The L2 entry that stands for it.
    #[must_use]
    pub fn encode(self) -> u64 {
        COMPRESSED | self.0
    }

    /// The packed form, for keeping in a map; [`from_packed`](Self::from_packed) takes it back.
    #[must_use]
    pub fn packed(self) -> u64 {
        self.0
    }

    /// From [`packed`](Self::packed).
    #[must_use]
    pub fn from_packed(packed: u64) -> Self {
        Self(packed & (COMPRESSED - 1))
    }

    /// Where the stored bytes start; not aligned to anything.
    #[must_use]
    pub fn start(self, geometry: Geometry) -> HostOffset {
        HostOffset(self.0 & ((1 << Self::offset_bits(geometry)) - 1))
    }

    /// How many bytes to read at most: up to the end of the last 512-byte sector that the stored form touches.
    #[must_use]
    pub fn max_len(self, geometry: Geometry) -> u64 {
        let sectors = (self.0 >> Self::offset_bits(geometry)) + 1;
        sectors * 512 - (self.start(geometry).0 & 511)
    }

    /// Bits of the descriptor that hold the offset: 62 - (cluster_bits - 8), between 49 and 61.
    fn offset_bits(geometry: Geometry) -> u32 {
        70 - geometry.cluster_bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G64K: Geometry = Geometry { cluster_bits: 16, extended_l2: false };
    const X64K: Geometry = Geometry { cluster_bits: 16, extended_l2: true };

    #[test]
    fn standard_entries_mean_what_the_specification_says() {
        assert_eq!(decode_l2(0, 3, G64K), Ok(Cluster::Unallocated));
        assert_eq!(decode_l2(1, 3, G64K), Ok(Cluster::Zero));
        assert_eq!(decode_l2(COPIED | 0x5_0001, 3, G64K), Ok(Cluster::Zero));
        assert_eq!(decode_l2(COPIED | 0x5_0000, 3, G64K), Ok(Cluster::Data(HostOffset(0x5_0000))));
        assert_eq!(decode_l2(1, 2, G64K), Err(EntryFault::ZeroInVersion2));
        assert_eq!(decode_l2(0x5_0200, 3, G64K), Err(EntryFault::Unaligned));
        assert_eq!(decode_l2(0x5_0002, 3, G64K), Err(EntryFault::ReservedBits));
    }

    #[test]
    fn compressed_entries_count_sectors_from_the_one_they_start_in() {
        // 64 KiB clusters: 54 bits of offset, 8 bits of additional sectors.
        let Ok(Cluster::Compressed(c)) = decode_l2(COMPRESSED | (3 << 54) | 0x1_0123, 3, G64K) else { panic!() };
        assert_eq!(c.start(G64K), HostOffset(0x1_0123));
        assert_eq!(c.max_len(G64K), 4 * 512 - 0x123);
        assert_eq!(CompressedCluster::from_packed(c.packed()), c);
    }

    #[test]
    fn a_compressed_entry_that_is_written_reads_back_with_no_sector_too_many() {
        for (start, len) in [(0x1_0000, 1), (0x1_01ff, 1), (0x1_01ff, 2), (0x1_0123, 1200), (0x1_0200, 512)] {
            let made = CompressedCluster::new(HostOffset(start), len, G64K).unwrap();
            assert_eq!(decode_l2(made.encode(), 3, G64K), Ok(Cluster::Compressed(made)));
            assert_eq!(made.start(G64K), HostOffset(start));
            let end = start + made.max_len(G64K);
            assert!(end >= start + len && end - (start + len) < 512, "{start:#x} {len}");
        }
        assert_eq!(CompressedCluster::new(HostOffset(1 << 54), 1, G64K), None);
        assert_eq!(CompressedCluster::new(HostOffset(0), 0, G64K), None);
        assert_eq!(CompressedCluster::new(HostOffset(0), 256 * 512 + 1, G64K), None);
    }

    #[test]
    fn subclusters_are_never_two_things_at_once() {
        assert_eq!(decode_l2_extended(0x5_0000, 1 | (1 << 32), X64K), Err(EntryFault::SubclusterContradiction));
        assert_eq!(decode_l2_extended(0, 1, X64K), Err(EntryFault::SubclusterContradiction));
        let mixed = Subclusters::Mixed { at: HostOffset(0x5_0000), data: 1, zero: 2 };
        assert_eq!(decode_l2_extended(0x5_0000, 1 | (2 << 32), X64K), Ok(mixed));
        assert_eq!(decode_l2_extended(0, u64::from(u32::MAX) << 32, X64K), Ok(Subclusters::Whole(Cluster::Zero)));
    }
}
