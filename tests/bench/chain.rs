//! The disk that is measured: a chain as an agent of backups would have left it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::Scale;
use crate::support::random::Random;
use crate::support::tools::{feed, run};

const CLUSTER: u64 = 64 << 10;
const GUEST: &str = "100";

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
                base(&store.join("base"), scale.disk, clusters, &mut random);
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
        chain
    }

    /// The newest layer of the chain of this depth.
    pub(crate) fn image(&self, depth: usize) -> PathBuf {
        self.store.join(GUEST).join(format!("qemu-{}", self.backups[depth - 1])).join("drive-scsi0.qcow2")
    }

    /// Where the mount shows that disk.
    pub(crate) fn shown(&self, mountpoint: &Path, depth: usize) -> PathBuf {
        mountpoint.join(GUEST).join(&self.backups[depth - 1]).join("drive-scsi0.raw")
    }
}

/// A backup an hour: the name of the one that makes the chain this deep.
pub(crate) fn name_of(depth: usize) -> String {
    let (day, hour) = (depth / 24, depth % 24);
    format!("2024-{:02}-{:02}T{hour:02}-00-00Z", 1 + day / 28, 1 + day % 28)
}

fn base(path: &Path, size: u64, clusters: u64, random: &mut Random) {
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
