//! What the mount takes: memory, and looks at the store.

use std::fs::{self, File};
use std::io::Read;
use std::mem::MaybeUninit;
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
        for _ in 0..4 {
            scope.spawn(|| {
                let mut file = File::open(&path).unwrap();
                let mut buf = vec![0; 1 << 20];
                while file.read(&mut buf).unwrap() > 0 {}
            });
        }
    });
    let status = mounted.status();
    assert!(status["cache"]["misses"].as_u64().unwrap() > 4000, "256 MiB went through the cache: {status}");
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
