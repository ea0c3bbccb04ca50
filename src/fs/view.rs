//! What a backup's directory shows: its files, its disks and their partitions, and a text for each broken disk.
//!
//! A view is made when a backup is first looked into, and kept: it opens every chain and archive and reads every partition
//! table once. It holds no disk open.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::file::Allocated;
use super::inode::Hash;
use super::nodes::What;
use crate::archive::{self, ArchiveEnv, ArchiveFormat};
use crate::base::{Error, ErrorKind, GuestOffset, GuestRange};
use crate::catalog::{Backup, BackupFile, DiskEntry, Problem, Store};
use crate::disk::{Disk, PartitionTable, partitions};
use crate::storage::{FileIdentity, LastingIdentity, Storage};

/// One name in a backup's directory.
#[derive(Debug, Clone)]
pub(super) struct ViewEntry {
    pub(super) name: Box<str>,
    pub(super) what: What,
    pub(super) size: u64,
    /// Tells this content from any other that the name has had or will have while this process runs.
    pub(super) version: u64,
    pub(super) source: Source,
    pub(super) allocated: Allocated,
}

impl ViewEntry {
    /// Whether it is a directory with a container in it.
    pub(super) fn is_tree(&self) -> bool {
        matches!(self.source, Source::Archive(..))
    }

    /// Allocated bytes, where they are known without counting.
    pub(super) fn allocated(&self) -> Option<u64> {
        match self.source {
            Source::File(_) | Source::Text(_) | Source::Archive(..) | Source::Note(..) => Some(self.size),
            Source::Disk(..) => self.allocated.known(),
        }
    }
}

/// Where an entry's bytes are found when it is opened.
#[derive(Debug, Clone)]
pub(super) enum Source {
    File(BackupFile),
    /// A disk (`None`) or the part of it.
    Disk(DiskEntry, Option<GuestRange>),
    /// A container's archive, as a tree.
    Archive(BackupFile, ArchiveTree),
    Text(Arc<str>),
    /// What is wrong with a file that has this version.
    Note(Arc<str>, BackupFile, u64),
}

/// An archive that is open.
#[derive(Clone)]
pub(super) struct ArchiveTree(pub(super) Arc<dyn archive::Tree>);

impl std::fmt::Debug for ArchiveTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ArchiveTree")
    }
}

/// A backup's directory.
#[derive(Debug)]
pub(super) struct View {
    pub(super) backup: Arc<Backup>,
    /// By name.
    pub(super) entries: Vec<ViewEntry>,
}

/// The directory that shows a container.
const ARCHIVE_NAME: &str = "root";
/// How long a view is used without asking whether the files behind it are the same. The catalog, which is asked, looks
/// at them once a second; that second, this time and the one for which the kernel believes a name stay below two.
const RECHECK: Duration = Duration::from_millis(250);

impl View {
    /// The entry of that name.
    pub(super) fn find(&self, name: &str) -> Option<&ViewEntry> {
        self.entries.binary_search_by(|entry| (*entry.name).cmp(name)).ok().and_then(|at| self.entries.get(at))
    }

    /// The entry of that node.
    pub(super) fn entry(&self, what: &What) -> Option<&ViewEntry> {
        self.entries.iter().find(|entry| entry.what == *what)
    }

    /// The disks that cannot be read, and why.
    pub(super) fn broken(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().filter_map(|entry| match (&entry.what, &entry.source) {
            (What::Broken(disk), Source::Text(text) | Source::Note(text, ..)) => {
                Some((&**disk, text.lines().next().unwrap_or_default()))
            }
            _ => None,
        })
    }

    /// Whether every entry still has the content that it had. A broken disk is looked at anew each time: what it lacks
    /// may have arrived.
    fn is_current(&self, store: &Store) -> bool {
        self.entries.iter().all(|entry| match &entry.source {
            // A layer may have been replaced or lost in the directory of an older backup.
            Source::Disk(disk, None) => store.disk(&self.backup, disk).is_ok_and(|d| disk_version(&d) == entry.version),
            // As its disk is.
            Source::Disk(_, Some(_)) => true,
            Source::File(file) | Source::Archive(file, _) => {
                stored_file(store, &self.backup, file).is_some_and(|now| now.1 == entry.version)
            }
            Source::Note(_, file, version) => {
                stored_file(store, &self.backup, file).is_some_and(|now| now.1 == *version)
            }
            Source::Text(_) => false,
        })
    }

