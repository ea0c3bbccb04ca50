//! qcow2 layers: from ranges of the disk through the L1 and L2 tables to places in the file.

use std::sync::OnceLock;

use super::map::{Collector, Found};
use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, GuestOffset, GuestRange, HostOffset, HostRange, Result};
use crate::format::qcow2::{
    Cluster, CompressedCluster, EntryFault, Geometry, Header, L1_ENTRY_BYTES, L1Entry, Parsed, SUBCLUSTERS,
    Subclusters, decode_l1, decode_l2, decode_l2_extended,
};
use crate::storage::Storage;

/// Enough for nearly every header.
const FIRST_READ: usize = 4096;
/// L1 entries that are read at once when looking for the next table: so few at first, for that is often near, and so many at last.
const L1_CHUNKS: (u64, u64) = (64, 4096);
/// Most of an L1 table that is asked for ahead when the image is opened.
const L1_AHEAD: u64 = 64 << 10;

/// An open qcow2 image. It holds no table: they are read, through the page cache, when a map is built.
pub(super) struct Qcow2 {
    header: Header,
    file_size: u64,
    /// How many L1 entries name a table, or nothing that could be one, once somebody has counted.
    tables: OnceLock<u64>,
}

impl Qcow2 {
    pub(super) fn open(file: &dyn Storage) -> Result<Self> {
        let file_size = file.size();
        let mut bytes = vec![0; FIRST_READ.min(to_usize(file_size))];
        file.read_exact_at(&mut bytes, HostOffset(0))?;
        let header = loop {
            match Header::parse(&bytes, file_size)? {
                Parsed::Done(header) => break *header,
                Parsed::NeedMore(wanted) if wanted > bytes.len() => {
                    bytes.resize(wanted, 0);
                    file.read_exact_at(&mut bytes, HostOffset(0))?;
                }
                Parsed::NeedMore(_) => {
                    return Err(Error::new(ErrorKind::Corrupt, "the header goes on past its own cluster"));
                }
            }
        };
        if header.l1_entries > 0 {
            file.will_need(header.l1_offset, header.l1_range().len().min(L1_AHEAD));
        }
        Ok(Self { header, file_size, tables: OnceLock::new() })
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    fn geometry(&self) -> Geometry {
        self.header.geometry
    }

    /// See [`Layer::visit`](super::layer::Layer::visit).
    pub(super) fn visit(&self, file: &dyn Storage, ranges: &[GuestRange], found: &mut Collector) -> Result<()> {
        let Some(last) = ranges.last() else { return Ok(()) };
        let last_table = self.table_of(GuestOffset(last.end().0.saturating_sub(1)));
        let mut l1 = L1Window::default();
        let mut buffer = Vec::new();
        let mut rest = ranges;
        let mut table = 0;
        while let Some(first) = rest.first() {
            table = self.table_of(first.start()).max(table);
            let covered = self.table_range(table);
            let here = &rest[..rest.partition_point(|range| range.start() < covered.end())];
            match l1.entry(self, file, table, last_table)? {
                Ok(L1Entry::Unallocated) => {}
                Ok(L1Entry::Table(at)) if self.holds(at, self.geometry().cluster_size()) => {
                    let table = Table { at, covered };
                    table.read(self, file, here, &mut buffer)?.walk(self, here, found);
                }
                Ok(L1Entry::Table(_)) | Err(_) => {
                    here.iter().for_each(|range| found.push(range.intersect(covered), Found::Bad));
                }
            }
            rest = &rest[rest.partition_point(|range| range.end() <= covered.end())..];
            table += 1;
        }
        Ok(())
    }

    /// See [`Layer::will_visit`](super::layer::Layer::will_visit).
    pub(super) fn will_visit(&self, file: &dyn Storage, range: GuestRange) {
        let range = range.intersect(GuestRange::between(GuestOffset(0), GuestOffset(self.header.size)));
        if range.is_empty() {
            return;
        }
        let (first, last) = (self.table_of(range.start()), self.table_of(GuestOffset(range.end().0 - 1)));
        let mut l1 = L1Window::default();
        for table in first..=last {
            // Only a hint: what cannot be read now is told when the table is visited.
            if let Ok(Ok(L1Entry::Table(at))) = l1.entry(self, file, table, last) {
                file.will_need(at, self.geometry().cluster_size());
            }
        }
    }

    /// See [`Layer::next_allocated`](super::layer::Layer::next_allocated).
    pub(super) fn next_allocated(&self, file: &dyn Storage, from: GuestOffset) -> Result<Option<GuestOffset>> {
        if from.0 >= self.header.size {
            return Ok(None);
        }
        self.check_table_count(file)?;
        let last = self.table_of(GuestOffset(self.header.size - 1));
        let mut l1 = L1Window::default();
        for table in self.table_of(from)..=last {
            if l1.entry(self, file, table, last)? != Ok(L1Entry::Unallocated) {
                return Ok(Some(self.table_range(table).start().max(from)));
            }
        }
        Ok(None)
    }

    /// Refuses to scan an image whose L1 table names more tables than its file has clusters: tables are shared then, and
    /// a small file could make the scan of it endless.
    pub(super) fn check_table_count(&self, file: &dyn Storage) -> Result<()> {
        let tables = match self.tables.get() {
            Some(tables) => *tables,
            None => {
                let counted = self.count_tables(file)?;
                *self.tables.get_or_init(|| counted)
            }
        };
        let clusters = self.file_size >> self.geometry().cluster_bits;
        if tables <= clusters {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Corrupt,
            format!("the L1 table names {tables} L2 tables, but the file has {clusters} clusters: tables are shared"),
        ))
    }

