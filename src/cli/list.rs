//! `annals list`: the guests of a store, or the backups of a guest.

use serde::Serialize;

use super::Outcome;
use super::args::Global;
use super::output::{Output, Progress, Tone, printable, size};
use crate::base::Result;
use crate::catalog::{BackupSummary, CheckedBackup, FoundArchive, Guest, GuestId, GuestKind, Problem, Store};

/// List guests, or the backups of one guest, and say which are broken
///
/// Every image is looked into: its header and its tables, not its data; of a tar archive, its end. A backup is broken when a disk or
/// an archive of it cannot be trusted, be it that an image is missing, damaged or must not be opened. The exit code is 3 when something is.
/// A container's backup is incomplete when something could not be read as it was made; `show` tells how much, its backup.log what.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The guest whose backups to list; without it all guests are listed
    guest: Option<String>,
    /// Do not look into the images: list what directories and manifests say
    #[arg(long)]
    quick: bool,
}

/// The store's guests.
#[derive(Serialize)]
struct Guests {
    guests: Vec<GuestLine>,
    /// What lies among the guests and is none.
    skipped: Vec<Problem>,
}

#[derive(Serialize)]
struct GuestLine {
    guest: GuestId,
    kinds: Vec<GuestKind>,
    backups: usize,
    oldest: Option<String>,
    latest: Option<String>,
    broken: Vec<BrokenBackup>,
    problems: Vec<Problem>,
}

#[derive(Serialize)]
struct BrokenBackup {
    backup: String,
    problems: Vec<Problem>,
}

/// One guest's backups.
#[derive(Serialize)]
struct Backups {
    guest: GuestId,
    backups: Vec<BackupLine>,
    problems: Vec<Problem>,
}

#[derive(Serialize)]
struct BackupLine {
    #[serde(flatten)]
    summary: BackupSummary,
    #[serde(skip_serializing_if = "Option::is_none")]
    directory: Option<String>,
    disks: Vec<String>,
    archives: Vec<FoundArchive>,
    broken: bool,
    /// Something could not be read when it was made; what is there is well.
    incomplete: bool,
    problems: Vec<Problem>,
}

pub(super) fn run(args: &Args, global: &Global, output: &Output) -> Result<Outcome> {
    let guest: Option<GuestId> = args.guest.as_deref().map(str::parse).transpose()?;
    let store = global.open_store()?;
    let progress = Progress::start("layers looked at:");
    let look = |guest: &Guest| look(&store, guest, args.quick, &progress);
    match guest {
        None => {
            let list = list_guests(&store, look)?;
            drop(progress);
            output.print(&list, |list| guests_text(list, output))?;
            let broken = |line: &GuestLine| !line.problems.is_empty() || !line.broken.is_empty();
            Ok(outcome(!list.skipped.is_empty() || list.guests.iter().any(broken)))
        }
        Some(id) => {
            let list = list_backups(&*store.guest(&id)?, look)?;
            drop(progress);
            output.print(&list, |list| backups_text(list, output))?;
            Ok(outcome(!list.problems.is_empty() || list.backups.iter().any(|line| line.broken)))
        }
    }
}

fn outcome(broken: bool) -> Outcome {
    if broken { Outcome::Broken } else { Outcome::Done }
}

/// Every backup of `guest` with what is wrong with it, as far as was asked for.
fn look(store: &Store, guest: &Guest, quick: bool, progress: &Progress) -> Result<Vec<CheckedBackup>> {
    if !quick {
        progress.part(format!("of guest {}", guest.id));
        return store.check(guest, &|done, known| progress.set(done, known));
    }
    let unchecked = guest.backups().iter().map(|summary| match store.backup(&guest.id, &summary.name) {
        Ok(backup) => CheckedBackup::unchecked(summary.name.clone(), &backup),
        Err(e) => CheckedBackup::unreadable(summary.name.clone(), &e),
    });
    Ok(unchecked.collect())
}

fn list_guests(store: &Store, look: impl Fn(&Guest) -> Result<Vec<CheckedBackup>>) -> Result<Guests> {
    let mut list = Guests { guests: Vec::new(), skipped: store.skipped()?.to_vec() };
    for id in store.guests()?.iter() {
        let line = store.guest(id).and_then(|guest| Ok(guest_line(&guest, look(&guest)?)));
        list.guests.push(line.unwrap_or_else(|e| GuestLine {
            guest: id.clone(),
            kinds: Vec::new(),
            backups: 0,
            oldest: None,
            latest: None,
            broken: Vec::new(),
            problems: vec![Problem::of(id.as_str(), &e)],
        }));
    }
    Ok(list)
}

