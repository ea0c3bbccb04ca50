//! Good images with a few bytes changed: each reads as `qemu-img` reads it, or is refused.
//!
//! Where QEMU refuses an image that we read, what it refuses has to be something that a reader does not need: with the
//! header's fields for counts of users, snapshots and bitmaps as they were, it reads the rest as we do.
//!
//! `ANNALS_MUTANTS` says how many are made of each image (40), `ANNALS_MUTANTS_SEED` which is the first (1).

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use annals::base::GuestOffset;
use annals::disk::Disk;
use annals::storage::{FilePool, Gate};

use crate::image::{open, use_every_way};
use crate::support::chains::{Chain, Fill, LayerPlan, Op, Origin, Plan, Qcow2, TOOLS};
use crate::support::isolated::{Limits, isolated_test};
use crate::support::random::Random;
use crate::support::tools::{command, have};

const LIMITS: Limits = Limits { time: Duration::from_secs(600), memory: 96 };

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|e| panic!("{name}={value}: {e}")))
}

/// The places of an image's tables, as its good header tells them.
struct Anatomy {
    bytes: Vec<u8>,
    l1: (usize, usize),
    l2: Vec<usize>,
    cluster: usize,
}

/// The big-endian number in `len` bytes at `at`.
fn number_at(bytes: &[u8], at: usize, len: usize) -> usize {
    bytes[at..at + len].iter().fold(0, |n, b| n << 8 | usize::from(*b))
}

impl Anatomy {
    fn new(bytes: Vec<u8>) -> Self {
        let be = |at, len| number_at(&bytes, at, len);
        let (l1_at, l1_entries, cluster) = (be(40, 8), be(36, 4), 1 << be(20, 4));
        let entries = (0..l1_entries).map(|n| be(l1_at + 8 * n, 8) & 0x00ff_ffff_ffff_fe00);
        let l2 = entries.filter(|at| *at != 0).collect();
        Self { l1: (l1_at, l1_entries * 8), l2, cluster, bytes }
    }

    /// Puts back what of a mutant's header only a writer needs.
    fn heal(&self, mutant: &[u8]) -> Vec<u8> {
        // Refcount table and snapshots, autoclear bits, refcount width, extensions.
        let extensions = 112..number_at(&self.bytes, 8, 8).max(512);
        let for_writers = [48..72, 88..100, extensions];
        let mut healed = mutant.to_vec();
        for range in for_writers {
            if let Some(into) = healed.get_mut(range.clone()) {
                into.copy_from_slice(&self.bytes[range]);
            }
        }
        healed
    }

    /// Changes a few bytes somewhere; says what.
    fn mutate(&self, random: &mut Random) -> (Vec<u8>, String) {
        let mut bytes = self.bytes.clone();
        let mut log = String::new();
        for _ in 0..random.pick(&[1, 1, 1, 2, 4]) {
            let (start, len) = match random.below(10) {
                0..4 => (0, 112),
                4 => (112, 512),
                5 | 6 => self.l1,
                7 | 8 if !self.l2.is_empty() => (random.pick(&self.l2), self.cluster),
                _ => (0, bytes.len()),
            };
            let len = len.min(bytes.len().saturating_sub(start));
            let at = start + random.below(len as u64) as usize;
            if random.one_in(2) {
                bytes[at] ^= 1 << random.below(8);
                log.push_str(&format!("[{at:#x}] is {:#x}; ", bytes[at]));
                continue;
            }
            let at = (at & !7).min(bytes.len() - 8);
            let word: u64 = match random.below(6) {
                0 => 0,
                1 => u64::MAX,
                2 => 1 << random.below(64),
                3 => random.below(bytes.len() as u64) & !511,
                4 => random.below(bytes.len() as u64) & !(self.cluster as u64 - 1),
                _ => random.next(),
            };
            bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
            log.push_str(&format!("[{at:#x}] is {word:#018x}; "));
        }
        if random.one_in(12) {
            bytes.truncate(random.below(bytes.len() as u64) as usize);
            log.push_str(&format!("cut to {:#x}; ", bytes.len()));
        }
        (bytes, log)
    }
}

/// The first `most` bytes of the disk by `qemu-img`, or why not.
fn qemu(image: &Path, most: u64) -> Result<Vec<u8>, String> {
    let out = image.with_extension("out");
    let _ = std::fs::remove_file(&out);
    let mib = most.div_ceil(1 << 20);
    let output = command("timeout")
        .args(["30", "qemu-img", "dd", "-f", "qcow2", "-O", "raw", "bs=1M"])
        .args([format!("count={mib}"), format!("if={}", image.display()), format!("of={}", out.display())])
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let mut bytes = vec![0; (std::fs::metadata(&out).unwrap().len()).min(most) as usize];
    std::fs::File::open(&out).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    Ok(bytes)
}

/// The first `most` bytes of the disk by us, or why not.
fn ours(disk: &Disk, most: u64) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0xa5; disk.size().min(most) as usize];
    disk.read_at(&mut bytes, GuestOffset(0)).map_err(|e| e.report())?;
    Ok(bytes)
}