    fn count_tables(&self, file: &dyn Storage) -> Result<u64> {
        let mut l1 = L1Window::default();
        let mut count = 0;
        let last = u64::from(self.header.l1_entries).saturating_sub(1);
        for table in 0..u64::from(self.header.l1_entries) {
            count += u64::from(l1.entry(self, file, table, last)? != Ok(L1Entry::Unallocated));
        }
        Ok(count)
    }

    /// Why the entries for `at` cannot be followed.
    pub(super) fn diagnose(&self, file: &dyn Storage, at: GuestOffset) -> Error {
        match self.entry_fault(file, at) {
            Ok(why) => Error::new(ErrorKind::Corrupt, format!("the disk's offset {at} cannot be read: {why}")),
            Err(e) => e,
        }
    }

    fn entry_fault(&self, file: &dyn Storage, at: GuestOffset) -> Result<String> {
        let index = self.table_of(at);
        let (table, covered) = match L1Window::default().entry(self, file, index, index)? {
            Err(fault) => return Ok(format!("L1 entry {index}: {fault}")),
            Ok(L1Entry::Table(table)) if !self.holds(table, self.geometry().cluster_size()) => {
                return Ok(format!(
                    "L1 entry {index} places an L2 table at {table}, past the end of the file ({} bytes)",
                    self.file_size
                ));
            }
            Ok(L1Entry::Table(table)) => {
                (Table { at: table, covered: self.table_range(index) }, self.table_range(index))
            }
            Ok(L1Entry::Unallocated) => return Ok("its tables changed after they were first read".to_owned()),
        };
        let range = GuestRange::between(at, at.saturating_add(1)).intersect(covered);
        let mut buffer = Vec::new();
        let entries = table.read(self, file, &[range], &mut buffer)?;
        let cluster = self.cluster_of(at);
        let place = format!("entry {} of the L2 table at {}", cluster - entries.first, table.at);
        Ok(match entries.decode(self, cluster) {
            Err(fault) => format!("{place}: {fault}"),
            Ok(Subclusters::Whole(Cluster::Compressed(c))) => {
                format!("{place} places a compressed cluster at {}, outside the file's data", c.start(self.geometry()))
            }
            Ok(Subclusters::Whole(Cluster::Data(host)) | Subclusters::Mixed { at: host, .. }) => {
                let size = self.file_size;
                format!("{place} places the cluster at {host}, outside the file's data (the file has {size} bytes)")
            }
            Ok(Subclusters::Whole(Cluster::Unallocated | Cluster::Zero)) => {
                format!("{place} changed after it was first read")
            }
        })
    }

