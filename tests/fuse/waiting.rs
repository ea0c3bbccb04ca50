//! One guest's backup that takes long to open, and everybody else.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::cost::very_many_members;
use crate::support::mounts::{Mounted, Store, can_mount, names, promise};

const TIME: &str = "2024-11-07T16-51-22Z";

#[test]
fn other_guests_are_answered_while_an_archive_is_gone_through() {
    promise("While a large archive's index is made, everything else in the mount is answered as ever.");
    if !can_mount() {
        return;
    }
    /// More than there are event loops.
    const WAITING: usize = 24;
    let store = Store::new();
    let dir = store.path().join(format!("101/lxc-{TIME}"));
    fs::create_dir_all(&dir).unwrap();
    very_many_members(&dir.join("archive.tar"), 250_000);
    store.file("100", TIME, "guest.conf", b"memory: 512\n");
    // Another backup of the guest itself.
    fs::create_dir_all(store.path().join("101/lxc-2024-11-06T16-51-22Z")).unwrap();
    fs::write(store.path().join("101/lxc-2024-11-06T16-51-22Z/guest.conf"), "arch: amd64\n").unwrap();
    let mounted = Mounted::new(&store.path());
    let done = AtomicUsize::new(0);
    let (mut slowest, mut rounds) = (Duration::ZERO, 0);
    std::thread::scope(|scope| {
        for n in 0..WAITING {
            let path = mounted.path("101").join(TIME);
            let done = &done;
            scope.spawn(move || {
                match n % 3 {
                    0 => drop(fs::metadata(path.join("root")).unwrap()),
                    1 => drop(names(&path)),
                    _ => drop(fs::metadata(path.join("not there")).unwrap_err()),
                }
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        std::thread::sleep(Duration::from_millis(300));
        while done.load(Ordering::SeqCst) == 0 {
            let began = Instant::now();
            assert_eq!(names(&mounted.point), [".annals", "100", "101"]);
            assert_eq!(names(&mounted.path("100").join(TIME)), ["guest.conf"]);
            assert_eq!(fs::read(mounted.path("101/2024-11-06T16-51-22Z/guest.conf")).unwrap(), b"arch: amd64\n");
            mounted.status();
            slowest = slowest.max(began.elapsed());
            rounds += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(slowest < Duration::from_millis(500), "somebody waited {slowest:?}");
    assert!(rounds > 10, "the archive was too small for this test: {rounds} rounds");
    assert_eq!(done.load(Ordering::SeqCst), WAITING);
}