/// Makes mutants of the newest layer of a chain and reads each with both.
fn mutants_of(name: &str, layers: Vec<LayerPlan>) {
    if !have(TOOLS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let chain = Chain::make(&Plan { layers }, dir.path());
    let good = chain.head().content.clone();
    let file = chain.guest.join(&chain.head().path);
    let anatomy = Anatomy::new(std::fs::read(&file).unwrap());
    let gate = Gate::open(&chain.guest, FilePool::new(16)).unwrap();
    let first = number("ANNALS_MUTANTS_SEED", 1);
    let (mut same, mut refused, mut only_ours) = (0, 0, 0);
    for seed in first..first + number("ANNALS_MUTANTS", 40) {
        let (bytes, log) = anatomy.mutate(&mut Random::new(seed));
        std::fs::write(&file, &bytes).unwrap();
        let tell = |what: &str| format!("{name}, seed {seed}: {log}{what}");
        let Ok(disk) = open(&gate, &chain.head().path) else {
            refused += 1;
            continue;
        };
        use_every_way(&disk, 2 << 20);
        // Beyond what the good disk had a mutant has nothing but more of the same. QEMU is asked for whole mebibytes, and refuses
        // what is wrong anywhere in them.
        let most = (good.len() as u64).next_multiple_of(1 << 20);
        match (ours(&disk, most), qemu(&file, most)) {
            (Err(_), _) => refused += 1,
            (Ok(ours), Ok(qemu)) => {
                assert_eq!(ours.len(), qemu.len(), "{}", tell("the sizes differ"));
                let wrong = ours.iter().zip(&qemu).position(|(a, b)| a != b);
                assert_eq!(wrong, None, "{}", tell("the first byte that QEMU reads differently"));
                same += 1;
            }
            (Ok(ours), Err(why)) => {
                std::fs::write(&file, anatomy.heal(&bytes)).unwrap();
                let qemu = qemu(&file, most).unwrap_or_else(|still| {
                    panic!("{}", tell(&format!("QEMU refuses it ({why}), and still does when healed ({still})")))
                });
                assert!(ours == qemu, "{}", tell(&format!("QEMU refuses it ({why}), and healed reads other bytes")));
                only_ours += 1;
            }
        }
    }
    println!(
        "{name}: {same} read as QEMU reads them, {refused} refused, {only_ours} harmless to a reader that QEMU refuses"
    );
    let all = same + refused + only_ours;
    assert!(
        all < 20 || (same > 0 && refused > 0),
        "{name}: {same} the same, {refused} refused: the mutants tell nothing"
    );
}

fn layer(size: u64, qcow2: Qcow2, ops: &[Op]) -> LayerPlan {
    LayerPlan { size, qcow2: Some(qcow2), ops: ops.to_vec(), killed: false }
}

/// Two layers of the same kind with data, zeros and compressed clusters in both.
fn two(qcow2: Qcow2) -> Vec<LayerPlan> {
    let cluster = 1u64 << qcow2.cluster_bits;
    let size = (cluster * 20).max(64 << 10);
    let base =
        [Op::Write(0, cluster * 6, Fill::Noise(0)), Op::WriteCompressed(cluster * 8, cluster * 4, Fill::Text(0))];
    let above = [
        Op::Write(cluster, cluster * 2 + 512, Fill::Noise(1)),
        Op::WriteCompressed(cluster * 5, cluster * 4, Fill::Text(1)),
        Op::Zero(cluster * 10, cluster, true),
        Op::Write(cluster * 15, cluster / 2, Fill::Byte(3)),
    ];
    vec![layer(size, qcow2, &base), layer(size, qcow2, &above)]
}

isolated_test! {
    LIMITS;
    fn of_an_image_as_qemu_makes_it() {
        mutants_of("64 KiB", two(Qcow2::default()));
    }
}

isolated_test! {
    LIMITS;
    fn of_an_image_of_version_2() {
        mutants_of("version 2", two(Qcow2 { version: 2, cluster_bits: 12, ..Qcow2::default() }));
    }
}

isolated_test! {
    LIMITS;
    fn of_an_image_of_the_smallest_clusters() {
        mutants_of("512 B", two(Qcow2 { cluster_bits: 9, ..Qcow2::default() }));
    }
}

isolated_test! {
    LIMITS;
    fn of_an_image_with_subclusters_and_zstd() {
        mutants_of("subclusters", two(Qcow2 { cluster_bits: 14, extended_l2: true, zstd: true, ..Qcow2::default() }));
    }
}

isolated_test! {
    LIMITS;
    fn of_an_image_that_is_all_compressed() {
        let origin = Origin::Converted { compressed: true };
        let qcow2 = Qcow2 { cluster_bits: 12, origin, ..Qcow2::default() };
        let ops = [Op::Write(0, 200 << 10, Fill::Text(0)), Op::Write(64 << 10, 8 << 10, Fill::Noise(0))];
        mutants_of("compressed", vec![layer(256 << 10, qcow2, &ops)]);
    }
}
