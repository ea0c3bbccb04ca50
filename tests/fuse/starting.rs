//! Mounting: in the background, in the foreground, and not at all.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::mounts::{ANNALS, Mounted, Store, annals, can_mount, names, promise, succeed, within};
use crate::support::tools::command;

const TIME: &str = "2024-11-07T16-51-22Z";

fn store() -> Store {
    let store = Store::new();
    store.file("100", TIME, "guest.conf", b"x");
    store
}

fn point(store: &Store) -> PathBuf {
    let point = store.scratch("mnt");
    fs::create_dir_all(&point).unwrap();
    point
}

fn is_mounted(point: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == point.to_str())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn when_mount_returns_the_mount_answers() {
    promise("`annals mount` returns when the mount answers, or with the reason why it does not.");
    if !can_mount() {
        return;
    }
    let store = store();
    for _ in 0..10 {
        let mounted = Mounted::new(&store.path());
        assert_eq!(names(&mounted.path("100")), [TIME, "latest"]);
        assert!(rustix::fs::statvfs(&mounted.point).unwrap().f_blocks > 0);
        mounted.umount();
    }
}

/// Store, arguments, mountpoint, exit code, and what is said.
type Case<'a> = (&'a Path, &'a [&'a str], &'a Path, i32, &'a [&'a str]);

#[test]
fn a_mount_that_cannot_be_says_why_and_what_to_do() {
    if !can_mount() {
        return;
    }
    let store = store();
    let point = point(&store);
    let (file, full, newer) = (store.scratch("file"), store.scratch("full"), store.scratch("newer"));
    fs::write(&file, b"x").unwrap();
    fs::create_dir_all(full.join("x")).unwrap();
    fs::create_dir(&newer).unwrap();
    fs::write(
        newer.join("store.json"),
        br#"{"version":99,"uuid":"00000000-0000-4000-8000-000000000000","created":"2024-11-07T16:51:22Z"}"#,
    )
    .unwrap();
    let missing = store.scratch("missing");
    let good = store.path();
    let (above, link) = (store.scratch("above"), store.scratch("link"));
    fs::create_dir_all(above.join("store/100")).unwrap();
    symlink(above.join("store"), &link).unwrap();
    let below = above.join("store");
    symlink(&good, above.join("link")).unwrap();
    let through = above.join("link");
    let inside = below.join("mnt");
    fs::create_dir(&inside).unwrap();
    let is_part: &[&str] = &["would be part of the store", "hint: "];
    let hides: &[&str] = &["would hide the store", "hint: "];
    let cases: [Case; 15] = [
        (&good, &[], &missing, 1, &["cannot find", "missing"]),
        (&good, &[], &file, 2, &["is not a directory"]),
        (&good, &[], &full, 2, &["is not empty", "hint: ", "nonempty"]),
        (&good, &["-o", "rw"], &point, 2, &["'rw'", "read-only"]),
        (&good, &["-o", "ro,colour=blue"], &point, 2, &["'colour=blue'", "hint: "]),
        (&good, &["--cache-size", "much"], &point, 2, &["'much'", "--cache-size"]),
        (&good, &["--log-file", "/nowhere/log"], &point, 1, &["/nowhere/log"]),
        (&missing, &[], &point, 1, &["missing", "hint: "]),
        (&newer, &[], &point, 1, &["99"]),
        (&below, &["-o", "nonempty"], &above, 2, hides),
        (&below, &[], &below, 2, hides),
        (&link, &["-o", "nonempty"], &above, 2, hides),
        (&through, &["-o", "nonempty"], &above, 2, hides),
        (&below, &[], &inside, 2, is_part),
        (&link, &[], &inside, 2, is_part),
    ];
    for (store, args, point, code, words) in cases {
        for foreground in [false, true] {
            let start = Instant::now();
            let output =
                annals(store).arg("mount").args(args).args(foreground.then_some("-f")).arg(point).output().unwrap();
            let said = said(&output);
            assert_eq!(output.status.code(), Some(code), "{args:?} {}: {said}", point.display());
            assert!(words.iter().all(|word| said.contains(word)), "{said} lacks one of {words:?}");
            assert_eq!(said.matches("error:").count(), 1, "said more than once: {said}");
            assert!(start.elapsed() < Duration::from_secs(5) && !is_mounted(point));
        }
    }
    let output = command(ANNALS).arg("mount").arg(&point).env_remove("ANNALS_STORE").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("ANNALS_STORE"), "{}", said(&output));
    // Over what is there only when asked to.
    succeed(annals(&good).args(["mount", "-o", "nonempty"]).arg(&full));
    assert_eq!(names(&full), [".annals", "100"]);
    succeed(command(ANNALS).arg("umount").arg(&full));
    assert_eq!(names(&full), ["x"]);
}

