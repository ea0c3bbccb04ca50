//! The bytes of a new image: its header and its tables' entries. Version 3 throughout.

use super::header::{COMPRESSION_TYPE, EXTENSION_BACKING_FORMAT, EXTENSION_END, MAGIC, MAX_BACKING_NAME, V3_LENGTH};
use super::{Compression, Geometry};
use crate::base::{Error, ErrorKind, HostOffset, Result};
use crate::format::ImageFormat;

/// Log2 of a refcount's width: 16 bits.
const REFCOUNT_ORDER: u32 = 4;
/// The most that a refcount of that width can count.
pub const MAX_REFCOUNT: u16 = u16::MAX;
/// Bytes of a refcount.
pub const REFCOUNT_BYTES: u64 = 2;
/// Bytes of a refcount table's entry.
pub const REFCOUNT_TABLE_ENTRY_BYTES: u64 = 8;
/// The header with the compression type and what pads it.
const HEADER_LENGTH: u32 = V3_LENGTH + 8;

/// An L2 entry: the cluster reads as zeros.
pub const ZERO_ENTRY: u64 = 1;

/// What a new image's header says.
#[derive(Debug, Clone, Copy)]
pub struct NewHeader<'a> {
    /// Virtual size in bytes.
    pub size: u64,
    /// The size of a cluster; L2 entries are standard ones.
    pub geometry: Geometry,
    /// How compressed clusters are stored.
    pub compression: Compression,
    /// The backing file's name, relative to the image, and its format.
    pub backing: Option<(&'a str, ImageFormat)>,
    /// Where the L1 table is.
    pub l1_offset: HostOffset,
    /// How many entries it has.
    pub l1_entries: u32,
    /// Where the refcount table is.
    pub refcount_table: HostOffset,
    /// How many clusters it fills.
    pub refcount_table_clusters: u32,
}

impl NewHeader<'_> {
    /// The header with its extensions and the backing name, at most one cluster.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut extensions = Vec::new();
        let mut name: &[u8] = &[];
        if let Some((backing, format)) = self.backing {
            name = backing.as_bytes();
            if name.len() as u64 > u64::from(MAX_BACKING_NAME) {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("the backing file's name has {} bytes; the format takes {MAX_BACKING_NAME}", name.len()),
                ));
            }
            extension(&mut extensions, EXTENSION_BACKING_FORMAT, format.name().as_bytes());
        }
        extension(&mut extensions, EXTENSION_END, &[]);

        let (compression_bit, compression_type) = match self.compression {
            Compression::Deflate => (0, 0u8),
            Compression::Zstd => (COMPRESSION_TYPE, 1),
        };
        let name_offset = if name.is_empty() { 0 } else { u64::from(HEADER_LENGTH) + extensions.len() as u64 };
        let name_len = u32::try_from(name.len()).unwrap_or(u32::MAX);
        let mut out = Vec::with_capacity(256 + name.len());
        let mut put = |bytes: &[u8]| out.extend_from_slice(bytes);
        put(&MAGIC.to_be_bytes());
        put(&3u32.to_be_bytes());
        put(&name_offset.to_be_bytes());
        put(&name_len.to_be_bytes());
        put(&self.geometry.cluster_bits.to_be_bytes());
        put(&self.size.to_be_bytes());
        put(&0u32.to_be_bytes()); // not encrypted
        put(&self.l1_entries.to_be_bytes());
        put(&self.l1_offset.0.to_be_bytes());
        put(&self.refcount_table.0.to_be_bytes());
        put(&self.refcount_table_clusters.to_be_bytes());
        put(&[0; 12]); // no snapshots
        put(&compression_bit.to_be_bytes());
        put(&[0; 16]); // compatible and autoclear features: none
        put(&REFCOUNT_ORDER.to_be_bytes());
        put(&HEADER_LENGTH.to_be_bytes());
        put(&[compression_type, 0, 0, 0, 0, 0, 0, 0]);
        put(&extensions);
        put(name);
        if out.len() as u64 > self.geometry.cluster_size() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the header has {} bytes, more than a cluster of {}", out.len(), self.geometry.cluster_size()),
            ));
        }
        Ok(out)
    }
}

fn extension(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(8), 0);
}

#[cfg(test)]
mod tests {
    use super::super::{Backing, Header, Parsed};
    use super::*;

    fn header(backing: Option<(&str, ImageFormat)>, compression: Compression) -> NewHeader<'_> {
        NewHeader {
            size: 1 << 30,
            geometry: Geometry { cluster_bits: 16, extended_l2: false },
            compression,
            backing,
            l1_offset: HostOffset(0x30000),
            l1_entries: 2,
            refcount_table: HostOffset(0x50000),
            refcount_table_clusters: 1,
        }
    }

    #[test]
    fn what_is_written_is_what_the_reader_reads() {
        for (backing, compression) in [
            (None, Compression::Deflate),
            (Some(("../qemu-2024-11-07T16-51-22Z/drive-scsi0.qcow2", ImageFormat::Qcow2)), Compression::Zstd),
            (Some(("b", ImageFormat::Raw)), Compression::Deflate),
        ] {
            let bytes = header(backing, compression).encode().unwrap();
            let Parsed::Done(read) = Header::parse(&bytes, 1 << 20).unwrap() else { panic!("short") };
            let named =
                backing.map(|(name, format)| Backing { name: name.into(), format: Some(format.name().to_owned()) });
            assert_eq!(read.backing, named);
            assert_eq!((read.size, read.l1_offset, read.l1_entries), (1 << 30, HostOffset(0x30000), 2));
            assert_eq!((read.version, read.compression, read.refcount_bits, read.dirty), (3, compression, 16, false));
        }
    }

    #[test]
    fn a_backing_name_that_does_not_fit_is_refused() {
        let long = "x".repeat(1024);
        assert!(header(Some((&long, ImageFormat::Qcow2)), Compression::Zstd).encode().is_err());
        let mut small = header(Some((&long[..600], ImageFormat::Qcow2)), Compression::Zstd);
        small.geometry.cluster_bits = 9;
        assert!(small.encode().is_err());
    }
}