fn guest_line(guest: &Guest, checked: Vec<CheckedBackup>) -> GuestLine {
    let mut kinds: Vec<GuestKind> = guest.backups().iter().map(|b| b.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let broken = checked.into_iter().filter(|backup| !backup.problems.is_empty());
    GuestLine {
        guest: guest.id.clone(),
        kinds,
        backups: guest.backups().len(),
        oldest: guest.backups().first().map(|b| b.name.to_string()),
        latest: guest.latest().map(|b| b.name.to_string()),
        broken: broken.map(|b| BrokenBackup { backup: b.name.to_string(), problems: b.problems }).collect(),
        problems: guest.problems.clone(),
    }
}

fn guests_text(list: &Guests, output: &Output) -> String {
    let row = |line: &GuestLine| {
        let kinds: Vec<_> = line.kinds.iter().map(|k| k.name()).collect();
        let oldest = line.oldest.clone().unwrap_or_default();
        let latest = line.latest.clone().unwrap_or_default();
        let broken = line.broken.len().to_string();
        [line.guest.to_string(), kinds.join(","), line.backups.to_string(), broken, oldest, latest]
    };
    let rows: Vec<_> = list.guests.iter().map(row).collect();
    let mut text = output.table(["GUEST", "KIND", "BACKUPS", "BROKEN", "OLDEST", "LATEST"], &rows);
    for line in &list.guests {
        for broken in &line.broken {
            text += &problems_text(&format!("{}@{}", line.guest, broken.backup), &broken.problems, output);
        }
        text += &problems_text(&format!("guest {}", line.guest), &line.problems, output);
    }
    text + &problems_text("store", &list.skipped, output)
}

fn list_backups(guest: &Guest, look: impl Fn(&Guest) -> Result<Vec<CheckedBackup>>) -> Result<Backups> {
    let line = |(summary, checked): (&BackupSummary, CheckedBackup)| BackupLine {
        directory: summary.directory().map(str::to_owned),
        summary: summary.clone(),
        disks: checked.disks,
        incomplete: checked.archives.iter().any(|archive| archive.unreadable.is_some()),
        archives: checked.archives,
        broken: !checked.problems.is_empty(),
        problems: checked.problems,
    };
    Ok(Backups {
        guest: guest.id.clone(),
        backups: guest.backups().iter().zip(look(guest)?).map(line).collect(),
        problems: guest.problems.clone(),
    })
}

fn backups_text(list: &Backups, output: &Output) -> String {
    let row = |line: &BackupLine| {
        let summary = &line.summary;
        let state = match (line.broken, line.incomplete) {
            (true, _) => "broken",
            (false, true) => "incomplete",
            (false, false) => "ok",
        };
        let protected = if summary.protected { "yes" } else { "" };
        let remark: Vec<&str> = [&summary.label, &summary.notes].into_iter().flatten().map(String::as_str).collect();
        [
            summary.name.to_string(),
            summary.kind.to_string(),
            state.to_owned(),
            protected.to_owned(),
            contents(line),
            remark.join("; "),
        ]
    };
    let rows: Vec<_> = list.backups.iter().map(row).collect();
    let mut text = output.table(["BACKUP", "KIND", "STATE", "PROTECTED", "CONTENTS", "NOTES"], &rows);
    for line in &list.backups {
        text += &problems_text(&format!("{}@{}", list.guest, line.summary.name), &line.problems, output);
    }
    text + &problems_text(&format!("guest {}", list.guest), &list.problems, output)
}

/// The names of the disks; of an archive its kind and size, and the number of its members where that is known.
fn contents(line: &BackupLine) -> String {
    let archive = |found: &FoundArchive| match found.entries {
        Some(entries) => format!("{}, {}, {entries} members", found.format, size(found.size)),
        None => format!("{}, {}", found.format, size(found.size)),
    };
    let all: Vec<String> = line.disks.iter().cloned().chain(line.archives.iter().map(archive)).collect();
    all.join(" ")
}

/// One line for each problem of `of`.
pub(super) fn problems_text(of: &str, problems: &[Problem], output: &Output) -> String {
    let broken = output.paint(Tone::Bad, "broken");
    problems.iter().map(|p| format!("{broken}: {}: {}\n", printable(of), printable(&p.to_string()))).collect()
}
