use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::disk::{Disk, DiskEnv, Source};
use crate::format::hash::FileHashes;
use crate::storage::write::{Direct, WriteDir};
use crate::storage::{FilePool, Gate, RelPath};

fn file(dir: &Path, name: &str) -> NewFile {
    WriteDir::open(dir, Arc::new(Direct)).unwrap().make_file(name).unwrap()
}

fn options(size: u64, cluster_bits: u32) -> ImageOptions {
    ImageOptions { size, cluster_bits, zstd: None, backing: None }
}

fn open(dir: &Path, name: &str) -> Disk {
    let gate = Gate::open(dir, FilePool::new(64)).unwrap();
    Disk::open(&gate, &RelPath::new(name).unwrap(), ImageFormat::Qcow2, &DiskEnv::new(0)).unwrap()
}

fn read(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; disk.size() as usize];
    assert_eq!(disk.read_at(&mut bytes, GuestOffset(0)).unwrap(), bytes.len());
    bytes
}

/// Where two disks of one size begin to differ.
fn differs(read: &[u8], model: &[u8]) -> Option<usize> {
    read.iter().zip(model).position(|(read, model)| read != model)
}

/// One stretch of a disk: where it starts, in clusters, and what each cluster of it holds.
#[derive(Debug, Clone)]
struct Stretch {
    gap: u64,
    clusters: Vec<Content>,
    explicit_zeros: u64,
}

#[derive(Debug, Clone, Copy)]
enum Content {
    Zero,
    Repetitive(u8),
    Random(u64),
}

impl Content {
    fn fill(self, out: &mut [u8]) {
        match self {
            Self::Zero => out.fill(0),
            Self::Repetitive(byte) => out.fill(byte | 1),
            Self::Random(seed) => {
                let mut state = seed | 1;
                for byte in out {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    *byte = state as u8;
                }
            }
        }
    }
}

fn stretches() -> impl Strategy<Value = Vec<Stretch>> {
    let content = prop_oneof![
        Just(Content::Zero),
        any::<u8>().prop_map(Content::Repetitive),
        any::<u64>().prop_map(Content::Random)
    ];
    let stretch = (0..200_u64, proptest::collection::vec(content, 0..40), 0..150_u64)
        .prop_map(|(gap, clusters, explicit_zeros)| Stretch { gap, clusters, explicit_zeros });
    proptest::collection::vec(stretch, 0..8)
}

/// Writes the stretches, cut to the disk, into an image, and into `model` the bytes that the disk has then.
fn write(file: NewFile, options: ImageOptions, stretches: &[Stretch], model: &mut [u8]) -> WrittenImage {
    let (size, cluster) = (options.size, 1_u64 << options.cluster_bits);
    let mut writer = ImageWriter::new(file, options).unwrap();
    let mut at = 0;
    for stretch in stretches {
        at += stretch.gap * cluster;
        if at >= size {
            break;
        }
        let end = (at + stretch.clusters.len() as u64 * cluster).min(size);
        let here = &mut model[at as usize..end as usize];
        here.chunks_mut(cluster as usize).zip(&stretch.clusters).for_each(|(part, content)| content.fill(part));
        writer.append(&writer.encoder().encode(GuestOffset(at), here.to_vec()).unwrap()).unwrap();
        at = end;
        let end = (at + stretch.explicit_zeros * cluster).min(size);
        model[at as usize..end as usize].fill(0);
        writer.append_zeros(GuestRange::between(GuestOffset(at), GuestOffset(end))).unwrap();
        at = end;
        if at >= size {
            break;
        }
    }
    writer.finish().unwrap()
}

/// Refcounts worked out anew from the tables, against those that the image has.
fn check_refcounts(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    let be32 = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let be64 = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let bits = be32(20);
    let cluster = 1 << bits;
    assert_eq!(bytes.len() % cluster, 0);
    let mut expected = vec![0_u16; bytes.len() / cluster];
    let mut refer = |from: usize, len: usize| {
        (from >> bits..=(from + len - 1) >> bits).for_each(|n| expected[n] += 1);
    };
    let (l1_entries, l1) = (be32(36), be64(40) as usize);
    let (table, table_clusters) = (be64(48) as usize, be32(56));
    refer(0, cluster);
    refer(l1, l1_entries * 8);
    refer(table, table_clusters * cluster);
    let offset = |entry: u64| (entry & 0x00ff_ffff_ffff_fe00) as usize;
    for l2 in (0..l1_entries).map(|n| be64(l1 + n * 8)).filter(|entry| *entry != 0) {
        refer(offset(l2), cluster);
        for entry in (0..cluster / 8).map(|n| be64(offset(l2) + n * 8)) {
            if entry & (1 << 62) != 0 {
                let (start, sectors) = (entry & ((1 << (70 - bits)) - 1), (entry & !(3 << 62)) >> (70 - bits));
                refer(start as usize, ((sectors + 1) * 512 - (start & 511)) as usize);
            } else if offset(entry) != 0 {
                refer(offset(entry), cluster);
            }
        }
    }
    let blocks: Vec<usize> =
        (0..table_clusters * cluster / 8).map(|n| be64(table + n * 8) as usize).filter(|at| *at != 0).collect();
    blocks.iter().for_each(|at| refer(*at, cluster));
    let per_block = cluster / 2;
    for (n, expected) in expected.iter().enumerate() {
        let at = blocks[n / per_block] + n % per_block * 2;
        let counted = u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap());
        assert_eq!(counted, *expected, "cluster {n} of {}", bytes.len() / cluster);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_written_reads_back_with_exact_refcounts_and_hashes(
        below in stretches(), above in stretches(), bits in 9..13_u32, sectors in 1..9000_u64, zstd in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut model = vec![0; sectors as usize * 512];
        let base = ImageOptions { zstd: zstd.then_some(1), ..options(model.len() as u64, bits) };
        let written = write(file(dir.path(), "base.qcow2"), base.clone(), &below, &mut model);
        prop_assert_eq!(differs(&read(&open(dir.path(), "base.qcow2")), &model), None);
        prop_assert_eq!(&FileHashes::of(&std::fs::read(dir.path().join("base.qcow2")).unwrap()), &written.hashes);
        check_refcounts(&dir.path().join("base.qcow2"));

        let top = ImageOptions { backing: Some(("base.qcow2".into(), ImageFormat::Qcow2)), ..base };
        write(file(dir.path(), "top.qcow2"), top, &above, &mut model);
        prop_assert_eq!(differs(&read(&open(dir.path(), "top.qcow2")), &model), None);
        check_refcounts(&dir.path().join("top.qcow2"));
    }
}

