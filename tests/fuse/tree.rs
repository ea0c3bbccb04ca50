//! Names, inodes, times: what a listing shows, and that it is the same each time.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::support::mounts::{Mounted, Store, can_mount, names, promise, succeed};
use crate::support::tools::command;

const TIMES: [&str; 3] = ["2024-11-07T16-51-22Z", "2024-11-08T16-51-20Z", "2024-11-09T16-51-21Z"];

#[test]
fn guests_backups_and_latest_are_where_they_belong() {
    promise(
        "Every guest is a directory, every backup in it a directory named by its time in UTC, and `latest` leads to the newest one.",
    );
    if !can_mount() {
        return;
    }
    let store = Store::new();
    for time in TIMES {
        store.backup("web01", time);
    }
    fs::create_dir_all(store.path().join("100/qemu-1730998282")).unwrap();
    fs::create_dir_all(store.path().join("100/lxc-1731084680")).unwrap();
    fs::create_dir_all(store.path().join("empty")).unwrap();
    let mounted = Mounted::new(&store.path());
    assert_eq!(names(&mounted.point), [".annals", "100", "empty", "web01"]);
    assert_eq!(names(&mounted.path("web01")), [TIMES[0], TIMES[1], TIMES[2], "latest"]);
    assert_eq!(names(&mounted.path("100")), ["2024-11-07T16-51-22Z", "2024-11-08T16-51-20Z", "latest"]);
    assert_eq!(names(&mounted.path("empty")), [""; 0]);
    assert_eq!(fs::read_link(mounted.path("web01/latest")).unwrap(), Path::new(TIMES[2]));
    for absent in ["nobody", "web01/2024-11-07", "web01/qemu-2024-11-07T16-51-22Z", "store.json", "empty/latest"] {
        assert_eq!(fs::metadata(mounted.path(absent)).unwrap_err().kind(), std::io::ErrorKind::NotFound, "{absent}");
    }
}

#[test]
fn the_time_with_colons_is_the_same_directory_under_another_name() {
    promise("The time as RFC 3339 spells it, with colons, finds the same directory; no listing shows it.");
    if !can_mount() {
        return;
    }
    let store = Store::new();
    store.file("100", TIMES[0], "guest.conf", b"cores: 4\n");
    let mounted = Mounted::new(&store.path());
    let (dash, colon) = (mounted.path("100").join(TIMES[0]), mounted.path("100/2024-11-07T16:51:22Z"));
    assert_eq!(fs::metadata(&dash).unwrap().ino(), fs::metadata(&colon).unwrap().ino());
    assert_eq!(fs::read(colon.join("guest.conf")).unwrap(), b"cores: 4\n");
    assert_eq!(names(&mounted.path("100")), [TIMES[0], "latest"]);
    assert!(fs::metadata(mounted.path("100/2024-11-07T17:51:22+01:00")).is_err(), "only UTC is a name");

    // Both at once, from several threads: the kernel moves its one entry to and fro.
    std::thread::scope(|scope| {
        for path in [&dash, &colon, &dash, &colon] {
            scope.spawn(move || {
                for _ in 0..500 {
                    assert_eq!(fs::read(path.join("guest.conf")).unwrap(), b"cores: 4\n");
                }
            });
        }
    });
}

#[test]
fn every_disk_reads_as_qemu_reads_its_chain() {
    promise("Each disk is a file `NAME.raw` whose bytes are what the guest had then, however many images hold them.");
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let contents = store.chain("100", "drive-scsi0", &TIMES, 3 << 20, 7);
    store.chain("100", "drive-virtio1", &TIMES[1..], 1 << 20, 8);
    let mounted = Mounted::new(&store.path());
    assert_eq!(names(&mounted.path("100/latest")), ["drive-scsi0.raw", "drive-virtio1.raw"]);
    for (time, content) in TIMES.iter().zip(&contents) {
        let disk = mounted.path("100").join(time).join("drive-scsi0.raw");
        assert!(fs::read(&disk).unwrap() == *content, "{time} differs from what was written");
        let image = store.backup("100", time).join("drive-scsi0.qcow2");
        succeed(command("qemu-img").args(["compare", "-f", "raw", "-F", "qcow2"]).arg(&disk).arg(&image));
    }
    assert!(fs::read(mounted.path("100/latest/drive-scsi0.raw")).unwrap() == contents[2]);
}