    /// Every L2 table's place, in the order of the disk, with the range that it covers; bad entries are left out.
    pub(super) fn tables(&self, file: &dyn Storage) -> Result<Vec<HostOffset>> {
        self.check_table_count(file)?;
        let mut l1 = L1Window::default();
        let mut tables = Vec::new();
        let last = u64::from(self.header.l1_entries).saturating_sub(1);
        for table in 0..u64::from(self.header.l1_entries) {
            if let Ok(L1Entry::Table(at)) = l1.entry(self, file, table, last)? {
                tables.push(at);
            }
        }
        Ok(tables)
    }

    fn cluster_of(&self, at: GuestOffset) -> u64 {
        at.0 >> self.geometry().cluster_bits
    }

    fn table_of(&self, at: GuestOffset) -> u64 {
        at.0 >> self.geometry().l2_coverage_bits()
    }

    /// The part of the disk that L2 table number `table` speaks for.
    fn table_range(&self, table: u64) -> GuestRange {
        let bits = self.geometry().l2_coverage_bits();
        let start = GuestOffset(table.checked_shl(bits).unwrap_or(u64::MAX));
        GuestRange::between(start, start.saturating_add(1 << bits))
    }

    /// Whether `len` bytes at `at` lie within the file and outside the header and the L1 table.
    fn holds(&self, at: HostOffset, len: u64) -> bool {
        let Some(range) = HostRange::new(at, len) else { return false };
        at.0 >= self.geometry().cluster_size()
            && range.end().0 <= self.file_size
            && range.intersect(self.header.l1_range()).is_empty()
    }

    /// What a cluster's part `range` comes to, where the cluster is stored from `cluster_at` on.
    fn data(&self, cluster_at: HostOffset, range: GuestRange) -> Found {
        let within = range.start().0 & (self.geometry().cluster_size() - 1);
        let at = cluster_at.saturating_add(within);
        if self.holds(at, range.len()) { Found::Data(at) } else { Found::Bad }
    }

    fn compressed(&self, cluster: CompressedCluster) -> Found {
        if self.holds(cluster.start(self.geometry()), 1) { Found::Compressed(cluster) } else { Found::Bad }
    }
}

/// Some consecutive entries of the L1 table, read in one go.
struct L1Window {
    first: u64,
    bytes: Vec<u8>,
    /// Most entries that are read the next time.
    chunk: u64,
}

impl Default for L1Window {
    fn default() -> Self {
        Self { first: 0, bytes: Vec::new(), chunk: L1_CHUNKS.0 }
    }
}

impl L1Window {
    /// L1 entry `index`; `last` is the last one that the caller will ask for. The outer error is a failed read.
    fn entry(
        &mut self,
        image: &Qcow2,
        file: &dyn Storage,
        index: u64,
        last: u64,
    ) -> Result<Result<L1Entry, EntryFault>> {
        if index >= u64::from(image.header.l1_entries) {
            return Ok(Ok(L1Entry::Unallocated));
        }
        let held = self.bytes.len() as u64 / L1_ENTRY_BYTES;
        if index < self.first || index >= self.first + held {
            let wanted = last.min(u64::from(image.header.l1_entries) - 1).saturating_sub(index) + 1;
            self.first = index;
            self.bytes.resize(to_usize(wanted.min(self.chunk) * L1_ENTRY_BYTES), 0);
            self.chunk = (self.chunk * 2).min(L1_CHUNKS.1);
            file.read_exact_at(&mut self.bytes, image.header.l1_offset.saturating_add(index * L1_ENTRY_BYTES))?;
        }
        let entry = entry_at(&self.bytes, to_usize((index - self.first) * L1_ENTRY_BYTES));
        Ok(decode_l1(entry, image.geometry()))
    }
}

/// One L2 table: where it is, and what part of the disk it speaks for.
#[derive(Clone, Copy)]
struct Table {
    at: HostOffset,
    covered: GuestRange,
}

/// Consecutive entries of one L2 table.
struct Entries<'a> {
    /// The table's first cluster of the disk, and the first and one past the last whose entries are here.
    first: u64,
    from: u64,
    bytes: &'a [u8],
    covered: GuestRange,
}

