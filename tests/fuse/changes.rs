//! What happens in the store while it is mounted.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::mounts::{Mounted, Store, can_mount, names, promise, succeed, within, write};
use crate::support::tools::{command, have};

const OLD: &str = "2024-11-07T16-51-22Z";
const MIDDLE: &str = "2024-11-08T16-51-20Z";
const NEW: &str = "2024-11-09T16-51-21Z";
/// The promised time, less what a loaded machine may take for the last look itself.
const SOON: Duration = Duration::from_secs(2);

/// After this long a directory is no longer suspected of changes that its time does not show.
const SETTLED: Duration = Duration::from_millis(2500);

/// Has the kernel give up the pages that it keeps of a file.
fn drop_pages(file: &File) {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

fn read_all(file: &File) -> std::io::Result<Vec<u8>> {
    let mut content = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}

#[test]
fn backups_and_guests_come_and_go_within_two_seconds() {
    promise(
        "A new backup appears without remounting, a removed one disappears, `latest` follows, and a replaced file shows \
         what it is now, each within two seconds.",
    );
    if !can_mount() {
        return;
    }
    let store = Store::new();
    store.file("100", OLD, "guest.conf", b"old");
    store.file("100", MIDDLE, "guest.conf", b"middle");
    let mounted = Mounted::new(&store.path());
    let latest = |content: &[u8]| fs::read(mounted.path("100/latest/guest.conf")).is_ok_and(|c| c == content);
    let stat = |name: &str| fs::metadata(mounted.path(name)).is_ok();
    let listed = |dir: &str, name: &str| names(&mounted.path(dir)).iter().any(|n| n == name);
    let new = format!("100/{NEW}");
    for round in 0..3 {
        // All of it is looked at before the change, so that the kernel holds whatever it may hold.
        assert!(latest(b"middle") && !stat(&new) && !listed("100", NEW), "round {round}");
        store.file("100", NEW, "guest.conf", b"new");
        within(SOON, "the new backup by its name", || stat(&new));
        within(SOON, "the new backup in the listing", || listed("100", NEW));
        within(SOON, "latest leads to it", || latest(b"new"));
        assert!(latest(b"new") && stat(&new) && listed("100", NEW));
        fs::remove_dir_all(store.backup("100", NEW)).unwrap();
        within(SOON, "the removed backup is gone from the listing", || !listed("100", NEW));
        within(SOON, "latest leads back", || latest(b"middle"));
        within(SOON, "the removed backup is gone by its name", || !stat(&new));
        assert!(fs::read(mounted.path(&format!("{new}/guest.conf"))).is_err());
    }
    assert!(!stat("new-guest") && !listed("", "new-guest"));
    store.file("new-guest", OLD, "guest.conf", b"x");
    within(SOON, "the new guest by its name", || stat("new-guest/latest/guest.conf"));
    within(SOON, "the new guest in the listing", || listed("", "new-guest"));
    fs::remove_dir_all(store.path().join("new-guest")).unwrap();
    within(SOON, "the removed guest by its name", || !stat("new-guest"));
    within(SOON, "the removed guest in the listing", || !listed("", "new-guest"));
}

#[test]
fn a_change_that_nobody_watched_is_seen_at_the_first_look_two_seconds_later() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    store.file("100", OLD, "guest.conf", b"old");
    let mounted = Mounted::new(&store.path());
    for _ in 0..2 {
        assert_eq!(fs::read(mounted.path("100/latest/guest.conf")).unwrap(), b"old");
        store.file("100", NEW, "guest.conf", b"new");
        std::thread::sleep(SOON);
        assert_eq!(fs::read(mounted.path("100/latest/guest.conf")).unwrap(), b"new");
        fs::remove_dir_all(store.backup("100", NEW)).unwrap();
        std::thread::sleep(SOON);
        assert_eq!(fs::read(mounted.path("100/latest/guest.conf")).unwrap(), b"old");
        assert_eq!(names(&mounted.path("100")), [OLD, "latest"]);
    }
}

