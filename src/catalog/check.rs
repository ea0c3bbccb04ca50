//! Looking into the images of a guest: which of its backups can be read, and what is in the way of the others.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::{Backup, BackupFile, BackupName, Guest, Problem, Store};
use crate::archive::{self, ArchiveEnv, ArchiveFormat, Glance};
use crate::base::{Error, ErrorKind, Result};
use crate::disk::{self, check_layer};
use crate::format::ImageFormat;
use crate::storage::{BlockCache, Gate, RelPath};

/// Cache for the tables of images that are glanced at.
const GLANCE_CACHE: u64 = 1 << 20;

/// One backup after a look into all its layers.
#[derive(Debug, Clone)]
pub struct CheckedBackup {
    /// Which one.
    pub name: BackupName,
    /// Its disks' names.
    pub disks: Vec<String>,
    /// The archives in it.
    pub archives: Vec<FoundArchive>,
    /// What is wrong with it, by file or disk; empty when all is well.
    pub problems: Vec<Problem>,
}

/// A container's archive, as far as its name and a glance tell.
#[derive(Debug, Clone, Serialize)]
pub struct FoundArchive {
    /// Its file.
    pub file: String,
    /// `tar` or `squashfs`.
    pub format: &'static str,
    /// Its size in bytes.
    pub size: u64,
    /// How many entries it has, hard links counted once, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// How many paths of the tree are missing in it, or without their attributes, because they could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<NonZeroU64>,
}

impl FoundArchive {
    /// What names and the manifest say of the archives of `backup`.
    #[must_use]
    pub fn all_of(backup: &Backup) -> Vec<Self> {
        let noted = backup.manifest.as_ref().and_then(|manifest| manifest.archive.as_ref());
        let found = backup.archives().map(|(file, format)| {
            let noted = noted.filter(|noted| noted.file == file.name);
            Self {
                file: file.name.clone(),
                format: format.name(),
                size: file.size,
                entries: noted.and_then(|noted| noted.entries),
                unreadable: noted.and_then(|noted| NonZeroU64::new(noted.unreadable)),
            }
        });
        found.collect()
    }
}

/// An image and how it is read.
type Layer = (RelPath, ImageFormat);

/// What one look at a layer found.
struct Found {
    /// What is wrong inside it.
    fault: Option<(ErrorKind, String)>,
    /// The layer below, or why there can be none.
    below: Result<Option<Layer>>,
}

/// Threads that look at layers: as many as processors, and one more for each that waits for the medium.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from) * 2
}

impl Store {
    /// Looks at every layer of every backup of `guest`, each once, several side by side.
    ///
    /// `progress` is told how many layers have been looked at and how many are known by then; it is called from several
    /// threads. Only a guest that cannot be listed is an error.
    pub fn check(&self, guest: &Guest, progress: &(dyn Fn(usize, usize) + Sync)) -> Result<Vec<CheckedBackup>> {
        let gate = self.guest_gate(&guest.id)?;
        let backups: Vec<_> =
            guest.backups().iter().map(|b| (b.name.clone(), self.backup(&guest.id, &b.name))).collect();
        let heads = backups.iter().filter_map(|(_, backup)| backup.as_ref().ok()).flat_map(|backup| &backup.disks);
        let mut layers = Layers::default();
        let mut next: BTreeSet<Layer> = heads.map(|disk| (disk.path.clone(), disk.format)).collect();
        while !next.is_empty() {
            next = layers.look(&gate, next, progress);
        }
        let archives = ArchiveEnv::new(Arc::new(BlockCache::new(GLANCE_CACHE)), None);
        let checked = |(name, backup): (BackupName, Result<Arc<Backup>>)| match backup {
            Ok(backup) => {
                let mut checked = layers.judge(name, &backup);
                self.glance_at_archives(&backup, &archives, &mut checked);
                checked
            }
            Err(e) => CheckedBackup::unreadable(name, &e),
        };
        Ok(backups.into_iter().map(checked).collect())
    }
}

impl Store {
    fn glance_at_archives(&self, backup: &Backup, env: &Arc<ArchiveEnv>, checked: &mut CheckedBackup) {
        for ((file, format), found) in backup.archives().zip(&mut checked.archives) {
            match self.glance(backup, file, format, env) {
                Ok(glance) => found.entries = found.entries.or(glance.entries),
                // One that is known to be wrong is told of once.
                Err(_) if checked.problems.iter().any(|problem| problem.subject == file.name) => {}
                Err(e) => checked.problems.push(Problem::of(&file.name, &e)),
            }
        }
    }

    /// What can be told of an archive without going through it.
    pub fn glance(
        &self,
        backup: &Backup,
        file: &BackupFile,
        format: ArchiveFormat,
        env: &Arc<ArchiveEnv>,
    ) -> Result<Glance> {
        self.open_file(backup, file).and_then(|open| archive::glance(&file.name, Arc::new(open), format, env))
    }
}