impl Table {
    /// Reads the entries from the first to the last cluster that `ranges` touch.
    fn read<'a>(
        self,
        image: &Qcow2,
        file: &dyn Storage,
        ranges: &[GuestRange],
        buffer: &'a mut Vec<u8>,
    ) -> Result<Entries<'a>> {
        let ends = ranges.first().zip(ranges.last());
        let span = ends.map_or(self.covered, |(first, last)| GuestRange::between(first.start(), last.end()));
        let span = span.intersect(self.covered);
        let first = image.cluster_of(self.covered.start());
        let from = image.cluster_of(span.start());
        let to = image.cluster_of(GuestOffset(span.end().0.saturating_sub(1))) + 1;
        let entry_bytes = image.geometry().l2_entry_bytes();
        buffer.resize(to_usize(to.saturating_sub(from) * entry_bytes), 0);
        file.read_exact_at(buffer, self.at.saturating_add((from - first) * entry_bytes))?;
        Ok(Entries { first, from, bytes: buffer, covered: self.covered })
    }
}

impl Entries<'_> {
    /// Says what the entries hold of `ranges`, which lie among them.
    fn walk(&self, image: &Qcow2, ranges: &[GuestRange], found: &mut Collector) {
        let bits = image.geometry().cluster_bits;
        let entry_bytes = image.geometry().l2_entry_bytes();
        for range in ranges {
            let range = range.intersect(self.covered);
            let first = range.start().0 >> bits;
            let skipped = to_usize(first.saturating_sub(self.from) * entry_bytes);
            let entries = self.bytes.get(skipped..).unwrap_or_default().chunks_exact(to_usize(entry_bytes));
            for (cluster, entry) in (first..).zip(entries) {
                let start = GuestOffset(cluster << bits);
                if start >= range.end() {
                    break;
                }
                // Most entries of an incremental layer; this loop is what building a map of many layers costs.
                if entry_at(entry, 0) == 0 && (entry.len() == 8 || entry_at(entry, 8) == 0) {
                    continue;
                }
                let part = GuestRange::between(start, start.saturating_add(1 << bits)).intersect(range);
                self.cluster(image, cluster, part, found);
            }
        }
    }

    /// Says what the entry of `cluster` holds of `part`, a range within it.
    fn cluster(&self, image: &Qcow2, cluster: u64, part: GuestRange, found: &mut Collector) {
        match self.decode(image, cluster) {
            Ok(Subclusters::Whole(Cluster::Unallocated)) => {}
            Ok(Subclusters::Whole(Cluster::Zero)) => found.push(part, Found::Zero),
            Ok(Subclusters::Whole(Cluster::Data(at))) => found.push(part, image.data(at, part)),
            Ok(Subclusters::Whole(Cluster::Compressed(cluster))) => found.push(part, image.compressed(cluster)),
            Ok(Subclusters::Mixed { at, data, zero }) => {
                let start = GuestOffset(cluster << image.geometry().cluster_bits);
                let size = 1 << image.geometry().unit_bits();
                for n in 0..SUBCLUSTERS {
                    let from = start.saturating_add(u64::from(n) * size);
                    let sub = GuestRange::between(from, from.saturating_add(size)).intersect(part);
                    if sub.is_empty() {
                        continue;
                    }
                    if data & (1 << n) != 0 {
                        found.push(sub, image.data(at, sub));
                    } else if zero & (1 << n) != 0 {
                        found.push(sub, Found::Zero);
                    }
                }
            }
            Err(_) => found.push(part, Found::Bad),
        }
    }

    fn decode(&self, image: &Qcow2, cluster: u64) -> Result<Subclusters, EntryFault> {
        let geometry = image.geometry();
        let at = to_usize(cluster.saturating_sub(self.from) * geometry.l2_entry_bytes());
        let entry = entry_at(self.bytes, at);
        if geometry.extended_l2 {
            return decode_l2_extended(entry, entry_at(self.bytes, at + 8), geometry);
        }
        decode_l2(entry, image.header.version, geometry).map(Subclusters::Whole)
    }
}

/// The big-endian number at `at`; 0, an unallocated entry, outside of what was read.
fn entry_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|entry| entry.try_into().ok()).map_or(0, u64::from_be_bytes)
}
