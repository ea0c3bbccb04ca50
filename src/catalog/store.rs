//! A store: a directory of guests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use quick_cache::sync::Cache;
use uuid::Uuid;

use super::disks::OpenDisks;
use super::fresh::{Fresh, Stamps};
use super::model::{Contents, Place};
use super::{Backup, BackupFile, BackupName, DiskEntry, Guest, GuestId, Problem};
use super::{BackupSummary, GuestKind, extras, names, native, ovirt, plain};
use crate::base::error::ResultExt;
use crate::base::{Error, ErrorKind, Result, Timestamp};
use crate::disk::{Disk, DiskEnv};
use crate::format::manifest::{self, SIZE_LIMIT, StoreMarker};
use crate::storage::publish;
use crate::storage::{EntryKind, FilePool, Gate, RelPath, Space, StoreFile};

/// The file that marks a store.
const MARKER: &str = "store.json";

/// How many guests are kept as they were last seen; others are listed anew when asked for.
const GUESTS_KEPT: usize = 128;
/// How many backups are kept as they were last seen.
const BACKUPS_KEPT: usize = 512;

/// A directory of guests, read but never written to.
///
/// Opening reads nothing of any guest. What readers get are snapshots, never more than a second older than the
/// directory they came from. Memory is bounded: only the guests and backups used last are kept.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    gate: Gate,
    pool: Arc<FilePool>,
    marker: Option<StoreMarker>,
    listing: Fresh<Listing>,
    guests: Cache<GuestId, Arc<Fresh<Guest>>>,
    backups: Cache<(GuestId, BackupName), Arc<Fresh<Backup>>>,
    disks: OpenDisks,
    env: Arc<DiskEnv>,
}

/// What the store's own directory holds.
#[derive(Debug)]
struct Listing {
    guests: Arc<[GuestId]>,
    skipped: Arc<[Problem]>,
}

impl Store {
    /// Marks the directory `path` as a store, made if need be; guests that are in it already stay as they are.
    pub fn init(path: &Path) -> Result<StoreMarker> {
        publish::make_directory(path)?;
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let created = i64::try_from(seconds)
            .ok()
            .and_then(Timestamp::from_epoch)
            .ok_or_else(|| Error::new(ErrorKind::Limit, "the clock is past the year 9999"))?;
        let marker = StoreMarker { version: manifest::VERSION, uuid: Uuid::new_v4(), created };
        publish::create_whole(path, MARKER, &manifest::to_json(&marker)?).map_err(|e| match e.kind() {
            ErrorKind::Exists => Error::new(ErrorKind::Exists, format!("'{}' is a store already", path.display())),
            _ => e,
        })?;
        Ok(marker)
    }

