//! Chains of images in memory, with every kind of entry, counted and kept in every way, beside the plain walk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::book::{Book, ChainId, Data, LIMIT, Level};
use super::spans::{SpanWriter, Spans};
use super::*;
use crate::disk::DiskEnv;
use crate::storage::memory::{MemoryFile, MemoryGate};
use crate::storage::{FilePool, LayerSource, RelPath};

/// One image. A qcow2 one has clusters of 512 bytes, of 4 KiB, or of 16 KiB with subclusters.
#[derive(Debug, Clone)]
struct Image {
    kind: Kind,
    /// In sectors; a raw image has some bytes more.
    size: u64,
    entries: Vec<(Place, Entry)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Qcow2,
    Large,
    Subclusters,
    Raw(u64),
}

/// Where in the disk: near one of some places, so that images meet there.
#[derive(Debug, Clone, Copy)]
struct Place(u8, u8);

#[derive(Debug, Clone, Copy)]
enum Entry {
    Data,
    Zero,
    /// Zero, with a place in the file.
    PlacedZero,
    Compressed,
    /// Behind the end of the file.
    Bad,
    /// Data and zeros by these bits, where there are subclusters.
    Mixed(u32, u32),
}

const MIB: u64 = 1 << 20;

impl Image {
    fn bytes_of_disk(&self) -> u64 {
        self.size * 512 + if let Kind::Raw(more) = self.kind { more } else { 0 }
    }

    /// The file, over `below`.
    fn file(&self, below: Option<(&str, &Kind)>) -> Vec<u8> {
        let (bits, entry_bytes) = match self.kind {
            // A file in memory has no holes.
            Kind::Raw(_) => return vec![7; self.bytes_of_disk() as usize],
            Kind::Qcow2 => (9, 8),
            Kind::Large => (12, 8),
            Kind::Subclusters => (14, 16),
        };
        let cluster: usize = 1 << bits;
        let (extended, per_table) = (entry_bytes == 16, (cluster / entry_bytes) as u64);
        let clusters = self.bytes_of_disk().div_ceil(cluster as u64);
        let tables = clusters.div_ceil(per_table);
        let l1_clusters = (tables as usize * 8).div_ceil(cluster).max(1);
        let mut out = vec![0; cluster * (1 + l1_clusters)];
        let mut words: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (place, entry) in &self.entries {
            let at = [0, 60, 4 * MIB - 4096, 8 * MIB - 9000, self.bytes_of_disk().saturating_sub(40_000)];
            let number = (at[usize::from(place.0) % at.len()] + u64::from(place.1) * 512) >> bits;
            if number >= clusters {
                continue;
            }
            let host = out.len() as u64;
            let word = match entry {
                Entry::Data => (host, u64::from(u32::MAX)),
                Entry::Zero if extended => (0, u64::from(u32::MAX) << 32),
                Entry::Zero => (1, 0),
                Entry::PlacedZero if extended => (host, u64::from(u32::MAX) << 32),
                Entry::PlacedZero => (host | 1, 0),
                Entry::Compressed => (1 << 62 | host, 0),
                Entry::Bad => (1 << 40, u64::from(u32::MAX)),
                Entry::Mixed(data, zero) => (host, u64::from(*data) | u64::from(*zero & !data) << 32),
            };
            words.insert(number, word);
            out.resize(out.len() + cluster, 9);
        }
        let mut places = BTreeMap::new();
        for (number, (word, bitmap)) in words {
            let table = *places.entry(number / per_table).or_insert_with(|| {
                out.resize(out.len() + cluster, 0);
                out.len() - cluster
            });
            let at = table + (number % per_table) as usize * entry_bytes;
            out[at..at + 8].copy_from_slice(&word.to_be_bytes());
            if extended {
                out[at + 8..at + 16].copy_from_slice(&bitmap.to_be_bytes());
            }
        }
        for (number, at) in places {
            let slot = cluster + number as usize * 8;
            out[slot..slot + 8].copy_from_slice(&(at as u64).to_be_bytes());
        }
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb");
        put(4, &3u32.to_be_bytes());
        put(20, &(bits as u32).to_be_bytes());
        put(24, &self.bytes_of_disk().to_be_bytes());
        put(36, &(tables as u32).to_be_bytes());
        put(40, &(cluster as u64).to_be_bytes());
        put(72, &(u64::from(extended) << 4).to_be_bytes());
        put(96, &4u32.to_be_bytes());
        put(100, &104u32.to_be_bytes());
        if let Some((name, kind)) = below {
            let format: &[u8] = if matches!(kind, Kind::Raw(_)) { b"raw" } else { b"qcow2" };
            put(104, &0xe279_2acau32.to_be_bytes());
            put(108, &(format.len() as u32).to_be_bytes());
            put(112, format);
            put(8, &200u64.to_be_bytes());
            put(16, &(name.len() as u32).to_be_bytes());
            put(200, name.as_bytes());
        }
        out
    }
}

