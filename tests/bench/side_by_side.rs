//! `make bench`: what annals does, beside the programs that do the same, in one run.
//!
//! Absolute figures differ from machine to machine and from hour to hour, so everything is measured side by side, the
//! sides taking turns, several times; what is compared are ratios of neighbours in time, and what is told is their median.
//! Prints a table, and writes it to `docs/benchmarks.md`. Takes some twenty minutes on two cores.
//!
//! Arguments name the parts that are run (`disk`, `many`, `backup`, `tree`); the page is written when all are.
//! `ANNALS_BENCH_DIR`: where the images go (10 GiB; a file system like that of a real store). `ANNALS_BENCH=quick`: a small
//! run to see that it works, which writes no page.

// A benchmark ends by panicking where something is not as it should be; sizes and counts are its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

#[path = "../support/fleece.rs"]
mod fleece;
#[path = "../support/nbd_servers.rs"]
mod nbd_servers;
#[path = "../support/mod.rs"]
mod support;

mod backup;
mod chain;
mod disks;
mod many;
mod measure;
mod report;
mod sides;
mod tree;

use std::path::{Path, PathBuf};

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
    /// Directories of the tree, with 125 small files each.
    pub(crate) directories: usize,
    /// Bytes of the one large file in the tree.
    pub(crate) large: u64,
    /// Members of the archive that only memory is measured with.
    pub(crate) members: usize,
}

const FULL: Scale = Scale {
    disk: 2 << 30,
    depth: 365,
    turns: 5,
    seconds: 2,
    guests: 1000,
    backups: 365,
    directories: 400,
    large: 512 << 20,
    members: 1_000_000,
};
const QUICK: Scale = Scale {
    disk: 128 << 20,
    depth: 110,
    turns: 1,
    seconds: 1,
    guests: 50,
    backups: 40,
    directories: 40,
    large: 32 << 20,
    members: 20_000,
};

/// One part of the run: what it is called, the programs it needs, and what it does.
struct Part {
    name: &'static str,
    needs: &'static [&'static str],
    run: fn(&Path, Scale, &mut Report),
}

const PARTS: [Part; 4] = [
    Part {
        name: "disk",
        needs: &["qemu-img", "qemu-io", "qemu-storage-daemon", "fio", "fusermount3"],
        run: disks::run,
    },
    Part { name: "many", needs: &["qemu-img", "fusermount3", "find", "ls"], run: many::run },
    Part {
        name: "backup",
        needs: &["qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon", "nbdkit", "nbdcopy"],
        run: backup::run,
    },
    Part {
        name: "tree",
        needs: &["tar", "mksquashfs", "squashfuse_ll", "find", "cp", "fusermount3", "mount", "umount"],
        run: tree::run,
    },
];

fn main() {
    // cargo adds an argument of its own.
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let Some(unknown) = asked.iter().find(|name| PARTS.iter().all(|part| part.name != **name)) {
        eprintln!("no part of the benchmark is called '{unknown}'");
        std::process::exit(2);
    }
    let parts: Vec<&Part> =
        PARTS.iter().filter(|part| asked.is_empty() || asked.iter().any(|name| name == part.name)).collect();
    if !parts.iter().all(|part| support::tools::have(part.needs)) {
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
    for part in &parts {
        let work = dir.path().join(part.name);
        std::fs::create_dir(&work).expect("a directory for a part");
        (part.run)(&work, scale, &mut report);
        std::fs::remove_dir_all(&work).expect("the part has left its directory");
    }

    let page = report.page();
    println!("{page}");
    if !quick && parts.len() == PARTS.len() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/benchmarks.md");
        std::fs::write(&path, page).expect("docs/benchmarks.md can be written");
    }
}
