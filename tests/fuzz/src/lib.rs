//! What has to hold of any disk or archive that opens, whatever bytes it was made from. Errors are fine; a panic is a bug, and so is
//! an answer that contradicts another one.

use std::sync::Arc;

use annals::archive::{ArchiveEnv, ArchiveFormat, Position};
use annals::base::{GuestOffset, GuestRange};
use annals::disk::{Disk, DiskEnv, Source};
use annals::format::ImageFormat;
use annals::storage::memory::{MemoryFile, MemoryGate};
use annals::storage::{BlockCache, LayerSource, RelPath};

/// Bytes at each end of a disk that are looked at.
const LOOKED_AT: u64 = 256 << 10;

/// A guest's directory that holds these files.
#[must_use]
pub fn gate(files: &[(&str, &[u8])]) -> MemoryGate {
    let mut gate = MemoryGate::new("100");
    for (name, bytes) in files {
        gate.insert(name, MemoryFile::new(*bytes));
    }
    gate
}

/// Opens the qcow2 image `head` and holds its disk to everything below.
pub fn check_chain(source: &dyn LayerSource, head: &str) {
    let Ok(head) = RelPath::new(head) else { return };
    let _ = annals::disk::check_layer(source, &head, ImageFormat::Qcow2);
    let Ok(disk) = Disk::open(source, &head, ImageFormat::Qcow2, &DiskEnv::new(0)) else { return };
    let size = disk.size();
    check_window(&disk, 0, size.min(LOOKED_AT));
    if size > LOOKED_AT {
        check_window(&disk, size - LOOKED_AT, size);
    }
    let _ = disk.allocated(range(0, size));
    let _ = disk.faults();
    let _ = annals::disk::partition_table(&disk);
    disk.will_need(range(0, LOOKED_AT));
    let layers: Vec<_> = disk.layers().collect();
    assert!(layers.first().is_some_and(|layer| layer.virtual_size == size));
}

fn range(start: u64, end: u64) -> GuestRange {
    GuestRange::between(GuestOffset(start), GuestOffset(end))
}

/// Reads between two offsets agree with each other, with the map and with what is said of data and holes.
fn check_window(disk: &Disk, start: u64, end: u64) {
    let Ok(map) = disk.map(range(start, end)) else { return };
    let mut next = start;
    for piece in &map {
        assert_eq!(piece.range.start().0, next, "the map has a gap or an overlap");
        assert!(!piece.range.is_empty(), "the map has an empty piece");
        next = piece.range.end().0;
    }
    assert_eq!(next, end, "the map ends early");

    let whole = read(disk, start, end);
    let readable = map.iter().all(|piece| read(disk, piece.range.start().0, piece.range.end().0).is_some());
    assert_eq!(whole.is_some(), readable, "the whole and its pieces differ in being readable");
    for piece in &map {
        let (from, to) = (piece.range.start().0, piece.range.end().0);
        let bytes = read(disk, from, to);
        match piece.source {
            Source::Bad(_) => assert!(bytes.is_none(), "a bad piece was read"),
            Source::Zero => assert!(bytes.as_ref().is_some_and(|b| b.iter().all(|b| *b == 0)), "a hole is not zeros"),
            Source::Data(..) | Source::Compressed(..) => {}
        }
        if let (Some(bytes), Some(whole)) = (&bytes, &whole) {
            assert!(whole[(from - start) as usize..(to - start) as usize] == bytes[..], "two reads of it differ");
            // Again, off any boundary.
            let (odd, last) = (from + (to - from) / 3, to - (to - from) / 5);
            let part = read(disk, odd, last).expect("a part of what was read");
            assert!(bytes[(odd - from) as usize..(last - from) as usize] == part[..], "a part of it differs");
        }
        let is_hole = piece.source == Source::Zero;
        if let Ok(data) = disk.next_data(piece.range.start()) {
            assert_eq!(data == Some(piece.range.start()), !is_hole, "next_data contradicts the map");
        }
        if let Ok(hole) = disk.next_hole(piece.range.start()) {
            assert_eq!(hole == piece.range.start(), is_hole, "next_hole contradicts the map");
        }
    }
    let data: u64 = map.iter().filter(|piece| piece.source != Source::Zero).map(|piece| piece.range.len()).sum();
    if let Ok(allocated) = disk.allocated(range(start, end)) {
        assert_eq!(allocated, data, "allocated contradicts the map");
    }
}

fn read(disk: &Disk, start: u64, end: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0xa5; (end - start) as usize];
    let got = disk.read_at(&mut bytes, GuestOffset(start)).ok()?;
    assert_eq!(got, bytes.len(), "a short read within the disk");
    Some(bytes)
}

/// Asks everything of an archive's tree. Errors are fine; a tree without an end, a name that no file has, and answers that
/// contradict each other are not.
pub fn check_tree(archive: Vec<u8>, format: ArchiveFormat) {
    /// More entries than an input of 64 KiB can hold by honest means, or by nesting names.
    const BOUND: usize = 200_000;
    let env = ArchiveEnv::new(Arc::new(BlockCache::new(4 << 20)), None);
    let Ok(tree) = annals::archive::open("fuzzed", Arc::new(MemoryFile::new(archive)), format, &env) else { return };
    let mut waiting = vec![tree.root()];
    let mut seen = 0;
    while let Some(node) = waiting.pop() {
        seen += 1;
        assert!(seen < BOUND, "a tree without an end");
        let Ok(stat) = tree.attributes(node) else { continue };
        let _ = (tree.xattrs(node), tree.read_link(node));
        let mut buf = [0; 5000];
        for at in [0, 3000, stat.size.saturating_sub(10), u64::MAX] {
            if let Ok(got) = tree.read_at(node, &mut buf, at) {
                assert_eq!(got as u64, stat.size.saturating_sub(at).min(5000));
            }
        }
        if let Ok(Some(data)) = tree.next_data(node, 0)
            && let Ok(hole) = tree.next_hole(node, data)
        {
            assert!(data < hole && hole <= stat.size);
        }
        let _ = tree.read_dir(node, Position::default(), &mut |item| {
            assert!(!item.name.is_empty() && !item.name.contains(&b'/') && !item.name.contains(&0));
            waiting.push(item.node);
            waiting.len() < BOUND
        });
    }
}