/// A gate that counts what is read through it, of each file.
struct Store {
    gate: MemoryGate,
    reads: BTreeMap<String, Arc<AtomicU64>>,
    unsettled: Vec<String>,
}

struct File {
    file: Arc<dyn Storage>,
    reads: Arc<AtomicU64>,
    settled: bool,
}

impl Store {
    fn new(images: &[Image]) -> Self {
        let mut store = Self { gate: MemoryGate::new("100"), reads: BTreeMap::new(), unsettled: Vec::new() };
        (0..images.len()).for_each(|at| store.put(images, at));
        store
    }

    /// Makes or replaces one layer.
    fn put(&mut self, images: &[Image], at: usize) {
        let name = at.checked_sub(1).map(name);
        let below = name.as_deref().map(|name| (name, &images[at - 1].kind));
        let name = super::tests::name(at);
        self.gate.insert(&name, MemoryFile::new(images[at].file(below)));
        self.reads.entry(name).or_default();
    }

    fn reads_of(&self, at: usize) -> u64 {
        self.reads[&name(at)].load(Ordering::Relaxed)
    }

    fn all_reads(&self) -> u64 {
        self.reads.values().map(|reads| reads.load(Ordering::Relaxed)).sum()
    }

    fn open(&self, images: &[Image], at: usize, env: &Arc<DiskEnv>) -> Disk {
        let format = if matches!(images[at].kind, Kind::Raw(_)) { ImageFormat::Raw } else { ImageFormat::Qcow2 };
        Disk::open(self, &RelPath::new(&name(at)).unwrap(), format, env).unwrap()
    }

    /// By the maps, of an environment that remembers nothing.
    fn expected(&self, images: &[Image], at: usize, range: GuestRange) -> u64 {
        let disk = self.open(images, at, &DiskEnv::new(0));
        disk.mapped(range.intersect(whole(&disk))).unwrap()
    }
}

impl LayerSource for Store {
    fn open(&self, path: &RelPath) -> Result<Arc<dyn Storage>> {
        let reads = self.reads[path.as_str()].clone();
        let settled = !self.unsettled.iter().any(|name| name == path.as_str());
        Ok(Arc::new(File { file: self.gate.open(path)?, reads, settled }))
    }

    fn resolve(&self, from: &RelPath, backing: &[u8]) -> Result<RelPath> {
        self.gate.resolve(from, backing)
    }
}

impl Storage for File {
    fn size(&self) -> u64 {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.file.read_at(buf, at)
    }

    fn next_data(&self, at: HostOffset) -> Result<Option<HostOffset>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.file.next_data(at)
    }

    fn next_hole(&self, at: HostOffset) -> Result<HostOffset> {
        self.file.next_hole(at)
    }

    fn will_need(&self, at: HostOffset, len: u64) {
        self.file.will_need(at, len);
    }

    fn identity(&self) -> FileIdentity {
        self.file.identity()
    }

    fn is_settled(&self) -> bool {
        self.settled
    }
}

fn name(at: usize) -> String {
    format!("layer-{at}")
}

fn whole(disk: &Disk) -> GuestRange {
    range(0, disk.size())
}

fn range(start: u64, end: u64) -> GuestRange {
    GuestRange::between(GuestOffset(start), GuestOffset(end))
}

