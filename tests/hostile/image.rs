//! Images written byte by byte, for what no tool would make.

use annals::base::{GuestOffset, GuestRange, Result};
use annals::disk::{Disk, DiskEnv};
use annals::format::ImageFormat;
use annals::storage::{LayerSource, RelPath};

/// A version 3 image: header, L1 table, L2 tables, and whatever is put behind them.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
    cluster_bits: u32,
}

impl Image {
    /// Of `size` bytes of disk, with the L1 table in the second cluster.
    pub(crate) fn new(cluster_bits: u32, size: u64) -> Self {
        let coverage = 1u64 << (2 * cluster_bits - 3);
        let l1_entries = size.div_ceil(coverage);
        let mut image = Self { bytes: Vec::new(), cluster_bits };
        image.put32(0, 0x5146_49fb);
        image.put32(4, 3);
        image.put32(20, cluster_bits);
        image.put64(24, size);
        image.put32(36, l1_entries as u32);
        image.put64(40, image.cluster());
        image.put32(96, 4);
        image.put32(100, 104);
        let end = image.cluster() + l1_entries * 8;
        image.bytes.resize(end.next_multiple_of(image.cluster()) as usize, 0);
        image
    }

    pub(crate) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(crate) fn put32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_be_bytes());
    }

    pub(crate) fn put64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_be_bytes());
    }

    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        if self.bytes.len() < at + bytes.len() {
            self.bytes.resize(at + bytes.len(), 0);
        }
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Sets an L1 entry as it stands.
    pub(crate) fn l1(&mut self, index: u64, entry: u64) {
        self.put64((self.cluster() + index * 8) as usize, entry);
    }

    /// Adds a cluster of these words (zeros behind them) at the end and returns its place.
    pub(crate) fn append(&mut self, words: &[u64]) -> u64 {
        let at = (self.bytes.len() as u64).next_multiple_of(self.cluster());
        self.bytes.resize((at + self.cluster()) as usize, 0);
        for (index, word) in words.iter().enumerate() {
            self.put64(at as usize + index * 8, *word);
        }
        at
    }

    /// Names a backing file of the format.
    pub(crate) fn backed_by(mut self, name: &str, format: &str) -> Self {
        self.put32(104, 0xe279_2aca);
        self.put32(108, format.len() as u32);
        self.put(112, format.as_bytes());
        self.put64(8, 160);
        self.put32(16, name.len() as u32);
        self.put(160, name.as_bytes());
        self
    }
}

pub(crate) fn path(name: &str) -> RelPath {
    RelPath::new(name).unwrap()
}

pub(crate) fn open(source: &dyn LayerSource, head: &str) -> Result<Disk> {
    Disk::open(source, &path(head), ImageFormat::Qcow2, &DiskEnv::new(0))
}

pub(crate) fn whole(disk: &Disk) -> GuestRange {
    GuestRange::between(GuestOffset(0), GuestOffset(disk.size()))
}

/// Asks everything that can be asked of a disk without reading more than `most` bytes of it. Errors are fine.
pub(crate) fn use_every_way(disk: &Disk, most: u64) {
    let mut buf = vec![0; 256 << 10];
    let mut at = 0;
    while at < disk.size().min(most) {
        let _ = disk.read_at(&mut buf, GuestOffset(at));
        at += buf.len() as u64;
    }
    for at in [0, disk.size() / 2, disk.size().saturating_sub(1), disk.size(), u64::MAX] {
        let _ = disk.read_at(&mut buf, GuestOffset(at));
        let _ = disk.next_data(GuestOffset(at));
        let _ = disk.next_hole(GuestOffset(at));
    }
    let _ = disk.allocated(whole(disk));
    let _ = disk.faults();
    let _ = annals::disk::partition_table(disk);
}
