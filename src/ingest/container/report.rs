//! What tar says while it works, kept together: how far it is, what it left out, what went wrong.

use std::io::{BufRead as _, BufReader, Read};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::gnutar::{Line, TAR, Weight};
use crate::base::{Error, ErrorKind, Result};
use crate::ingest::program::ended;

/// Most bytes of a line that are looked at: a name of 4096 bytes, each spelled with four, twice.
const LONGEST_LINE: u64 = 64 << 10;
/// Most lines that are kept of each kind; of the others the number is.
const MOST_LINES: usize = 1000;
/// Most errors that an error's text names.
const MOST_TOLD: usize = 5;

/// Shared by whoever listens to tar and whoever asks how far it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Report(Arc<Mutex<Said>>);

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
    notes: Lines,
    warnings: Lines,
    vanished: bool,
    errors: Lines,
}

/// The first lines of one kind, and how many more there were.
#[derive(Debug, Default, Clone)]
pub(super) struct Lines {
    pub(super) first: Vec<String>,
    pub(super) more: u64,
}

impl Lines {
    fn add(&mut self, line: &str) {
        if self.first.len() < MOST_LINES {
            self.first.push(line.to_owned());
        } else {
            self.more = self.more.saturating_add(1);
        }
    }
}

impl Report {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        // Every change leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in lines until the end.
    pub(super) fn listen(&self, pipe: impl Read) -> Result<()> {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = pipe.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
            match read.map_err(|e| Error::io("cannot read what tar says", e))? {
                0 => return Ok(()),
                _ => self.take(String::from_utf8_lossy(&line).trim_end_matches('\n')),
            }
        }
    }

    fn take(&self, line: &str) {
        let mut said = self.said();
        match Line::parse(line) {
            Line::Member(member) => {
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
            Line::Said(text) => {
                let plain = text.strip_prefix("tar: ").unwrap_or(text);
                match Weight::of(text) {
                    Weight::Note => said.notes.add(plain),
                    Weight::Warning => said.warnings.add(plain),
                    Weight::Vanished => {
                        said.vanished = true;
                        said.warnings.add(plain);
                    }
                    Weight::Error => said.errors.add(plain),
                    Weight::Summary => {}
                }
            }
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

    pub(super) fn notes(&self) -> Lines {
        self.said().notes.clone()
    }

    pub(super) fn warnings(&self) -> Lines {
        self.said().warnings.clone()
    }

    /// Whether tar, which ended like this, made an archive of all that there was.
    pub(super) fn judge(&self, status: ExitStatus) -> Result<()> {
        let mut said = self.said();
        let unable = said.errors.first.iter().any(|line| line.ends_with("support is not available"));
        let well = match status.code() {
            // Another program of that name may know none of the words.
            Some(0 | 1) => !unable && (said.entries > 0 || said.errors.first.is_empty()),
            // Its word for errors. That something was gone when its turn came is none.
            Some(2) => said.errors.first.is_empty() && said.vanished,
            Some(_) | None => false,
        };
        if well {
            // Words that are not known, of a tar that says that all went well.
            let unknown = std::mem::take(&mut said.errors);
            unknown.first.iter().for_each(|line| said.warnings.add(line));
            return match said.entries {
                0 => Err(Error::new(ErrorKind::Refused, "the patterns leave nothing of the tree")),
                _ => Ok(()),
            };
        }
        let name = TAR.name;
        let why = match said.errors.first.get(..MOST_TOLD.min(said.errors.first.len())) {
            None | Some([]) => format!("{name} {}", ended(status)),
            Some(lines) => {
                let more = (said.errors.first.len() as u64 + said.errors.more).saturating_sub(lines.len() as u64);
                let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
                lines.join("; ") + &rest
            }
        };
        Err(Error::new(ErrorKind::Io, format!("the tree cannot be read: {why}"))
            .with_hint("mend it, leave it out with --exclude, or read the tree as a user who may"))
    }
}