fn keeping(dir: &Path) -> Arc<DiskEnv> {
    DiskEnv::keeping(0, Some(DerivedDir::open(dir, FilePool::new(4)).unwrap()))
}

fn kept_files(dir: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn entries() -> impl Strategy<Value = Entry> {
    prop_oneof![
        4 => Just(Entry::Data),
        1 => Just(Entry::Zero),
        1 => Just(Entry::PlacedZero),
        1 => Just(Entry::Compressed),
        1 => Just(Entry::Bad),
        2 => (any::<u32>(), any::<u32>()).prop_map(|(data, zero)| Entry::Mixed(data, zero)),
    ]
}

fn image() -> impl Strategy<Value = Image> {
    let kind = prop_oneof![1 => Just(Kind::Qcow2), 2 => Just(Kind::Large), 1 => Just(Kind::Subclusters)];
    let size = prop_oneof![3 => Just(20_000_u64), 1 => Just(16_384), 1 => 0_u64..20_000, 1 => 8_100_u64..8_300];
    let entry = ((0_u8..5, any::<u8>()).prop_map(|(a, b)| Place(a, b)), entries());
    (kind, size, prop::collection::vec(entry, 0..60)).prop_map(|(kind, size, entries)| Image { kind, size, entries })
}

/// Chains, the lowest image first; that may be a raw one.
fn chains() -> impl Strategy<Value = Vec<Image>> {
    (prop::collection::vec(image(), 1..6), prop::option::weighted(0.3, 0_u64..512)).prop_map(|(mut images, raw)| {
        if let Some(more) = raw {
            images[0].kind = Kind::Raw(more);
            images[0].size /= 16;
        }
        images
    })
}

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { cases: count, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn what_is_counted_and_what_is_kept_is_what_the_maps_say(
        images in chains(),
        order in prop::collection::vec((any::<prop::sample::Index>(), prop::option::of((0_u64..10_300_000, 0_u64..10_300_000))), 1..8),
        damage in any::<prop::sample::Index>(),
        kind_of_damage in 0..4,
        replaced in any::<prop::sample::Index>(),
        by in image(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut images = images;
        let mut store = Store::new(&images);
        let ask = |store: &Store, images: &[Image], env: &Arc<DiskEnv>, what: &str| {
            for (at, part) in &order {
                let at = at.index(images.len());
                let disk = store.open(images, at, env);
                let asked = part.map_or(whole(&disk), |(a, b)| range(a.min(b), a.max(b)));
                let expected = store.expected(images, at, asked);
                prop_assert_eq!(disk.allocated(asked).unwrap(), expected, "{} {} {:?}", what, at, asked);
            }
            Ok(())
        };
        ask(&store, &images, &DiskEnv::new(0), "without a directory")?;
        ask(&store, &images, &keeping(dir.path()), "cold")?;
        ask(&store, &images, &keeping(dir.path()), "kept")?;

        let top = images.len() - 1;
        // Whatever was counted once, the next process counts by no table.
        let counting = keeping(dir.path());
        for at in 0..images.len() {
            store.open(&images, at, &counting).allocated(range(0, u64::MAX)).unwrap();
        }
        let env = keeping(dir.path());
        for at in 0..images.len() {
            let disk = store.open(&images, at, &env);
            let expected = store.expected(&images, at, whole(&disk));
            let before = store.all_reads();
            prop_assert_eq!(disk.allocated(whole(&disk)).unwrap(), expected);
            prop_assert_eq!(store.all_reads(), before, "level {} was counted anew", at);
        }

        // Where there is no room for what the levels changed, the data of the last one stands for all of it.
        let disk = store.open(&images, top, &DiskEnv::new(0));
        let chain = Chain::of(&disk.nodes);
        let levels = (0..=top).map(|at| Planned { layer: chain.levels[at], remembered: chain.remembered(at) }).collect();
        let plan = Plan { levels, below: Vec::new(), unit_bits: chain.unit_bits(), window_bits: disk.region_bits };
        let counted = walk(&plan).unwrap();
        for part in [whole(&disk), range(0, 4 * MIB), range(4 * MIB - 100, 9 * MIB)] {
            let expected = disk.mapped(part.intersect(whole(&disk))).unwrap();
            let part = part.intersect(whole(&disk));
            prop_assert_eq!(data_in(&[counted.data.as_ref().unwrap()], part).unwrap(), expected);
            let differences: Vec<&Spans> = counted.differences.iter().flatten().collect();
            prop_assert_eq!(data_in(&differences, part).unwrap(), expected);
        }

        for file in kept_files(dir.path()) {
            let mut bytes = std::fs::read(&file).unwrap();
            let at = damage.index(bytes.len());
            match kind_of_damage {
                0 => bytes[at] ^= 0x10,
                1 => bytes.truncate(at),
                2 => bytes.push(0),
                _ => bytes.fill(0xff),
            }
            std::fs::write(&file, bytes).unwrap();
        }
        ask(&store, &images, &keeping(dir.path()), "damaged")?;
        ask(&store, &images, &keeping(dir.path()), "mended")?;

        let at = replaced.index(images.len());
        images[at] = Image { kind: if at > 0 { by.kind } else { images[0].kind }, ..by };
        // What lies above names its format, which may be another one now.
        store.put(&images, at);
        if at < top {
            store.put(&images, at + 1);
        }
        ask(&store, &images, &keeping(dir.path()), "replaced")?;
        ask(&store, &images, &keeping(dir.path()), "kept after that")?;
    }
}

fn data(at: &[u8]) -> Image {
    let entries = at.iter().map(|at| (Place(2, *at), Entry::Data)).collect();
    Image { kind: Kind::Qcow2, size: 20_000, entries }
}

#[test]
fn a_new_backup_costs_a_look_at_its_own_tables_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut images = vec![data(&[1, 2, 3]), data(&[3, 4]), data(&[5, 200])];
    let mut store = Store::new(&images);
    store.open(&images, 2, &keeping(dir.path())).allocated(range(0, u64::MAX)).unwrap();
    images.push(Image { entries: vec![(Place(2, 2), Entry::Zero), (Place(2, 9), Entry::Data)], ..data(&[]) });
    store.put(&images, 3);
    let disk = store.open(&images, 3, &keeping(dir.path()));
    let before: Vec<u64> = (0..4).map(|at| store.reads_of(at)).collect();
    assert_eq!(disk.allocated(whole(&disk)).unwrap(), 6 * 512);
    let after: Vec<u64> = (0..4).map(|at| store.reads_of(at)).collect();
    assert_eq!(before[..3], after[..3], "tables of older backups were read");
    assert!(after[3] > before[3], "this test cannot see reads");
}

#[test]
fn disks_of_one_process_share_what_was_counted_without_any_directory() {
    let images = [data(&[1, 2, 3]), data(&[3, 4]), data(&[5, 200])];
    let store = Store::new(&images);
    let env = DiskEnv::new(0);
    store.open(&images, 2, &env).allocated(range(0, u64::MAX)).unwrap();
    let older = store.open(&images, 1, &env);
    let before = store.all_reads();
    assert_eq!(older.allocated(whole(&older)).unwrap(), 4 * 512);
    assert_eq!(older.allocated(range(0, 4 * MIB - 2048)).unwrap(), 3 * 512);
    assert_eq!(store.all_reads(), before);
}

#[test]
fn an_image_that_may_still_change_unnoticed_is_not_remembered_and_what_lies_beneath_is() {
    let dir = tempfile::tempdir().unwrap();
    let images = [data(&[1]), data(&[2]), data(&[3]), data(&[4])];
    let mut store = Store::new(&images);
    store.unsettled = vec![name(2)];
    let env = keeping(dir.path());
    let counted = |at| store.open(&images, at, &env).allocated(range(0, u64::MAX)).unwrap();
    assert_eq!(counted(3), 4 * 512);
    let reads = |at: usize| {
        let disk = store.open(&images, at, &keeping(dir.path()));
        let before = store.all_reads();
        assert_eq!(disk.allocated(whole(&disk)).unwrap(), (at as u64 + 1) * 512);
        store.all_reads() - before
    };
    assert_eq!((reads(0), reads(1)), (0, 0));
    // Those above it depend on it.
    assert!(reads(2) > 0 && reads(3) > 0);
}

#[test]
fn a_file_that_was_kept_of_another_chain_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = ([data(&[1, 2])], [data(&[1])]);
    let (ones, others) = (Store::new(&one), Store::new(&other));
    ones.open(&one, 0, &keeping(dir.path())).allocated(range(0, u64::MAX)).unwrap();
    let kept = kept_files(dir.path()).remove(0);
    let disk = others.open(&other, 0, &keeping(dir.path()));
    let name = Books::name(&disk.nodes[0].layer.identity());
    std::fs::rename(&kept, dir.path().join(format!("{name}.annals-cache"))).unwrap();
    assert_eq!(disk.allocated(whole(&disk)).unwrap(), 512);
    let book = Book::parse(&std::fs::read(kept_files(dir.path()).remove(0)).unwrap()).unwrap();
    assert!(book.size() < 160, "what the other chain left is still in it");
}

