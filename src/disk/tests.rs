use proptest::prelude::*;

use super::map::{Builder, Found};
use super::*;
use crate::base::{Error, ErrorKind, GuestOffset, GuestRange, HostOffset, Result};
use crate::format::ImageFormat;
use crate::storage::memory::{MemoryFile, MemoryGate};
use crate::storage::{LayerSource, RelPath};

const CLUSTER: u64 = 512;

/// A version 3 image of 512-byte clusters in memory, laid out as header, L1, L2, data.
struct Image {
    size: u64,
    backing: Option<(&'static str, &'static str)>,
    /// Guest cluster → what its L2 entry says.
    clusters: Vec<(u64, Entry)>,
}

#[derive(Clone, Copy)]
enum Entry {
    /// A stored cluster full of this byte.
    Filled(u8),
    Zero,
    /// An entry as it stands.
    Word(u64),
}

impl Image {
    fn new(clusters: u64) -> Self {
        Self { size: clusters * CLUSTER, backing: None, clusters: Vec::new() }
    }

    fn over(mut self, name: &'static str, format: &'static str) -> Self {
        self.backing = Some((name, format));
        self
    }

    fn with(mut self, cluster: u64, entry: Entry) -> Self {
        self.clusters.push((cluster, entry));
        self
    }

    /// One L2 table of 64 entries covers 32 KiB; images here stay within it.
    fn bytes(&self) -> Vec<u8> {
        assert!(self.size <= 64 * CLUSTER);
        let mut out = vec![0; 3 * 512];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb");
        put(4, &3u32.to_be_bytes());
        put(20, &9u32.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &1u32.to_be_bytes());
        put(40, &512u64.to_be_bytes());
        put(96, &4u32.to_be_bytes());
        put(100, &104u32.to_be_bytes());
        if let Some((name, format)) = self.backing {
            put(104, &0xe279_2acau32.to_be_bytes());
            put(108, &(format.len() as u32).to_be_bytes());
            put(112, format.as_bytes());
            put(8, &200u64.to_be_bytes());
            put(16, &(name.len() as u32).to_be_bytes());
            put(200, name.as_bytes());
        }
        put(512, &1024u64.to_be_bytes());
        for (cluster, entry) in &self.clusters {
            let word = match entry {
                Entry::Filled(byte) => {
                    let at = out.len() as u64;
                    out.extend([*byte; CLUSTER as usize]);
                    at
                }
                Entry::Zero => 1,
                Entry::Word(word) => *word,
            };
            let slot = 1024 + 8 * *cluster as usize;
            out[slot..slot + 8].copy_from_slice(&word.to_be_bytes());
        }
        out
    }
}

fn gate(files: &[(&str, Vec<u8>)]) -> MemoryGate {
    let mut gate = MemoryGate::new("100");
    for (path, bytes) in files {
        gate.insert(path, MemoryFile::new(bytes.clone()));
    }
    gate
}

fn path(name: &str) -> RelPath {
    RelPath::new(name).unwrap()
}

fn open(gate: &dyn LayerSource, head: &str) -> Result<Disk> {
    Disk::open(gate, &path(head), ImageFormat::Qcow2, &DiskEnv::new(0))
}

fn read_all(disk: &Disk) -> Result<Vec<u8>> {
    let mut bytes = vec![0xee; disk.size() as usize + 7];
    let n = disk.read_at(&mut bytes, GuestOffset(0))?;
    bytes.truncate(n);
    Ok(bytes)
}

fn range(start: u64, end: u64) -> GuestRange {
    GuestRange::between(GuestOffset(start), GuestOffset(end))
}

#[test]
fn the_newest_layer_that_holds_a_cluster_wins_and_a_zero_cluster_hides_what_lies_below() {
    let base = Image::new(4).with(0, Entry::Filled(1)).with(1, Entry::Filled(1)).with(2, Entry::Filled(1));
    let top = Image::new(4).over("base", "qcow2").with(1, Entry::Filled(2)).with(2, Entry::Zero);
    let disk = open(&gate(&[("base", base.bytes()), ("top", top.bytes())]), "top").unwrap();
    let bytes = read_all(&disk).unwrap();
    assert_eq!(bytes.chunks(512).map(|c| c[0]).collect::<Vec<_>>(), [1, 2, 0, 0]);
    assert_eq!(disk.allocated(range(0, 4 * 512)).unwrap(), 2 * 512);
    assert_eq!(disk.next_hole(GuestOffset(0)).unwrap(), GuestOffset(1024));
    assert_eq!(disk.next_data(GuestOffset(1024)).unwrap(), None);
}

