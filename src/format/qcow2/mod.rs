//! qcow2, versions 2 and 3, as QEMU's `docs/interop/qcow2.txt` specifies it.
//!
//! The header is parsed and made here, and the meaning of single table entries; which tables to read or write, and when, is
//! the business of `disk`.

mod encode;
mod entry;
mod header;

pub use encode::{MAX_REFCOUNT, NewHeader, REFCOUNT_BYTES, REFCOUNT_TABLE_ENTRY_BYTES, ZERO_ENTRY};
pub use entry::{
    Cluster, CompressedCluster, EntryFault, L1Entry, Subclusters, decode_l1, decode_l2, decode_l2_extended,
    encode_table_or_data,
};
pub use header::{Backing, Compression, Geometry, Header, Parsed};

/// Bytes of one L1 entry.
pub const L1_ENTRY_BYTES: u64 = 8;

/// Subclusters that an extended L2 entry describes.
pub const SUBCLUSTERS: u32 = 32;

pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
