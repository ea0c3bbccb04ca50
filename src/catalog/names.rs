//! The names of guests and backups, and what makes one safe.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::GuestKind;
use crate::base::{Error, ErrorKind, Result, Timestamp};

/// Longest file name that Linux's file systems take, in bytes.
const NAME_MAX: usize = 255;

/// Room left in a disk's name for what the mount puts behind it (`.part128.raw`, `.broken`).
const SUFFIX_ROOM: usize = 24;

/// Why `name` cannot be a guest's or disk's name, or `None` when it can.
fn fault_of(name: &str, longest: usize) -> Option<&'static str> {
    if name.is_empty() {
        Some("it is empty")
    } else if name.starts_with('.') {
        Some("it starts with a dot")
    } else if name.contains(['/', '\0']) {
        Some("it holds a slash or a NUL byte")
    } else if name.len() > longest {
        Some("it is too long")
    } else {
        None
    }
}

/// Whether `name` can be shown as a disk.
pub(super) fn is_disk_name(name: &str) -> bool {
    fault_of(name, NAME_MAX - SUFFIX_ROOM).is_none()
}

/// Refuses, as wrong usage, a name that no new disk may have. A colon is none for a file: `a:b` is a host or a protocol to many tools.
pub fn check_disk_name(name: &str) -> Result<()> {
    let fault = fault_of(name, NAME_MAX - SUFFIX_ROOM).or_else(|| name.contains(':').then_some("it holds a colon"));
    refuse("disk", name, fault)
}

/// Refuses, as wrong usage, a name under which no file can be kept beside the disks of a new backup.
pub fn check_file_name(name: &str) -> Result<()> {
    let fault = fault_of(name, NAME_MAX - SUFFIX_ROOM)
        .or_else(|| name.contains(':').then_some("it holds a colon"))
        .or_else(|| super::native::format_of(name).map(|_| "it is a disk image's"))
        .or_else(|| matches!(name, super::MANIFEST | "backup.log").then_some("annals writes that file itself"));
    refuse("file", name, fault)
}

fn refuse(what: &str, name: &str, fault: Option<&str>) -> Result<()> {
    match fault {
        None => Ok(()),
        Some(why) => {
            Err(Error::new(ErrorKind::Usage, format!("'{}' cannot be a {what}'s name: {why}", name.escape_debug())))
        }
    }
}

/// A guest's id: the name of its directory, a safe file name that does not start with a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestId(Arc<str>);

impl GuestId {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GuestId {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match fault_of(name, NAME_MAX) {
            None => Ok(Self(name.into())),
            Some(why) => {
                Err(Error::new(ErrorKind::Usage, format!("'{}' is not a guest's id: {why}", name.escape_debug())))
            }
        }
    }
}

impl fmt::Display for GuestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for GuestId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

/// The name of a backup among its guest's: `2024-11-07T16-51-22Z`, and the mount's directory.
///
/// Where several backups have the same second, one keeps the time alone as its name and each other one has a longer
/// name, which depends on the store's content only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupName(Arc<str>);

impl BackupName {
    pub(super) fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for BackupName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

/// How a backup's directory spells its time; where two directories mean the same second, the first of these goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Spelling {
    /// `qemu-2024-11-07T16-51-22Z`.
    Rfc3339,
    /// `qemu-1730998282`, as older stores have it.
    Epoch,
}

/// What the directory name `<type>-<time>` says, or `None` when it is not a backup's.
pub(super) fn parse_directory(name: &str) -> Option<(GuestKind, Timestamp, Spelling)> {
    let (kind, time) = name.split_once('-')?;
    let kind = GuestKind::parse(kind)?;
    match Timestamp::parse_file_name(time) {
        Some(time) => Some((kind, time, Spelling::Rfc3339)),
        None => Timestamp::parse_epoch(time).map(|time| (kind, time, Spelling::Epoch)),
    }
}

/// Names for backups that are in their final order: the time, or, where the one before has that already, the time
/// and what else tells it apart; should that be taken too, a number as well.
pub(super) fn assign(backups: impl Iterator<Item = (Timestamp, String)>) -> Vec<BackupName> {
    let mut last = None;
    let mut taken: HashMap<String, usize> = HashMap::new();
    backups
        .map(|(time, mark)| {
            if last.replace(time) != Some(time) {
                taken.clear();
                return BackupName::new(&time.file_name());
            }
            let times = taken.entry(mark.clone()).and_modify(|times| *times += 1).or_insert(1);
            // A mark has no dot in it, so the number cannot make it another mark.
            let number = if *times == 1 { String::new() } else { format!(".{times}") };
            BackupName::new(&format!("{}-{mark}{number}", time.file_name()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_safe_file_names_are_guests() {
        for id in ["100", "web01", "a b", "ünï", "a@b", "-x"] {
            assert_eq!(id.parse::<GuestId>().unwrap().to_string(), id);
        }
        let long = "x".repeat(256);
        for id in ["", ".", "..", ".hidden", "a/b", "../x", "a\0", long.as_str()] {
            assert_eq!(id.parse::<GuestId>().unwrap_err().kind(), ErrorKind::Usage, "{id:?}");
        }
    }

    #[test]
    fn both_spellings_of_a_directory_are_backups_and_nothing_else_is() {
        let time = Timestamp::parse_epoch("1730998282").unwrap();
        assert_eq!(parse_directory("qemu-2024-11-07T16-51-22Z"), Some((GuestKind::Qemu, time, Spelling::Rfc3339)));
        assert_eq!(parse_directory("lxc-1730998282"), Some((GuestKind::Lxc, time, Spelling::Epoch)));
        for no in [
            "qemu-2024-11-07T16-51-22Z.failed",
            "qemu-1730998282.failed",
            "qemu-",
            "qemu",
            "vz-1730998282",
            ".partial-x",
            "qemu-2024-11-07T16:51:22Z",
            "previous-info",
        ] {
            assert_eq!(parse_directory(no), None, "{no}");
        }
    }

    proptest! {
        #[test]
        fn every_time_has_a_directory_that_reads_back(seconds in 0..=253_402_207_200_i64) {
            let time = Timestamp::from_epoch(seconds).unwrap();
            for kind in [GuestKind::Qemu, GuestKind::Lxc] {
                let rfc = format!("{kind}-{}", time.file_name());
                prop_assert_eq!(parse_directory(&rfc), Some((kind, time, Spelling::Rfc3339)));
                let epoch = format!("{kind}-{seconds}");
                prop_assert_eq!(parse_directory(&epoch), Some((kind, time, Spelling::Epoch)));
            }
        }

        #[test]
        fn assigned_names_are_unique_whatever_the_marks(
            mut backups in proptest::collection::vec((0..4_i64, "[ab]{0,1}"), 0..20),
        ) {
            backups.sort_unstable();
            let names = assign(backups.into_iter().map(|(s, mark)| (Timestamp::from_epoch(s).unwrap(), mark)));
            let unique: std::collections::HashSet<_> = names.iter().collect();
            prop_assert_eq!(unique.len(), names.len());
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,64}") {
            let _ = parse_directory(&text);
            let _ = text.parse::<GuestId>();
        }
    }
}