#[test]
fn a_backing_file_shorter_than_its_overlay_reads_as_zeros_beyond_its_end() {
    let top = Image::new(6).over("base", "raw").with(5, Entry::Filled(9));
    let disk = open(&gate(&[("base", vec![7; 700]), ("top", top.bytes())]), "top").unwrap();
    let bytes = read_all(&disk).unwrap();
    assert!(bytes[..700].iter().all(|b| *b == 7));
    assert!(bytes[700..5 * 512].iter().all(|b| *b == 0));
    assert!(bytes[5 * 512..].iter().all(|b| *b == 9));
}

#[test]
fn what_an_overlay_cut_off_does_not_come_back_in_a_larger_one_above_it() {
    let base = Image::new(4).with(3, Entry::Filled(1));
    let middle = Image::new(2).over("base", "qcow2");
    let top = Image::new(4).over("middle", "qcow2");
    let files = [("base", base.bytes()), ("middle", middle.bytes()), ("top", top.bytes())];
    assert!(read_all(&open(&gate(&files), "top").unwrap()).unwrap().iter().all(|b| *b == 0));
}

#[test]
fn a_cycle_and_an_image_backed_by_itself_are_named_as_such() {
    let a = Image::new(1).over("b", "qcow2").bytes();
    let b = Image::new(1).over("a", "qcow2").bytes();
    let e = open(&gate(&[("a", a), ("b", b)]), "a").unwrap_err();
    assert!(e.report().contains("cycle"), "{}", e.report());
    let own = Image::new(1).over("own", "qcow2").bytes();
    assert!(open(&gate(&[("own", own)]), "own").unwrap_err().report().contains("cycle"));
}

#[test]
fn a_missing_layer_is_told_with_the_layer_that_needs_it() {
    let e = open(&gate(&[("top", Image::new(1).over("gone", "qcow2").bytes())]), "top").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::MissingLayer);
    assert!(e.report().contains("'gone'") && e.report().contains("'top'"), "{}", e.report());
    assert_eq!(open(&gate(&[]), "top").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_backing_file_without_a_declared_format_is_never_guessed() {
    let mut top = Image::new(1).over("base", "qcow2").bytes();
    top[104..108].copy_from_slice(&0u32.to_be_bytes());
    let e = open(&gate(&[("top", top), ("base", vec![0; 512])]), "top").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    assert!(e.hint().is_some());
}

#[test]
fn an_entry_that_leads_nowhere_fails_its_own_cluster_and_no_other() {
    for (word, why) in [
        (1u64 << 40, "outside the file's data"),
        (0x601, ""),
        (0x100, "reserved bits"),
        (512, "outside the file's data"),
        (u64::MAX >> 1, ""),
    ] {
        let image = Image::new(3).with(0, Entry::Filled(1)).with(1, Entry::Word(word)).with(2, Entry::Filled(3));
        let disk = open(&gate(&[("a", image.bytes())]), "a").unwrap();
        let mut cluster = [0; 512];
        disk.read_at(&mut cluster, GuestOffset(0)).unwrap();
        assert_eq!(cluster[0], 1);
        disk.read_at(&mut cluster, GuestOffset(1024)).unwrap();
        assert_eq!(cluster[0], 3);
        if word == 0x601 {
            // A zero cluster that keeps its place is sound.
            assert_eq!(disk.faults().unwrap().len(), 0);
            continue;
        }
        let e = disk.read_at(&mut cluster, GuestOffset(512)).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Corrupt, "{word:#x}");
        assert!(e.report().contains("layer 'a'") && e.report().contains(why), "{}", e.report());
    }
}

#[test]
fn a_check_of_one_layer_finds_what_a_cut_took_away() {
    let image = Image::new(4).with(0, Entry::Filled(1)).with(3, Entry::Filled(2));
    let mut bytes = image.bytes();
    let whole = check_layer(&gate(&[("a", bytes.clone())]), &path("a"), ImageFormat::Qcow2).unwrap();
    assert_eq!((whole.stored, whole.problems.len()), (1024, 0));
    bytes.truncate(bytes.len() - 1);
    let cut = check_layer(&gate(&[("a", bytes)]), &path("a"), ImageFormat::Qcow2).unwrap();
    assert_eq!((cut.stored, cut.problems.len()), (512, 1));
}

#[test]
fn a_medium_that_fails_under_a_table_is_an_error_and_not_a_hole() {
    let mut gate = MemoryGate::new("100");
    let image = Image::new(4).with(0, Entry::Filled(1)).bytes();
    gate.insert("a", MemoryFile::new(image).failing_from(HostOffset(1024)));
    // The header is read with the first 4 KiB or the whole file, so let opening fail as well as reading.
    match open(&gate, "a") {
        Ok(disk) => assert!(read_all(&disk).is_err()),
        Err(e) => assert_eq!(e.kind(), ErrorKind::Io),
    }
}

