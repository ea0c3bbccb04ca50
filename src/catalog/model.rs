//! What readers get: guests, backups, disks and files, as immutable values.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::{BackupName, GuestId, GuestKind};
use crate::archive::ArchiveFormat;
use crate::base::{Error, ErrorKind, Timestamp};
use crate::format::ImageFormat;
use crate::format::manifest::Manifest;
use crate::storage::RelPath;

/// What is known of a backup from its guest's directory alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BackupSummary {
    /// Its name, unique within the guest.
    pub name: BackupName,
    /// Virtual machine or container.
    pub kind: GuestKind,
    /// The point in time that it shows.
    #[serde(serialize_with = "as_text")]
    pub time: Timestamp,
    /// Whether it is marked as not to be removed.
    pub protected: bool,
    /// What somebody wrote about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
    /// What the guest's own system called this point in time: an oVirt snapshot's description.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Where it is.
    #[serde(skip)]
    pub(super) place: Place,
}

/// Where a backup's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// In a directory of its own, of this name.
    Directory(Arc<str>),
    /// Among others: the level of that index in the guest's [`Contents`].
    Level(usize),
}

impl BackupSummary {
    /// The name of the backup's own directory in the store, where it has one: `qemu-2024-11-07T16-51-22Z`.
    #[must_use]
    pub fn directory(&self) -> Option<&str> {
        match &self.place {
            Place::Directory(name) => Some(name),
            Place::Level(_) => None,
        }
    }
}

/// One guest and its backups, as they were when its directory was last looked at.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Guest {
    /// Its id.
    pub id: GuestId,
    /// What could not be read of it, its backups aside.
    pub problems: Vec<Problem>,
    /// What the last incremental backup counts from, where an older tool left a note of it.
    pub previous: Option<PreviousInfo>,
    pub(super) backups: Vec<BackupSummary>,
    pub(super) contents: Contents,
}

impl Guest {
    /// Its backups, oldest first.
    #[must_use]
    pub fn backups(&self) -> &[BackupSummary] {
        &self.backups
    }

    /// The newest backup.
    #[must_use]
    pub fn latest(&self) -> Option<&BackupSummary> {
        self.backups.last()
    }

    /// The backup of that name; the RFC 3339 form in UTC (`2024-11-07T16:51:22Z`) is as good.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&BackupSummary> {
        let plain = name.replace(':', "-");
        // Longer names start with the time, and the order is by time: the time finds the place.
        let time = plain.get(..20).and_then(Timestamp::parse_file_name)?;
        if plain != name && Timestamp::parse_rfc3339(name.get(..20)?).ok() != Some(time) {
            return None;
        }
        self.at(time).iter().find(|b| b.name.as_str() == plain)
    }

    /// The backups of exactly that second.
    #[must_use]
    pub fn at(&self, time: Timestamp) -> &[BackupSummary] {
        let start = self.backups.partition_point(|b| b.time < time);
        let end = self.backups.partition_point(|b| b.time <= time);
        self.backups.get(start..end).unwrap_or_default()
    }
}

/// `previous-info` of older stores: the bitmap of the latest backup, and that backup's time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PreviousInfo {
    /// The bitmap's id.
    pub bitmap: String,
    /// The backup that it counts from.
    #[serde(serialize_with = "as_text")]
    pub time: Timestamp,
}

/// One backup with everything in it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Backup {
    /// Whose it is.
    pub guest: GuestId,
    /// What was known before it was opened.
    pub summary: BackupSummary,
    /// Files shown as they are, by name.
    pub files: Vec<BackupFile>,
    /// Disks, by name. One that cannot be opened is here too: opening it says why.
    pub disks: Vec<DiskEntry>,
    /// `backup.json`, where there is one that can be read.
    pub manifest: Option<Manifest>,
    /// What is wrong with it, as far as names and the manifest tell.
    pub problems: Vec<Problem>,
}

impl Backup {
    /// The disk of that name.
    #[must_use]
    pub fn disk(&self, name: &str) -> Option<&DiskEntry> {
        self.disks.iter().find(|d| d.name == name)
    }

    /// Its files that are containers' archives.
    pub fn archives(&self) -> impl Iterator<Item = (&BackupFile, ArchiveFormat)> {
        self.files.iter().filter_map(|file| Some((file, ArchiveFormat::of_name(&file.name)?)))
    }
}

