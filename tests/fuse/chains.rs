//! Random chains of every kind of image, read through the kernel.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::support::chains::{Chain, Plan, TOOLS};
use crate::support::mounts::{Mounted, Store, can_mount, seek_data, succeed};
use crate::support::random::Random;
use crate::support::tools::{command, have};

/// Not the chains that the library's own test begins with.
const SEEDS: std::ops::Range<u64> = 1000..1010;

#[test]
fn random_chains_read_through_the_mount_as_the_bytes_that_were_written_to_them() {
    if !can_mount() || !have(TOOLS) {
        return;
    }
    let store = Store::new();
    let chains: Vec<(u64, Chain)> = SEEDS
        .map(|seed| {
            let guest = store.path().join(seed.to_string());
            fs::create_dir(&guest).unwrap();
            (seed, Chain::make(&Plan::random(seed), &guest))
        })
        .collect();
    let mounted = Mounted::with(&store.path(), &["--cache-size", "0"]);
    for (seed, chain) in &chains {
        let mut random = Random::new(*seed);
        for layer in &chain.layers {
            let time = layer.path.split('/').next().unwrap().strip_prefix("qemu-").unwrap();
            let path = mounted.point.join(seed.to_string()).join(time).join("drive-scsi0.raw");
            let at = format!("seed {seed}, {}", layer.path);
            let (file, content) = (File::open(&path).unwrap(), &layer.content);
            assert_eq!(file.metadata().unwrap().len(), content.len() as u64, "{at}");
            for _ in 0..20 {
                let start = random.below(content.len() as u64 + 1);
                let len = random.below(200_000).min(content.len() as u64 - start) as usize;
                let mut buf = vec![0xa5; len];
                file.read_exact_at(&mut buf, start).unwrap_or_else(|e| panic!("{at}: {len} bytes at {start}: {e}"));
                assert!(buf == content[start as usize..start as usize + len], "{at}: {len} bytes at {start} are wrong");
            }
            assert!(fs::read(&path).unwrap() == *content, "{at}: wrong bytes");
            let data = seek_data(&file);
            assert_eq!(data, chain.mapped(layer), "{at}: what is stored");
            let bytes: u64 = data.iter().map(|(start, end)| end - start).sum();
            assert_eq!(file.metadata().unwrap().blocks(), bytes.div_ceil(512), "{at}");
            let image = chain.guest.join(&layer.path);
            let mut compare = command("qemu-img");
            compare.args(["compare", "-f", "raw", "-F", layer.format.name()]).arg(&path).arg(&image);
            succeed(&mut compare);
        }
    }
    assert_eq!(mounted.status()["failed_reads"], 0);
}

#[test]
fn a_year_of_daily_backups_reads_as_one_disk() {
    if !can_mount() {
        return;
    }
    const DEPTH: usize = 365;
    let store = Store::new();
    let time = |n: usize| annals::base::Timestamp::from_epoch(1_700_000_000 + n as i64 * 86_400).unwrap().file_name();
    let mut content = vec![0; 2 << 20];
    for n in 0..DEPTH {
        let image = store.backup("100", &time(n)).join("disk.qcow2");
        if n == 0 {
            succeed(command("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("2M"));
        } else {
            let below = format!("../qemu-{}/disk.qcow2", time(n - 1));
            // QEMU itself would open all that lies below.
            let mut create = command("qemu-img");
            create.args(["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &below]).arg(&image).arg("2M");
            succeed(&mut create);
        }
        if n % 12 == 0 {
            let writes = [((n as u64 * 37 % 31) << 16, 64 << 10, Some(n as u8 | 1))];
            write_alone(&store, &image, &writes);
            crate::support::mounts::apply(&mut content, &writes);
        }
    }
    let mounted = Mounted::new(&store.path());
    assert!(fs::read(mounted.path("100/latest/disk.raw")).unwrap() == content);
    assert_eq!(fs::read_dir(mounted.path("100")).unwrap().count(), DEPTH + 1);
}

/// Writes whole clusters into an image without what lies below it.
fn write_alone(store: &Store, image: &std::path::Path, writes: &[crate::support::mounts::Write]) {
    let alone = store.scratch("alone.qcow2");
    fs::copy(image, &alone).unwrap();
    let backing = crate::support::tools::run("qemu-img", &["info", "-U", "--output=json", alone.to_str().unwrap()]);
    let backing: serde_json::Value = serde_json::from_str(&backing).unwrap();
    let below = backing["backing-filename"].as_str().map(str::to_owned);
    let rebase = |to: &str| succeed(command("qemu-img").args(["rebase", "-u", "-F", "qcow2", "-b", to]).arg(&alone));
    if below.is_some() {
        succeed(command("qemu-img").args(["rebase", "-u", "-b", ""]).arg(&alone));
    }
    crate::support::mounts::write(&alone, writes);
    if let Some(below) = below {
        rebase(&below);
    }
    fs::rename(&alone, image).unwrap();
}
