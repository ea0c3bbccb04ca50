//! A file got back out of a disk: partitions as files and by their offset, through loop devices.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::mounts::{Mounted, Store, can_mount, names, needs, promise, seek_data, succeed};
use crate::support::tools::{command, feed, have, run};

const OLD: &str = "2024-11-07T16-51-22Z";
const NEW: &str = "2024-11-08T16-51-20Z";
const MIB: u64 = 1 << 20;
/// Where the partitions are, in MiB: ext4, then XFS, whose smallest file system is large.
const EXT4: (u64, u64) = (1, 31);
const XFS: (u64, u64) = (32, 320);
const DISK_MIB: u64 = 360;

/// A mounted file system; unmounted when dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path, at: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&at).unwrap();
        succeed(command("mount").arg("-o").arg(format!("ro,loop{options}")).arg(file).arg(&at));
        Self(at)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = command("umount").arg(&self.0).status();
    }
}

fn content(word: &str) -> Vec<u8> {
    word.bytes().cycle().take(300_000).collect()
}

/// A file system of its own in a file of its own, with one file in it.
fn file_system(store: &Store, kind: &str, mib: u64, word: &str) -> PathBuf {
    let (image, tree) = (store.scratch(&format!("{kind}-{word}.img")), store.scratch(&format!("{kind}-{word}")));
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/hosts"), content(word)).unwrap();
    fs::File::create(&image).unwrap().set_len(mib * MIB).unwrap();
    if kind == "ext4" {
        succeed(command("mkfs.ext4").arg("-q").arg("-d").arg(&tree).arg(&image));
    } else {
        let list = store.scratch("proto");
        let tree = tree.display();
        fs::write(&list, format!("x\n0 0\nd--755 0 0\netc d--755 0 0\nhosts ---644 0 0 {tree}/etc/hosts\n$\n$\n"))
            .unwrap();
        succeed(command("mkfs.xfs").arg("-q").arg("-p").arg(&list).arg(&image));
    }
    image
}

/// A disk with an ext4 and an XFS partition, which hold `word`.
fn disk(store: &Store, table: &str, word: &str) -> PathBuf {
    let disk = store.scratch(&format!("{table}-{word}.raw"));
    fs::File::create(&disk).unwrap().set_len(DISK_MIB * MIB).unwrap();
    let lines = |(start, size): (u64, u64)| format!("start={}, size={}\n", start * 2048, size * 2048);
    feed("sfdisk", &["-q", "--label", table, disk.to_str().unwrap()], &format!("{}{}", lines(EXT4), lines(XFS)));
    for (kind, (start, size)) in [("ext4", EXT4), ("xfs", XFS)] {
        let image = file_system(store, kind, size, word);
        let mut dd = command("dd");
        dd.arg(format!("if={}", image.display())).arg(format!("of={}", disk.display()));
        succeed(dd.args(["bs=1M", "conv=notrunc,sparse", "status=none"]).arg(format!("seek={start}")));
        fs::remove_file(image).unwrap();
    }
    disk
}

