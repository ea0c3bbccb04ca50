//! New images: a qcow2 file that only grows, with its header written last.
//!
//! [`Encoder`] turns stretches of the disk into what will be stored (it may run on many threads), [`ImageWriter`] gives
//! each its place, in the order of the disk, and keeps the tables; [`output`] is the file and its hashes. Memory does not grow
//! with the disk, but for eight bytes an L2 table and 32 bytes a MiB of file.

mod encode;
mod output;
mod refcount;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use encode::{EncodedBatch, Encoder};

use self::encode::Stored;
use self::output::Output;
use self::refcount::Refcounts;
use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, GuestOffset, GuestRange, HostOffset, Result};
use crate::format::ImageFormat;
use crate::format::hash::FileHashes;
use crate::format::qcow2::{
    CompressedCluster, Compression, Geometry, MAX_REFCOUNT, NewHeader, ZERO_ENTRY, encode_table_or_data,
};
use crate::storage::write::NewFile;

/// Log2 of the usual cluster's size: 64 KiB.
pub const CLUSTER_BITS: u32 = 16;
/// Sizes of disks are multiples of this.
pub const SECTOR: u64 = 512;
/// QEMU's limit on the L1 table, in entries.
const MAX_L1_ENTRIES: u64 = (32 << 20) / 8;

/// What a new image is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOptions {
    /// The disk's size in bytes, a multiple of [`SECTOR`].
    pub size: u64,
    /// Log2 of the cluster's size in bytes.
    pub cluster_bits: u32,
    /// The zstd level at which clusters are compressed; without one they are stored as they are.
    pub zstd: Option<i32>,
    /// The layer below: its name relative to the image, and its format.
    pub backing: Option<(String, ImageFormat)>,
}

impl ImageOptions {
    fn geometry(&self) -> Geometry {
        Geometry { cluster_bits: self.cluster_bits, extended_l2: false }
    }
}

/// What a finished image came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenImage {
    /// The hashes of the file.
    pub hashes: FileHashes,
    /// Bytes of the disk that it stores.
    pub stored: u64,
    /// Bytes of the disk that it says are zero.
    pub zeros: u64,
}

/// An image that is being written, in the order of the disk.
#[derive(Debug)]
pub struct ImageWriter {
    out: Output,
    options: ImageOptions,
    geometry: Geometry,
    l1: Vec<u64>,
    /// L2 tables that may still get entries, by number.
    open: BTreeMap<u64, Vec<u64>>,
    refcounts: Refcounts,
    /// Nothing before this offset will be added.
    next: GuestOffset,
    stored: u64,
    zeros: u64,
}

