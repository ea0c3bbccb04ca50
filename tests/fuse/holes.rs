//! Holes: what the images do not hold, to `lseek`, to `stat`, and to the tools that copy around them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::support::mounts::{Mounted, SETTLED, Store, can_mount, promise, qemu_data, seek_data, succeed, write};
use crate::support::tools::{command, have, run};

const TIMES: [&str; 3] = ["2024-11-07T16-51-22Z", "2024-11-08T16-51-20Z", "2024-11-09T16-51-21Z"];
const DISK: &str = "100/latest/disk.raw";

#[test]
fn seek_and_blocks_are_what_qemu_says_of_the_chain() {
    promise(
        "`SEEK_DATA` and `SEEK_HOLE` tell exactly what the images of a disk hold, and `st_blocks` counts exactly that.",
    );
    if !can_mount() {
        return;
    }
    let store = Store::new();
    for seed in 1..6 {
        store.chain(&seed.to_string(), "disk", &TIMES, 5 << 20, seed);
    }
    let mounted = Mounted::new(&store.path());
    for seed in 1..6 {
        for time in TIMES {
            let expected = qemu_data(&store.backup(&seed.to_string(), time).join("disk.qcow2"));
            assert!(expected.len() > 2, "a chain without holes tests nothing");
            let path = mounted.point.join(seed.to_string()).join(time).join("disk.raw");
            let blocks: u64 = expected.iter().map(|(start, end)| (end - start) / 512).sum();
            assert_eq!(fs::metadata(&path).unwrap().blocks(), blocks, "{}", path.display());
            assert_eq!(seek_data(&File::open(&path).unwrap()), expected, "{}", path.display());
        }
    }
}

#[test]
fn who_reads_past_the_page_cache_finds_holes_of_whole_blocks_as_qemu_does_without_a_cache() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let image = store.backup("100", TIMES[0]).join("disk.qcow2");
    let create = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=512"];
    let size = (1 << 20) + 512;
    succeed(command("qemu-img").args(create).arg(&image).arg(size.to_string()));
    let writes = [(512, 512, 1), (8192, 512, 2), (12288 - 512, 1024, 3), (20480, 4096, 4), (1 << 20, 512, 5)];
    write(&image, &writes.map(|(at, len, value)| (at, len, Some(value))));
    let mounted = Mounted::new(&store.path());
    let open = |flags| rustix::fs::open(mounted.path(DISK), flags, rustix::fs::Mode::empty()).unwrap();
    let direct = File::from(open(rustix::fs::OFlags::DIRECT));
    assert_eq!(seek_data(&direct), [(0, 4096), (8192, 16384), (20480, 24576), (1 << 20, size)]);
    // Within a block, before and behind what it holds.
    for (to, found) in [
        (rustix::fs::SeekFrom::Data(100), 100),
        (rustix::fs::SeekFrom::Data(2000), 2000),
        (rustix::fs::SeekFrom::Data(4096), 8192),
        (rustix::fs::SeekFrom::Hole(2000), 4096),
        (rustix::fs::SeekFrom::Hole(5000), 5000),
        (rustix::fs::SeekFrom::Hole(1 << 20), size),
    ] {
        assert_eq!(rustix::fs::seek(&direct, to), Ok(found), "{to:?}");
    }
    let exact = [(512, 1024), (8192, 8704), (11776, 12800), (20480, 24576), (1 << 20, size)];
    assert_eq!(seek_data(&File::from(open(rustix::fs::OFlags::empty()))), exact);
    succeed(
        command("qemu-img")
            .args(["compare", "-T", "none", "-f", "qcow2", "-F", "raw"])
            .arg(&image)
            .arg(mounted.path(DISK)),
    );
}

