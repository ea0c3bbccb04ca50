//! Unmounting: by the command, by a signal, by a crash.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::support::mounts::{ANNALS, Mounted, Store, annals, can_mount, promise, succeed, within};
use crate::support::tools::{command, have};

const TIME: &str = "2024-11-07T16-51-22Z";
const SOON: Duration = Duration::from_secs(10);

fn store() -> (Store, Vec<u8>) {
    let store = Store::new();
    let content = store.chain("100", "disk", &[TIME], 2 << 20, 17).remove(0);
    (store, content)
}

fn is_mounted(point: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == point.to_str())
}

/// Whether the process runs; one that only waits for its exit code to be collected does not.
fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().starts_with(" Z"))
}

fn signal(pid: u32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

fn umount(point: &Path, args: &[&str]) -> (Option<i32>, String) {
    let output = command(ANNALS).arg("umount").args(args).arg(point).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The process behind the mount at `point`.
fn serves(point: &Path) -> u32 {
    let status = fs::read(point.join(".annals/status.json")).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    u32::try_from(status["pid"].as_u64().unwrap()).unwrap()
}

fn drop_pages(file: &File) {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

fn reads(file: &File, content: &[u8]) -> bool {
    drop_pages(file);
    let mut buf = vec![0; content.len()];
    file.read_exact_at(&mut buf, 0).is_ok() && buf == content
}

#[test]
fn each_signal_unmounts_and_ends_the_process() {
    promise(
        "At SIGTERM, SIGINT or SIGHUP the mount goes out of sight at once and the process ends; what is still open stays \
         readable until it is closed, or until a second signal.",
    );
    if !can_mount() {
        return;
    }
    let (store, content) = store();
    for kind in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mounted = Mounted::new(&store.path());
        let pid = mounted.pid();
        signal(pid, kind);
        within(SOON, "the process ends", || !runs(pid));
        assert!(!is_mounted(&mounted.point));
    }

    // In use: out of sight at once, served until the last file is closed.
    let mounted = Mounted::new(&store.path());
    let (pid, file) = (mounted.pid(), File::open(mounted.path("100/latest/disk.raw")).unwrap());
    signal(pid, Signal::TERM);
    within(SOON, "the mount is out of sight", || !is_mounted(&mounted.point));
    assert!(reads(&file, &content) && runs(pid));
    drop(file);
    within(SOON, "the process ends after the last close", || !runs(pid));

    // In use, and a second signal.
    let mounted = Mounted::new(&store.path());
    let (pid, file) = (mounted.pid(), File::open(mounted.path("100/latest/disk.raw")).unwrap());
    signal(pid, Signal::TERM);
    within(SOON, "the mount is out of sight", || !is_mounted(&mounted.point));
    signal(pid, Signal::TERM);
    within(SOON, "the process ends", || !runs(pid));
    assert!(!reads(&file, &content));
}

#[test]
fn a_signal_during_the_start_leaves_no_mount_behind() {
    if !can_mount() {
        return;
    }
    let (store, _) = store();
    let point = store.scratch("mnt");
    fs::create_dir(&point).unwrap();
    // A start takes some milliseconds: signals come before, within and after each of its steps.
    for step in 0..60 {
        let mut child = annals(&store.path()).args(["mount", "--foreground"]).arg(&point).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(500 * step));
        signal(child.id(), if step % 2 == 0 { Signal::TERM } else { Signal::INT });
        within(SOON, "the process ends", || child.try_wait().unwrap().is_some());
        assert!(!is_mounted(&point), "after {} µs", 500 * step);
    }
}

#[test]
fn a_dead_mount_is_recognised_and_cleared() {
    promise("A mount whose process was killed is recognised, and `annals umount` clears it.");
    if !can_mount() {
        return;
    }
    let (store, content) = store();
    let mounted = Mounted::new(&store.path());
    let pid = mounted.pid();
    signal(pid, Signal::KILL);
    within(SOON, "the process ends", || !runs(pid));
    // The process is gone before the kernel has closed its files: a request in between is aborted with another error.
    within(SOON, "the mount is dead", || {
        let error = fs::read_dir(&mounted.point).unwrap_err();
        error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error())
    });

    for extra in [&["-f"][..], &[]] {
        let output = annals(&store.path()).arg("mount").args(extra).arg(&mounted.point).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("ended without unmounting") && said.contains("hint: annals umount"), "{said}");
    }
    assert_eq!(umount(&mounted.point, &[]), (Some(0), String::new()));
    assert!(!is_mounted(&mounted.point));
    succeed(annals(&store.path()).arg("mount").arg(&mounted.point));
    assert!(fs::read(mounted.path("100/latest/disk.raw")).unwrap() == content);
}

