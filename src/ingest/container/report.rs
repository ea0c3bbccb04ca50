//! What tar says while it works, kept together: how far it is, what it left out, what went wrong.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::crowd::Crowd;
use super::gnutar::{Line, TAR, exclude_argument};
use super::holes::Doubt;
use super::messages::{Meaning, Message, unescaped};
use crate::base::{Error, ErrorKind, Result};
use crate::ingest::program::ended;
use crate::storage::{Glimpse, glimpse};

/// Most bytes of a line that are looked at: a name of 4096 bytes, each spelled with four, twice.
const LONGEST_LINE: u64 = 64 << 10;
/// Most bytes of lines that are kept of each kind; of the others the number is.
const MOST_KEPT: usize = 1 << 20;
/// Most errors that an error's text names.
const MOST_TOLD: usize = 5;
/// No file system's clock is further behind ours, in nanoseconds, when it notes a change.
const SLOWEST_CLOCK_NS: i128 = 2_000_000_000;

/// Shared by whoever listens to tar and whoever asks how far it is.
#[derive(Debug, Clone)]
pub(super) struct Report {
    tree: Arc<Path>,
    /// When tar was started; nanoseconds since the epoch.
    began_ns: i128,
    said: Arc<Mutex<Said>>,
}

#[derive(Debug, Default)]
struct Said {
    entries: u64,
    /// Bytes of the members that were begun with, by what they hold.
    listed: u64,
    /// Of the last of those.
    current: u64,
    /// Bytes of the stream when that was begun with.
    current_at: u64,
    /// Bytes of the stream.
    stream: u64,
    with_acl: Option<String>,
    crowd: Crowd,
    notes: Lines,
    warnings: Lines,
    /// What could not be read and is left out.
    unreadable: Lines,
    /// How many members that concerns, and the last of them.
    unreadable_members: u64,
    last_unreadable: String,
    /// What is said of attributes, of a member that is listed next.
    attributes: Vec<(String, String)>,
    /// Files that the archive holds wrongly: what is said of each, and the words that leave it out.
    damaged: Lines,
    excludes: Vec<String>,
    errors: Lines,
}

/// The first lines of one kind, and how many more there were.
#[derive(Debug, Default, Clone)]
pub(super) struct Lines {
    pub(super) first: Vec<String>,
    pub(super) more: u64,
    bytes: usize,
}