#[test]
fn seek_answers_at_every_kind_of_place() {
    if !can_mount() {
        return;
    }
    use rustix::fs::SeekFrom::{Data, Hole};
    use rustix::io::Errno;
    let store = Store::new();
    let image = store.backup("100", TIMES[0]).join("disk.qcow2");
    let size = (1 << 20) + 512;
    succeed(command("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg(size.to_string()));
    write(&image, &[(128 << 10, 64 << 10, Some(1))]);
    store.file("100", TIMES[0], "guest.conf", b"12345");
    let mounted = Mounted::new(&store.path());
    let disk = File::open(mounted.path(DISK)).unwrap();
    let seek = |to| rustix::fs::seek(&disk, to);
    assert_eq!(seek(Data(0)), Ok(128 << 10));
    assert_eq!(seek(Data((128 << 10) + 5)), Ok((128 << 10) + 5));
    assert_eq!(seek(Data(192 << 10)), Err(Errno::NXIO), "only holes follow");
    assert_eq!(seek(Hole(0)), Ok(0));
    assert_eq!(seek(Hole(128 << 10)), Ok(192 << 10));
    assert_eq!(seek(Hole(size - 1)), Ok(size - 1));
    assert_eq!(seek(Hole(size)), Err(Errno::NXIO), "at the end");
    assert_eq!(seek(Data(u64::MAX >> 1)), Err(Errno::NXIO), "far behind the end");
    let text = File::open(mounted.path("100/latest/guest.conf")).unwrap();
    assert_eq!(rustix::fs::seek(&text, Data(2)), Ok(2));
    assert_eq!(rustix::fs::seek(&text, Hole(2)), Ok(5));
}

/// Takes all of an image's tables away, and gives it its old time again.
fn forget_tables(image: &Path) {
    let file = File::options().read(true).write(true).open(image).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    let mut header = [0; 48];
    file.read_exact_at(&mut header, 0).unwrap();
    let entries = u32::from_be_bytes(header[36..40].try_into().unwrap());
    let at = u64::from_be_bytes(header[40..48].try_into().unwrap());
    file.write_all_at(&vec![0; entries as usize * 8], at).unwrap();
    file.set_modified(time).unwrap();
}

/// Bytes that a process has read so far.
fn bytes_read(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[test]
fn what_was_counted_is_kept_for_the_next_mount_and_the_next_backup() {
    promise(
        "What counting has found is kept: the next mount reads no table for it, and a new backup costs a look at the tables of its own images.",
    );
    if !can_mount() {
        return;
    }
    const KIB: u64 = 1 << 10;
    /// Each image has one, for all of its disk. What is kept is read instead, and is far smaller.
    const TABLE: u64 = 64 * KIB;
    let store = Store::new();
    let images: Vec<_> = TIMES.iter().map(|time| store.backup("100", time).join("disk.qcow2")).collect();
    let make = |n: usize, writes: &[crate::support::mounts::Write]| {
        let mut create = command("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]);
        if n > 0 {
            create.args(["-F", "qcow2", "-b", &format!("../qemu-{}/disk.qcow2", TIMES[n - 1])]);
        }
        succeed(create.arg(&images[n]).arg("512M"));
        write(&images[n], writes);
    };
    let settle = || std::thread::sleep(SETTLED);
    // The KiB allocated, and the bytes read to tell.
    let ask = |time: &str| {
        let mounted = Mounted::new(&store.path());
        let (pid, disk) = (mounted.pid(), mounted.path("100").join(time).join("disk.raw"));
        let before = bytes_read(pid);
        (fs::metadata(disk).unwrap().blocks() / 2, bytes_read(pid) - before)
    };
    make(0, &[(0, 64 * KIB, Some(1)), (1024 * KIB, 256 * KIB, Some(1))]);
    make(1, &[(1024 * KIB, 64 * KIB, Some(2)), (2048 * KIB, 64 * KIB, Some(2))]);
    fs::remove_dir(images[2].parent().unwrap()).unwrap();
    settle();
    let ((blocks, counting), (again, kept)) = (ask(TIMES[1]), ask(TIMES[1]));
    assert_eq!((blocks, again), (384, 384));
    assert!(
        kept + TABLE * 3 / 2 <= counting,
        "{kept} bytes read where nothing was to be counted, {counting} for the counting"
    );
    assert_eq!(ask(TIMES[0]).0, 320);

    fs::create_dir(images[2].parent().unwrap()).unwrap();
    make(2, &[(0, 64 * KIB, Some(3)), (4096 * KIB, 128 * KIB, Some(3)), (2048 * KIB, 64 * KIB, None)]);
    settle();
    let (blocks, newest) = ask(TIMES[2]);
    fs::remove_dir_all(store.path().with_extension("cache")).unwrap();
    let (again, counting) = ask(TIMES[2]);
    assert_eq!((blocks, again), (448, 448));
    assert!(newest + TABLE * 3 / 2 <= counting, "{newest} bytes read for the newest image, {counting} for all three");

    // Not even a change that hides its time is missed.
    forget_tables(&images[0]);
    assert_eq!(TIMES.map(|time| ask(time).0), [0, 128, 256]);
}

/// Asks a mount for the blocks of the disk.
type Ask = &'static dyn Fn(&Path) -> u64;

#[test]
fn blocks_are_exact_however_they_are_asked_for_first() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    store.chain("100", "disk", &TIMES, 5 << 20, 3);
    let blocks: u64 = qemu_data(&store.backup("100", TIMES[2]).join("disk.qcow2"))
        .iter()
        .map(|(start, end)| (end - start) / 512)
        .sum();
    let ways: [(&str, Ask); 4] = [
        ("stat", &|mnt| fs::metadata(mnt.join(DISK)).unwrap().blocks()),
        ("fstat of an open file", &|mnt| File::open(mnt.join(DISK)).unwrap().metadata().unwrap().blocks()),
        ("a listing, then stat", &|mnt| {
            let mut entries = fs::read_dir(mnt.join("100/latest/")).unwrap();
            entries
                .find_map(|e| Some(e.unwrap()).filter(|e| e.file_name() == "disk.raw"))
                .unwrap()
                .metadata()
                .unwrap()
                .blocks()
        }),
        ("ls -s", &|mnt| {
            let line = run("ls", &["-s", "--block-size=512", mnt.join(DISK).to_str().unwrap()]);
            line.split_whitespace().next().unwrap().parse().unwrap()
        }),
    ];
    for (way, ask) in ways {
        let mounted = Mounted::new(&store.path());
        assert_eq!(ask(&mounted.point), blocks, "by {way}");
        assert_eq!(fs::metadata(mounted.path(DISK)).unwrap().blocks(), blocks, "after {way}");
    }
}

#[test]
fn copies_by_the_usual_tools_keep_holes_and_bytes() {
    promise("`cp`, `tar -S`, `rsync -S` and `qemu-img convert` keep holes and bytes.");
    if !can_mount() || !have(&["rsync", "tar", "cp"]) {
        return;
    }
    let store = Store::new();
    let contents = store.chain("100", "disk", &TIMES, 64 << 20, 11);
    let mounted = Mounted::new(&store.path());
    let disk = mounted.path(DISK);
    let to = store.scratch("copies");
    fs::create_dir(&to).unwrap();

    succeed(command("cp").arg("--sparse=auto").arg(&disk).arg(to.join("cp")));
    succeed(command("cp").arg("--sparse=always").arg(&disk).arg(to.join("cp-always")));
    succeed(command("rsync").arg("-aS").arg(&disk).arg(to.join("rsync")));
    succeed(command("qemu-img").args(["convert", "-f", "raw", "-O", "raw"]).arg(&disk).arg(to.join("qemu-img")));
    succeed(command("tar").arg("-C").arg(disk.parent().unwrap()).arg("-Scf").arg(to.join("tar.tar")).arg("disk.raw"));
    succeed(command("tar").arg("-C").arg(&to).arg("-xf").arg(to.join("tar.tar")));

    let held = fs::metadata(&disk).unwrap().blocks();
    assert!(held * 512 < 32 << 20, "{held} blocks: a disk without holes tests nothing");
    for copy in ["cp", "cp-always", "rsync", "qemu-img", "disk.raw"] {
        let path = to.join(copy);
        assert!(fs::read(&path).unwrap() == contents[2], "the copy by {copy} differs");
        let blocks = fs::metadata(&path).unwrap().blocks();
        // File systems round to their own blocks.
        assert!(blocks <= held + held / 8 + 64, "the copy by {copy} has {blocks} blocks, the disk {held}");
    }
    assert!(fs::metadata(to.join("tar.tar")).unwrap().len() <= held * 512 + (1 << 20));
}