/// A file of a backup that is shown as it is: a configuration, the manifest, the log, a container's archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupFile {
    /// Its name in the backup.
    pub name: String,
    /// Where it is beneath the guest's directory.
    #[serde(serialize_with = "as_text")]
    pub path: RelPath,
    /// Its size in bytes.
    pub size: u64,
}

/// A disk of a backup: the head of a chain of layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DiskEntry {
    /// Its name: `drive-scsi0`.
    pub name: String,
    /// Its newest layer, beneath the guest's directory.
    #[serde(serialize_with = "as_text")]
    pub path: RelPath,
    /// That layer's format.
    pub format: ImageFormat,
    /// What people call the disk, where that is another name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
}

/// Something that is wrong with a part of the store, while the rest of it works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, disk or directory it is about.
    pub subject: String,
    /// What is wrong, in one line.
    pub message: String,
    /// What to decide by.
    #[serde(serialize_with = "kind_name")]
    pub kind: ErrorKind,
}

impl Problem {
    /// A problem with `subject`.
    pub fn new(subject: impl Into<String>, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { subject: subject.into(), message: message.into(), kind }
    }

    /// What `error` says about `subject`.
    pub fn of(subject: impl Into<String>, error: &Error) -> Self {
        Self::new(subject, error.kind(), error.report())
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.subject, self.message)
    }
}

/// What is in the backups of a guest whose layout has no directory for each.
#[derive(Debug, Clone, Default)]
pub(super) struct Contents {
    /// The points in time, oldest first.
    pub(super) levels: Vec<Level>,
    /// The disks through time, for levels that are made of them.
    pub(super) lines: Vec<Line>,
    /// Files that are shown in every backup.
    pub(super) files: Vec<BackupFile>,
    /// What is wrong with the guest as a whole.
    pub(super) problems: Vec<Problem>,
}

/// One point in time.
#[derive(Debug, Clone)]
pub(super) struct Level {
    pub(super) time: Timestamp,
    /// Tells it from others of the same second: letters, digits, `-` and `_`.
    pub(super) mark: String,
    pub(super) label: Option<String>,
    pub(super) disks: LevelDisks,
    pub(super) problems: Vec<Problem>,
}

/// A level's disks.
#[derive(Debug, Clone)]
pub(super) enum LevelDisks {
    /// These.
    Named(Vec<DiskEntry>),
    /// Each line's newest image of that moment or before.
    AsOf(Moment),
}

/// When an image was last written, and a number that keeps the levels of one chain apart that have the same second.
pub(super) type Moment = (Timestamp, usize);

/// One disk through time: its images, oldest first, each with the moment from which it holds.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) images: Vec<(Moment, RelPath, ImageFormat)>,
}

impl Contents {
    /// The disks of a level, by name.
    pub(super) fn disks(&self, level: &Level) -> Vec<DiskEntry> {
        let now = match &level.disks {
            LevelDisks::Named(disks) => return disks.clone(),
            LevelDisks::AsOf(now) => *now,
        };
        let newest = |line: &Line| {
            let after = line.images.partition_point(|(moment, ..)| *moment <= now);
            let (_, path, format) = line.images.get(after.checked_sub(1)?)?;
            Some(DiskEntry { name: line.name.clone(), path: path.clone(), format: *format, alias: None })
        };
        let mut disks: Vec<DiskEntry> = self.lines.iter().filter_map(newest).collect();
        disks.sort_by(|a, b| a.name.cmp(&b.name));
        disks
    }

    /// One level for each moment of any line.
    pub(super) fn add_levels_of_lines(&mut self) {
        let moments: BTreeSet<Moment> = self.lines.iter().flat_map(|line| &line.images).map(|(at, ..)| *at).collect();
        self.levels.extend(moments.into_iter().map(|(time, number)| Level {
            time,
            mark: (number + 1).to_string(),
            label: None,
            disks: LevelDisks::AsOf((time, number)),
            problems: Vec::new(),
        }));
    }
}

fn as_text<T: std::fmt::Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

/// The word by which JSON output names an error's kind.
fn kind_name<S: Serializer>(kind: &ErrorKind, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(kind.name())
}
