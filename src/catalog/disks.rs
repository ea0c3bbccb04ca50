//! Opened disks: shared while in use, a few kept after that, and failures remembered for a moment.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use super::GuestId;
use super::fresh::RECHECK;
use crate::base::{Error, ErrorKind, Result};
use crate::disk::Disk;
use crate::format::ImageFormat;
use crate::storage::{Gate, RelPath};

/// How many disks stay open although nobody uses them.
const KEPT: usize = 16;
/// Forget closed disks when the table has grown to this.
const SWEEP_AT: usize = 256;

/// Which disk: whose, the newest layer's file, and its format.
pub(super) type DiskKey = (GuestId, RelPath, ImageFormat);

/// The disks that this process has open.
#[derive(Default)]
pub(super) struct OpenDisks(Mutex<Table>);

#[derive(Default)]
struct Table {
    slots: HashMap<DiskKey, Arc<Mutex<State>>>,
    /// Kept open, the one used last at the back.
    recent: VecDeque<Arc<Disk>>,
}

/// What became of opening a disk. Those who want one disk wait for each other, and for nobody else.
#[derive(Default)]
enum State {
    #[default]
    Untried,
    Open {
        disk: Weak<Disk>,
        checked: Instant,
    },
    Failed {
        kind: ErrorKind,
        report: String,
        hint: Option<String>,
        at: Instant,
    },
}

impl OpenDisks {
    /// The disk `key`, opened by `open` unless it is open already and its files are those beneath `gate` still.
    pub(super) fn get(&self, key: DiskKey, gate: &Gate, open: impl FnOnce() -> Result<Disk>) -> Result<Arc<Disk>> {
        let slot = lock(&self.0).slot(key);
        let mut state = lock(&slot);
        match &mut *state {
            State::Open { disk, checked } => {
                if let Some(disk) = disk.upgrade()
                    && (checked.elapsed() < RECHECK || is_current(&disk, gate))
                {
                    if checked.elapsed() >= RECHECK {
                        *checked = Instant::now();
                    }
                    lock(&self.0).keep(&disk);
                    return Ok(disk);
                }
            }
            State::Failed { kind, report, hint, at } if at.elapsed() < RECHECK => {
                let error = Error::new(*kind, report.as_str());
                return Err(match hint {
                    Some(hint) => error.with_hint(hint.as_str()),
                    None => error,
                });
            }
            State::Untried | State::Failed { .. } => {}
        }
        match open().map(Arc::new) {
            Ok(disk) => {
                *state = State::Open { disk: Arc::downgrade(&disk), checked: Instant::now() };
                lock(&self.0).keep(&disk);
                Ok(disk)
            }
            Err(e) => {
                let hint = e.hint().map(str::to_owned);
                *state = State::Failed { kind: e.kind(), report: e.report(), hint, at: Instant::now() };
                Err(e)
            }
        }
    }
}

impl Table {
    fn slot(&mut self, key: DiskKey) -> Arc<Mutex<State>> {
        if self.slots.len() >= SWEEP_AT {
            self.slots.retain(|_, slot| match slot.try_lock() {
                Ok(state) => match &*state {
                    State::Open { disk, .. } => disk.strong_count() > 0,
                    State::Failed { at, .. } => at.elapsed() < RECHECK,
                    // Somebody is about to lock it.
                    State::Untried => Arc::strong_count(slot) > 1,
                },
                Err(_) => true,
            });
        }
        self.slots.entry(key).or_default().clone()
    }

    fn keep(&mut self, disk: &Arc<Disk>) {
        self.recent.retain(|other| !Arc::ptr_eq(other, disk));
        self.recent.push_back(disk.clone());
        if self.recent.len() > KEPT {
            self.recent.pop_front();
        }
    }
}

/// Whether every layer's name still leads to the file that is open: a merge puts another one in its place.
fn is_current(disk: &Disk, gate: &Gate) -> bool {
    disk.layers().all(|layer| gate.stat(&layer.path).is_ok_and(|stat| stat.identity == layer.identity))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole at every moment, whatever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for OpenDisks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenDisks").field("known", &lock(&self.0).slots.len()).finish()
    }
}