#[test]
fn files_of_a_backup_are_shown_as_they_are() {
    promise("Other files of a backup are shown as they are in the store.");
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let log: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    store.file("100", TIMES[0], "guest.conf", b"cores: 4\n");
    store.file("100", TIMES[0], "backup.log", &log);
    store.file("100", TIMES[0], "firewall.conf", b"");
    let mounted = Mounted::new(&store.path());
    let backup = mounted.path("100").join(TIMES[0]);
    assert_eq!(names(&backup), ["backup.log", "firewall.conf", "guest.conf"]);
    assert_eq!(fs::read(backup.join("guest.conf")).unwrap(), b"cores: 4\n");
    assert!(fs::read(backup.join("backup.log")).unwrap() == log);
    assert_eq!(fs::read(backup.join("firewall.conf")).unwrap(), b"");
    assert_eq!(fs::metadata(backup.join("backup.log")).unwrap().len(), 300_000);
}

#[test]
fn a_broken_disk_is_a_text_that_says_why_and_the_others_work() {
    promise(
        "A disk whose chain is incomplete or damaged is not shown as a disk: `NAME.broken` says which layer is at fault \
         and why, and the other disks of the backup can be read.",
    );
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let whole = store.chain("100", "whole", &TIMES, 1 << 20, 1);
    store.chain("100", "lost", &TIMES, 1 << 20, 2);
    store.chain("100", "cut", &TIMES, 1 << 20, 3);
    fs::remove_file(store.backup("100", TIMES[0]).join("lost.qcow2")).unwrap();
    fs::write(store.backup("100", TIMES[1]).join("cut.qcow2"), b"QFI\xfb and no more").unwrap();
    let mounted = Mounted::new(&store.path());
    let latest = mounted.path("100/latest");
    assert_eq!(names(&latest), ["cut.broken", "lost.broken", "whole.raw"]);
    assert!(fs::read(latest.join("whole.raw")).unwrap() == whole[2]);
    let lost = fs::read_to_string(latest.join("lost.broken")).unwrap();
    assert!(lost.contains(&format!("qemu-{}/lost.qcow2", TIMES[0])), "{lost}");
    let cut = fs::read_to_string(latest.join("cut.broken")).unwrap();
    assert!(cut.contains(&format!("qemu-{}/cut.qcow2", TIMES[1])), "{cut}");
    assert_eq!(fs::metadata(latest.join("cut.broken")).unwrap().len(), cut.len() as u64);
    // The layer that is left of the damaged chain's lower end is a whole disk.
    assert_eq!(names(&mounted.path("100").join(TIMES[0])), ["cut.raw", "whole.raw"]);
    let broken = mounted.status()["broken"].as_array().unwrap().clone();
    assert_eq!(broken.len(), 2, "{broken:?}");
}

/// Inode, size, blocks, time, mode, and the names in a directory.
type Facts = (u64, u64, u64, i64, u32, Vec<String>);

/// Everything that a reader can see of a tree, but for `.annals`.
fn seen(dir: &Path, into: &mut BTreeMap<PathBuf, Facts>, root: &Path) {
    let stat = fs::symlink_metadata(dir).unwrap();
    let listed = if stat.is_dir() { names(dir) } else { Vec::new() };
    for name in listed.iter().filter(|name| *name != ".annals") {
        seen(&dir.join(name), into, root);
    }
    let facts = (stat.ino(), stat.size(), stat.blocks(), stat.mtime(), stat.mode(), listed);
    into.insert(dir.strip_prefix(root).unwrap().to_owned(), facts);
}

