//! The store's own layout, and the older one it came from: a directory a backup, named `<type>-<time>`.
//!
//! A manifest is used where it can be; without one the files' names say what there is: `*.qcow2` and `*.raw` are
//! disks, every other file is shown as it is.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::model::{Place, Problem};
use super::names::{self, Spelling, is_disk_name};
use super::{Backup, BackupFile, BackupSummary, DiskEntry, GuestId, GuestKind};
use crate::base::{ErrorKind, Result, Timestamp};
use crate::format::ImageFormat;
use crate::format::manifest::{Manifest, ManifestArchive, SIZE_LIMIT};
use crate::storage::{DirEntry, EntryKind, Gate, RelPath};

/// The manifest's name in a backup's directory.
pub const MANIFEST: &str = "backup.json";

/// The backups among a guest's directory entries, oldest first.
pub(super) fn backups(entries: &[DirEntry]) -> Vec<BackupSummary> {
    let mut found: Vec<(Timestamp, Spelling, GuestKind, &str)> = entries
        .iter()
        .filter(|entry| entry.kind == EntryKind::Directory)
        .filter_map(|entry| {
            let (kind, time, spelling) = names::parse_directory(&entry.name)?;
            Some((time, spelling, kind, entry.name.as_str()))
        })
        .collect();
    found.sort_unstable();
    let marks = found.iter().map(|(time, spelling, kind, _)| {
        let mark = match spelling {
            Spelling::Rfc3339 => kind.name().to_owned(),
            Spelling::Epoch => format!("{kind}-epoch"),
        };
        (*time, mark)
    });
    let names = names::assign(marks);
    found
        .iter()
        .zip(names)
        .map(|(&(time, _, kind, directory), name)| BackupSummary {
            name,
            kind,
            time,
            protected: false,
            notes: None,
            label: None,
            place: Place::Directory(directory.into()),
        })
        .collect()
}

/// Reads the backup in the directory `dir` of the guest.
pub(super) fn read(gate: &Gate, guest: &GuestId, summary: &BackupSummary, dir: &Arc<str>) -> Result<Backup> {
    let dir = RelPath::new(dir)?;
    let entries = gate.read_dir(Some(&dir))?;
    let mut backup = Backup {
        guest: guest.clone(),
        summary: summary.clone(),
        files: Vec::new(),
        disks: Vec::new(),
        manifest: None,
        problems: Vec::new(),
    };
    if entries.iter().any(|entry| entry.name == MANIFEST) {
        match gate.read_file(&dir.join(MANIFEST)?, SIZE_LIMIT).and_then(|bytes| Manifest::parse(&bytes)) {
            Ok(manifest) => backup.manifest = Some(manifest),
            Err(e) => backup.problems.push(Problem::of(MANIFEST, &e)),
        }
    }
    let mut disks = find_disks(&entries, backup.manifest.as_ref(), &dir, &mut backup.problems)?;
    let disk_files: HashSet<String> = disks.iter().map(|disk| disk.path.file_name().to_owned()).collect();
    for entry in entries.iter().filter(|e| !e.name.starts_with('.') && !disk_files.contains(&e.name)) {
        let path = dir.join(&entry.name)?;
        match (entry.kind, gate.stat(&path)) {
            (EntryKind::File, Ok(stat)) if stat.kind == EntryKind::File => {
                backup.files.push(BackupFile { name: entry.name.clone(), path, size: stat.identity.identity.size });
            }
            // Gone between the listing and now.
            (_, Err(e)) if e.kind() == ErrorKind::NotFound => {}
            (EntryKind::File, Err(e)) => backup.problems.push(Problem::of(&entry.name, &e)),
            (EntryKind::File | EntryKind::Directory | EntryKind::Other, _) => backup.problems.push(Problem::new(
                &entry.name,
                ErrorKind::Refused,
                "it is not a regular file and is not shown",
            )),
        }
    }
    if let Some(archive) = backup.manifest.as_ref().and_then(|manifest| manifest.archive.as_ref()) {
        backup.problems.extend(problem_of_archive(archive, &backup.files));
    }
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    backup.disks = disks;
    Ok(backup)
}