#[test]
fn counts_in_memory_are_bounded_whatever_is_asked_for() {
    let raw = || Image { kind: Kind::Raw(0), size: 1, entries: Vec::new() };
    let images: Vec<_> = (0..2500).map(|_| raw()).collect();
    let store = Store::new(&images);
    let env = DiskEnv::new(0);
    for at in 0..images.len() {
        assert_eq!(store.open(&images, at, &env).allocated(range(0, 512)).unwrap(), 512);
    }
    let kept = lock(&env.books().recent).len();
    assert!(kept > 1000 && kept <= MEMORY / 4096, "{kept} books are kept");
}

#[test]
fn a_directory_that_is_gone_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let images = [data(&[1]), data(&[2])];
    let store = Store::new(&images);
    let env = keeping(&dir.path().join("cache"));
    std::fs::remove_dir(dir.path().join("cache")).unwrap();
    let disk = store.open(&images, 1, &env);
    assert_eq!(disk.allocated(whole(&disk)).unwrap(), 1024);
}

#[test]
fn a_table_that_cannot_be_read_does_not_matter_where_what_it_says_is_hidden() {
    let hidden = Image { size: 64, entries: (0..20).map(|at| (Place(0, at), Entry::Data)).collect(), ..data(&[]) };
    let above = Image { size: 64, entries: (0..64).map(|at| (Place(0, at), Entry::Data)).collect(), ..data(&[]) };
    let images = [hidden, above];
    let mut store = Store::new(&images);
    let file = images[0].file(None);
    let table = file.len() as u64 - 512;
    store.gate.insert(&name(0), MemoryFile::new(file).failing_from(HostOffset(table)));
    // The table lies behind what is read together with the header.
    assert!(table > 4096 && store.open(&images, 0, &DiskEnv::new(0)).allocated(range(0, u64::MAX)).is_err());
    let disk = store.open(&images, 1, &DiskEnv::new(0));
    assert_eq!(disk.allocated(whole(&disk)).unwrap(), 64 * 512);
}

