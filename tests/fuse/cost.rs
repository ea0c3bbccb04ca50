//! What the mount takes: memory, and looks at the store.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify;

use crate::support::mounts::{Mounted, Store, can_mount, names, promise, succeed, within, write};
use crate::support::tools::command;

const TIMES: [&str; 3] = ["2024-11-07T16-51-22Z", "2024-11-08T16-51-20Z", "2024-11-09T16-51-21Z"];

/// Tells of every opening and reading in a directory and in those right below it.
struct Watch(rustix::fd::OwnedFd);

impl Watch {
    fn new(dir: &Path) -> Self {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
        let events = inotify::WatchFlags::OPEN | inotify::WatchFlags::ACCESS;
        inotify::add_watch(&fd, dir, events).unwrap();
        for entry in fs::read_dir(dir).unwrap() {
            inotify::add_watch(&fd, entry.unwrap().path(), events).unwrap();
        }
        let watch = Self(fd);
        watch.count();
        watch
    }

    /// How many events there were since the last call.
    fn count(&self) -> usize {
        let mut buf = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut buf);
        std::iter::from_fn(|| reader.next().ok().map(drop)).count()
    }
}

/// How often a process has read anything, requests of the kernel among it.
fn reads(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap().parse().unwrap()
}

#[test]
fn a_path_through_a_symlink_is_walked_without_asking_each_time() {
    if !can_mount() {
        return;
    }
    const TIMES_WALKED: u64 = 5000;
    let store = Store::new();
    store.file("100", TIMES[0], "guest.conf", b"x");
    let mounted = Mounted::new(&store.path());
    let (pid, path) = (mounted.pid(), mounted.path("100/latest/guest.conf"));
    let before = reads(pid);
    for _ in 0..TIMES_WALKED {
        rustix::fs::stat(&path).unwrap();
    }
    let asked = reads(pid) - before;
    assert!(asked < TIMES_WALKED / 2, "{asked} requests for {TIMES_WALKED} walks");
}

#[test]
fn a_guest_is_read_when_somebody_looks_at_it_and_not_before() {
    promise("Nothing is read of a guest that nobody looks at.");
    if !can_mount() {
        return;
    }
    let store = Store::new();
    store.chain("quiet", "disk", &TIMES, 1 << 20, 3);
    store.chain("looked-at", "disk", &TIMES, 1 << 20, 3);
    let quiet = Watch::new(&store.path().join("quiet"));
    let mounted = Mounted::new(&store.path());
    assert_eq!(names(&mounted.point), [".annals", "looked-at", "quiet"]);
    mounted.status();
    fs::metadata(&mounted.point).unwrap();
    fs::read(mounted.path("looked-at/latest/disk.raw")).unwrap();
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(names(&mounted.point).len(), 3);
    assert_eq!(quiet.count(), 0, "the quiet guest was read");
    assert_eq!(mounted.status()["guests_seen"], 1);

    let backups = Watch::new(&store.path().join("quiet/qemu-2024-11-08T16-51-20Z"));
    assert_eq!(names(&mounted.path("quiet")).len(), 4);
    assert!(quiet.count() > 0, "this test cannot see reads");
    assert_eq!(backups.count(), 0, "listing a guest opened a file of its backups");
    fs::metadata(mounted.path("quiet").join(TIMES[1])).unwrap();
    assert_eq!(backups.count(), 0, "stat of a backup opened a file of it");
    assert_eq!(names(&mounted.path("quiet").join(TIMES[1])), ["disk.raw"]);
    assert!(backups.count() > 0, "this test cannot see reads");
}

