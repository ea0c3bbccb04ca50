//! Each single change of the store fails once, as on a disk that is full, over its quota or read-only.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use annals::base::{Error, ErrorKind, Result};
use annals::storage::write::{Change, Medium};

use crate::scene::names;
use crate::stage::Stage;

/// Refuses change number `at`, and, where it is `for_good`, every later one too.
#[derive(Debug, Clone)]
pub(crate) struct Failing {
    pub(crate) at: u64,
    pub(crate) for_good: bool,
    pub(crate) count: Arc<AtomicU64>,
}

impl Medium for Failing {
    fn before(&self, path: &Path, change: Change<'_>) -> Result<()> {
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        if number == self.at || (self.for_good && number > self.at) {
            let what = format!("change {number} of {}, {:?}", path.display(), std::mem::discriminant(&change));
            return Err(Error::io(what, std::io::Error::from_raw_os_error(self.reason().0)));
        }
        Ok(())
    }
}

impl Failing {
    /// A disk that is full, over its quota, or read-only of a sudden; with what the system calls it.
    pub(crate) fn reason(&self) -> (i32, &'static str) {
        match self.at % 3 {
            0 => (28, "No space left on device"),
            1 => (122, "Disk quota exceeded"),
            _ => (30, "Read-only file system"),
        }
    }
}

fn every_change_fails(for_good: bool) {
    let stage = Stage::new();
    let mut failed = 0;
    for at in 0.. {
        let copy = stage.copy("failing");
        let medium = Failing { at, for_good, count: Arc::default() };
        let run = stage.back_up(&copy.store, "cp1", &medium);
        let told = format!("change {at} failed (for good: {for_good})");
        let found = copy.check(&told);
        match run {
            Ok(_) => {
                assert_eq!(found.len(), 2, "{told}");
                if medium.count.load(Ordering::SeqCst) <= at {
                    break;
                }
            }
            Err(e) => {
                failed += 1;
                assert_eq!(e.kind(), ErrorKind::Io, "{told}: {}", e.report());
                assert_eq!(found.len(), 1, "{told}: a run that fails has published");
                assert!(e.report().contains(medium.reason().1), "{told}: {}", e.report());
                let has_log = names(&copy.guest()).iter().any(|name| name.ends_with(".failed"));
                assert!(has_log || for_good || at == 0, "{told}: no log");
            }
        }
        copy.next_run_is_right(&told);
    }
    assert!(failed >= 23, "only {failed} changes failed: the medium does not hear of all of them");
}

/// Fails every sync of a directory once a backup has got its name.
#[derive(Debug, Clone, Default)]
struct Unsynced {
    published: Arc<AtomicBool>,
    refused: Arc<AtomicU64>,
}

impl Medium for Unsynced {
    fn before(&self, path: &Path, change: Change<'_>) -> Result<()> {
        match change {
            Change::Rename { to, .. } if to.starts_with("qemu-") => self.published.store(true, Ordering::SeqCst),
            Change::SyncDirectory if self.published.load(Ordering::SeqCst) => {
                self.refused.fetch_add(1, Ordering::SeqCst);
                let what = format!("cannot sync {}", path.display());
                return Err(Error::io(what, std::io::Error::from_raw_os_error(5)));
            }
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn a_backup_whose_name_the_medium_does_not_vouch_for_is_there_with_a_warning_and_without_a_log_of_failure() {
    let stage = Stage::new();
    let copy = stage.copy("unsynced");
    let medium = Unsynced::default();
    let made = stage.back_up(&copy.store, "cp1", &medium).unwrap_or_else(|e| panic!("{}", e.report()));
    assert_eq!(medium.refused.load(Ordering::SeqCst), 1, "something was changed after the sync that failed");
    assert_eq!(copy.check("unsynced"), [stage.first.clone(), made.backup.clone()]);
    let [warning] = made.warnings.as_slice() else { panic!("{:?}", made.warnings) };
    assert!(
        warning.contains(&made.backup) && warning.contains("can be seen") && warning.contains("loss of power"),
        "{warning}"
    );
    assert!(warning.contains("Input/output error"), "{warning}");
    assert!(!names(&copy.guest()).iter().any(|name| name.contains(".failed") || name.starts_with(".partial-")));
    copy.next_run_is_right("after a sync that failed");
}

#[test]
fn a_store_that_takes_nothing_more_from_any_change_on_keeps_what_it_had() {
    every_change_fails(true);
}

#[test]
fn a_failure_of_any_single_change_leaves_the_log_and_nothing_half_made() {
    every_change_fails(false);
}
