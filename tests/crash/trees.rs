//! The same for backups of containers, whose archives other programs help to make.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use annals::base::ErrorKind;
use annals::catalog::Store;
use annals::ingest::Interrupt;
use annals::ingest::container::{self, FormatChoice};

use crate::containers::{SQUASHFS, TAR, as_squashfs_has_it, back_up, backups, contents, request, run};
use crate::failures::Failing;
use crate::killed::Killing;
use crate::power::{Kept, Recorder};
use crate::scene::names;
use crate::support::random::Random;
use crate::support::tools::{command, have};
use crate::support::trees::{Listing, assert_same, have_root, on_disk};

const STORE: &str = "ANNALS_TEST_CRASH_STORE";
const TREE: &str = "ANNALS_TEST_CRASH_TREE";
const FORMAT: &str = "ANNALS_TEST_CRASH_FORMAT";
const AT: &str = "ANNALS_TEST_CRASH_AT";

const FORMATS: [FormatChoice; 2] = [TAR, SQUASHFS];

/// A small tree, and a store with one backup of it.
struct Stage {
    dir: tempfile::TempDir,
    listing: Listing,
}

fn ready() -> bool {
    have(&["tar", "tar2sqfs", "setpriv"])
}

impl Stage {
    fn new(bytes: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("tree/etc")).unwrap();
        fs::write(dir.path().join("tree/noise"), Random::new(5).bytes(bytes)).unwrap();
        fs::write(dir.path().join("tree/etc/passwd"), "root\n").unwrap();
        fs::hard_link(dir.path().join("tree/noise"), dir.path().join("tree/etc/noise")).unwrap();
        Store::init(&dir.path().join("store")).unwrap();
        let stage = Self { listing: as_squashfs_has_it(on_disk(&dir.path().join("tree"))), dir };
        back_up(&request(&stage.path("store"), &stage.path("tree"), TAR));
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn copy(&self) -> PathBuf {
        let store = self.path("copy");
        let _ = fs::remove_dir_all(&store);
        assert!(command("cp").arg("-a").arg(self.path("store")).arg(&store).status().unwrap().success());
        store
    }

    /// Looks at every backup that there is; returns how many.
    fn check(&self, store: &Path, told: &str) -> usize {
        self.check_from(0, store, told)
    }

    /// The same without a look at the first `known` of them.
    fn check_from(&self, known: usize, store: &Path, told: &str) -> usize {
        let found = backups(store);
        for backup in found.iter().skip(known) {
            assert!(backup.problems.is_empty(), "{told}: {:?}", backup.problems);
            assert_same(told, &as_squashfs_has_it(contents(store, backup)), &self.listing);
        }
        found.len()
    }

    fn next_run_is_right(&self, store: &Path, told: &str) {
        let had = backups(store).len();
        back_up(&request(store, &self.path("tree"), TAR));
        assert_eq!(self.check(store, told), had + 1, "{told}");
        let left: Vec<_> = names(&store.join("101")).into_iter().filter(|name| name.starts_with(".partial-")).collect();
        let left: Vec<_> = left.iter().filter(|name| store.join("101").join(name).is_dir()).collect();
        assert!(left.is_empty(), "{told}: {left:?}");
    }
}

/// What runs in the process that is killed; started by the test below, and nothing when started by the harness.
#[test]
fn inside_the_process_that_is_killed() {
    let Some(store) = std::env::var_os(STORE).map(PathBuf::from) else { return };
    let Some(tree) = std::env::var_os(TREE).map(PathBuf::from) else { return };
    let format = std::env::var(FORMAT).unwrap().parse().unwrap();
    let at = std::env::var(AT).unwrap().parse().unwrap();
    let medium = Arc::new(Killing { at, count: AtomicU64::new(0) });
    container::run(&request(&store, &tree, format), medium, &Interrupt::default(), &|_| {}).unwrap();
}

#[test]
fn killed_before_any_change_the_store_lists_what_it_did_or_one_backup_more() {
    if !ready() {
        return;
    }
    let stage = Stage::new(3 << 19);
    for format in FORMATS {
        let (mut before, mut after) = (0, 0);
        for at in 0.. {
            let store = stage.copy();
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["trees::inside_the_process_that_is_killed", "--exact"])
                .env(STORE, &store)
                .env(TREE, stage.path("tree"))
                .env(FORMAT, format.to_string())
                .env(AT, at.to_string())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            let told = format!("{format}, killed before change {at}");
            match stage.check(&store, &told) {
                1 => before += 1,
                _ => after += 1,
            }
            if status.success() {
                break;
            }
            stage.next_run_is_right(&store, &told);
        }
        assert!(before >= 14, "{format}: killed only {before} times before the rename");
        assert!(after > 1, "{format}: never killed after the rename");
    }
}

#[test]
fn a_failure_of_any_change_leaves_the_log_and_nothing_half_made() {
    if !ready() {
        return;
    }
    let stage = Stage::new(3 << 19);
    for (format, for_good) in FORMATS.into_iter().flat_map(|format| [(format, false), (format, true)]) {
        for at in 0.. {
            let store = stage.copy();
            let medium = Failing { at, for_good, count: Arc::default() };
            let request = request(&store, &stage.path("tree"), format);
            let made = container::run(&request, Arc::new(medium.clone()), &Interrupt::default(), &|_| {});
            let told = format!("{format}, change {at} failed (for good: {for_good})");
            let found = stage.check(&store, &told);
            match made {
                Ok(_) if medium.count.load(Ordering::SeqCst) <= at => break,
                Ok(_) => assert_eq!(found, 2, "{told}"),
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Io, "{told}: {}", e.report());
                    assert!(e.report().contains(medium.reason().1), "{told}: {}", e.report());
                    let log = names(&store.join("101")).iter().any(|name| name.ends_with(".failed"));
                    assert!(log || for_good || found == 1, "{told}");
                }
            }
            stage.next_run_is_right(&store, &told);
        }
    }
}