#[test]
fn tables_shared_by_thousands_of_entries_do_not_make_a_scan_endless() {
    // 4,096 L1 entries, all naming the one L2 table: a file of a few clusters that describes 128 MiB.
    let mut bytes = Image::new(1).with(0, Entry::Filled(1)).bytes();
    let l1_at = bytes.len() as u64;
    for _ in 0..4096 {
        bytes.extend(1024u64.to_be_bytes());
    }
    bytes[24..32].copy_from_slice(&(4096u64 * 64 * 512).to_be_bytes());
    bytes[36..40].copy_from_slice(&4096u32.to_be_bytes());
    bytes[40..48].copy_from_slice(&l1_at.to_be_bytes());
    let gate = gate(&[("a", bytes)]);
    let e = check_layer(&gate, &path("a"), ImageFormat::Qcow2).unwrap_err();
    assert!(e.report().contains("shared"), "{}", e.report());
}

#[test]
fn disks_of_one_guest_share_the_layers_that_they_have_in_common() {
    let files = [
        ("base", Image::new(4).with(0, Entry::Filled(1)).bytes()),
        ("one", Image::new(4).over("base", "qcow2").with(1, Entry::Filled(2)).bytes()),
        ("two", Image::new(4).over("one", "qcow2").with(2, Entry::Filled(3)).bytes()),
    ];
    let gate = gate(&files);
    let env = DiskEnv::new(0);
    let disk = |name| Disk::open(&gate, &path(name), ImageFormat::Qcow2, &env).unwrap();
    let (one, two) = (disk("one"), disk("two"));
    assert!(std::sync::Arc::ptr_eq(&one.nodes[0], &two.nodes[1]));
    // The map of `one` is built first and taken over into that of `two`, with the layers counted anew.
    assert_eq!(read_all(&one).unwrap()[512], 2);
    let bytes = read_all(&two).unwrap();
    assert_eq!((bytes[0], bytes[512], bytes[1024], bytes[1536]), (1, 2, 3, 0));
}

/// What a made-up layer holds: per sector, nothing or a value.
fn layers() -> impl Strategy<Value = Vec<(Vec<Option<u8>>, usize)>> {
    let sectors = prop::collection::vec(prop::option::weighted(0.4, 0u8..3), 24);
    prop::collection::vec((sectors, 0usize..=24), 1..6)
}

proptest! {
    /// The map laid layer by layer says of every sector what looking through the layers one by one says.
    #[test]
    fn the_map_agrees_with_looking_through_the_layers(layers in layers(), reuse in 1usize..6) {
        let all = range(0, 24 * 512);
        let visit = |layer: &[Option<u8>], open: &[GuestRange], found: &mut super::map::Collector| {
            for r in open {
                for sector in r.start().0 / 512..r.end().0 / 512 {
                    let this = range(sector * 512, (sector + 1) * 512);
                    match layer[sector as usize] {
                        None => {}
                        Some(0) => found.push(this, Found::Zero),
                        Some(1) => found.push(this, Found::Data(HostOffset(sector * 512 + 4096))),
                        Some(_) => found.push(this, Found::Bad),
                    }
                }
            }
            Ok::<(), Error>(())
        };
        let build = |from: usize, rest: Option<(usize, &super::map::RegionMap)>| {
            let mut builder = Builder::new(all);
            let end = rest.map_or(layers.len(), |(n, _)| n);
            for (i, (layer, size)) in layers[from..end].iter().enumerate() {
                builder.ask(LayerIndex(i as u32), *size as u64 * 512, |open, found| visit(layer, open, found)).unwrap();
            }
            if let Some((n, map)) = rest {
                builder.take_rest(LayerIndex((n - from) as u32), map);
            }
            builder.finish()
        };
        let expected = |sector: u64| {
            for (i, (layer, size)) in layers.iter().enumerate() {
                if sector as usize >= *size {
                    return Source::Zero;
                }
                let index = LayerIndex(i as u32);
                match layer[sector as usize] {
                    None => {}
                    Some(0) => return Source::Zero,
                    Some(1) => return Source::Data(index, HostOffset(sector * 512 + 4096)),
                    Some(_) => return Source::Bad(index),
                }
            }
            Source::Zero
        };
        let whole = build(0, None);
        let reuse = reuse.min(layers.len() - 1);
        let stitched = if reuse == 0 { build(0, None) } else { let below = build(reuse, None); build(0, Some((reuse, &below))) };
        for map in [&whole, &stitched] {
            let mut next = GuestOffset(0);
            for piece in map.pieces(all) {
                prop_assert_eq!(piece.range.start(), next);
                next = piece.range.end();
            }
            prop_assert_eq!(next, all.end());
            for sector in 0..24 {
                let piece = map.pieces(range(sector * 512, (sector + 1) * 512)).next().unwrap();
                prop_assert_eq!(piece.source, expected(sector));
            }
        }
    }
}