    /// Looks at every disk and file of `backup`. What is known from `old` about the same content is kept.
    fn make(store: &Store, archives: &Arc<ArchiveEnv>, backup: &Arc<Backup>, old: Option<&Self>) -> Self {
        let mut names = Names { entries: BTreeMap::new(), old, backup };
        let mut parts = Vec::new();
        for entry in &backup.disks {
            match store.disk(backup, entry) {
                Ok(disk) => {
                    let version = disk_version(&disk);
                    let windows = names
                        .known_partitions(&entry.name, version)
                        .unwrap_or_else(|| find_partitions(backup, entry, &disk));
                    let what = What::Disk(entry.name.as_str().into());
                    let name = format!("{}.raw", entry.name);
                    names.add(name, what, disk.size(), version, Source::Disk(entry.clone(), None));
                    parts.extend(windows.into_iter().map(|(number, range)| (entry, version, number, range)));
                }
                Err(error) => {
                    let text = broken_text(entry, &error);
                    let what = What::Broken(entry.name.as_str().into());
                    let (size, version) = (text.len() as u64, text_version(&text));
                    names.add(format!("{}.broken", entry.name), what, size, version, Source::Text(text.into()));
                }
            }
        }
        // Whole disks and files of the backup keep their names against partitions.
        for file in &backup.files {
            let Some((size, version)) = stored_file(store, backup, file) else { continue };
            if names.add_archive(store, archives, file, version) {
                continue;
            }
            let what = What::File(file.name.as_str().into());
            names.add(file.name.clone(), what, size, version, Source::File(file.clone()));
        }
        for problem in missing_archives(backup) {
            let text = format!("{} cannot be shown: {}\n", problem.subject, problem.message);
            let what = What::Broken(problem.subject.as_str().into());
            let (size, version) = (text.len() as u64, text_version(&text));
            names.add(format!("{}.broken", problem.subject), what, size, version, Source::Text(text.into()));
        }
        for (entry, version, number, range) in parts {
            let what = What::Partition(entry.name.as_str().into(), number);
            let name = format!("{}.part{number}.raw", entry.name);
            names.add(name, what, range.len(), version, Source::Disk(entry.clone(), Some(range)));
        }
        let entries = names.entries.into_values().collect();
        Self { backup: backup.clone(), entries }
    }
}

/// What is known of archives that the backup should have and has not.
fn missing_archives(backup: &Backup) -> impl Iterator<Item = &Problem> {
    let missing = |problem: &&Problem| problem.kind == ErrorKind::MissingLayer;
    let archive = |problem: &&Problem| ArchiveFormat::of_name(&problem.subject).is_some();
    backup.problems.iter().filter(missing).filter(archive)
}

/// Size and version of a file of the backup; `None` where it is gone.
fn stored_file(store: &Store, backup: &Backup, file: &BackupFile) -> Option<(u64, u64)> {
    match store.open_file(backup, file) {
        Ok(open) => Some((open.size(), file_version(&open))),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        // Listed all the same: opening it says what is wrong.
        Err(_) => Some((file.size, 0)),
    }
}

/// Entries by name while they are collected.
struct Names<'a> {
    entries: BTreeMap<Box<str>, ViewEntry>,
    old: Option<&'a View>,
    backup: &'a Backup,
}

impl Names<'_> {
    fn add(&mut self, name: String, what: What, size: u64, version: u64, source: Source) {
        let name: Box<str> = name.into();
        if let Some(taken) = self.entries.get(&name) {
            tracing::warn!(
                "guest {}, backup {}: {what:?} is not shown, its name '{name}' is that of {:?}",
                self.backup.guest,
                self.backup.summary.name,
                taken.what
            );
            return;
        }
        let known = self.old.and_then(|old| old.find(&name)).filter(|old| old.version == version && old.what == what);
        let allocated = known.map(|old| old.allocated.clone()).unwrap_or_default();
        self.entries.insert(name.clone(), ViewEntry { name, what, size, version, source, allocated });
    }

    /// Shows `file` as a tree if that is what it is; `false` where it is to be shown as it is.
    ///
    /// An archive of which a part is missing has a text beside its tree, one that cannot be opened has the text alone.
    fn add_archive(&mut self, store: &Store, archives: &Arc<ArchiveEnv>, file: &BackupFile, version: u64) -> bool {
        let Some(format) = ArchiveFormat::of_name(&file.name).filter(|_| !self.entries.contains_key(ARCHIVE_NAME))
        else {
            return false;
        };
        let what = What::Archive(file.name.as_str().into());
        let opened = match self.known_archive(&what, version) {
            Some(tree) => Ok(tree),
            None => store.open_file(self.backup, file).and_then(|open| {
                let name = format!("{}/{}/{}", self.backup.guest, self.backup.summary.name, file.name);
                archive::open(&name, Arc::new(open), format, archives)
            }),
        };
        let broken = match &opened {
            Ok(tree) => tree.broken().map(|report| format!("{} is not shown as a whole:\n{report}\n", file.name)),
            Err(error) => Some(format!("{} cannot be shown: {}\n", file.name, error.report())),
        };
        if let Some(text) = broken {
            let (size, version_of_text) = (text.len() as u64, text_version(&text));
            let source = match &opened {
                // Reading may work again; what the bytes are stays as it is as long as the file does.
                Err(error) if error.kind() == ErrorKind::Io => Source::Text(text.into()),
                _ => Source::Note(text.into(), file.clone(), version),
            };
            let what = What::Broken(file.name.as_str().into());
            self.add(format!("{}.broken", file.name), what, size, version_of_text, source);
        }
        if let Ok(tree) = opened {
            self.add(ARCHIVE_NAME.to_owned(), what, 0, version, Source::Archive(file.clone(), ArchiveTree(tree)));
        }
        true
    }

    /// The archive that the old view has open, if it is the same.
    fn known_archive(&self, what: &What, version: u64) -> Option<Arc<dyn archive::Tree>> {
        let entry = self.old?.entry(what).filter(|entry| entry.version == version)?;
        match &entry.source {
            Source::Archive(_, tree) => Some(tree.0.clone()),
            _ => None,
        }
    }

    /// The partitions that the old view found in the same disk.
    fn known_partitions(&self, disk: &str, version: u64) -> Option<Vec<(u32, GuestRange)>> {
        let old = self.old?;
        let whole = |e: &ViewEntry| matches!(&e.what, What::Disk(name) if **name == *disk) && e.version == version;
        old.entries.iter().find(|e| whole(e))?;
        let part = |e: &ViewEntry| match (&e.what, &e.source) {
            (What::Partition(name, number), Source::Disk(_, Some(range))) if **name == *disk => Some((*number, *range)),
            _ => None,
        };
        Some(old.entries.iter().filter_map(part).collect())
    }
}