#[test]
fn an_open_file_outlives_its_backup() {
    promise("A file that is open stays readable when its backup is removed.");
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let contents = store.chain("100", "disk", &[OLD, MIDDLE], 4 << 20, 9);
    store.file("100", OLD, "guest.conf", b"still here");
    let mounted = Mounted::new(&store.path());
    let disk = File::open(mounted.path(&format!("100/{MIDDLE}/disk.raw"))).unwrap();
    let conf = File::open(mounted.path(&format!("100/{OLD}/guest.conf"))).unwrap();
    let mut first = [0; 4096];
    disk.read_exact_at(&mut first, 0).unwrap();
    fs::remove_dir_all(store.path().join("100")).unwrap();
    within(SOON, "the guest is gone", || fs::metadata(mounted.path("100")).is_err());
    drop_pages(&disk);
    assert!(read_all(&disk).unwrap() == contents[1], "other bytes after the removal");
    assert_eq!(read_all(&conf).unwrap(), b"still here");
    let stat = disk.metadata().unwrap();
    assert!(stat.blocks() > 0 && stat.len() == 4 << 20);
    // Also to somebody who opens it anew through the open file.
    let again = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&disk))).unwrap();
    drop(disk);
    drop_pages(&again);
    assert!(read_all(&again).unwrap() == contents[1]);
}

#[test]
fn a_replaced_file_shows_its_own_bytes_to_each_reader() {
    promise(
        "Nobody gets bytes of two files that had the same name one after the other: who has the old one open reads on in \
         the old one.",
    );
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let other = Store::new();
    let mounted = Mounted::new(&store.path());
    let name = format!("100/{OLD}/disk.raw");
    let mut old: Option<(File, Vec<u8>)> = None;
    for round in 0..4_u64 {
        // Each time as large as before, so that nothing but the bytes tells them apart.
        let content = other.chain("100", "disk", &[OLD], 2 << 20, 100 + round).remove(0);
        let (from, to) = (other.backup("100", OLD), store.backup("100", OLD));
        if round % 2 == 0 {
            // The whole backup is another one.
            fs::remove_dir_all(&to).unwrap();
            fs::rename(&from, &to).unwrap();
        } else {
            // The image is another one, as after a merge.
            fs::rename(from.join("disk.qcow2"), to.join("disk.qcow2")).unwrap();
        }
        within(SOON, "the new bytes", || {
            let file = File::open(mounted.path(&name));
            let Ok(read) = file.and_then(|file| read_all(&file)) else { return false };
            let is_old = old.as_ref().is_some_and(|(_, bytes)| *bytes == read);
            assert!(is_old || read == content, "round {round}: a mixture of old and new bytes");
            read == content
        });
        let new = File::open(mounted.path(&name)).unwrap();
        if let Some((old, bytes)) = &old {
            assert_ne!(old.metadata().unwrap().ino(), new.metadata().unwrap().ino());
            for _ in 0..2 {
                assert!(read_all(old).unwrap() == *bytes, "round {round}: the old file's bytes have changed");
                assert!(read_all(&new).unwrap() == content, "round {round}: the new file's bytes have changed");
                drop_pages(old);
                drop_pages(&new);
            }
        }
        old = Some((new, content));
    }
}

#[test]
fn a_file_whose_layers_were_merged_reads_on_unchanged() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let contents = store.chain("100", "disk", &[OLD, MIDDLE, NEW], 2 << 20, 4);
    let mounted = Mounted::new(&store.path());
    let path = mounted.path(&format!("100/{NEW}/disk.raw"));
    let open = File::open(&path).unwrap();
    let number = open.metadata().unwrap().ino();
    // The middle layer takes in the oldest one, in a new file that is renamed over it.
    let (middle, merged) = (store.backup("100", MIDDLE).join("disk.qcow2"), store.scratch("merged.qcow2"));
    let qemu = |args: &[&str], from: &Path, to: &Path| {
        crate::support::mounts::succeed(crate::support::tools::command("qemu-img").args(args).arg(from).arg(to))
    };
    qemu(&["convert", "-O", "qcow2"], &middle, &merged);
    fs::rename(&merged, &middle).unwrap();
    fs::remove_dir_all(store.backup("100", OLD)).unwrap();
    within(SOON, "the oldest backup is gone", || !names(&mounted.path("100")).iter().any(|n| n == OLD));
    drop_pages(&open);
    assert!(read_all(&open).unwrap() == contents[2]);
    drop(open);
    assert!(fs::read(&path).unwrap() == contents[2]);
    assert!(fs::read(mounted.path(&format!("100/{MIDDLE}/disk.raw"))).unwrap() == contents[1]);
    assert_eq!(Mounted::new(&store.path()).path(&format!("100/{NEW}/disk.raw")).metadata().unwrap().ino(), number);
}

