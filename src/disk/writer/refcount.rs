//! How many entries refer to each cluster of a file that only grows.

use std::collections::VecDeque;

use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, HostOffset, Result};
use crate::format::qcow2::{Geometry, MAX_REFCOUNT, REFCOUNT_BYTES, REFCOUNT_TABLE_ENTRY_BYTES};

/// Counts of the clusters at the file's end; those further in are in blocks that were written already.
#[derive(Debug)]
pub(super) struct Refcounts {
    geometry: Geometry,
    /// The first cluster that `counts` speaks of, the first of a block.
    first: u64,
    counts: VecDeque<u16>,
    /// Where the blocks are, in the order of the file.
    blocks: Vec<u64>,
}

impl Refcounts {
    pub(super) fn new(geometry: Geometry) -> Self {
        Self { geometry, first: 0, counts: VecDeque::new(), blocks: Vec::new() }
    }

    /// Clusters that one block counts.
    fn per_block(&self) -> u64 {
        self.geometry.cluster_size() / REFCOUNT_BYTES
    }

    /// One more entry refers to `cluster`.
    pub(super) fn count(&mut self, cluster: u64) -> Result<()> {
        let overflow = || Error::new(ErrorKind::Limit, format!("too many entries for cluster {cluster} of the image"));
        let index = to_usize(cluster.checked_sub(self.first).ok_or_else(overflow)?);
        if self.counts.len() <= index {
            self.counts.resize(index + 1, 0);
        }
        let count = self.counts.get_mut(index).filter(|count| **count < MAX_REFCOUNT).ok_or_else(overflow)?;
        *count += 1;
        Ok(())
    }

    /// How many entries refer to `cluster`.
    pub(super) fn of(&self, cluster: u64) -> u16 {
        let index = cluster.checked_sub(self.first).map(to_usize);
        index.and_then(|index| self.counts.get(index)).copied().unwrap_or(0)
    }

    /// The next block, when the file has grown past all that it counts. `end` is the cluster that the file ends in.
    pub(super) fn take_full(&mut self, end: u64) -> Option<Vec<u8>> {
        (end >= self.first + self.per_block()).then(|| self.take())
    }

    /// The next block, whatever it counts so far.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let len = to_usize(self.per_block());
        if self.counts.len() < len {
            self.counts.resize(len, 0);
        }
        self.first += self.per_block();
        self.counts.drain(..len).flat_map(u16::to_be_bytes).collect()
    }

    /// The block that was taken last is at `at`.
    pub(super) fn placed(&mut self, at: HostOffset) {
        self.blocks.push(at.0);
    }

    /// How many more blocks are needed, and how many clusters the table, when nothing but those follows cluster `end`.
    pub(super) fn left(&self, end: u64) -> (u64, u64) {
        let (mut blocks, mut table) = (0, 0);
        loop {
            let clusters = end + blocks + table;
            let needed = clusters.saturating_sub(self.first).div_ceil(self.per_block());
            let entries = self.blocks.len() as u64 + needed;
            let needed_table = (entries * REFCOUNT_TABLE_ENTRY_BYTES).div_ceil(self.geometry.cluster_size());
            if (needed, needed_table) == (blocks, table) {
                return (blocks, table);
            }
            // Both only grow, and each growth by one cluster pays for a whole block more: this ends.
            (blocks, table) = (needed, needed_table);
        }
    }

    /// The table, when every block has its place.
    pub(super) fn table(&self) -> Vec<u8> {
        self.blocks.iter().flat_map(|at| at.to_be_bytes()).collect()
    }
}