#[test]
fn a_store_whose_file_system_is_full_says_so_and_keeps_what_it_had() {
    if !ready() || !have_root() {
        return;
    }
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = command("umount").arg(&self.0).status();
        }
    }
    let stage = Stage::new(5 << 20);
    let small = stage.path("small");
    fs::create_dir(&small).unwrap();
    assert!(command("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(&small).status().unwrap().success());
    let _mounted = Mounted(small.clone());
    Store::init(&small.join("store")).unwrap();
    for format in FORMATS {
        let e = run(&request(&small.join("store"), &stage.path("tree"), format), &|_| {}).unwrap_err();
        assert!(e.report().contains("No space left"), "{format}: {}", e.report());
        assert!(backups(&small.join("store")).is_empty());
        let left = names(&small.join("store/101"));
        assert!(left.iter().all(|name| name.ends_with(".failed") || name == ".writer.lock"), "{left:?}");
    }
}

#[test]
fn whatever_is_published_was_brought_to_the_medium_before() {
    if !ready() {
        return;
    }
    let stage = Stage::new(3 << 19);
    for format in FORMATS {
        let store = stage.copy();
        let recorder = Recorder::default();
        let request = request(&store, &stage.path("tree"), format);
        let made = container::run(&request, Arc::new(recorder.clone()), &Interrupt::default(), &|_| {}).unwrap();
        // Files and directories that were changed since they were last brought to the medium.
        let mut loose: BTreeSet<PathBuf> = BTreeSet::new();
        let (mut synced, mut published) = (0, false);
        for change in recorder.0.lock().unwrap().iter() {
            match change {
                Kept::File(path) | Kept::Directory(path) | Kept::Remove(path) => {
                    loose.extend([path.clone(), path.parent().unwrap().to_owned()]);
                }
                Kept::Write(path, ..) => drop(loose.insert(path.clone())),
                Kept::SyncFile(path) | Kept::SyncDirectory(path) => {
                    synced += 1;
                    loose.remove(path);
                }
                Kept::Rename(from, to) if to.ends_with(&made.backup) => {
                    published = true;
                    let left: Vec<_> = loose.iter().filter(|path| path.starts_with(from)).collect();
                    assert!(left.is_empty(), "{format}: {left:?}");
                    loose.insert(to.parent().unwrap().to_owned());
                }
                Kept::Rename(_, to) => drop(loose.insert(to.parent().unwrap().to_owned())),
            }
        }
        // The archive, the list of its chunks where it has several, the log, the manifest, and two directories.
        assert!(published && synced >= 5, "{format}: {synced}");
        assert!(!loose.contains(&store.join("101")), "{format}: the name itself");
    }
}

fn start(store: &Path, tree: &Path, format: FormatChoice, more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_annals"))
        .args(["backup", "container", "101", tree.to_str().unwrap(), "--format", &format.to_string()])
        .args(more)
        .env("ANNALS_STORE", store)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn killed_at_random_instants_the_program_leaves_a_sound_store() {
    if !ready() {
        return;
    }
    let stage = Stage::new(8 << 20);
    let (store, tree) = (stage.copy(), stage.path("tree"));
    for format in FORMATS {
        let began = Instant::now();
        assert!(start(&store, &tree, format, &[]).wait().unwrap().success());
        let whole = began.elapsed();
        let mut random = Random::new(3);
        let mut had = backups(&store).len();
        for round in 0..8 {
            let mut child = start(&store, &tree, format, &[]);
            std::thread::sleep(whole.mul_f64(random.below(1000) as f64 / 1000.0));
            child.kill().unwrap();
            child.wait().unwrap();
            let now = stage.check_from(had, &store, &format!("{format}, round {round}"));
            assert!((had..=had + 1).contains(&now), "{format}, round {round}: {had} backups became {now}");
            had = now;
        }
    }
    assert!(start(&store, &tree, TAR, &[]).wait().unwrap().success());
    assert!(!names(&store.join("101")).iter().any(|name| name.starts_with(".partial-")));
}

/// The processes that `of` and its threads have started, and theirs.
fn descendants(of: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let Ok(threads) = fs::read_dir(format!("/proc/{of}/task")) else { return found };
    for thread in threads.flatten() {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            found.push(child);
            found.extend(descendants(child));
        }
    }
    found
}

#[test]
fn the_programs_that_help_end_with_the_one_that_started_them() {
    if !ready() {
        return;
    }
    let stage = Stage::new(8 << 20);
    for (format, helpers) in [(TAR, 1), (SQUASHFS, 2)] {
        for signal in [rustix::process::Signal::KILL, rustix::process::Signal::TERM] {
            let store = stage.copy();
            let mut child = start(&store, &stage.path("tree"), format, &["--bwlimit", "500K"]);
            let began = Instant::now();
            let writing = || names(&store.join("101")).iter().any(|name| name.starts_with(".partial-"));
            while !writing() || descendants(child.id()).len() < helpers {
                assert!(began.elapsed() < Duration::from_secs(20), "it does not begin");
                std::thread::sleep(Duration::from_millis(5));
            }
            let started = descendants(child.id());
            rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
            child.wait().unwrap();
            let ended = Instant::now();
            let alive = |pid: &u32| {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                // A process that nobody has waited for has ended all the same.
                stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
            };
            while started.iter().any(alive) {
                assert!(ended.elapsed() < Duration::from_secs(2), "{format}, {signal:?}: they outlive it");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(stage.check(&store, "ended"), 1);
        }
    }
}