    /// Opens the store at `path`: any directory of guests, whether marked or not. A marker of a newer version is refused.
    pub fn open(path: &Path, env: Arc<DiskEnv>) -> Result<Self> {
        // A daemon changes its working directory; the store's name must mean the same afterwards.
        let path = &std::path::absolute(path)
            .map_err(|e| Error::io(format!("cannot make '{}' absolute", path.display()), e))?;
        let pool = FilePool::for_process();
        let gate = Gate::open(path, pool.clone()).map_err(|e| {
            e.context("store").with_hint("--store or ANNALS_STORE names the directory that holds the guests")
        })?;
        let marker = match gate.read_file(&RelPath::new(MARKER)?, SIZE_LIMIT) {
            Ok(bytes) => Some(StoreMarker::parse(&bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => Some(Err(e)),
        };
        let marker = marker.transpose().context(|| format!("store '{}'", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            gate,
            pool,
            marker,
            listing: Fresh::default(),
            guests: Cache::new(GUESTS_KEPT),
            backups: Cache::new(BACKUPS_KEPT),
            disks: OpenDisks::default(),
            env,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its id, where it is marked as a store.
    #[must_use]
    pub fn uuid(&self) -> Option<Uuid> {
        self.marker.as_ref().map(|m| m.uuid)
    }

    /// When a guest was last added to it or taken away, as its directory's time says.
    pub fn modified(&self) -> Result<Timestamp> {
        let stamp = self.gate.dir_stamp(None).context(|| "store")?;
        Ok(Timestamp::from_epoch(stamp.modified()).unwrap_or(Timestamp::EPOCH))
    }

    /// The room on the file system that holds it.
    pub fn space(&self) -> Result<Space> {
        self.gate.space().context(|| "store")
    }

    /// The guests, by id.
    pub fn guests(&self) -> Result<Arc<[GuestId]>> {
        Ok(self.listing()?.guests.clone())
    }

    /// What lies among the guests and cannot be one: symlinks, names that are not safe.
    pub fn skipped(&self) -> Result<Arc<[Problem]>> {
        Ok(self.listing()?.skipped.clone())
    }

    fn listing(&self) -> Result<Arc<Listing>> {
        self.listing.get(&self.gate, |stamps| self.list(stamps))
    }

    fn list(&self, stamps: &mut Stamps) -> Result<Listing> {
        stamps.take(&self.gate, None)?;
        self.check_in_place()?;
        let (mut guests, mut skipped) = (Vec::new(), Vec::new());
        for entry in self.gate.read_dir(None)? {
            match entry.kind {
                // What mkfs leaves at the top of a file system is no guest.
                EntryKind::Directory if entry.name.starts_with('.') || entry.name == "lost+found" => {}
                EntryKind::Directory => match entry.name.parse() {
                    Ok(id) => guests.push(id),
                    Err(e) => skipped.push(Problem::of(&entry.name, &e)),
                },
                EntryKind::File => {}
                EntryKind::Other => skipped.push(Problem::new(
                    &entry.name,
                    ErrorKind::Refused,
                    "it is not a directory (a symlink is not followed) and is passed over",
                )),
            }
        }
        // `read_dir` sorts by name.
        Ok(Listing { guests: guests.into(), skipped: skipped.into() })
    }

    /// One guest and its backups.
    pub fn guest(&self, id: &GuestId) -> Result<Arc<Guest>> {
        let Ok(slot) = self.guests.get_or_insert_with(id, || Ok::<_, std::convert::Infallible>(Arc::default()));
        let guest = slot.get(&self.gate, |stamps| self.scan(id, stamps));
        guest.map_err(|e| {
            self.guests.remove(id);
            if let Err(gone) = self.check_in_place() {
                return gone;
            }
            match e.kind() {
                ErrorKind::NotFound => {
                    Error::new(ErrorKind::NotFound, format!("the store '{}' has no guest {id}", self.path.display()))
                        .with_hint("annals list shows the guests")
                }
                _ => e.context(format!("guest {id}")),
            }
        })
    }

    fn scan(&self, id: &GuestId, stamps: &mut Stamps) -> Result<Guest> {
        let dir = RelPath::new(id.as_str())?;
        stamps.take(&self.gate, Some(&dir))?;
        let entries = self.gate.read_dir(Some(&dir))?;
        let mut guest = Guest {
            id: id.clone(),
            problems: Vec::new(),
            previous: None,
            backups: native::backups(&entries),
            contents: Contents::default(),
        };
        if guest.backups.is_empty() {
            guest.contents = if ovirt::is_layout(&entries) {
                ovirt::read(&self.gate, &dir, &entries, stamps)?
            } else if plain::is_layout(&entries) {
                plain::read(&self.gate.descend(&dir)?, &entries)?
            } else {
                Contents::default()
            };
            guest.problems = std::mem::take(&mut guest.contents.problems);
            guest.backups = summaries(&guest.contents);
        }
        extras::read(&self.gate.descend(&dir)?, &entries, &mut guest)?;
        Ok(guest)
    }

    /// One backup with its files and disks.
    pub fn backup(&self, guest: &GuestId, name: &BackupName) -> Result<Arc<Backup>> {
        let all = self.guest(guest)?;
        let none = || {
            Error::new(ErrorKind::NotFound, format!("guest {guest} has no backup {name}"))
                .with_hint(format!("annals list {guest} shows what there is"))
        };
        let summary = all.find(name.as_str()).ok_or_else(none)?;
        let dir = match &summary.place {
            Place::Directory(dir) => dir,
            Place::Level(index) => {
                let level = all.contents.levels.get(*index).ok_or_else(none)?;
                return Ok(Arc::new(Backup {
                    guest: guest.clone(),
                    summary: summary.clone(),
                    files: all.contents.files.clone(),
                    disks: all.contents.disks(level),
                    manifest: None,
                    problems: level.problems.clone(),
                }));
            }
        };
        let key = (guest.clone(), name.clone());
        let Ok(slot) = self.backups.get_or_insert_with(&key, || Ok::<_, std::convert::Infallible>(Arc::default()));
        let backup = slot.get(&self.gate, |stamps| {
            let id = RelPath::new(guest.as_str())?;
            stamps.take(&self.gate, Some(&id.join(dir)?))?;
            native::read(&self.gate.descend(&id)?, guest, summary, dir)
        });
        let backup = backup.map_err(|e| {
            self.backups.remove(&key);
            match e.kind() {
                ErrorKind::NotFound => none(),
                _ => e.context(format!("backup {guest}@{name}")),
            }
        })?;
        // The attributes may have changed since the backup was read.
        if backup.summary == *summary {
            return Ok(backup);
        }
        Ok(Arc::new(Backup { summary: summary.clone(), ..Backup::clone(&backup) }))
    }

    /// Opens a disk of a backup: its whole chain. One that is open already is shared; a failure is remembered for a second.
    pub fn disk(&self, backup: &Backup, disk: &DiskEntry) -> Result<Arc<Disk>> {
        let opened = self.guest_gate(&backup.guest).and_then(|gate| {
            let key = (backup.guest.clone(), disk.path.clone(), disk.format);
            self.disks.get(key, &gate, || {
                let older = self.older_images(backup, disk);
                let opened = Disk::open_expecting(&gate, &disk.path, disk.format, &older, &self.env);
                opened.map_err(|e| match e.kind() {
                    // The catalog lists it, so a head that is not there is a hole in the store like any other layer.
                    ErrorKind::NotFound => {
                        Error::new(ErrorKind::MissingLayer, format!("the image '{}' is missing", disk.path))
                    }
                    _ => e,
                })
            })
        });
        opened.context(|| format!("disk {} of backup {}@{}", disk.name, backup.guest, backup.summary.name))
    }

    /// The images of the same name in older backups, newest first: what an incremental one mostly lies on.
    fn older_images(&self, backup: &Backup, disk: &DiskEntry) -> Vec<RelPath> {
        let Ok(guest) = self.guest(&backup.guest) else { return Vec::new() };
        let older = guest.backups().iter().rev().skip_while(|other| other.name != backup.summary.name).skip(1);
        older.filter_map(|other| RelPath::new(other.directory()?).ok()?.join(disk.path.file_name()).ok()).collect()
    }

    /// Opens a file of a backup as it is.
    pub fn open_file(&self, backup: &Backup, file: &BackupFile) -> Result<StoreFile> {
        self.guest_gate(&backup.guest)?
            .open_file(&file.path)
            .context(|| format!("backup {}@{}", backup.guest, backup.summary.name))
    }

    /// The gate beneath which a guest's files are opened.
    pub(super) fn guest_gate(&self, guest: &GuestId) -> Result<Gate> {
        self.gate.descend(&RelPath::new(guest.as_str())?)
    }

    /// How many guests and backups are kept just now.
    #[cfg(test)]
    pub(super) fn kept(&self) -> (usize, usize) {
        (self.guests.len(), self.backups.len())
    }

    /// Fails when the store's path no longer leads to the directory that was opened.
    fn check_in_place(&self) -> Result<()> {
        let stat = |gate: &Gate| gate.dir_stamp(None).map(|stamp| stamp.file());
        let moved = |what: &str| {
            Error::new(
                ErrorKind::Changed,
                format!("the store '{}' was {what} while it was in use", self.path.display()),
            )
            .with_hint("unmount it and mount it again")
        };
        match Gate::open(&self.path, self.pool.clone()).and_then(|now| stat(&now)) {
            Ok(now) if now == stat(&self.gate)? => Ok(()),
            Ok(_) => Err(moved("replaced by another directory")),
            Err(e) if e.kind() == ErrorKind::NotFound => Err(moved("removed")),
            Err(e) => Err(e),
        }
    }
}

/// The backups that a layout without a directory for each has.
fn summaries(contents: &Contents) -> Vec<BackupSummary> {
    let names = names::assign(contents.levels.iter().map(|level| (level.time, level.mark.clone())));
    let summary = |(index, (level, name)): (usize, (&super::model::Level, BackupName))| BackupSummary {
        name,
        kind: GuestKind::Qemu,
        time: level.time,
        protected: false,
        notes: None,
        label: level.label.clone(),
        place: Place::Level(index),
    };
    contents.levels.iter().zip(names).enumerate().map(summary).collect()
}