#[test]
fn zeros_are_holes_in_a_full_image_and_hide_what_lies_below_in_an_increment() {
    let dir = tempfile::tempdir().unwrap();
    let mut base = ImageWriter::new(file(dir.path(), "base"), options(2048, 9)).unwrap();
    let mut bytes = vec![7; 2048];
    bytes[512..1024].fill(0);
    base.append(&base.encoder().encode(GuestOffset(0), bytes).unwrap()).unwrap();
    let written = base.finish().unwrap();
    assert_eq!((written.stored, written.zeros), (1536, 0));

    let backing = Some(("base".to_owned(), ImageFormat::Qcow2));
    let mut top = ImageWriter::new(file(dir.path(), "top"), ImageOptions { backing, ..options(2048, 9) }).unwrap();
    top.append(&top.encoder().encode(GuestOffset(0), vec![0; 512]).unwrap()).unwrap();
    top.append_zeros(GuestRange::between(GuestOffset(1024), GuestOffset(1536))).unwrap();
    let written = top.finish().unwrap();
    assert_eq!((written.stored, written.zeros), (0, 1024));
    let disk = open(dir.path(), "top");
    let pieces = disk.map(GuestRange::between(GuestOffset(0), GuestOffset(2048))).unwrap();
    assert_eq!(pieces.len(), 2);
    assert!(matches!(pieces[0].source, Source::Zero) && pieces[0].range.len() == 1536);
}

#[test]
fn stretches_out_of_order_or_past_the_end_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ImageWriter::new(file(dir.path(), "a"), options(64 << 10, 12)).unwrap();
    let encoder = writer.encoder();
    let batch = |at, len| encoder.encode(GuestOffset(at), vec![1; len]).unwrap();
    writer.append(&batch(8192, 4096)).unwrap();
    assert!(writer.append(&batch(8192, 4096)).is_err(), "twice");
    assert!(writer.append(&batch(0, 4096)).is_err(), "backwards");
    assert!(writer.append(&batch(16384 + 512, 4096)).is_err(), "not at a cluster's start");
    assert!(writer.append(&batch(16384, 100)).is_err(), "part of a cluster before the end");
    assert!(writer.append(&batch(61440, 8192)).is_err(), "past the end");
    writer.append(&batch(61440, 4096)).unwrap();
}

#[test]
fn sizes_that_no_image_has_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(ImageWriter::new(file(dir.path(), "a"), options(1000, 16)).is_err());
    assert!(ImageWriter::new(file(dir.path(), "b"), options(1 << 60, 16)).is_err());
    ImageWriter::new(file(dir.path(), "c"), options(0, 16)).unwrap().finish().unwrap();
    assert_eq!(open(dir.path(), "c").size(), 0);
}

#[test]
fn a_cluster_never_holds_more_compressed_ones_than_its_refcount_can_say() {
    // 2 MiB clusters of one byte compress to some hundred bytes: 16 bits cannot count how many fit into one cluster.
    let mut refcounts = Refcounts::new(Geometry { cluster_bits: 21, extended_l2: false });
    (0..MAX_REFCOUNT).for_each(|_| refcounts.count(3).unwrap());
    assert_eq!(refcounts.of(3), MAX_REFCOUNT);
    assert!(refcounts.count(3).is_err());
}

#[test]
fn an_image_of_many_chunks_hashes_to_its_plain_blake3() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ImageWriter::new(file(dir.path(), "a"), options(5 << 20, CLUSTER_BITS)).unwrap();
    for at in (0..5_u64 << 20).step_by(1 << 20) {
        let mut bytes = vec![0; 1 << 20];
        Content::Random(at + 3).fill(&mut bytes);
        writer.append(&writer.encoder().encode(GuestOffset(at), bytes).unwrap()).unwrap();
    }
    let written = writer.finish().unwrap();
    let bytes = std::fs::read(dir.path().join("a")).unwrap();
    assert_eq!(written.hashes, FileHashes::of(&bytes));
    assert!(written.hashes.chunks.len() > 5);
}

#[test]
fn no_zeros_behind_a_part_of_a_cluster_leave_it_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let base = ImageOptions { backing: None, ..options(512, 12) };
    ImageWriter::new(file(dir.path(), "base"), base.clone()).unwrap().finish().unwrap();
    let top = ImageOptions { backing: Some(("base".into(), ImageFormat::Qcow2)), ..base };
    let mut writer = ImageWriter::new(file(dir.path(), "top"), top).unwrap();
    writer.append(&writer.encoder().encode(GuestOffset(0), vec![3; 512]).unwrap()).unwrap();
    writer.append_zeros(GuestRange::between(GuestOffset(512), GuestOffset(512))).unwrap();
    writer.finish().unwrap();
    assert_eq!(read(&open(dir.path(), "top")), [3; 512]);
}