#[test]
fn a_file_is_copied_out_of_each_partition_of_each_kind_of_table() {
    promise("Each partition of a disk is a file `NAME.partN.raw`, and `mount -o ro,loop` takes it as it is.");
    if !can_mount() || !have(&["sfdisk", "mkfs.ext4", "mkfs.xfs", "mount", "umount", "dd", "losetup"]) {
        return;
    }
    let attach = command("losetup").arg("-f").output().unwrap();
    let kernel = fs::read_to_string("/proc/filesystems").unwrap();
    if !needs(attach.status.success(), "loop devices")
        || !needs(kernel.contains("xfs") && kernel.contains("ext4"), "ext4 and XFS")
    {
        return;
    }
    let store = Store::new();
    for table in ["gpt", "dos"] {
        // What the guest had first, and, in a layer above, what it had a day later.
        let (old, new) = (disk(&store, table, "old"), disk(&store, table, "new"));
        let (base, head) = (store.backup(table, OLD).join("vda.qcow2"), store.backup(table, NEW).join("vda.qcow2"));
        succeed(command("qemu-img").args(["convert", "-O", "qcow2"]).arg(&old).arg(&base));
        let below = format!("../qemu-{OLD}/vda.qcow2");
        succeed(
            command("qemu-img").args(["convert", "-O", "qcow2", "-F", "qcow2", "-B"]).arg(&base).arg(&new).arg(&head),
        );
        succeed(command("qemu-img").args(["rebase", "-u", "-F", "qcow2", "-b", &below]).arg(&head));
    }
    let mounted = Mounted::new(&store.path());
    for table in ["gpt", "dos"] {
        for (time, word) in [(OLD, "old"), (NEW, "new")] {
            let dir = mounted.path(table).join(time);
            assert_eq!(names(&dir), ["vda.part1.raw", "vda.part2.raw", "vda.raw"]);
            for (name, (start, size)) in [("vda.part1.raw", EXT4), ("vda.part2.raw", XFS)] {
                let part = dir.join(name);
                assert_eq!(fs::metadata(&part).unwrap().len(), size * MIB);
                let offset = format!(",offset={},sizelimit={}", start * MIB, size * MIB);
                for (file, options) in [(&part, String::new()), (&dir.join("vda.raw"), offset)] {
                    let there = Loop::new(file, store.scratch("there"), &options);
                    let copy = store.scratch("copy");
                    succeed(command("cp").arg(there.0.join("etc/hosts")).arg(&copy));
                    assert!(fs::read(&copy).unwrap() == content(word), "{table} {time} {name}{options}");
                }
            }
        }
    }
    mounted.umount();
}

#[test]
fn a_partition_is_a_window_on_its_disk_with_the_disks_holes() {
    if !can_mount() || !have(&["sfdisk"]) {
        return;
    }
    let store = Store::new();
    let raw = store.scratch("raw");
    fs::File::create(&raw).unwrap().set_len(8 * MIB).unwrap();
    let script = "start=2048, size=4096\nstart=8192, size=2048, type=5\nstart=9216, size=512\n";
    feed("sfdisk", &["-q", "--label", "dos", raw.to_str().unwrap()], script);
    let image = store.backup("100", OLD).join("vda.qcow2");
    run("qemu-img", &["convert", "-O", "qcow2", raw.to_str().unwrap(), image.to_str().unwrap()]);
    // Data across the partition's start, within it, and across its end at 3 MiB.
    let at = |kib: u64| kib << 10;
    let writes = [(at(960), at(128), Some(1)), (at(2048), at(64), Some(2)), (at(3008), at(128), Some(3))];
    crate::support::mounts::write(&image, &writes);

    let mounted = Mounted::new(&store.path());
    let dir = mounted.path("100/latest/");
    assert_eq!(names(&dir), ["vda.part1.raw", "vda.part5.raw", "vda.raw"]);
    let whole = fs::read(dir.join("vda.raw")).unwrap();
    let part = fs::read(dir.join("vda.part1.raw")).unwrap();
    assert!(part == whole[MIB as usize..3 * MIB as usize]);
    assert!(fs::read(dir.join("vda.part5.raw")).unwrap() == whole[9216 * 512..9728 * 512]);
    let file = fs::File::open(dir.join("vda.part1.raw")).unwrap();
    let data = [(0, at(64)), (at(1024), at(1088)), (at(1984), at(2048))];
    assert_eq!(seek_data(&file), data);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    assert_eq!(blocks, (64 + 64 + 64) * 2);
}

#[test]
fn a_partition_takes_no_name_away() {
    if !can_mount() || !have(&["sfdisk"]) {
        return;
    }
    let store = Store::new();
    let raw = store.scratch("raw");
    fs::File::create(&raw).unwrap().set_len(4 * MIB).unwrap();
    feed("sfdisk", &["-q", "--label", "dos", raw.to_str().unwrap()], "start=2048, size=2048\n");
    for name in ["vda.qcow2", "vda.part1.qcow2"] {
        let image = store.backup("100", OLD).join(name);
        run("qemu-img", &["convert", "-O", "qcow2", raw.to_str().unwrap(), image.to_str().unwrap()]);
    }
    let mounted = Mounted::new(&store.path());
    let dir = mounted.path("100/latest/");
    assert_eq!(names(&dir), ["vda.part1.part1.raw", "vda.part1.raw", "vda.raw"]);
    assert_eq!(
        fs::metadata(dir.join("vda.part1.raw")).unwrap().len(),
        4 * MIB,
        "the disk of that name, not the partition"
    );
}
