//! The disk that is measured: a chain as an agent of backups would have left it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::Scale;
use crate::support::random::Random;
use crate::support::tools::{feed, run};

pub(crate) const CLUSTER: u64 = 64 << 10;
const GUEST: &str = "100";
const FLAT_GUEST: &str = "101";
/// How deep the chain is whose disk there is in one layer too.
pub(crate) const FLAT_DEPTH: usize = 100;

/// A store with one guest whose one disk has a chain of [`Scale::depth`] layers. Every shorter chain is a part of it.
pub(crate) struct Chain {
    pub(crate) store: PathBuf,
    /// The backups' names in the mount, oldest first.
    pub(crate) backups: Vec<String>,
}

impl Chain {
    /// Half of the base's clusters hold random bytes, in runs of 1 to 64 clusters; each layer up to the hundredth rewrites
    /// one cluster in a hundred, each one above a tenth of that.
    pub(crate) fn make(store: &Path, scale: Scale) -> Self {
        eprintln!("making a chain of {} layers of {} MiB", scale.depth, scale.disk >> 20);
        let clusters = scale.disk / CLUSTER;
        let mut random = Random::new(42);
        let mut chain = Self { store: store.to_owned(), backups: Vec::new() };
        for depth in 1..=scale.depth {
            let backup = name_of(depth);
            std::fs::create_dir_all(store.join(GUEST).join(format!("qemu-{backup}"))).unwrap();
            chain.backups.push(backup);
            let image = chain.image(depth);
            let image = image.to_str().unwrap();
            if depth == 1 {
                base(&store.join("base"), scale.disk, &mut random);
                run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", store.join("base").to_str().unwrap(), image]);
                std::fs::remove_file(store.join("base")).unwrap();
                continue;
            }
            run("qemu-img", &["create", "-q", "-f", "qcow2", image, &scale.disk.to_string()]);
            let writes = (clusters / if depth <= 100 { 100 } else { 1000 }).max(1);
            let commands: String = (0..writes)
                .map(|_| {
                    format!("write -q -P {} {} {CLUSTER}\n", random.between(1, 255), random.below(clusters) * CLUSTER)
                })
                .collect();
            feed("qemu-io", &["-f", "qcow2", image], &commands);
            // Only now: QEMU opens the whole chain for a write, and beyond some 140 layers it cannot, because it strings
            // the relative names of all of them together into one path.
            let below = format!("../qemu-{}/drive-scsi0.qcow2", name_of(depth - 1));
            run("qemu-img", &["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &below, image]);
        }
        let flat = store.join(FLAT_GUEST).join(format!("qemu-{}", name_of(FLAT_DEPTH)));
        std::fs::create_dir_all(&flat).unwrap();
        let (image, flat) = (chain.image(FLAT_DEPTH), flat.join("drive-scsi0.qcow2"));
        run("qemu-img", &["convert", "-f", "qcow2", "-O", "qcow2", image.to_str().unwrap(), flat.to_str().unwrap()]);
        chain
    }

    /// The newest layer of the chain of this depth.
    pub(crate) fn image(&self, depth: usize) -> PathBuf {
        self.store.join(GUEST).join(format!("qemu-{}", self.backups[depth - 1])).join("drive-scsi0.qcow2")
    }

    /// Where the mount shows the disk of the chain of [`FLAT_DEPTH`], from an image of one layer.
    pub(crate) fn shown_flat(&self, mountpoint: &Path) -> PathBuf {
        mountpoint.join(FLAT_GUEST).join(&self.backups[FLAT_DEPTH - 1]).join("drive-scsi0.raw")
    }

    /// Where the mount shows the disk of the chain of this depth.
    pub(crate) fn shown(&self, mountpoint: &Path, depth: usize) -> PathBuf {
        mountpoint.join(GUEST).join(&self.backups[depth - 1]).join("drive-scsi0.raw")
    }
}

/// A backup an hour: the name of the one that makes the chain this deep.
pub(crate) fn name_of(depth: usize) -> String {
    let (day, hour) = (depth / 24, depth % 24);
    format!("2024-{:02}-{:02}T{hour:02}-00-00Z", 1 + day / 28, 1 + day % 28)
}

/// A raw disk of which half of the clusters hold random bytes, in runs of 1 to 64 clusters, the rest holes.
pub(crate) fn base(path: &Path, size: u64, random: &mut Random) {
    let clusters = size / CLUSTER;
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let mut at = 0;
    while at < clusters {
        let run = random.between(1, 64).min(clusters - at);
        if random.one_in(2) {
            file.write_all_at(&random.bytes((run * CLUSTER) as usize), at * CLUSTER).unwrap();
        }
        at += run;
    }
}