/// What is wrong with the archive that the manifest names, as far as sizes tell.
fn problem_of_archive(archive: &ManifestArchive, files: &[BackupFile]) -> Option<Problem> {
    let Some(file) = files.iter().find(|file| file.name == archive.file) else {
        let text = format!("the archive that {MANIFEST} names is missing");
        return Some(Problem::new(&archive.file, ErrorKind::MissingLayer, text));
    };
    let noted = archive.hash.as_ref()?.size.filter(|size| *size != file.size)?;
    let text = format!("it has {} bytes, {MANIFEST} says {noted}: it was cut short or replaced", file.size);
    Some(Problem::new(&file.name, ErrorKind::Corrupt, text))
}

/// The disks that the files' names tell of, and those that only the manifest does.
///
/// The data is the truth: an image that the manifest does not know is a disk all the same, and one that it names but
/// that is not there stays listed, so that whoever opens it learns what is missing.
fn find_disks(
    entries: &[DirEntry],
    manifest: Option<&Manifest>,
    dir: &RelPath,
    problems: &mut Vec<Problem>,
) -> Result<Vec<DiskEntry>> {
    let mut disks: BTreeMap<String, DiskEntry> = BTreeMap::new();
    let mut named: HashSet<&str> = HashSet::new();
    for disk in manifest.map(|m| m.disks.as_slice()).unwrap_or_default() {
        let mut reject = |why: &str| {
            let name = disk.name.escape_debug();
            problems.push(Problem::new(MANIFEST, ErrorKind::Corrupt, format!("it lists a disk '{name}' {why}")));
        };
        if !is_disk_name(&disk.name) {
            reject("whose name cannot be a file's");
            continue;
        }
        let path = match dir.join(&disk.file) {
            Ok(path) if !disk.file.contains('/') && !disk.file.starts_with('.') => path,
            Ok(_) | Err(_) => {
                reject("whose file is not in the backup's directory");
                continue;
            }
        };
        if disks.contains_key(&disk.name) || named.contains(disk.file.as_str()) {
            reject("twice");
            continue;
        }
        let declared = format_of(&disk.file).map(|(_, format)| format);
        if declared.is_some_and(|format| format != disk.format) {
            reject(&format!("as {}, which its file's name '{}' contradicts", disk.format, disk.file.escape_debug()));
        }
        named.insert(&disk.file);
        let format = declared.unwrap_or(disk.format);
        disks.insert(disk.name.clone(), DiskEntry { name: disk.name.clone(), path, format, alias: None });
    }
    for entry in entries.iter().filter(|entry| !named.contains(entry.name.as_str())) {
        let Some((stem, format)) = format_of(&entry.name) else { continue };
        if manifest.is_some() {
            problems.push(Problem::new(&entry.name, ErrorKind::Corrupt, format!("{MANIFEST} does not know it")));
        }
        // `a.qcow2` and `a.raw` side by side: the second keeps its ending to have a name of its own.
        let name = if disks.contains_key(stem) { entry.name.as_str() } else { stem };
        if !is_disk_name(name) || disks.contains_key(name) {
            problems.push(Problem::new(&entry.name, ErrorKind::Refused, "there is no name under which to show it"));
            continue;
        }
        let path = dir.join(&entry.name)?;
        disks.insert(name.to_owned(), DiskEntry { name: name.to_owned(), path, format, alias: None });
    }
    Ok(disks.into_values().collect())
}

/// The stem and the format of an image file's name, or `None` for any other file.
pub(super) fn format_of(file: &str) -> Option<(&str, ImageFormat)> {
    let (stem, ending) = file.rsplit_once('.')?;
    (!stem.is_empty() && !stem.starts_with('.')).then_some(())?;
    Some((stem, ImageFormat::parse(ending).ok()?))
}