impl CheckedBackup {
    /// What is known of `backup` without looking into its files.
    #[must_use]
    pub fn unchecked(name: BackupName, backup: &Backup) -> Self {
        Self {
            name,
            disks: backup.disks.iter().map(|disk| disk.name.clone()).collect(),
            archives: FoundArchive::all_of(backup),
            problems: backup.problems.clone(),
        }
    }

    /// A backup that cannot be looked into at all.
    #[must_use]
    pub fn unreadable(name: BackupName, error: &Error) -> Self {
        Self { problems: vec![Problem::of(name.as_str(), error)], name, disks: Vec::new(), archives: Vec::new() }
    }
}

#[derive(Default)]
struct Layers {
    found: HashMap<Layer, Found>,
    /// Whether a layer and all below it are well; the reason where they are not.
    verdicts: HashMap<Layer, Option<(ErrorKind, String)>>,
}

impl Layers {
    /// Looks at `wave`, none of which was looked at before; returns what lies below and was not either.
    fn look(
        &mut self,
        gate: &Gate,
        wave: BTreeSet<Layer>,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> BTreeSet<Layer> {
        let wave: Vec<Layer> = wave.into_iter().collect();
        let (done, known) = (self.found.len(), self.found.len() + wave.len());
        let turn = AtomicUsize::new(0);
        let finished = AtomicUsize::new(done);
        let results = Mutex::new(Vec::with_capacity(wave.len()));
        let work = || {
            while let Some(layer) = wave.get(turn.fetch_add(1, Ordering::Relaxed)) {
                let found = look_at(gate, layer);
                results.lock().unwrap_or_else(PoisonError::into_inner).push((layer.clone(), found));
                progress(finished.fetch_add(1, Ordering::Relaxed) + 1, known);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads().min(wave.len()) {
                // A thread that cannot be started leaves its share to the others.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        self.found.extend(results.into_inner().unwrap_or_else(PoisonError::into_inner));
        let below = wave.iter().filter_map(|layer| self.found.get(layer)?.below.as_ref().ok()?.clone());
        below.filter(|layer| !self.found.contains_key(layer)).collect()
    }

    /// What is wrong with a backup, now that its layers are known.
    fn judge(&mut self, name: BackupName, backup: &Backup) -> CheckedBackup {
        let mut problems = backup.problems.clone();
        for disk in &backup.disks {
            if let Some((kind, text)) = self.verdict(&(disk.path.clone(), disk.format)) {
                problems.push(Problem::new(&disk.name, kind, text));
            }
        }
        CheckedBackup { problems, ..CheckedBackup::unchecked(name, backup) }
    }

    /// Why the chain from `head` down cannot be trusted, or `None` when it can.
    fn verdict(&mut self, head: &Layer) -> Option<(ErrorKind, String)> {
        // Down to the first layer that settles it for all above, without recursion: chains may be long.
        let mut path: Vec<Layer> = Vec::new();
        let mut on_path: HashSet<RelPath> = HashSet::new();
        let mut at = head.clone();
        let settled = loop {
            if let Some(known) = self.verdicts.get(&at) {
                break known.clone();
            }
            if !on_path.insert(at.0.clone()) {
                break Some((ErrorKind::Corrupt, format!("the chain is a cycle: it comes back to '{}'", at.0)));
            }
            let Some(found) = self.found.get(&at) else {
                break Some((ErrorKind::MissingLayer, format!("'{}' was not looked at", at.0)));
            };
            let above = path.last().map(|(above, _)| above.clone());
            path.push(at.clone());
            match (&found.fault, &found.below) {
                (Some((ErrorKind::NotFound | ErrorKind::MissingLayer, _)), _) => {
                    let text = match above {
                        Some(above) => format!("the backing file of '{above}', '{}', is missing", at.0),
                        None => format!("the image '{}' is missing", at.0),
                    };
                    break Some((ErrorKind::MissingLayer, text));
                }
                (Some(fault), _) => break Some(fault.clone()),
                (None, Err(e)) => break Some((e.kind(), e.report())),
                (None, Ok(None)) => break None,
                (None, Ok(Some(below))) => at = below.clone(),
            }
        };
        for layer in path {
            self.verdicts.insert(layer, settled.clone());
        }
        settled
    }
}

fn look_at(gate: &Gate, layer: &Layer) -> Found {
    let (path, format) = layer;
    let told = |e: &Error| (e.kind(), e.report());
    match check_layer(gate, path, *format) {
        Ok(check) => Found { fault: check.problems.first().map(told), below: disk::backing(gate, path, *format) },
        Err(e) => Found { fault: Some(told(&e)), below: Ok(None) },
    }
}
