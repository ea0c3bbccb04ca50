//! One disk at several depths: sequential and random reads, memory, the first byte.

use std::collections::BTreeMap;
use std::path::Path;

use crate::Scale;
use crate::chain::{Chain, FLAT_DEPTH};
use crate::measure::{can_drop_caches, checksum, drop_caches, first_byte, median, median_ratio, random, sequential};
use crate::report::{Report, Row};
use crate::sides::{CACHE, OnBtrfs, SIDES, Side};

const DEPTHS: [usize; 3] = [1, 30, 100];

/// What is measured of a side at a depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Cold,
    /// The same bytes from an image of one layer.
    ColdFlat,
    Second,
    /// The native file's on btrfs.
    SecondOnBtrfs,
    Random1,
    Random4,
    ResidentKib,
    PeakKib,
}

#[derive(Default)]
struct Figures(BTreeMap<(What, Side, usize), Vec<f64>>);

impl Figures {
    fn add(&mut self, what: What, side: Side, depth: usize, value: f64) {
        self.0.entry((what, side, depth)).or_default().push(value);
    }

    fn of(&self, what: What, side: Side, depth: usize) -> &[f64] {
        self.0.get(&(what, side, depth)).map_or(&[], Vec::as_slice)
    }

    fn median(&self, what: What, side: Side, depth: usize) -> f64 {
        median(self.of(what, side, depth))
    }

    fn ratio(&self, what: What, ours: (Side, usize), theirs: (Side, usize)) -> f64 {
        median_ratio(self.of(what, ours.0, ours.1), self.of(what, theirs.0, theirs.1))
    }
}

pub(crate) fn run(work: &Path, scale: Scale, report: &mut Report) {
    report.section(
        "A disk in the mount",
        &format!(
            "A disk of {} MiB, half of it random bytes; each layer up to the hundredth rewrites 1 % of its clusters. The native raw\n\
             file, qemu-storage-daemon's FUSE export and the mount (`--cache-size {CACHE}`).",
            scale.disk >> 20
        ),
    );
    let chain = &Chain::make(&work.join("store"), scale);
    let cold = can_drop_caches();
    if !cold {
        report.note("The kernel's caches could not be emptied (that needs root): no cold figures.");
    }
    let on_btrfs = if cold { OnBtrfs::copy(chain, FLAT_DEPTH, work, scale.disk) } else { None };
    let mut figures = Figures::default();
    let mut checksums: BTreeMap<usize, u32> = BTreeMap::new();
    for turn in 0..scale.turns {
        for depth in DEPTHS {
            for index in 0..SIDES.len() {
                let side = SIDES[(index + turn) % SIDES.len()];
                eprintln!("turn {}, depth {depth}, {side:?}", turn + 1);
                let served = side.serve(chain, depth, work);
                if cold {
                    drop_caches();
                }
                let first = sequential(&served.disk);
                if cold {
                    figures.add(What::Cold, side, depth, first);
                }
                figures.add(What::Second, side, depth, sequential(&served.disk));
                if let Some((now, peak)) = served.resident() {
                    figures.add(What::ResidentKib, side, depth, now as f64);
                    figures.add(What::PeakKib, side, depth, peak as f64);
                }
                figures.add(What::Random1, side, depth, random(&served.disk, scale.disk, 1, scale.seconds));
                figures.add(What::Random4, side, depth, random(&served.disk, scale.disk, 4, scale.seconds));
                if turn == 0 {
                    let sum = checksum(&served.disk);
                    assert_eq!(
                        *checksums.entry(depth).or_insert(sum),
                        sum,
                        "{side:?} reads other bytes at depth {depth}"
                    );
                }
            }
        }
        if cold {
            let served = Side::Annals.serve(chain, FLAT_DEPTH, work);
            let mountpoint = served.mountpoint().expect("the mount has a mountpoint");
            drop_caches();
            figures.add(What::ColdFlat, Side::Annals, FLAT_DEPTH, sequential(&chain.shown_flat(mountpoint)));
        }
        if let Some(copy) = &on_btrfs {
            drop_caches();
            sequential(&copy.disk);
            figures.add(What::SecondOnBtrfs, Side::Native, FLAT_DEPTH, sequential(&copy.disk));
        }
    }
    rows(&figures, cold, report);
    opening(chain, work, scale, cold, report);
    table(&figures, report);
}

