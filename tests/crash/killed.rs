//! The process is killed: before every single change of the store, and at random instants.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use annals::base::Result;
use annals::ingest::{self, Interrupt};
use annals::storage::write::{Change, Medium};

use crate::scene::read_disk;
use crate::stage::Stage;
use crate::support::random::Random;

const DIR: &str = "ANNALS_TEST_CRASH_DIR";
const STORE: &str = "ANNALS_TEST_CRASH_STORE";
const AT: &str = "ANNALS_TEST_CRASH_AT";

/// Kills its own process before change number `at`.
#[derive(Debug)]
pub(crate) struct Killing {
    pub(crate) at: u64,
    pub(crate) count: AtomicU64,
}

impl Medium for Killing {
    fn before(&self, _: &Path, _: Change<'_>) -> Result<()> {
        if self.count.fetch_add(1, Ordering::SeqCst) == self.at {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            std::thread::sleep(Duration::from_secs(60));
        }
        Ok(())
    }
}

/// What runs in the process that is killed; started by the test below, and nothing when started by the harness.
#[test]
fn inside_the_process_that_is_killed() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let store = PathBuf::from(std::env::var_os(STORE).unwrap());
    let at = std::env::var(AT).unwrap().parse().unwrap();
    let medium = Arc::new(Killing { at, count: AtomicU64::new(0) });
    let request = Stage::request(&dir, &store, "cp1");
    ingest::run(&request, medium, &Interrupt::default(), &|_| {}).unwrap();
}

#[test]
fn killed_before_any_change_the_store_lists_what_it_did_or_one_backup_more() {
    let stage = Stage::new();
    let (mut before, mut after) = (0, 0);
    for at in 0.. {
        let copy = stage.copy("killed");
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["killed::inside_the_process_that_is_killed", "--exact"])
            .env(DIR, stage.path(""))
            .env(STORE, &copy.store)
            .env(AT, at.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        let told = format!("killed before change {at}");
        match copy.check(&told).len() {
            1 => before += 1,
            _ => after += 1,
        }
        if status.success() {
            break;
        }
        copy.next_run_is_right(&told);
    }
    assert!(before >= 23, "killed only {before} times before the rename");
    assert!(after > 1, "never killed after the rename");
}

#[test]
fn killed_at_random_instants_the_program_leaves_a_sound_store() {
    let stage = Stage::new();
    // Larger disks, so that there is something to be killed in.
    let bytes = Random::new(9).bytes(24 << 20);
    std::fs::write(stage.path("large"), &bytes).unwrap();
    let start = |store: &Path| {
        Command::new(env!("CARGO_BIN_EXE_annals"))
            .args(["backup", "vm", "101", "--compress", "zstd", "--disk"])
            .arg(format!("d={}", stage.path("large").display()))
            .env("ANNALS_STORE", store)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let copy = stage.copy("random");
    let began = Instant::now();
    assert!(start(&copy.store).wait().unwrap().success());
    let whole = began.elapsed();
    let guest = copy.store.join("101");
    let backups = || -> Vec<String> {
        crate::scene::names(&guest)
            .into_iter()
            .filter(|name| name.starts_with("qemu-") && name.ends_with('Z'))
            .collect()
    };
    let mut random = Random::new(3);
    let mut had = backups();
    for round in 0..12 {
        let mut child = start(&copy.store);
        std::thread::sleep(whole.mul_f64(random.below(1000) as f64 / 1000.0));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = backups();
        assert!(now.starts_with(&had) && now.len() <= had.len() + 1, "round {round}: {had:?} became {now:?}");
        for backup in &now[had.len().saturating_sub(1)..] {
            let read = read_disk(&copy.store, &format!("101@{}", backup.trim_start_matches("qemu-")), "d");
            assert!(read == bytes, "round {round}: {backup} is not the disk");
        }
        had = now;
    }
    assert!(start(&copy.store).wait().unwrap().success());
    assert_eq!(backups().len(), had.len() + 1);
    assert!(!crate::scene::names(&guest).iter().any(|name| name.starts_with(".partial-")));
}