#[test]
fn a_layer_that_was_replaced_far_below_shows_in_the_disks_above_it() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let contents = store.chain("100", "disk", &[OLD, NEW], 2 << 20, 4);
    std::thread::sleep(SETTLED);
    let mounted = Mounted::new(&store.path());
    let path = mounted.path(&format!("100/{NEW}/disk.raw"));
    let old = File::open(&path).unwrap();
    assert!(read_all(&old).unwrap() == contents[1]);
    // No rule of the store allows it; and nothing in the newer backup's own directory tells of it.
    let (base, other, expected) =
        (store.backup("100", OLD).join("disk.qcow2"), Store::new(), store.scratch("expected"));
    other.chain("100", "disk", &[OLD], 2 << 20, 5);
    fs::rename(other.backup("100", OLD).join("disk.qcow2"), &base).unwrap();
    let mut convert = crate::support::tools::command("qemu-img");
    convert.args(["convert", "-O", "raw"]).arg(store.backup("100", NEW).join("disk.qcow2")).arg(&expected);
    crate::support::mounts::succeed(&mut convert);
    let expected = fs::read(&expected).unwrap();
    assert!(expected != contents[1]);
    within(SOON, "the disk as it is now", || fs::read(&path).is_ok_and(|read| read == expected));
    drop_pages(&old);
    assert!(read_all(&old).unwrap() == contents[1], "who has the old one open goes on reading it");
}

