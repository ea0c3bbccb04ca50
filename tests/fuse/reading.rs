//! Reads under pressure, and reads that fail.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::support::mounts::{Mounted, Store, can_mount, promise, succeed, within, write};
use crate::support::random::Random;
use crate::support::tools::command;

const OLD: &str = "2024-11-07T16-51-22Z";
const NEW: &str = "2024-11-08T16-51-20Z";

#[test]
fn eight_readers_share_a_cache_that_is_too_small_for_them() {
    promise("Any number of readers at once get the right bytes, also where the cache is far too small for them.");
    if !can_mount() {
        return;
    }
    let store = Store::new();
    // Compressed, so that every cluster goes through the cache: 64 MiB of them through the smallest there is.
    let size = 64 << 20;
    let contents = store.chain("100", "disk", &[OLD, NEW], size, 21);
    let base = store.backup("100", OLD).join("disk.qcow2");
    let filled: Vec<_> = (0..64).map(|n| (n << 20, 700 << 10, Some((n % 250 + 1) as u8))).collect();
    write(&base, &filled);
    let packed = store.scratch("packed.qcow2");
    succeed(command("qemu-img").args(["convert", "-c", "-O", "qcow2"]).arg(&base).arg(&packed));
    fs::rename(&packed, &base).unwrap();
    let expected = store.scratch("expected");
    let image = store.backup("100", NEW).join("disk.qcow2");
    succeed(command("qemu-img").args(["convert", "-O", "raw"]).arg(&image).arg(&expected));
    let content = fs::read(&expected).unwrap();
    assert!(content != contents[1], "the base has other bytes than before");

    let mounted = Mounted::with(&store.path(), &["--cache-size", "1M"]);
    let path = mounted.path("100/latest/disk.raw");
    std::thread::scope(|scope| {
        for seed in 1..=8 {
            let (path, content) = (&path, &content);
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                let mut random = Random::new(seed);
                let mut buf = vec![0; 300_000];
                for n in 0..200_u64 {
                    // Half of them read on from where they are, half of them anywhere.
                    let at = if seed % 2 == 0 { n * 320_000 % (size - 300_000) } else { random.below(size - 300_000) };
                    let len = 1 + random.below(299_999) as usize;
                    file.read_exact_at(&mut buf[..len], at).unwrap();
                    let at = at as usize;
                    assert!(buf[..len] == content[at..at + len], "reader {seed}: {len} bytes at {at} are wrong");
                    if n % 16 == 0 {
                        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
                    }
                }
            });
        }
    });
    let status = mounted.status();
    assert!(status["cache"]["misses"].as_u64().unwrap() > 64 * 11, "the cache was never too small: {status}");
    assert!(status["cache"]["bytes"].as_u64().unwrap() <= status["cache"]["capacity"].as_u64().unwrap());
    assert_eq!(status["failed_reads"], 0);
}

/// Makes the L2 entry of the cluster at `at` point far outside the image. The layout is what qemu-img makes of a new
/// image with 64 KiB clusters: one L2 table, to which the first L1 entry points.
fn break_entry(image: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(image).unwrap();
    let number = |at| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let l1 = number(40);
    let l2 = number(l1) & 0x00ff_ffff_ffff_fe00;
    assert_ne!(l2, 0, "no L2 table");
    file.write_all_at(&(1 << 63 | 1_u64 << 50).to_be_bytes(), l2 + at / (64 << 10) * 8).unwrap();
}

#[test]
fn a_read_that_cannot_be_right_fails_and_the_log_says_where() {
    promise(
        "A read returns the right bytes or fails with EIO and a log line that names guest, backup, disk, layer and offset.",
    );
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let mut contents = store.chain("web01", "drive-scsi0", &[OLD], 4 << 20, 30);
    let bad = 1 << 20..(1 << 20) + (64 << 10);
    let base = store.backup("web01", OLD).join("drive-scsi0.qcow2");
    write(&base, &[(bad.start, 64 << 10, Some(7))]);
    contents[0][bad.start as usize..bad.end as usize].fill(7);
    let head = store.backup("web01", NEW).join("drive-scsi0.qcow2");
    let below = format!("../qemu-{OLD}/drive-scsi0.qcow2");
    succeed(command("qemu-img").args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &below]).arg(&head));
    break_entry(&base, bad.start);

    let mounted = Mounted::new(&store.path());
    let file = File::open(mounted.path("web01/latest/drive-scsi0.raw")).unwrap();
    let mut buf = vec![0; 4096];
    let mut failed = 0;
    for at in (0..4 << 20).step_by(4096) {
        match file.read_exact_at(&mut buf, at) {
            Ok(()) => {
                assert!(!bad.contains(&at), "a read of what cannot be read succeeded at {at}");
                assert!(buf == contents[0][at as usize..at as usize + 4096], "wrong bytes at {at}");
            }
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
                assert!(bad.contains(&at), "a good cluster failed at {at}");
                failed += 1;
            }
        }
    }
    assert_eq!(failed, 16);
    let log = fs::read_to_string(&mounted.log).unwrap();
    let line = log.lines().find(|line| line.contains("read failed")).unwrap_or_else(|| panic!("no line in: {log}"));
    for word in ["guest=web01", &format!("backup={NEW}"), "disk=drive-scsi0", &format!("qemu-{OLD}/drive-scsi0.qcow2")]
    {
        assert!(line.contains(word), "'{word}' is not in: {line}");
    }
    let offset: u64 = line.split("offset=").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!(offset <= bad.start && bad.start < offset + (1 << 20), "{line}");

    promise("`.annals/status.json` tells of the store, the caches, what is broken and which reads failed.");
    let status = mounted.status();
    assert!(status["failed_reads"].as_u64().unwrap() >= 1);
    let fault = &status["recent_failed_reads"][0];
    assert_eq!((fault["guest"].as_str(), fault["backup"].as_str()), (Some("web01"), Some(NEW)), "{fault}");
    assert_eq!(status["store"].as_str(), store.path().to_str());
    assert_eq!(
        (status["version"].as_u64(), status["guests"].as_u64(), status["backups_seen"].as_u64()),
        (Some(1), Some(1), Some(2))
    );
    // Sound places can still be counted, and a tool that copies is told of the failure.
    assert!(
        !command("cp")
            .arg(mounted.path("web01/latest/drive-scsi0.raw"))
            .arg(store.scratch("copy"))
            .output()
            .unwrap()
            .status
            .success()
    );
}