#[test]
fn a_second_mount_on_the_same_directory_is_refused() {
    if !can_mount() {
        return;
    }
    let store = store();
    let mounted = Mounted::new(&store.path());
    let output = annals(&store.path()).arg("mount").arg(&mounted.point).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("already") && said(&output).contains("annals umount"), "{}", said(&output));
    let other = Mounted::new(&store.path());
    assert_eq!(names(&other.point), names(&mounted.point), "elsewhere is another matter");
}

#[test]
fn fstab_words_are_taken_and_the_mount_is_known_by_type_and_store() {
    if !can_mount() {
        return;
    }
    let store = store();
    let mounted =
        Mounted::with(&store.path(), &["-o", "ro,noauto,user,_netdev,nofail,x-systemd.automount", "-o", "allow_other"]);
    let found = succeed(command("findmnt").args(["-n", "-o", "FSTYPE,SOURCE"]).arg(&mounted.point)).stdout;
    let found = String::from_utf8(found).unwrap();
    let words: Vec<_> = found.split_whitespace().collect();
    assert_eq!(words, ["fuse.annals", store.path().to_str().unwrap()]);
}

#[test]
fn paths_with_commas_blanks_and_backslashes_are_paths() {
    if !can_mount() {
        return;
    }
    let store = store();
    let odd = store.scratch("a, b\\c");
    fs::rename(store.path(), &odd).unwrap();
    let point = store.scratch("on \\ this, one");
    fs::create_dir(&point).unwrap();
    succeed(annals(&odd).arg("mount").arg(&point));
    assert_eq!(names(&point), [".annals", "100"]);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(table.contains("a,\\040b\\134c"), "{table}");
    succeed(command(ANNALS).arg("umount").arg(&point));
    assert_eq!(names(&point), [""; 0]);
}

#[test]
fn relative_paths_mean_what_they_meant_where_it_was_started() {
    if !can_mount() {
        return;
    }
    let store = store();
    let point = point(&store);
    let log = store.scratch("log");
    let args = ["--store", "store", "mount", "--log-file", "log", "mnt"];
    succeed(command(ANNALS).args(args).current_dir(store.scratch("")));
    assert_eq!(names(&point.join("100")), [TIME, "latest"]);
    assert!(log.exists());
    let pid = fs::read_to_string(point.join(".annals/status.json")).unwrap();
    let pid: serde_json::Value = serde_json::from_str(&pid).unwrap();
    let process = PathBuf::from(format!("/proc/{}", pid["pid"]));
    assert_eq!(fs::read_link(process.join("cwd")).unwrap(), Path::new("/"), "it keeps no directory in use");
    let null = Path::new("/dev/null");
    for fd in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(fs::read_link(process.join(fd)).unwrap(), null, "it keeps the caller's {fd}");
    }
    succeed(command(ANNALS).arg("umount").arg("mnt").current_dir(store.scratch("")));
    assert!(!is_mounted(&point));
}

#[test]
fn in_the_foreground_it_serves_until_it_is_told_to_end() {
    if !can_mount() {
        return;
    }
    let store = store();
    let point = point(&store);
    let mut served = annals(&store.path());
    let served = served.args(["-v", "mount", "--foreground"]).arg(&point).stdout(Stdio::piped()).stderr(Stdio::piped());
    let served = served.spawn().unwrap();
    within(Duration::from_secs(10), "it is mounted", || fs::read_dir(point.join("100")).is_ok());
    let pid = rustix::process::Pid::from_raw(served.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = served.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("is mounted on") && said(&output).contains("is unmounted"), "{}", said(&output));
    assert!(!is_mounted(&point));
}

#[test]
fn the_read_ahead_of_the_mount_is_raised_and_of_nothing_else() {
    if !can_mount() || !crate::support::mounts::needs(Path::new("/sys/class/bdi").exists(), "/sys/class/bdi") {
        return;
    }
    let settings = || -> Vec<(PathBuf, String)> {
        let dirs = fs::read_dir("/sys/class/bdi").unwrap().map(|entry| entry.unwrap().path().join("read_ahead_kb"));
        dirs.filter_map(|path| Some((path.clone(), fs::read_to_string(path).ok()?))).collect()
    };
    let before = settings();
    let store = store();
    let mounted = Mounted::new(&store.path());
    let device = std::os::unix::fs::MetadataExt::dev(&fs::metadata(&mounted.point).unwrap());
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let own = PathBuf::from(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"));
    assert_eq!(fs::read_to_string(&own).unwrap().trim(), "2048");
    for (path, value) in before.iter().filter(|(path, _)| *path != own) {
        // Other tests' mounts come and go.
        if let Ok(now) = fs::read_to_string(path) {
            assert!(now == *value || now.trim() == "2048" && value.trim() == "128", "{} is now {now}", path.display());
        }
    }
}