fn spans(ranges: &[(u64, u64)]) -> Spans {
    let mut writer = SpanWriter::new(9);
    ranges.iter().for_each(|(start, end)| writer.push(range(start << 9, end << 9)));
    writer.finish()
}

#[test]
fn ranges_are_packed_and_unpacked_and_those_that_touch_become_one() {
    let packed = spans(&[(0, 1), (1, 3), (200, 201), (1 << 40, (1 << 40) + 5)]);
    assert_eq!(
        packed.iter().collect::<Vec<_>>(),
        [range(0, 1536), range(200 << 9, 201 << 9), range(1 << 49, (1 << 49) + 2560)]
    );
    assert_eq!(Spans::parse(9, packed.bytes()), Some(packed));
}

#[test]
fn a_book_that_grows_too_large_gives_up_where_data_is_before_how_much_there_is() {
    let id = |at: u32| ChainId(std::array::from_fn(|byte| at.to_le_bytes()[byte % 4]));
    let long = || spans(&(0..300_000).map(|n| (n * 1000, n * 1000 + 500)).collect::<Vec<_>>());
    let mut book = Book::new(ChainId([0; 32]));
    for at in 0..3 {
        let against = (at > 0).then(|| id(at - 1));
        book.insert(id(at), Level { total: at.into(), data: Some(Data { against, spans: long() }) });
    }
    book.insert(id(9), Level { total: 9, data: Some(Data { against: None, spans: long() }) });
    let mut other = Book::parse(&book.to_bytes()).unwrap();
    assert!(other == book && book.size() > LIMIT && book.to_bytes().len() == book.size());

    book.shrink(&[id(0), id(1), id(2)], None);
    assert!(book.size() <= LIMIT && book.data(&id(2)).is_some_and(|lists| lists.len() == 3));
    assert!(book.data(&id(9)).is_none() && book.level(&id(9)).is_some());

    other.insert(id(8), Level { total: 8, data: Some(Data { against: Some(id(2)), spans: long() }) });
    other.shrink(&[id(0), id(1), id(2), id(8)], Some((id(8), spans(&[(1, 2)]))));
    assert_eq!(other.data(&id(8)), Some(vec![&spans(&[(1, 2)])]));
    assert!(other.data(&id(2)).is_none() && other.level(&id(2)).is_some_and(|level| level.total == 2));
}

