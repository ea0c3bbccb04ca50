//! Everything that has to hold of a chain whose content is known.

use std::sync::Arc;

use annals::base::{GuestOffset, GuestRange, HostOffset, Result};
use annals::disk::{Disk, DiskEnv, Source, check_layer};
use annals::storage::{
    DerivedDir, FileIdentity, FilePool, Gate, LastingIdentity, LayerSource, RelPath, Storage, StoreFile,
};

use crate::support::chains::{Chain, Layer};
use crate::support::random::Random;

/// Checks every layer's view of the chain; `seed` chooses where to read.
pub(crate) fn chain(chain: &Chain, seed: u64) {
    let mut random = Random::new(seed);
    // Few descriptors, so that they are closed and opened anew all the time.
    let gate = Gate::open(&chain.guest, FilePool::new(4)).unwrap();
    let env = DiskEnv::new(random.pick(&[0, 64 << 20]));
    // The newest first, or the oldest: while disks are open, maps of one are made from maps of the other.
    let mut kept = Vec::new();
    let mut layers: Vec<_> = chain.layers.iter().enumerate().collect();
    if random.one_in(2) {
        layers.reverse();
    }
    for (index, layer) in layers {
        let at = |what: &str| format!("{what} of layer {index} ({})", layer.path);
        assert!(layer.content == chain.converted(layer), "{}: the model and qemu-img disagree", at("content"));
        let path = RelPath::new(&layer.path).unwrap();
        let disk = Disk::open(&gate, &path, layer.format, &env).unwrap_or_else(|e| panic!("{}", e.report()));
        assert_eq!(disk.size(), layer.content.len() as u64, "{}", at("size"));
        let paths: Vec<_> = disk.layers().map(|info| info.path.as_str().to_owned()).collect();
        let below: Vec<_> = chain.layers[..=index].iter().rev().map(|layer| layer.path.clone()).collect();
        assert_eq!(paths, below, "{}", at("chain"));

        reads(&disk, layer, &mut random, &at("reads"));
        let mapped = chain.mapped(layer);
        holes(&disk, layer, &mapped, &mut random, &at("holes"));

        let faults = disk.faults().unwrap();
        assert!(faults.is_empty(), "{}: {faults:?}", at("faults"));
        let check = check_layer(&gate, &path, layer.format).unwrap();
        assert!(check.problems.is_empty(), "{}: {:?}", at("check"), check.problems);
        kept.push((layer, mapped, disk));
    }
    let mapped: Vec<_> = kept.into_iter().map(|(layer, mapped, _)| (layer, mapped)).collect();
    counts(&mapped, &gate, &mut random);
}

/// The images as if they were older than moments: of a younger one nothing is kept.
struct Settled<'a>(&'a Gate);

impl LayerSource for Settled<'_> {
    fn open(&self, path: &RelPath) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(SettledFile(self.0.open_file(path)?)))
    }

    fn resolve(&self, from: &RelPath, backing: &[u8]) -> Result<RelPath> {
        self.0.resolve(from, backing)
    }
}

struct SettledFile(StoreFile);

impl Storage for SettledFile {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> Result<usize> {
        self.0.read_at(buf, at)
    }

    fn next_data(&self, at: HostOffset) -> Result<Option<HostOffset>> {
        self.0.next_data(at)
    }

    fn next_hole(&self, at: HostOffset) -> Result<HostOffset> {
        self.0.next_hole(at)
    }

    fn will_need(&self, at: HostOffset, len: u64) {
        self.0.will_need(at, len);
    }

    fn identity(&self) -> FileIdentity {
        self.0.identity()
    }

    fn lasting_identity(&self) -> LastingIdentity {
        self.0.lasting_identity()
    }

    fn is_settled(&self) -> bool {
        true
    }
}

/// What is allocated, counted in any order, by a process that found nothing kept, something, and something damaged.
fn counts(mapped: &[(&Layer, Vec<(u64, u64)>)], gate: &Gate, random: &mut Random) {
    let dir = tempfile::tempdir().unwrap();
    for state in ["nothing", "something", "something damaged", "something mended"] {
        let env = DiskEnv::keeping(0, Some(DerivedDir::open(dir.path(), FilePool::new(2)).unwrap()));
        for _ in 0..mapped.len().min(3) {
            let (layer, mapped) = &mapped[random.below(mapped.len() as u64) as usize];
            let disk = Disk::open(&Settled(gate), &RelPath::new(&layer.path).unwrap(), layer.format, &env).unwrap();
            let size = layer.content.len() as u64;
            let (a, b) = (random.below(size + 1), random.below(size + 1));
            for (from, to) in [(0, u64::MAX), (0, size / 2), (a.min(b), a.max(b))] {
                let expected: u64 =
                    mapped.iter().map(|(start, end)| to.min(*end).saturating_sub(from.max(*start))).sum();
                let counted = disk.allocated(GuestRange::between(GuestOffset(from), GuestOffset(to))).unwrap();
                assert_eq!(counted, expected, "layer {}, {from:#x} to {to:#x}, with {state} kept", layer.path);
            }
        }
        let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "one chain, one file");
        if state == "something" {
            let mut bytes = std::fs::read(&files[0]).unwrap();
            let at = random.below(bytes.len() as u64) as usize;
            if random.one_in(2) {
                bytes.truncate(at)
            } else {
                bytes[at] ^= 4
            }
            std::fs::write(&files[0], bytes).unwrap();
        }
    }
}