#[test]
fn a_layer_that_is_cut_short_while_it_is_read_gives_errors_and_no_zeros() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let image = store.backup("100", OLD).join("disk.qcow2");
    succeed(command("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("8M"));
    write(&image, &[(0, 8 << 20, Some(5))]);
    let mounted = Mounted::new(&store.path());
    let file = File::open(mounted.path("100/latest/disk.raw")).unwrap();
    let mut buf = [0; 4096];
    file.read_exact_at(&mut buf, 0).unwrap();
    let length = fs::metadata(&image).unwrap().len();
    OpenOptions::new().write(true).open(&image).unwrap().set_len(length / 2).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut failed = 0;
    for at in (0..8 << 20).step_by(64 << 10) {
        match file.read_exact_at(&mut buf, at) {
            Ok(()) => assert!(buf.iter().all(|byte| *byte == 5), "wrong bytes at {at}"),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
                failed += 1;
            }
        }
    }
    assert!(failed >= 50, "only {failed} reads failed although half of the image is gone");
}

#[test]
fn the_status_is_made_anew_for_each_reader() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    store.chain("100", "disk", &[OLD], 1 << 20, 1);
    let mounted = Mounted::new(&store.path());
    assert_eq!(mounted.status()["open_files"], 0);
    let file = File::open(mounted.path("100/latest/disk.raw")).unwrap();
    assert_eq!(mounted.status()["open_files"], 1);
    drop(file);
    // The kernel tells of a close a moment later.
    within(Duration::from_secs(2), "the file is closed", || mounted.status()["open_files"] == 0);
    assert_eq!(fs::metadata(mounted.path(".annals/status.json")).unwrap().len(), 0);
}

/// Makes a disk of which one cluster cannot be read; returns the chain's offset of it.
fn store_with_a_bad_cluster() -> (Store, u64) {
    let store = Store::new();
    let image = store.backup("100", OLD).join("disk.qcow2");
    succeed(command("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("4M"));
    write(&image, &[(0, 4 << 20, Some(5))]);
    break_entry(&image, 2 << 20);
    (store, 2 << 20)
}

/// In a mount namespace of its own, whose /dev has what a mount needs and the test's own log.
const LOGGED_BY_THE_SYSTEM: &str = r#"
mknod -m 0666 "$DEV/null" c 1 3 && mknod -m 0666 "$DEV/fuse" c 10 229 && mount --bind "$DEV" /dev || exit 9
"$ANNALS" --store "$STORE" mount "$MNT" || exit 8
dd if="$MNT/100/latest/disk.raw" of=/dev/null bs=64k skip=32 count=1 2>"$MNT.dd"
"$ANNALS" umount "$MNT"
"#;

#[test]
fn a_process_in_the_background_logs_to_the_system() {
    if !can_mount() || !crate::support::tools::have(&["unshare", "mknod", "dd"]) {
        return;
    }
    let (store, _) = store_with_a_bad_cluster();
    let (dev, point) = (store.scratch("dev"), store.scratch("mnt"));
    fs::create_dir(&dev).unwrap();
    fs::create_dir(&point).unwrap();
    let log = std::os::unix::net::UnixDatagram::bind(dev.join("log")).unwrap();
    log.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut private = command("unshare");
    private.args(["--mount", "--propagation", "private", "--", "sh", "-c", LOGGED_BY_THE_SYSTEM]);
    private
        .env("DEV", &dev)
        .env("STORE", store.path())
        .env("MNT", &point)
        .env("ANNALS", crate::support::mounts::ANNALS);
    succeed(&mut private);
    let mut line = [0; 4096];
    let length = log.recv(&mut line).unwrap();
    let line = String::from_utf8_lossy(&line[..length]);
    assert!(line.starts_with("<27>annals[") && line.contains("]: ERROR read failed"), "{line}");
    assert!(line.contains("guest=100") && line.contains(&format!("backup={OLD}")) && !line.contains('\n'), "{line}");
}

#[test]
fn a_store_that_is_gone_can_still_be_told_of_and_unmounted() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    store.chain("100", "disk", &[OLD], 1 << 20, 1);
    let mounted = Mounted::new(&store.path());
    fs::rename(store.path(), store.scratch("elsewhere")).unwrap();
    within(Duration::from_secs(2), "it is noticed", || {
        fs::read_dir(&mounted.point).and_then(|mut d| d.next().transpose()).is_err()
    });
    let status = mounted.status();
    assert!(status["guests"].is_null() && status["store_error"].as_str().unwrap().contains("removed"), "{status}");
    assert!(fs::metadata(&mounted.point).unwrap().is_dir());
    fs::rename(store.scratch("elsewhere"), store.path()).unwrap();
    within(Duration::from_secs(2), "it is back", || mounted.path("100/latest/disk.raw").exists());
    fs::rename(store.path(), store.scratch("elsewhere")).unwrap();
    mounted.umount();
}