#[test]
fn a_chain_whose_levels_differ_too_much_is_gone_on_from_at_its_top() {
    let images = [data(&[1, 2]), data(&[2, 3]), data(&[9])];
    let store = Store::new(&images);
    let disk = store.open(&images, 1, &DiskEnv::new(0));
    let chain = Chain::of(&disk.nodes);
    let mut book = Book::new(chain.ids[0]);
    let (levels, below) = (chain.levels.iter().map(|layer| Planned { layer, remembered: true }).collect(), Vec::new());
    let counted = walk(&Plan { levels, below, unit_bits: chain.unit_bits(), window_bits: disk.region_bits }).unwrap();
    enter(&chain, &mut book, 0, None, Counted { differences: None, ..counted });
    assert_eq!(data_in(&book.data(&chain.ids[1]).unwrap(), whole(&disk)).unwrap(), 3 * 512);
    assert!(book.data(&chain.ids[0]).is_none() && book.level(&chain.ids[0]).is_some_and(|level| level.total == 1024));

    let next = store.open(&images, 2, &DiskEnv::new(0));
    let before = store.reads_of(0);
    assert_eq!(learn(&next, &Chain::of(&next.nodes), &mut book).unwrap(), Some(4 * 512));
    assert_eq!(store.reads_of(0), before, "it was counted from the oldest image up");
}

#[test]
fn a_book_whose_levels_go_in_a_circle_says_nothing_of_where_data_is() {
    let (a, b) = (ChainId([1; 32]), ChainId([2; 32]));
    let mut book = Book::new(ChainId([0; 32]));
    for (id, against) in [(a, b), (b, a)] {
        book.insert(id, Level { total: 1, data: Some(Data { against: Some(against), spans: spans(&[(0, 1)]) }) });
    }
    assert_eq!(book.data(&a), None);
}

proptest! {
    #[test]
    fn bytes_that_are_no_book_or_no_ranges_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>()) {
        let _ = Spans::parse(9, &bytes);
        prop_assert!(Book::parse(&bytes).is_none());
        let mut book = Book::new(ChainId([0; 32]));
        book.insert(ChainId([3; 32]), Level { total: 5, data: Some(Data { against: None, spans: spans(&[(1, 2), (7, 9)]) }) });
        let mut damaged = book.to_bytes();
        let at = at.index(damaged.len());
        damaged[at] ^= 1;
        prop_assert!(Book::parse(&damaged).is_none());
        // With a checksum of its own, too, nothing that is wrong in it does more than give a wrong number.
        let body = damaged.len() - 32;
        let hash = blake3::hash(&damaged[..body]);
        damaged[body..].copy_from_slice(hash.as_bytes());
        let _ = Book::parse(&damaged).map(|book| book.data(&ChainId([3; 32])).map(|lists| data_in(&lists, range(0, u64::MAX))));
    }
}