fn rows(figures: &Figures, cold: bool, report: &mut Report) {
    use Side::{Annals, Native, Qemu};
    if cold {
        let ratio = figures.ratio(What::Cold, (Annals, 1), (Qemu, 1));
        report.row(Row::at_least("sequential, cold, depth 1", 1.5, "QEMU's export", ratio));
        let ratio = figures.ratio(What::Cold, (Annals, 100), (Annals, 1));
        let theirs = figures.ratio(What::Cold, (Qemu, 100), (Qemu, 1));
        let native = figures.ratio(What::Cold, (Native, 100), (Native, 1));
        let of = format!("our own at depth 1 (QEMU's: {theirs:.2}; native files': {native:.2})");
        report.row(Row::at_least("sequential, cold, depth 100", 0.9, &of, ratio));
        let flat = figures.of(What::ColdFlat, Annals, FLAT_DEPTH);
        let ratio = median_ratio(figures.of(What::Cold, Annals, FLAT_DEPTH), flat);
        report.row(Row::at_least("sequential, cold, depth 100", 0.9, "our own with the same disk in one layer", ratio));
        report.note(
            "At depth 1 half of the disk is holes, at depth 100 less than a fifth: there is more to read, for a plain file too. \
             Beside it therefore stands the disk of depth 100 as an image of one layer, where only the depth differs.",
        );
    }
    report.note(
        "A second read is the kernel's own work, for the mount as for a plain file. Linux (up to 7.2) keeps the pages of a file in a FUSE \
         mount one by one, and those of a file on ext4 (since 6.16) or XFS in large folios, as /proc/kpageflags shows, which are quicker to go \
         through. Beside it therefore stands the same file on btrfs, which keeps its pages as FUSE does.",
    );
    for depth in [1, 100] {
        let ratio = figures.ratio(What::Second, (Annals, depth), (Native, depth));
        let theirs = figures.ratio(What::Second, (Qemu, depth), (Native, depth));
        let of = format!("the native file's (QEMU's: {theirs:.2})");
        report.row(Row::at_least(&format!("sequential, second read, depth {depth}"), 0.7, &of, ratio));
    }
    let on_btrfs = figures.of(What::SecondOnBtrfs, Native, FLAT_DEPTH);
    if !on_btrfs.is_empty() {
        let ratio = median_ratio(figures.of(What::Second, Annals, FLAT_DEPTH), on_btrfs);
        let of = format!("the native file's on btrfs ({:.0} MB/s)", median(on_btrfs));
        report.row(Row::at_least("sequential, second read, depth 100", 0.7, &of, ratio));
    }
    for (depth, target) in [(1, 1.5), (100, 4.0)] {
        for (what, jobs) in [(What::Random1, "1 job"), (What::Random4, "4 jobs")] {
            let ratio = figures.ratio(what, (Annals, depth), (Qemu, depth));
            let figure = format!("random 4 KiB, warm, {jobs}, depth {depth}");
            report.row(Row::at_least(&figure, target, "QEMU's export", ratio));
        }
    }
    let resident = figures.median(What::ResidentKib, Annals, 100) / 1024.0;
    let peak = figures.of(What::PeakKib, Annals, 100).iter().copied().fold(0.0, f64::max) / 1024.0;
    report.row(Row::new(
        "resident memory after all of it was read twice, depth 100, cache 64 MiB",
        "< 128 MiB",
        &format!("{resident:.0} MiB (at most {peak:.0})"),
        peak < 128.0,
    ));
}

/// Mounting afresh, and then one byte of the deepest disk.
fn opening(chain: &Chain, work: &Path, scale: Scale, cold: bool, report: &mut Report) {
    let mut times = Vec::new();
    let mut again = Vec::new();
    for _ in 0..scale.turns {
        let served = Side::Annals.serve(chain, scale.depth, work);
        if cold {
            drop_caches();
            times.push(first_byte(&served.disk));
            drop(served);
        }
        let served = Side::Annals.serve(chain, scale.depth, work);
        again.push(first_byte(&served.disk));
    }
    let warm = format!("with warm page cache {:.1} ms", median(&again));
    if !cold {
        report.note(&format!("Open and first byte at depth {}: {warm}.", scale.depth));
        return;
    }
    let time = median(&times);
    let figure = format!("open and first byte, depth {}, cold", scale.depth);
    report.row(Row::new(&figure, "< 100 ms", &format!("{time:.1} ms ({warm})"), time < 100.0));
}

/// Every median, for who wants to see more than ratios.
fn table(figures: &Figures, report: &mut Report) {
    let mut text = String::from("| | side | depth 1 | depth 30 | depth 100 |\n| --- | --- | --- | --- | --- |\n");
    for (what, name, unit) in [
        (What::Cold, "sequential, cold", "MB/s"),
        (What::Second, "sequential, second read", "MB/s"),
        (What::Random1, "random 4 KiB, warm, 1 job", "/s"),
        (What::Random4, "random 4 KiB, warm, 4 jobs", "/s"),
        (What::ResidentKib, "resident memory", "MiB"),
    ] {
        for side in SIDES {
            if DEPTHS.iter().all(|depth| figures.of(what, side, *depth).is_empty()) {
                continue;
            }
            let cells = DEPTHS.map(|depth| {
                let scale = if what == What::ResidentKib { 1024.0 } else { 1.0 };
                let values = figures.of(what, side, depth);
                let least = values.iter().copied().fold(f64::INFINITY, f64::min) / scale;
                let most = values.iter().copied().fold(0.0, f64::max) / scale;
                format!("{:.0} ({least:.0}–{most:.0})", median(values) / scale)
            });
            let side = match side {
                Side::Native => "native raw file",
                Side::Qemu => "qemu-storage-daemon",
                Side::Annals => "annals",
            };
            text.push_str(&format!("| {name}, {unit} | {side} | {} |\n", cells.join(" | ")));
        }
    }
    report.table("Medians, with the least and the most", text);
}
