//! What a run tells while it goes on: lines for the log, events for programs, progress for people.

use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::container::ArchivePlan;
use super::decide::Decision;
use crate::base::Timestamp;

/// Something that a run has done or found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The run has the guest to itself.
    Started {
        /// The guest.
        guest: String,
        /// The directory that the backup will be.
        backup: String,
    },
    /// What earlier runs that were ended early had left was removed.
    Swept {
        /// How many directories.
        directories: usize,
    },
    /// It is known what will be done about a disk.
    Planned(PlannedDisk),
    /// How far a disk is.
    Progress {
        /// The disk.
        disk: String,
        /// Bytes of the plan that are done.
        done: u64,
        /// Bytes of the plan.
        total: u64,
    },
    /// A disk's image is complete and on the medium.
    DiskDone {
        /// The disk.
        disk: String,
        /// Its image's file.
        file: String,
        /// Bytes of the disk that the image stores.
        stored: u64,
        /// Bytes of the disk that it says are zero.
        zeros: u64,
        /// The size of the file.
        file_size: u64,
        /// BLAKE3 of the file.
        blake3: String,
    },
    /// It is known what will be made of a container's tree.
    ArchivePlanned(ArchivePlan),
    /// How far the archive is.
    ArchiveProgress {
        /// Bytes of the tree's files that are done, holes included.
        done: u64,
        /// Bytes of the tree's files, as they were planned.
        total: u64,
    },
    /// The archive is complete and on the medium.
    ArchiveDone {
        /// Its file.
        file: String,
        /// How many members it has, hard links counted once.
        entries: u64,
        /// How many paths of the tree are not in it, or there without their attributes, because they could not be read.
        unreadable: u64,
        /// The size of the file.
        file_size: u64,
        /// BLAKE3 of the file.
        blake3: String,
    },
    /// Something was left out, as it should be.
    Note {
        /// What.
        message: String,
    },
    /// Something could not be read, and is left out or fails the run. When it is done, a warning says how much was left out.
    Unreadable {
        /// What, and why.
        message: String,
    },
    /// Something went wrong or is in doubt that does not make the backup worthless.
    Warning {
        /// What.
        message: String,
    },
    /// The backup is there.
    Published {
        /// The guest.
        guest: String,
        /// The backup's directory.
        backup: String,
    },
    /// The run has failed; nothing was added.
    Failed {
        /// Why.
        message: String,
    },
}

/// What will be done about one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedDisk {
    /// Its name.
    pub disk: String,
    /// Its virtual size in bytes.
    pub size: u64,
    /// Full or incremental, and why.
    #[serde(flatten)]
    pub decision: Decision,
    /// Bytes that are read from the source.
    pub read: u64,
    /// Bytes that are written as zeros without being read.
    pub zeros: u64,
}

/// A line for people.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { guest, backup } => write!(f, "backup {backup} of guest {guest}"),
            Self::Swept { directories } => write!(f, "removed what {directories} unfinished runs had left"),
            Self::Planned(PlannedDisk { disk, size, decision, read, zeros }) => {
                let kind = if decision.parent().is_some() { "incremental" } else { "full" };
                let reason = decision.reason();
                write!(
                    f,
                    "disk {disk}: {kind}, because {reason}; {size} bytes, {read} to read, {zeros} to write as zeros"
                )
            }
            Self::Progress { disk, done, total } => write!(f, "disk {disk}: {done} of {total} bytes"),
            Self::DiskDone { disk, file, stored, zeros, file_size, blake3 } => {
                write!(f, "disk {disk}: {file} stores {stored} bytes and {zeros} zeros in {file_size}; BLAKE3 {blake3}")
            }
            Self::ArchivePlanned(ArchivePlan { format, reason, entries, bytes, excluded, .. }) => {
                write!(f, "archive: {}, because {reason}; {entries} members, {bytes} bytes", format.name())?;
                excluded.iter().try_for_each(|pattern| write!(f, "; without {pattern}"))
            }
            Self::ArchiveProgress { done, total } => write!(f, "archive: {done} of {total} bytes"),
            Self::ArchiveDone { file, entries, file_size, blake3, .. } => {
                write!(f, "archive: {file} has {entries} members in {file_size} bytes; BLAKE3 {blake3}")
            }
            Self::Note { message } => write!(f, "left out: {message}"),
            Self::Unreadable { message } => write!(f, "could not be read: {message}"),
            Self::Warning { message } => write!(f, "warning: {message}"),
            Self::Published { guest, backup } => write!(f, "published {guest}/{backup}"),
            Self::Failed { message } => write!(f, "failed: {message}"),
        }
    }
}

/// Hears of events as they happen, on whatever thread that is.
pub type Listener<'a> = dyn Fn(&Event) + Send + Sync + 'a;

/// Passes events on and keeps them as lines for `backup.log`.
pub(super) struct Journal<'a> {
    listener: &'a Listener<'a>,
    lines: Mutex<String>,
    warnings: Mutex<Vec<String>>,
}

impl<'a> Journal<'a> {
    pub(super) fn new(listener: &'a Listener<'a>) -> Self {
        Self { listener, lines: Mutex::default(), warnings: Mutex::default() }
    }

    pub(super) fn tell(&self, event: &Event) {
        if !matches!(event, Event::Progress { .. } | Event::ArchiveProgress { .. }) {
            let time = Timestamp::now().map_or_else(|_| "?".to_owned(), |now| now.to_string());
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "{time} {event}");
        }
        if let Event::Warning { message } = event {
            self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(message.clone());
        }
        (self.listener)(event);
    }

    /// The warnings so far.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The lines so far.
    pub(super) fn text(&self) -> String {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
