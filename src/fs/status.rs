//! `.annals/status.json`: what the mount knows and how it fares.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use uuid::Uuid;

use super::faults::Fault;
use super::view::View;
use crate::catalog::{BackupName, Guest, GuestId};
use crate::storage::CacheStats;

/// The content of the file. Fields are only ever added.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    /// Of this format.
    pub(super) version: u32,
    /// Of the program.
    pub(super) annals: &'static str,
    pub(super) pid: u32,
    pub(super) store: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uuid: Option<Uuid>,
    /// Why the store cannot be listed just now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) store_error: Option<String>,
    pub(super) guests: Option<usize>,
    pub(super) guests_seen: usize,
    pub(super) backups_seen: usize,
    pub(super) broken: Vec<BrokenDisk>,
    pub(super) cache: CacheStats,
    pub(super) map_bytes: u64,
    pub(super) inodes: usize,
    pub(super) open_files: usize,
    pub(super) failed_reads: u64,
    pub(super) recent_failed_reads: Vec<Fault>,
}

/// A disk that could not be opened when its backup was last looked into.
#[derive(Debug, Clone, Serialize)]
pub(super) struct BrokenDisk {
    guest: GuestId,
    backup: BackupName,
    disk: String,
    error: String,
}

/// How many backups with broken disks are remembered.
const BROKEN_KEPT: usize = 1000;

/// What readers have come across so far; nothing is read to fill it.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// How many backups each guest had when it was last listed.
    guests: HashMap<GuestId, usize>,
    broken: BTreeMap<(GuestId, BackupName), Vec<BrokenDisk>>,
}

impl Seen {
    pub(super) fn guest(&self, guest: &Guest) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = state.guests.get_mut(&guest.id) {
            *count = guest.backups().len();
        } else {
            state.guests.insert(guest.id.clone(), guest.backups().len());
        }
    }

    pub(super) fn no_guest(&self, id: &GuestId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).guests.remove(id);
    }

    pub(super) fn view(&self, view: &View) {
        let (guest, backup) = (&view.backup.guest, &view.backup.summary.name);
        let broken: Vec<BrokenDisk> = view
            .broken()
            .map(|(disk, error)| BrokenDisk {
                guest: guest.clone(),
                backup: backup.clone(),
                disk: disk.to_owned(),
                error: error.to_owned(),
            })
            .collect();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (guest.clone(), backup.clone());
        if broken.is_empty() {
            state.broken.remove(&key);
        } else if state.broken.len() < BROKEN_KEPT || state.broken.contains_key(&key) {
            state.broken.insert(key, broken);
        }
    }

    pub(super) fn no_backup(&self, guest: &GuestId, backup: &BackupName) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.broken.remove(&(guest.clone(), backup.clone()));
    }

    /// Guests listed, backups in them, broken disks.
    pub(super) fn summary(&self) -> (usize, usize, Vec<BrokenDisk>) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let broken = state.broken.values().flatten().cloned().collect();
        (state.guests.len(), state.guests.values().sum(), broken)
    }
}