impl Lines {
    fn add(&mut self, line: &str) {
        self.bytes = self.bytes.saturating_add(line.len()).saturating_add(size_of::<String>());
        if self.bytes <= MOST_KEPT {
            self.first.push(line.to_owned());
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    /// The first few as one text, and how many more there are.
    fn brief(&self) -> String {
        let told = self.first.get(..MOST_TOLD).unwrap_or(&self.first);
        let more = (self.first.len() as u64 + self.more).saturating_sub(told.len() as u64);
        let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
        told.join("; ") + &rest
    }
}

impl Said {
    fn damaged(&mut self, name: &[u8], what: &str) {
        self.damaged.add(&format!("{}: {what}", String::from_utf8_lossy(name)));
        if self.excludes.len() < MOST_TOLD {
            self.excludes.push(exclude_argument(name));
        }
    }

    fn unreadable(&mut self, name: &str, line: &str) {
        if self.last_unreadable != name {
            self.unreadable_members = self.unreadable_members.saturating_add(1);
            name.clone_into(&mut self.last_unreadable);
        }
        self.unreadable.add(line);
    }

    /// Says of attributes which member lacks them: `member`, the one that is listed next, where that is the one.
    fn settle_attributes(&mut self, member: Option<&str>) {
        for (base, text) in std::mem::take(&mut self.attributes) {
            let base = unescaped(&base);
            let path =
                member.filter(|name| unescaped(name.trim_end_matches('/')).ends_with(&[b"/", &base[..]].concat()));
            let name = path.map_or_else(|| String::from_utf8_lossy(&base).into_owned(), str::to_owned);
            self.unreadable(&name, &format!("{name}: {text}"));
        }
    }
}

impl Report {
    /// The report of a walk through `tree` that begins now.
    pub(super) fn new(tree: &Path) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { tree: tree.into(), began_ns: i128::try_from(now.as_nanos()).unwrap_or(i128::MAX), said: Arc::default() }
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        // Every change leaves it whole.
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in lines until the end.
    pub(super) fn listen(&self, pipe: impl Read) -> Result<()> {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            let failed = |e| Error::io("cannot read what tar says", e);
            if pipe.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(failed)? == 0 {
                self.said().settle_attributes(None);
                return Ok(());
            }
            if line.last() != Some(&b'\n') {
                // The rest of a line is no line: names may be longer than any limit, and say anything.
                pipe.skip_until(b'\n').map_err(failed)?;
            }
            self.take(String::from_utf8_lossy(&line).trim_end_matches('\n'));
        }
    }

    fn take(&self, line: &str) {
        let mut said = self.said();
        match Line::parse(line) {
            Line::Member(member) => {
                said.settle_attributes(Some(member.name));
                said.crowd.add(member.name);
                if !member.is_link {
                    said.entries = said.entries.saturating_add(1);
                }
                said.listed = said.listed.saturating_add(member.size);
                said.current = member.size;
                said.current_at = said.stream;
                if member.has_acl && said.with_acl.is_none() {
                    said.with_acl = Some(member.name.to_owned());
                }
            }
            Line::Said(text) => self.hear(said, text),
        }
    }

    fn hear(&self, mut said: MutexGuard<'_, Said>, text: &str) {
        let plain = text.strip_prefix("tar: ").unwrap_or(text);
        let Message { name, meaning } = Message::parse(text);
        match meaning {
            Meaning::Note => said.notes.add(plain),
            Meaning::Changed => said.warnings.add(plain),
            Meaning::Unreadable => said.unreadable(name, plain),
            Meaning::Attributes => {
                let text = plain.get(name.len()..).unwrap_or_default().trim_start_matches(": Warning: ");
                said.attributes.push((name.to_owned(), text.to_owned()));
            }
            Meaning::Padded(missing) => {
                // It speaks of the member that was listed last.
                let from = said.current.saturating_sub(missing);
                drop(said);
                self.doubt(&Doubt { name: unescaped(name), from: Some(from) }, plain);
            }
            Meaning::ReadError(at) => {
                let reason = plain.rsplit_once(": ").map_or("", |(_, reason)| reason);
                said.damaged(&unescaped(name), &format!("cannot be read from byte {at} on: {reason}"));
            }
            Meaning::Error => said.errors.add(plain),
            Meaning::Nothing => {}
        }
    }

    /// The archive does not hold all of a file: that is a warning, which says `warning`, where the file changed while it was read; otherwise
    /// it could not be read.
    pub(super) fn doubt(&self, Doubt { name, from }: &Doubt, warning: &str) {
        let why = match from {
            None => Some("cannot be asked for its holes".to_owned()),
            Some(from) => self.why_not_changed(name, *from),
        };
        match why {
            Some(why) => self.said().damaged(name, &why),
            None => self.said().warnings.add(warning),
        }
    }

    /// What is wrong with the file `name`, of which nothing was had from byte `from` on, unless it changed.
    fn why_not_changed(&self, name: &[u8], from: u64) -> Option<String> {
        match glimpse(&self.tree, name, from) {
            // Gone, or another one by now.
            Ok(None) => None,
            Ok(Some(Glimpse { size, .. })) if size <= from => None,
            Ok(Some(Glimpse { read: Err(e), .. })) => Some(format!("cannot be read from byte {from} on: {e}")),
            // Files of /proc, for one, end before their size says.
            Ok(Some(Glimpse { read: Ok(0), .. })) => None,
            Ok(Some(Glimpse { changed_ns, .. })) if changed_ns > self.began_ns - SLOWEST_CLOCK_NS => None,
            Ok(Some(_)) => Some(format!("could not be read from byte {from} on at first, and can be now")),
            Err(e) => Some(format!("cannot be read from byte {from} on: {}", e.report())),
        }
    }

    /// Something is wrong that tar did not say.
    pub(super) fn warn(&self, text: &str) {
        self.said().warnings.add(text);
    }

    /// So many bytes more have come out of tar.
    pub(super) fn streamed(&self, bytes: usize) {
        let mut said = self.said();
        said.stream = said.stream.saturating_add(bytes as u64);
    }

    /// Bytes of files that are done. What the stream has brought of the last one counts; a hole in it counts when it is over.
    pub(super) fn done(&self) -> u64 {
        let said = self.said();
        let of_current = said.stream.saturating_sub(said.current_at).min(said.current);
        said.listed.saturating_sub(said.current).saturating_add(of_current)
    }

    /// Members, hard links counted once.
    pub(super) fn entries(&self) -> u64 {
        self.said().entries
    }

    /// Bytes of all files that were listed.
    pub(super) fn listed(&self) -> u64 {
        self.said().listed
    }

    /// The first member that has a POSIX ACL.
    pub(super) fn with_acl(&self) -> Option<String> {
        self.said().with_acl.clone()
    }

    /// The directory with the most names, and their number.
    pub(super) fn largest_directory(&self) -> (String, u64) {
        let said = self.said();
        let (directory, names) = said.crowd.largest();
        (directory.to_owned(), names)
    }

    pub(super) fn notes(&self) -> Lines {
        self.said().notes.clone()
    }

    pub(super) fn warnings(&self) -> Lines {
        self.said().warnings.clone()
    }

    /// What could not be read and is left out.
    pub(super) fn unreadable(&self) -> Lines {
        self.said().unreadable.clone()
    }

    /// How many members that concerns.
    pub(super) fn unreadable_members(&self) -> u64 {
        self.said().unreadable_members
    }

    /// Files that the archive holds wrongly.
    pub(super) fn damaged(&self) -> Lines {
        self.said().damaged.clone()
    }

    /// Whether tar, which ended like this, made an archive of all that there was.
    pub(super) fn judge(&self, status: ExitStatus) -> Result<()> {
        let mut said = self.said();
        if !said.damaged.first.is_empty() {
            let message = format!("the backup would have zeros in place of data: {}", said.damaged.brief());
            let hint = format!("mend what is broken, or leave it out with {}", said.excludes.join(" "));
            return Err(Error::new(ErrorKind::Io, message).with_hint(hint));
        }
        let unable = said.errors.first.iter().any(|line| line.ends_with("support is not available"));
        let well = match status.code() {
            // Another program of that name may know none of the words.
            Some(0 | 1) => !unable && (said.entries > 0 || said.errors.first.is_empty()),
            // Its word for errors. All of them may have been about members that are left out.
            Some(2) => said.errors.first.is_empty() && said.unreadable_members > 0,
            Some(_) | None => false,
        };
        if well {
            // Words that are not known, of a tar that says that all went well.
            let unknown = std::mem::take(&mut said.errors);
            unknown.first.iter().for_each(|line| said.warnings.add(line));
            return match said.entries {
                0 => Err(Error::new(ErrorKind::Refused, "nothing is left of the tree")),
                _ => Ok(()),
            };
        }
        let name = TAR.name;
        let why = match said.errors.first.as_slice() {
            [] => format!("{name} {}", ended(status)),
            _ => said.errors.brief(),
        };
        Err(Error::new(ErrorKind::Io, format!("the tree cannot be read: {why}"))
            .with_hint("mend it, leave it out with --exclude, or read the tree as a user who may"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    /// What a run comes to in which tar said `lines` and ended with `code`.
    fn judged(lines: &str, code: i32) -> Result<(Vec<String>, u64)> {
        let report = Report::new(Path::new("/nonexistent"));
        report.listen(lines.as_bytes()).unwrap();
        report.judge(ExitStatus::from_raw(code << 8))?;
        Ok((report.unreadable().first, report.unreadable_members()))
    }

    const TOP: &str = "drwxr-xr-x  0/0               0 2026-11-21 17:56 ./\n";

    #[test]
    fn an_end_with_errors_is_forgiven_only_when_all_that_was_said_is_about_what_is_left_out() {
        let said = |lines: &str, code| judged(&format!("{TOP}{lines}"), code).map(|(_, members)| members);
        let open = "tar: ./a: Cannot open: Permission denied\n";
        assert_eq!(said(&format!("{open}tar: ./b/: Cannot savedir: Input/output error\n"), 2).unwrap(), 2);
        assert_eq!(said(&format!("{open}{open}"), 2).unwrap(), 1, "one path, whatever is said of it");
        assert!(said("", 2).is_err(), "no reason is given");
        assert!(said("tar: ./a: file changed as we read it\n", 2).is_err(), "no reason for that end");
        assert!(said("tar: x: Warning: Cannot flistxattr: Input/output error\n", 1).is_ok());
        for other in ["tar: ./b: Cannot seek to 5: Bad luck", "tar: Memory exhausted", "", "tar: ./: Cannot open: Gone"]
        {
            let e = said(&format!("{open}{other}\n"), 2).unwrap_err();
            assert!(e.to_string().contains(other.trim_start_matches("tar: ")), "{e}");
        }
        assert!(said(open, 3).is_err() && judged(&format!("{TOP}{open}"), 0x40).is_err());
        // Whatever the end, and whatever else was said.
        for code in [0, 1, 2] {
            let lines =
                format!("{open}tar: ./db: Read error at byte 512, while reading 512 bytes: Input/output error\n");
            let e = said(&lines, code).unwrap_err();
            assert!(e.to_string().contains("./db: cannot be read from byte 512 on: Input/output error"), "{e}");
            assert_eq!(e.hint(), Some("mend what is broken, or leave it out with --exclude '/db'"));
        }
    }

    #[test]
    fn a_file_that_came_out_too_short_has_changed_or_could_not_be_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "12345").unwrap();
        let mut report = Report::new(dir.path());
        let why = |report: &Report, name: &str, from| report.why_not_changed(name.as_bytes(), from);
        assert_eq!(why(&report, "./a", 5), None, "it is no longer now");
        assert_eq!(why(&report, "./gone", 0), None);
        assert_eq!(why(&report, "./a", 3), None, "it grew again meanwhile");
        // As if it had been like that long before.
        report.began_ns += 3_600_000_000_000;
        assert_eq!(why(&report, "./a", 3).unwrap(), "could not be read from byte 3 on at first, and can be now");
        assert_eq!(why(&report, "./a", 5), None);
        let long = format!("./{}", "x".repeat(300));
        assert!(
            why(&report, &long, 3).unwrap().contains("File name too long"),
            "what cannot be looked at is not believed"
        );
    }

    #[test]
    fn attributes_are_missed_at_the_member_that_is_listed_next() {
        let (said, members) = judged(
            &format!(
                "{TOP}tar: a\\: b: Warning: Cannot acl_get_file_at: Input/output error\n\
                 tar: a\\: b: Warning: Cannot flistxattr: Input/output error\n\
                 -rw-r--r-- 0/0 5 2026-11-21 17:56 ./d/a: b\n\
                 tar: gone: Warning: Cannot flistxattr: Input/output error\n\
                 -rw-r--r-- 0/0 5 2026-11-21 17:56 ./d/other\n\
                 tar: last: Warning: Cannot flistxattr: Input/output error\n"
            ),
            0,
        )
        .unwrap();
        let error = "Input/output error";
        let expected = [
            format!("./d/a: b: Cannot acl_get_file_at: {error}"),
            format!("./d/a: b: Cannot flistxattr: {error}"),
            format!("gone: Cannot flistxattr: {error}"),
            format!("last: Cannot flistxattr: {error}"),
        ];
        assert_eq!((said, members), (expected.to_vec(), 3));
    }

    #[test]
    fn the_rest_of_a_line_that_is_too_long_is_no_line() {
        // Directories below each other may have a path of any length; in a listing, colons have no backslash.
        let head = format!("{TOP}-rw-r--r-- 0/0 5 2026-11-21 17:56 ./");
        let long = "x".repeat(LONGEST_LINE as usize - (head.len() - TOP.len()));
        let lines = format!("{head}{long}tar: ./y: Cannot open: Permission denied\n");
        assert!(judged(&lines, 2).is_err(), "a name is no reason for that end");
        assert_eq!(judged(&lines, 0).unwrap(), (Vec::new(), 0));
    }

    #[test]
    fn lines_are_kept_up_to_a_limit_and_counted_beyond() {
        let line = format!("tar: ./{}: Cannot open: Permission denied\n", "x".repeat(1000));
        let report = Report::new(Path::new("/nonexistent"));
        report.listen(line.repeat(2000).as_bytes()).unwrap();
        let lines = report.unreadable();
        assert!(lines.first.len() < 1100 && lines.first.len() > 900);
        assert_eq!(lines.first.len() as u64 + lines.more, 2000);
    }
}