#[test]
fn an_image_that_is_repaired_in_its_place_and_given_its_old_time_shows_what_it_is_now() {
    if !can_mount() {
        return;
    }
    const CLUSTER: u64 = 64 << 10;
    let store = Store::new();
    let (image, other) = (store.backup("100", OLD).join("disk.qcow2"), store.scratch("other.qcow2"));
    // Two images of one disk that differ in nothing but the order in which their clusters lie: what is known of the one
    // leads to wrong bytes in the other.
    for (path, order) in [(&image, [0, 1]), (&other, [1, 0])] {
        succeed(command("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(path).arg("1M"));
        write(path, &order.map(|n| (n * CLUSTER, CLUSTER, Some(if n == 0 { 1 } else { 2 }))));
    }
    store.file("100", OLD, "guest.conf", b"rotten");
    let conf = store.backup("100", OLD).join("guest.conf");
    let mounted = Mounted::new(&store.path());
    let bytes = || {
        let file = File::open(mounted.path(&format!("100/{OLD}/disk.raw"))).unwrap();
        let mut bytes = [0; 2];
        // Not from the pages that the kernel has: from what this program knows of the image.
        drop_pages(&file);
        file.read_exact_at(&mut bytes[..1], 0).unwrap();
        file.read_exact_at(&mut bytes[1..], CLUSTER).unwrap();
        bytes
    };
    let text = || fs::read(mounted.path(&format!("100/{OLD}/guest.conf"))).unwrap();
    assert_eq!((bytes(), text()), ([1, 2], b"rotten".to_vec()));
    for (path, content) in [(&image, fs::read(&other).unwrap()), (&conf, b"sound!".to_vec())] {
        let file = File::options().write(true).open(path).unwrap();
        let (time, size) = (file.metadata().unwrap().modified().unwrap(), file.metadata().unwrap().len());
        assert_eq!(size, content.len() as u64);
        file.write_all_at(&content, 0).unwrap();
        file.set_modified(time).unwrap();
    }
    within(SOON, "the repaired file", || text() == b"sound!");
    within(SOON, "the bytes of the repaired image", || bytes() == [1, 2]);
}

#[test]
fn a_disk_becomes_whole_when_its_missing_layer_arrives_and_broken_when_it_goes() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let contents = store.chain("100", "disk", &[OLD, NEW], 1 << 20, 4);
    let (layer, away) = (store.backup("100", OLD).join("disk.qcow2"), store.scratch("away"));
    std::thread::sleep(SETTLED);
    let mounted = Mounted::new(&store.path());
    let latest = || names(&mounted.path("100/latest/"));
    fs::rename(&layer, &away).unwrap();
    within(SOON, "broken at first", || latest() == ["disk.broken"]);
    fs::rename(&away, &layer).unwrap();
    within(SOON, "whole", || latest() == ["disk.raw"]);
    assert!(fs::read(mounted.path("100/latest/disk.raw")).unwrap() == contents[1]);
    fs::rename(&layer, &away).unwrap();
    within(SOON, "broken again", || latest() == ["disk.broken"]);
}

#[test]
fn a_listing_is_that_of_its_beginning() {
    promise("A listing shows every name that was there when it began exactly once, whatever comes and goes meanwhile.");
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let time = |n: i64| annals::base::Timestamp::from_epoch(1_600_000_000 + n * 3600).unwrap().file_name();
    // Far more than one buffer of the kernel's takes.
    let there: Vec<String> = (0..3000).map(|n| time(2 * n)).collect();
    for name in &there {
        store.backup("100", name);
    }
    let mounted = Mounted::new(&store.path());
    let mut listing = fs::read_dir(mounted.path("100")).unwrap();
    let mut seen: Vec<String> = Vec::new();
    for n in 0.. {
        if n == 10 {
            for n in 0..100 {
                store.backup("100", &time(2 * n + 1));
                fs::remove_dir(store.backup("100", &time(4 * n))).unwrap();
            }
            within(SOON, "the change is seen", || fs::metadata(mounted.path("100").join(time(1))).is_ok());
        }
        match listing.next() {
            Some(entry) => seen.push(entry.unwrap().file_name().into_string().unwrap()),
            None => break,
        }
    }
    assert_eq!(seen.pop().unwrap(), "latest");
    assert!(seen == there, "{} names instead of {}", seen.len(), there.len());
    let now = names(&mounted.path("100"));
    assert_eq!(now.len(), 3000 + 1, "a hundred went and a hundred came");
    assert!(now.contains(&time(1)) && !now.contains(&time(0)));
}

#[test]
fn readers_are_not_disturbed_by_backups_that_come_and_go() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let contents = store.chain("100", "disk", &[OLD, MIDDLE], 4 << 20, 12);
    let mounted = Mounted::new(&store.path());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for n in 0..8_usize {
            let (time, content) = ([OLD, MIDDLE][n % 2], &contents[n % 2]);
            let path = mounted.path(&format!("100/{time}/disk.raw"));
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let file = File::open(&path).unwrap();
                    assert!(read_all(&file).unwrap() == *content, "{time} reads wrong");
                    drop_pages(&file);
                }
            });
        }
        for _ in 0..10 {
            store.chain("100", "disk", &[NEW], 1 << 20, 13);
            store.file("101", NEW, "guest.conf", b"x");
            std::thread::sleep(Duration::from_millis(150));
            let _ = fs::read(mounted.path("100/latest/disk.raw"));
            fs::remove_dir_all(store.backup("100", NEW)).unwrap();
            fs::remove_dir_all(store.path().join("101")).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(mounted.status()["failed_reads"], 0, "{}", mounted.status());
}

#[test]
fn an_archive_that_is_replaced_or_written_anew_shows_what_it_is_now_however_often() {
    if !can_mount() || !have(&["tar"]) {
        return;
    }
    let store = Store::new();
    let backup = store.path().join(format!("101/lxc-{OLD}"));
    fs::create_dir_all(&backup).unwrap();
    let tree = store.scratch("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    let mounted = Mounted::new(&store.path());
    for round in 0..6 {
        fs::write(tree.join("etc/round"), format!("{round}")).unwrap();
        let new = store.scratch("new.tar");
        succeed(command("tar").arg("-cf").arg(&new).arg("-C").arg(&tree).arg("."));
        let archive = backup.join("archive.tar");
        match round % 2 {
            0 => fs::rename(&new, &archive).unwrap(),
            _ => fs::write(&archive, fs::read(&new).unwrap()).unwrap(),
        }
        let root = mounted.path("101").join(OLD).join("root");
        within(SOON, &format!("the archive of round {round}"), || {
            fs::read_to_string(root.join("etc/round")).is_ok_and(|read| read == format!("{round}"))
        });
        assert_eq!(names(&root), ["etc"]);
    }
}
