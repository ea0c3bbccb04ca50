//! `make bench`: the mount beside qemu-storage-daemon's FUSE export and the native raw file, in one run.
//!
//! Absolute figures differ from machine to machine and from hour to hour, so everything is measured side by side, the
//! sides taking turns, several times; what is compared are ratios of neighbours in time, and what is told is their median.
//! Prints a table, and writes it to `docs/benchmarks.md`. Takes some ten minutes on two cores.
//!
//! `ANNALS_BENCH_DIR`: where the images go (10 GiB; a file system like that of a real store). `ANNALS_BENCH=quick`: a small
//! run to see that it works, which writes no page.

// A benchmark ends by panicking where something is not as it should be; sizes and counts are its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

#[path = "../support/mod.rs"]
mod support;

mod chain;
mod disks;
mod many;
mod measure;
mod report;
mod sides;

use std::path::PathBuf;

use report::Report;

/// How large everything is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Bytes of the disk.
    pub(crate) disk: u64,
    /// Layers of the longest chain.
    pub(crate) depth: usize,
    /// How often each side has its turn.
    pub(crate) turns: usize,
    /// Seconds of random reading at a time.
    pub(crate) seconds: u64,
    pub(crate) guests: usize,
    pub(crate) backups: usize,
}

const FULL: Scale = Scale { disk: 2 << 30, depth: 365, turns: 5, seconds: 2, guests: 1000, backups: 365 };
const QUICK: Scale = Scale { disk: 128 << 20, depth: 110, turns: 1, seconds: 1, guests: 50, backups: 40 };

fn main() {
    if !support::tools::have(&["qemu-img", "qemu-io", "qemu-storage-daemon", "fio", "fusermount3", "find", "ls"]) {
        std::process::exit(1);
    }
    let quick = std::env::var("ANNALS_BENCH").as_deref() == Ok("quick");
    let scale = if quick { QUICK } else { FULL };
    let dir = match std::env::var_os("ANNALS_BENCH_DIR") {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")),
    }
    .expect("a directory for the images");

    let mut report = Report::new(scale, dir.path());
    let chain = chain::Chain::make(&dir.path().join("store"), scale);
    disks::run(&chain, dir.path(), scale, &mut report);
    drop(chain);
    many::run(dir.path(), scale, &mut report);

    let page = report.page();
    println!("{page}");
    if !quick {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/benchmarks.md");
        std::fs::write(&path, page).expect("docs/benchmarks.md can be written");
    }
}