#[test]
fn two_mounts_of_a_store_cannot_be_told_apart() {
    promise("Inode numbers, sizes, times and the order of names are the same in every mount of the same store.");
    if !can_mount() {
        return;
    }
    let store = Store::new();
    for guest in ["web01", "100", "db"] {
        store.chain(guest, "drive-scsi0", &TIMES, 1 << 20, 5);
        store.file(guest, TIMES[1], "guest.conf", b"x");
    }
    fs::remove_file(store.backup("db", TIMES[0]).join("drive-scsi0.qcow2")).unwrap();
    let look = |reverse: bool| {
        let mounted = Mounted::new(&store.path());
        if reverse {
            // The other way round first: what is looked up in which order must not matter.
            for path in ["web01/latest/drive-scsi0.raw", "db/latest", "100"] {
                fs::metadata(mounted.path(path)).unwrap();
            }
        }
        let mut all = BTreeMap::new();
        seen(&mounted.point, &mut all, &mounted.point);
        all
    };
    let first = look(false);
    assert!(first.len() > 20, "{}", first.len());
    assert_eq!(first, look(true));

    // Nor does it matter where the store lies.
    let moved = store.scratch("moved");
    fs::rename(store.path(), &moved).unwrap();
    let mounted = Mounted::new(&moved);
    let mut all = BTreeMap::new();
    seen(&mounted.point, &mut all, &mounted.point);
    assert_eq!(first, all);
}

#[test]
fn listings_and_stat_give_one_inode_number_and_no_two_names_share_one() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    store.chain("100", "a", &TIMES, 1 << 20, 5);
    store.chain("101", "a", &TIMES, 1 << 20, 5);
    let mounted = Mounted::new(&store.path());
    let mut numbers = BTreeMap::new();
    let mut dirs = vec![mounted.point.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let stat = fs::symlink_metadata(entry.path()).unwrap();
            assert_eq!(std::os::unix::fs::DirEntryExt::ino(&entry), stat.ino(), "{}", entry.path().display());
            assert_eq!(entry.file_type().unwrap(), stat.file_type());
            assert_eq!(numbers.insert(stat.ino(), entry.path()), None);
            if stat.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    assert_eq!(numbers.len(), 2 + 2 * (1 + 3 + 1 + 3));
}

#[test]
fn times_are_the_backups_times() {
    promise(
        "The time of a backup is the time of its directory and of every file in it; a guest's is that of its newest backup.",
    );
    if !can_mount() {
        return;
    }
    let store = Store::new();
    store.chain("100", "disk", &TIMES[..1], 1 << 20, 5);
    store.file("100", TIMES[0], "guest.conf", b"x");
    store.file("100", TIMES[0], "bad.qcow2", b"x");
    store.backup("100", TIMES[2]);
    let mounted = Mounted::new(&store.path());
    let (first, last) = (1_730_998_282, 1_731_171_081);
    for (path, time) in [
        ("100", last),
        ("100/latest", last),
        ("100/2024-11-09T16-51-21Z", last),
        ("100/2024-11-07T16-51-22Z", first),
        ("100/2024-11-07T16-51-22Z/disk.raw", first),
        ("100/2024-11-07T16-51-22Z/guest.conf", first),
        ("100/2024-11-07T16-51-22Z/bad.broken", first),
    ] {
        let stat = fs::symlink_metadata(mounted.path(path)).unwrap();
        assert_eq!((stat.mtime(), stat.ctime(), stat.atime()), (time, time, time), "{path}");
    }
    let root = fs::metadata(&mounted.point).unwrap().mtime();
    assert_eq!(root, fs::metadata(store.path()).unwrap().mtime());
    assert_eq!(root, fs::metadata(mounted.path(".annals/status.json")).unwrap().mtime());
}

#[test]
fn rsync_sees_no_change_where_there_is_none() {
    if !can_mount() || !crate::support::tools::have(&["rsync"]) {
        return;
    }
    let store = Store::new();
    store.chain("100", "disk", &TIMES, 1 << 20, 5);
    let copy = store.scratch("copy");
    let sync = || {
        let mounted = Mounted::new(&store.path());
        let from = format!("{}/100", mounted.point.display());
        let output = succeed(command("rsync").args(["-aSi", &from]).arg(&copy));
        String::from_utf8(output.stdout).unwrap()
    };
    let first = sync();
    assert!(first.lines().count() > 6, "{first}");
    assert_eq!(sync(), "", "changes where there are none");
    assert!(fs::read(copy.join("100/latest/disk.raw")).is_ok());
}