/// A line of `/proc/PID/status`, in bytes.
fn memory(pid: u32, line: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|l| l.starts_with(line)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn memory_does_not_grow_with_what_is_read() {
    promise("Memory is bounded by `--cache-size` and a little for what is in use, however much is read.");
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let image = store.backup("100", TIMES[0]).join("disk.qcow2");
    succeed(command("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("256M"));
    let filled: Vec<_> = (0..256_u64).map(|n| (n << 20, 1 << 20, Some((n % 250 + 1) as u8))).collect();
    write(&image, &filled);
    let packed = store.scratch("packed.qcow2");
    succeed(command("qemu-img").args(["convert", "-c", "-O", "qcow2"]).arg(&image).arg(&packed));
    fs::rename(&packed, &image).unwrap();
    const CACHE: u64 = 24 << 20;
    let mounted = Mounted::with(&store.path(), &["--cache-size", "24M"]);
    let pid = mounted.pid();
    let path = mounted.path("100/latest/disk.raw");
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let path = &path;
            scope.spawn(move || {
                // A page of each cluster, which is decoded into the cache for it.
                let mut file = File::open(path).unwrap();
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
                for cluster in 0..4096 {
                    file.read_exact_at(&mut [0; 512], (cluster << 16) + reader * 4096).unwrap();
                }
                // And all of it from front to back.
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential).unwrap();
                let mut buf = vec![0; 1 << 20];
                while file.read(&mut buf).unwrap() > 0 {}
            });
        }
    });
    let status = mounted.status();
    assert!(status["cache"]["misses"].as_u64().unwrap() >= 4096, "256 MiB went through the cache: {status}");
    // The program itself, a buffer of a mebibyte for each event loop, and what the allocator keeps.
    let most = CACHE + (40 << 20);
    assert!(memory(pid, "VmHWM") < most, "{} MiB were in use", memory(pid, "VmHWM") >> 20);
}

#[test]
fn what_the_kernel_forgets_is_forgotten() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    for n in 0..2000 {
        store.backup("100", &annals::base::Timestamp::from_epoch(1_600_000_000 + n).unwrap().file_name());
    }
    let mounted = Mounted::new(&store.path());
    for name in names(&mounted.path("100")) {
        fs::symlink_metadata(mounted.path("100").join(name)).unwrap();
    }
    let known = |mounted: &Mounted| mounted.status()["inodes"].as_u64().unwrap();
    assert!(known(&mounted) > 2000, "{}", known(&mounted));
    // Inodes and names, not pages.
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    within(Duration::from_secs(10), "the kernel forgets, and we with it", || known(&mounted) < 20);
    assert_eq!(names(&mounted.path("100")).len(), 2001);
}

#[test]
fn a_large_store_is_mounted_and_listed_without_looking_into_backups() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    for guest in 0..50 {
        for n in 0..50 {
            let time = annals::base::Timestamp::from_epoch(1_600_000_000 + n * 86_400).unwrap().file_name();
            store.backup(&guest.to_string(), &time);
        }
    }
    let one = Watch::new(&store.path().join("7"));
    let mounted = Mounted::new(&store.path());
    let found = succeed(command("find").arg(&mounted.point).args(["-maxdepth", "2"])).stdout;
    assert_eq!(found.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count(), 1 + 2 + 50 * (1 + 50 + 1));
    // Its own directory is opened; the fifty in it are watched as well.
    let opened = one.count();
    assert!(opened > 0 && opened < 10, "{opened} events in a guest of 50 backups");
}

/// A tar archive of that many empty files, a thousand to a directory.
pub(crate) fn very_many_members(archive: &Path, members: usize) {
    let mut header = [0; 512];
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(b"00000000000\0");
    header[136..148].copy_from_slice(b"14515052330\0");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let rest: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let mut tar = BufWriter::with_capacity(1 << 20, File::create(archive).unwrap());
    for n in 0..members {
        let name = format!("./d{}/file-{n}.txt", n / 1000);
        header[..100].fill(0);
        header[..name.len()].copy_from_slice(name.as_bytes());
        let sum = rest + name.bytes().map(u32::from).sum::<u32>();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.write_all(&header).unwrap();
    }
    tar.write_all(&[0; 1024]).unwrap();
    tar.into_inner().unwrap();
}

#[test]
fn a_container_of_very_many_members_is_indexed_and_listed_in_little_memory() {
    // 200 MiB are allowed for a million of them; most of that is the cache, which does not grow with their number.
    const MEMBERS: usize = 400_000;
    const MOST: u64 = 100 << 20;
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let dir = store.path().join(format!("101/lxc-{}", TIMES[0]));
    fs::create_dir_all(&dir).unwrap();
    very_many_members(&dir.join("archive.tar"), MEMBERS);
    let mounted = Mounted::new(&store.path());
    // Their attributes come with the names: the kernel knows every one of them, and so do we.
    let found = succeed(command("find").arg(mounted.path("101/latest/root/")).args(["-type", "f", "-printf", "x"]));
    assert_eq!(found.stdout.len(), MEMBERS);
    let peak = memory(mounted.pid(), "VmHWM");

    assert!(peak < MOST, "{} MiB were in use", peak >> 20);
}
