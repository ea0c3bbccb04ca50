//! The small files beside a guest's backups: what may change about them, and what older tools left.

use super::{Guest, PreviousInfo, Problem};
use crate::base::{Error, ErrorKind, Result, Timestamp};
use crate::format::manifest::{Attributes, SIZE_LIMIT};
use crate::storage::{DirEntry, Gate, RelPath};

/// What may change about a guest's backups.
const ATTRIBUTES: &str = "attributes.json";
/// What older tools note about the next incremental backup.
const PREVIOUS_INFO: &str = "previous-info";
/// Most bytes of `previous-info`, which holds one short line.
const PREVIOUS_INFO_LIMIT: usize = 4096;

/// Whether a file in a guest's directory is one of these, and not part of a backup.
pub(super) fn is_one(name: &str) -> bool {
    matches!(name, ATTRIBUTES | PREVIOUS_INFO)
}

/// Adds to `guest` what these files say.
pub(super) fn read(gate: &Gate, entries: &[DirEntry], guest: &mut Guest) -> Result<()> {
    let has = |name: &str| entries.iter().any(|entry| entry.name == name);
    if has(ATTRIBUTES) {
        match gate.read_file(&RelPath::new(ATTRIBUTES)?, SIZE_LIMIT).and_then(|bytes| Attributes::parse(&bytes)) {
            Ok(attributes) => apply(&attributes, guest),
            Err(e) => guest.problems.push(Problem::of(ATTRIBUTES, &e)),
        }
    }
    if has(PREVIOUS_INFO) {
        match gate.read_file(&RelPath::new(PREVIOUS_INFO)?, PREVIOUS_INFO_LIMIT).and_then(parse_previous_info) {
            Ok(previous) => guest.previous = Some(previous),
            Err(e) => guest.problems.push(Problem::of(PREVIOUS_INFO, &e)),
        }
    }
    Ok(())
}

fn apply(attributes: &Attributes, guest: &mut Guest) {
    for summary in &mut guest.backups {
        let key = summary.directory().unwrap_or(summary.name.as_str());
        if let Some(found) = attributes.backups.get(key) {
            summary.protected = found.protected;
            summary.notes.clone_from(&found.notes);
        }
    }
}

/// `previous-info` is one line: the bitmap's id and the backup's time in seconds since the epoch.
fn parse_previous_info(bytes: Vec<u8>) -> Result<PreviousInfo> {
    let text = String::from_utf8(bytes).ok();
    let mut words = text.as_deref().unwrap_or_default().split_whitespace();
    match (words.next(), words.next().and_then(Timestamp::parse_epoch), words.next()) {
        (Some(bitmap), Some(time), None) => Ok(PreviousInfo { bitmap: bitmap.to_owned(), time }),
        _ => Err(Error::new(ErrorKind::Corrupt, format!("{PREVIOUS_INFO} does not hold a bitmap's id and a time"))),
    }
}