impl ImageWriter {
    /// Starts an image in `file`, which is empty.
    ///
    /// Errors: `Unsupported` for a size that the format, or QEMU, does not have.
    pub fn new(file: NewFile, options: ImageOptions) -> Result<Self> {
        let geometry = options.geometry();
        let tables = options.size.div_ceil(1 << geometry.l2_coverage_bits());
        if !options.size.is_multiple_of(SECTOR) || tables > MAX_L1_ENTRIES {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("no image holds a disk of {} bytes in clusters of {}", options.size, geometry.cluster_size()),
            ));
        }
        // An image without an L1 table is one that some programs do not open.
        let l1 = vec![0; to_usize(tables.max(1))];
        let mut writer = Self {
            out: Output::new(file),
            refcounts: Refcounts::new(geometry),
            options,
            geometry,
            l1,
            open: BTreeMap::new(),
            next: GuestOffset(0),
            stored: 0,
            zeros: 0,
        };
        // The header's cluster; what is in it comes last.
        writer.append_cluster(&[])?;
        Ok(writer)
    }

    /// An encoder whose batches this image takes.
    #[must_use]
    pub fn encoder(&self) -> Encoder {
        Encoder::new(self.geometry, self.options.zstd, self.options.backing.is_some())
    }

    /// Adds a stretch of the disk, which lies behind all that were added before.
    pub fn append(&mut self, batch: &EncodedBatch) -> Result<()> {
        self.advance(batch.range())?;
        // Compressed clusters first: they go on where the last ones ended, and the whole clusters that follow them need
        // aligning once a batch.
        for (cluster, stored) in batch.clusters() {
            match stored {
                Stored::Compressed(bytes) => {
                    let entry = self.append_compressed(bytes)?;
                    self.set(cluster, entry);
                    self.stored += self.geometry.cluster_size();
                }
                Stored::Zeros => {
                    self.set(cluster, ZERO_ENTRY);
                    self.zeros += self.geometry.cluster_size();
                }
                Stored::Plain(_) => {}
            }
        }
        for (cluster, stored) in batch.clusters() {
            if let Stored::Plain(bytes) = stored {
                let at = self.append_cluster(bytes)?;
                self.set(cluster, encode_table_or_data(at));
                self.stored += self.geometry.cluster_size();
            }
        }
        self.close_tables(self.table_of(self.cluster_of(self.next)))?;
        self.write_full_refcounts()
    }

    /// Says that a stretch of the disk, in whole clusters but for the disk's end, reads as zeros. Needs no encoding.
    pub fn append_zeros(&mut self, range: GuestRange) -> Result<()> {
        self.advance(range)?;
        if self.options.backing.is_none() || range.is_empty() {
            return Ok(());
        }
        let first = self.cluster_of(range.start());
        let end = range.end().0.div_ceil(self.geometry.cluster_size());
        for cluster in first..end {
            self.set(cluster, ZERO_ENTRY);
            self.zeros += self.geometry.cluster_size();
            if cluster + 1 == end || self.table_of(cluster + 1) != self.table_of(cluster) {
                self.close_tables(self.table_of(cluster + 1))?;
            }
        }
        self.write_full_refcounts()
    }

    /// Writes what is left of the tables and then the header, and brings all of it to the medium.
    pub fn finish(mut self) -> Result<WrittenImage> {
        self.close_tables(u64::MAX)?;
        let l1 = std::mem::take(&mut self.l1);
        let l1_offset = self.append_words(&l1)?;
        let (refcount_table, refcount_table_clusters) = self.write_refcount_table()?;
        let backing = self.options.backing.as_ref().map(|(name, format)| (name.as_str(), *format));
        let compression = if self.options.zstd.is_some() { Compression::Zstd } else { Compression::Deflate };
        let header = NewHeader {
            size: self.options.size,
            geometry: self.geometry,
            compression,
            backing,
            l1_offset,
            l1_entries: u32::try_from(l1.len()).unwrap_or(u32::MAX),
            refcount_table,
            refcount_table_clusters,
        };
        let hashes = self.out.finish(&header.encode()?)?;
        Ok(WrittenImage { hashes, stored: self.stored, zeros: self.zeros })
    }

    /// Checks that `range` comes next, and moves behind it.
    fn advance(&mut self, range: GuestRange) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let whole = range.start().is_aligned(self.geometry.cluster_size())
            && (range.end().is_aligned(self.geometry.cluster_size()) || range.end().0 == self.options.size);
        if range.start() < self.next || range.end().0 > self.options.size || !whole {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "{} bytes at {} were given to an image that goes on at {}",
                    range.len(),
                    range.start(),
                    self.next
                ),
            ));
        }
        self.next = range.end();
        Ok(())
    }

    fn cluster_of(&self, at: GuestOffset) -> u64 {
        at.0 >> self.geometry.cluster_bits
    }

    fn table_of(&self, cluster: u64) -> u64 {
        cluster >> (self.geometry.l2_coverage_bits() - self.geometry.cluster_bits)
    }

    fn set(&mut self, cluster: u64, entry: u64) {
        let entries = self.geometry.cluster_size() / self.geometry.l2_entry_bytes();
        let table = self.open.entry(self.table_of(cluster)).or_insert_with(|| vec![0; to_usize(entries)]);
        if let Some(slot) = table.get_mut(to_usize(cluster & (entries - 1))) {
            *slot = entry;
        }
    }

    /// Writes the L2 tables before number `end`: nothing will be added to them.
    fn close_tables(&mut self, end: u64) -> Result<()> {
        while let Some((number, table)) = self.open.pop_first() {
            if number >= end {
                self.open.insert(number, table);
                break;
            }
            let at = self.append_words(&table)?;
            if let Some(slot) = self.l1.get_mut(to_usize(number)) {
                *slot = encode_table_or_data(at);
            }
        }
        Ok(())
    }

    /// Appends bytes that are then padded to whole clusters.
    fn append_cluster(&mut self, bytes: &[u8]) -> Result<HostOffset> {
        let cluster_size = self.geometry.cluster_size();
        self.out.pad_to(cluster_size)?;
        let at = self.out.position();
        self.out.append(bytes)?;
        let clusters = (bytes.len() as u64).div_ceil(cluster_size).max(1);
        self.out.pad_until(HostOffset(at.0 + clusters * cluster_size))?;
        for n in 0..clusters {
            self.refcounts.count(self.host_cluster(at) + n)?;
        }
        Ok(at)
    }

    fn append_words(&mut self, words: &[u64]) -> Result<HostOffset> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        self.append_cluster(&bytes)
    }

    /// Appends a compressed cluster right behind what is there; returns its L2 entry.
    fn append_compressed(&mut self, bytes: &[u8]) -> Result<u64> {
        if self.refcounts.of(self.host_cluster(self.out.position())) == MAX_REFCOUNT {
            self.out.pad_to(self.geometry.cluster_size())?;
        }
        let at = self.out.position();
        let entry = CompressedCluster::new(at, bytes.len() as u64, self.geometry)
            .ok_or_else(|| Error::new(ErrorKind::Limit, format!("the image has grown too large, to {at}")))?;
        self.out.append(bytes)?;
        let last = HostOffset(self.out.position().0 - 1);
        for cluster in self.host_cluster(at)..=self.host_cluster(last) {
            self.refcounts.count(cluster)?;
        }
        Ok(entry.encode())
    }

    /// Writes the refcount blocks whose clusters all have their final count.
    fn write_full_refcounts(&mut self) -> Result<()> {
        while let Some(block) = self.refcounts.take_full(self.host_cluster(self.out.position())) {
            let at = self.append_cluster(&block)?;
            self.refcounts.placed(at);
        }
        Ok(())
    }

    /// Writes what is left of the refcounts, those of the blocks and the table themselves included.
    fn write_refcount_table(&mut self) -> Result<(HostOffset, u32)> {
        let (blocks, table_clusters) = self.refcounts.left(self.host_cluster(self.out.position()));
        let first = self.host_cluster(self.out.position());
        for cluster in first..first + blocks + table_clusters {
            self.refcounts.count(cluster)?;
        }
        // Counted already: these go out as they are.
        for _ in 0..blocks {
            let at = self.out.position();
            let block = self.refcounts.take();
            self.out.append(&block)?;
            self.refcounts.placed(at);
        }
        let at = self.out.position();
        self.out.append(&self.refcounts.table())?;
        self.out.pad_to(self.geometry.cluster_size())?;
        Ok((at, u32::try_from(table_clusters).unwrap_or(u32::MAX)))
    }

    fn host_cluster(&self, at: HostOffset) -> u64 {
        at.0 >> self.geometry.cluster_bits
    }
}
