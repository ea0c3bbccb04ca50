//! References: how a person names a backup (`100@latest`, `100@2024-11-07`).

use std::str::FromStr;

use super::{BackupSummary, Guest, GuestId};
use crate::base::{Error, ErrorKind, Result, Timestamp};

/// A backup as a person names it, before it is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupRef {
    /// Whose backup.
    pub guest: GuestId,
    /// Which one.
    pub when: When,
}

/// Which of a guest's backups is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// The newest.
    Latest,
    /// The one of this second: `2024-11-07T17:51:22+01:00`.
    Time(Timestamp),
    /// The only one of this day in UTC: `2024-11-07`. First and last second of the day.
    Day(Timestamp, Timestamp),
    /// The one of this name: its name in the mount, or its directory in the store.
    Name(String),
}

const HINT: &str =
    "a backup is named GUEST@latest, GUEST@2024-11-07T16:51:22Z, GUEST@2024-11-07T16-51-22Z or GUEST@2024-11-07";

impl FromStr for BackupRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let usage = |why: String| Error::new(ErrorKind::Usage, why).with_hint(HINT);
        let Some((guest, when)) = text.rsplit_once('@') else {
            return Err(usage(format!("'{}' does not say which backup", text.escape_debug())));
        };
        let guest = guest.parse()?;
        let when = if when == "latest" {
            When::Latest
        } else if let Some((first, last)) = parse_day(when) {
            When::Day(first, last)
        } else if when.contains(':') && Timestamp::parse_file_name(&when.replace(':', "-")).is_none() {
            When::Time(Timestamp::parse_rfc3339(when).map_err(|e| e.with_hint(HINT))?)
        } else if when.is_empty() || when.contains(['/', '\0']) || when.starts_with('.') {
            return Err(usage(format!("'{}' does not say which backup", text.escape_debug())));
        } else {
            When::Name(when.to_owned())
        };
        Ok(Self { guest, when })
    }
}

impl BackupRef {
    /// The backup of `guest` that is meant, or why there is no such one.
    pub fn find<'a>(&self, guest: &'a Guest) -> Result<&'a BackupSummary> {
        let none = |what: &str| {
            Error::new(ErrorKind::NotFound, format!("guest {} has no backup {what}", self.guest))
                .with_hint(format!("annals list {} shows what there is", self.guest))
        };
        match &self.when {
            When::Latest => guest.latest().ok_or_else(|| none("at all")),
            When::Time(time) => self.only(guest.at(*time), || none(&format!("of {time}"))),
            When::Day(first, last) => {
                let start = guest.backups().partition_point(|b| b.time < *first);
                let end = guest.backups().partition_point(|b| b.time <= *last);
                let day = first.to_string();
                let day = day.split('T').next().unwrap_or_default();
                self.only(guest.backups().get(start..end).unwrap_or_default(), || none(&format!("of {day}")))
            }
            When::Name(name) => guest
                .find(name)
                .or_else(|| guest.backups().iter().find(|b| b.directory() == Some(name)))
                .ok_or_else(|| none(&format!("'{}'", name.escape_debug()))),
        }
    }

    fn only<'a>(&self, found: &'a [BackupSummary], none: impl FnOnce() -> Error) -> Result<&'a BackupSummary> {
        match found {
            [] => Err(none()),
            [one] => Ok(one),
            [first, .., last] => Err(Error::new(
                ErrorKind::Usage,
                format!("{} backups of guest {} fit, from {} to {}", found.len(), self.guest, first.name, last.name),
            )
            .with_hint(format!("name one exactly, for example {}@{}", self.guest, last.name))),
        }
    }
}

/// First and last second of the day `2024-11-07` in UTC.
fn parse_day(text: &str) -> Option<(Timestamp, Timestamp)> {
    let first = Timestamp::parse_file_name(&format!("{text}T00-00-00Z"))?;
    let last = Timestamp::parse_file_name(&format!("{text}T23-59-59Z"))?;
    Some((first, last))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::native;
    use super::*;
    use crate::storage::{DirEntry, EntryKind};

    fn guest(directories: &[&str]) -> Guest {
        let entry = |name: &&str| DirEntry { name: (*name).to_owned(), kind: EntryKind::Directory };
        let entries: Vec<_> = directories.iter().map(entry).collect();
        let id = "100".parse().unwrap();
        let backups = native::backups(&entries);
        Guest { id, problems: Vec::new(), previous: None, backups, contents: Default::default() }
    }

    fn find(guest: &Guest, reference: &str) -> Result<String> {
        Ok(reference.parse::<BackupRef>()?.find(guest)?.name.to_string())
    }

    #[test]
    fn every_form_of_a_reference_finds_the_backup() {
        let guest = guest(&["qemu-2024-11-06T16-51-20Z", "qemu-1730998282"]);
        for reference in [
            "100@latest",
            "100@2024-11-07T16:51:22Z",
            "100@2024-11-07T17:51:22+01:00",
            "100@2024-11-07T16-51-22Z",
            "100@2024-11-07",
            "100@qemu-1730998282",
        ] {
            assert_eq!(find(&guest, reference).unwrap(), "2024-11-07T16-51-22Z", "{reference}");
        }
        assert_eq!(find(&guest, "100@2024-11-06").unwrap(), "2024-11-06T16-51-20Z");
    }

    #[test]
    fn a_reference_that_fits_several_backups_is_refused_and_one_that_fits_none_is_not_found() {
        let guest = guest(&["qemu-2024-11-07T16-51-20Z", "lxc-2024-11-07T16-51-20Z", "qemu-2024-11-07T20-00-00Z"]);
        for several in ["100@2024-11-07", "100@2024-11-07T17:51:20+01:00"] {
            let e = find(&guest, several).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Usage, "{several}");
            assert!(e.hint().unwrap().contains("100@2024-11-07T"), "{e:?}");
        }
        assert_eq!(find(&guest, "100@2024-11-07T16-51-20Z").unwrap(), "2024-11-07T16-51-20Z");
        assert_eq!(find(&guest, "100@2024-11-07T16-51-20Z-lxc").unwrap(), "2024-11-07T16-51-20Z-lxc");
        for none in ["100@2024-11-08", "100@2024-11-07T16:51:21Z", "100@nonsense", "100@2024-11-07T16-51-20Z-x"] {
            assert_eq!(find(&guest, none).unwrap_err().kind(), ErrorKind::NotFound, "{none}");
        }
    }

    #[test]
    fn what_is_no_reference_says_what_one_looks_like() {
        for no in ["100", "100@", "@latest", "../x@latest", "100@a/b", "100@.partial-1", "100@25:00"] {
            let e = no.parse::<BackupRef>().unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Usage, "{no}");
        }
        assert!("100".parse::<BackupRef>().unwrap_err().hint().unwrap().contains("@latest"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_or_the_lookup_panic(text in "(100@)?.{0,40}") {
            let _ = find(&guest(&["qemu-2024-11-07T16-51-20Z"]), &text);
        }

        #[test]
        fn a_backup_is_found_by_its_name_and_its_time(seconds in 0..=253_402_207_200_i64) {
            let time = Timestamp::from_epoch(seconds).unwrap();
            let guest = guest(&[&format!("qemu-{seconds}")]);
            for form in [time.to_string(), time.file_name()] {
                prop_assert_eq!(find(&guest, &format!("100@{form}")).unwrap(), time.file_name());
            }
        }
    }
}