/// Bytes, whole and in pieces at random places, in buffers that held something else.
fn reads(disk: &Disk, layer: &Layer, random: &mut Random, at: &str) {
    let content = &layer.content;
    let expect = |start: u64, len: usize| {
        let mut buf = vec![0xa5; len];
        let n = disk.read_at(&mut buf, GuestOffset(start)).unwrap_or_else(|e| panic!("{at}: {}", e.report()));
        let right = content.get(start as usize..).unwrap_or_default();
        let right = &right[..right.len().min(len)];
        assert_eq!(n, right.len(), "{at}: a short read of {len} bytes at {start:#x}");
        if let Some(wrong) = buf.iter().zip(right).position(|(a, b)| a != b) {
            panic!("{at}: {len} bytes at {start:#x}: the first wrong byte is at {:#x}", start + wrong as u64);
        }
        assert!(buf[n..].iter().all(|b| *b == 0xa5), "{at}: wrote past the bytes that it returned");
    };
    let size = content.len() as u64;
    for _ in 0..40 {
        let len = match random.below(3) {
            0 => random.between(0, 600),
            1 => 4096,
            _ => random.between(1, 300_000),
        };
        expect(random.below(size + 2000), len as usize);
    }
    expect(0, content.len() + 1);
    expect(size, 1);
    expect(u64::MAX - 10, 100);
}

/// Data and holes: as QEMU maps them, without a gap, and with nothing but zeros in the holes.
fn holes(disk: &Disk, layer: &Layer, mapped: &[(u64, u64)], random: &mut Random, at: &str) {
    let size = layer.content.len() as u64;
    let mut found = Vec::new();
    let mut next = GuestOffset(0);
    while let Some(data) = disk.next_data(next).unwrap() {
        assert!(data >= next && data.0 < size, "{at}: data at {data} looked for from {next}");
        let hole = disk.next_hole(data).unwrap();
        assert!(hole > data && hole.0 <= size, "{at}: a hole at {hole} behind data at {data}");
        found.push((data.0, hole.0));
        next = hole;
    }
    assert_eq!(found, mapped, "{at}: what is stored, found by us and by qemu-img map");

    let mut end = 0;
    for (start, next) in found.iter().copied().chain([(size, size)]) {
        let hole = &layer.content[end as usize..start as usize];
        assert!(hole.iter().all(|b| *b == 0), "{at}: the hole {end:#x} to {start:#x} holds bytes");
        end = next;
    }

    let stored = |from: u64, to: u64| {
        found.iter().map(|(start, end)| to.min(*end).saturating_sub(from.max(*start))).sum::<u64>()
    };
    let range = |from, to| GuestRange::between(GuestOffset(from), GuestOffset(to));
    assert_eq!(disk.allocated(range(0, u64::MAX)).unwrap(), stored(0, size), "{at}");
    for _ in 0..10 {
        let (a, b) = (random.below(size + 1), random.below(size + 1));
        let (from, to) = (a.min(b), a.max(b));
        // Maps count in sectors; a range that starts inside one is told of the bytes all the same.
        assert_eq!(disk.allocated(range(from, to)).unwrap(), stored(from, to), "{at}: {from:#x} to {to:#x}");
        let data = found.iter().find(|(_, end)| *end > from).map(|(start, _)| GuestOffset((*start).max(from)));
        assert_eq!(disk.next_data(GuestOffset(from)).unwrap(), data, "{at}: from {from:#x}");
        let inside = found.iter().find(|(start, end)| (*start..*end).contains(&from));
        let hole = inside.map_or(from, |(_, end)| *end);
        assert_eq!(disk.next_hole(GuestOffset(from)).unwrap(), GuestOffset(hole), "{at}: from {from:#x}");
    }

    let pieces = disk.map(range(0, u64::MAX)).unwrap();
    let mut next = GuestOffset(0);
    for piece in &pieces {
        assert_eq!(piece.range.start(), next, "{at}: a gap in the map");
        next = piece.range.end();
    }
    assert_eq!(next.0, size, "{at}: the map's end");
    let data: u64 = pieces.iter().filter(|p| p.source != Source::Zero).map(|p| p.range.len()).sum();
    assert_eq!(data, stored(0, size), "{at}: the map's data");
}