#[test]
fn umount_waits_tells_and_keeps_to_its_own() {
    promise(
        "`annals umount` returns when the process has ended, tells who keeps the mount in use, and touches no mount of other programs.",
    );
    if !can_mount() {
        return;
    }
    let (store, content) = store();
    let mounted = Mounted::new(&store.path());
    let pid = mounted.pid();
    assert_eq!(umount(&mounted.point, &[]), (Some(0), String::new()));
    assert!(!runs(pid) && !is_mounted(&mounted.point));

    let (code, said) = umount(&mounted.point, &[]);
    assert!(code == Some(1) && said.contains("nothing is mounted"), "{said}");
    let (code, said) = umount(&store.scratch("nowhere"), &[]);
    assert!(code == Some(1) && said.contains("nowhere"), "{said}");
    let (code, said) = umount(Path::new("/proc"), &[]);
    assert!(code == Some(1) && said.contains("of type proc") && is_mounted(Path::new("/proc")), "{said}");

    // In use by this process.
    let mounted = Mounted::new(&store.path());
    let (pid, file) = (mounted.pid(), File::open(mounted.path("100/latest/disk.raw")).unwrap());
    let (code, said) = umount(&mounted.point, &[]);
    assert!(code == Some(1) && said.contains("is in use"), "{said}");
    assert!(said.contains(&format!("process {} (", std::process::id())) && said.contains("--lazy"), "{said}");
    assert!(is_mounted(&mounted.point) && reads(&file, &content));
    assert_eq!(umount(&mounted.point, &["--lazy"]), (Some(0), String::new()));
    assert!(!is_mounted(&mounted.point) && reads(&file, &content));
    drop(file);
    within(SOON, "the process ends after the last close", || !runs(pid));
}

#[test]
fn umount_names_loop_devices_and_mounts_below() {
    if !can_mount() || !have(&["losetup", "mount", "umount"]) {
        return;
    }
    let (store, _) = store();
    let mounted = Mounted::new(&store.path());
    let attach =
        command("losetup").args(["-r", "-f", "--show"]).arg(mounted.path("100/latest/disk.raw")).output().unwrap();
    if !crate::support::mounts::needs(attach.status.success(), "loop devices") {
        return;
    }
    let device = String::from_utf8(attach.stdout).unwrap().trim().to_owned();
    let (code, said) = umount(&mounted.point, &[]);
    succeed(command("losetup").arg("-d").arg(&device));
    assert!(code == Some(1) && said.contains(&device), "{said}");

    let below = mounted.path("100");
    succeed(command("mount").args(["-t", "tmpfs", "none"]).arg(&below));
    let (code, said) = umount(&mounted.point, &[]);
    succeed(command("umount").arg(&below));
    assert!(code == Some(1) && said.contains(&format!("a mount on '{}'", below.display())), "{said}");
    mounted.umount();
}

#[test]
fn a_plain_umount_ends_the_process_too() {
    if !can_mount() {
        return;
    }
    let (store, _) = store();
    let mounted = Mounted::new(&store.path());
    let pid = mounted.pid();
    succeed(command("umount").arg(&mounted.point));
    within(SOON, "the process ends", || !runs(pid));
}

#[test]
fn a_signal_does_not_unmount_what_somebody_else_mounted_there_since() {
    if !can_mount() {
        return;
    }
    let (store, content) = store();
    let mounted = Mounted::new(&store.path());
    let pid = mounted.pid();
    let file = File::open(mounted.path("100/latest/disk.raw")).unwrap();
    succeed(command("umount").arg("--lazy").arg(&mounted.point));
    succeed(annals(&store.path()).arg("mount").arg(&mounted.point));
    signal(pid, Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    assert!(is_mounted(&mounted.point), "the newer mount is gone");
    assert!(reads(&file, &content));
    assert_ne!(mounted.pid(), pid);
    drop(file);
    within(SOON, "the older process ends", || !runs(pid));
}

#[test]
fn the_end_of_a_mount_leaves_what_is_mounted_beneath() {
    promise("What else is mounted at the same place, beneath or since, is left alone when a mount ends.");
    if !can_mount() {
        return;
    }
    let (store, _) = store();
    let point = store.scratch("stacked");
    fs::create_dir(&point).unwrap();
    succeed(command("mount").args(["-t", "tmpfs", "beneath"]).arg(&point));
    let ways: [&dyn Fn(u32); 3] =
        [&|_| drop(succeed(command("umount").arg(&point))), &|_| assert_eq!(umount(&point, &[]).0, Some(0)), &|pid| {
            signal(pid, Signal::TERM)
        }];
    let ended: Vec<bool> = ways
        .iter()
        .map(|end| {
            succeed(annals(&store.path()).arg("mount").arg(&point));
            let pid = serves(&point);
            end(pid);
            within(SOON, "the process ends", || !runs(pid));
            is_mounted(&point)
        })
        .collect();
    let _ = command("umount").arg(&point).status();
    assert_eq!(ended, vec![true; ways.len()], "the tmpfs beneath is gone");
}

#[test]
fn a_mount_made_right_after_another_ended_stays() {
    if !can_mount() {
        return;
    }
    let (store, _) = store();
    let point = store.scratch("again");
    fs::create_dir(&point).unwrap();
    let mut older = Vec::new();
    for _ in 0..20 {
        succeed(annals(&store.path()).arg("mount").arg(&point));
        older.push(serves(&point));
        succeed(command("umount").arg(&point));
    }
    succeed(annals(&store.path()).arg("mount").arg(&point));
    within(SOON, "the older processes end", || !older.iter().any(|pid| runs(*pid)));
    let stays = is_mounted(&point);
    let _ = command("umount").arg(&point).status();
    assert!(stays, "an older process took the newer mount away");
}