/// The disk's partitions: number and place, cut to the disk. A table that cannot be read shows none.
fn find_partitions(backup: &Backup, entry: &DiskEntry, disk: &Disk) -> Vec<(u32, GuestRange)> {
    let whole = GuestRange::between(GuestOffset(0), GuestOffset(disk.size()));
    let table = partitions::layout(disk).unwrap_or_else(|error| {
        tracing::warn!(
            "guest {}, backup {}, disk {}: no partitions are shown: {}",
            backup.guest,
            backup.summary.name,
            entry.name,
            error.report()
        );
        PartitionTable::default()
    });
    let cut = table.partitions.into_iter().map(|p| (p.number, p.range.intersect(whole)));
    cut.filter(|(_, range)| !range.is_empty()).collect()
}

/// What `NAME.broken` says. The first line is the reason.
fn broken_text(entry: &DiskEntry, error: &Error) -> String {
    let mut text = format!("disk {} cannot be read: {}\n", entry.name, error.report());
    let advice = error.hint().unwrap_or(
        "What is missing may still arrive: the disk appears here as soon as its whole chain can be read.\n\
         Otherwise restore the layer named above, or use an older or newer backup of this guest.",
    );
    text.push_str(advice);
    text.push('\n');
    text
}

fn identity_version(hash: &mut Hash, identity: LastingIdentity) {
    let LastingIdentity { identity: FileIdentity { device, inode, size, mtime_ns }, ctime_ns } = identity;
    [device, inode, size].iter().for_each(|number| hash.add(&number.to_le_bytes()));
    [mtime_ns, ctime_ns].iter().for_each(|time| hash.add(&time.to_le_bytes()));
}

/// The version of a disk's content: which file each of its layers is, in which state.
pub(super) fn disk_version(disk: &Disk) -> u64 {
    let mut hash = Hash::new();
    disk.layers().for_each(|layer| identity_version(&mut hash, layer.identity));
    hash.finish()
}

/// The version of a file of the store.
pub(super) fn file_version(file: &impl Storage) -> u64 {
    let mut hash = Hash::new();
    identity_version(&mut hash, file.lasting_identity());
    hash.finish()
}

fn text_version(text: &str) -> u64 {
    let mut hash = Hash::new();
    hash.add(text.as_bytes());
    hash.finish()
}

/// A place for one backup's view; whoever asks while it is made waits for it.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Option<State>>);

#[derive(Debug)]
struct State {
    view: Arc<View>,
    checked: Instant,
}

impl Slot {
    /// The view of `backup`, made anew when it no longer holds.
    pub(super) fn get(&self, store: &Store, archives: &Arc<ArchiveEnv>, backup: &Arc<Backup>) -> Arc<View> {
        // A panic while making leaves the old view, which the next caller checks again.
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The time before the look: what changes during it is seen by the next one.
        let now = Instant::now();
        if let Some(state) = slot.as_mut().filter(|state| Arc::ptr_eq(&state.view.backup, backup)) {
            if state.checked.elapsed() < RECHECK {
                return state.view.clone();
            }
            if state.view.is_current(store) {
                state.checked = now;
                return state.view.clone();
            }
        }
        let view = Arc::new(View::make(store, archives, backup, slot.as_ref().map(|state| &*state.view)));
        *slot = Some(State { view: view.clone(), checked: now });
        view
    }

    /// Whether the view is there and will be used without another look for some time yet.
    pub(super) fn is_fresh(&self) -> bool {
        // Whoever holds the lock for longer than a moment is making a view.
        let Ok(slot) = self.0.try_lock() else { return false };
        slot.as_ref().is_some_and(|state| state.checked.elapsed() < RECHECK / 2)
    }

    /// Makes sure that the next caller looks again.
    pub(super) fn discard(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
