//! `annals list`: the guests of a store, or the backups of a guest.

use serde::Serialize;

use super::Outcome;
use super::args::Global;
use super::output::{Output, Tone, printable};
use crate::base::Result;
use crate::catalog::{BackupSummary, Guest, GuestId, GuestKind, Problem, Store};

/// List guests, or the backups of one guest
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The guest whose backups to list; without it all guests are listed
    guest: Option<String>,
}

/// The store's guests.
#[derive(Serialize)]
struct Guests {
    guests: Vec<GuestLine>,
    skipped: Vec<Problem>,
}

#[derive(Serialize)]
struct GuestLine {
    guest: GuestId,
    kinds: Vec<GuestKind>,
    backups: usize,
    oldest: Option<String>,
    latest: Option<String>,
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
    disks: Vec<String>,
    problems: Vec<Problem>,
}

pub(super) fn run(args: &Args, global: &Global, output: &Output) -> Result<Outcome> {
    let guest: Option<GuestId> = args.guest.as_deref().map(str::parse).transpose()?;
    let store = global.open_store()?;
    match &guest {
        None => list_guests(&store, output),
        Some(id) => list_backups(&store, id, output),
    }
}

fn list_guests(store: &Store, output: &Output) -> Result<Outcome> {
    let mut list = Guests { guests: Vec::new(), skipped: store.skipped()?.to_vec() };
    for id in store.guests()?.iter() {
        list.guests.push(match store.guest(id) {
            Ok(guest) => guest_line(&guest),
            Err(e) => GuestLine {
                guest: id.clone(),
                kinds: Vec::new(),
                backups: 0,
                oldest: None,
                latest: None,
                problems: vec![Problem::of(id.as_str(), &e)],
            },
        });
    }
    output.print(&list, |list| guests_text(list, output))?;
    let broken = !list.skipped.is_empty() || list.guests.iter().any(|guest| !guest.problems.is_empty());
    Ok(if broken { Outcome::Broken } else { Outcome::Done })
}

fn guest_line(guest: &Guest) -> GuestLine {
    let mut kinds: Vec<GuestKind> = guest.backups().iter().map(|b| b.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    GuestLine {
        guest: guest.id.clone(),
        kinds,
        backups: guest.backups().len(),
        oldest: guest.backups().first().map(|b| b.name.to_string()),
        latest: guest.latest().map(|b| b.name.to_string()),
        problems: guest.problems.clone(),
    }
}

fn guests_text(list: &Guests, output: &Output) -> String {
    let rows: Vec<_> = list
        .guests
        .iter()
        .map(|line| {
            let kinds: Vec<_> = line.kinds.iter().map(|k| k.name()).collect();
            let oldest = line.oldest.clone().unwrap_or_default();
            let latest = line.latest.clone().unwrap_or_default();
            [line.guest.to_string(), kinds.join(","), line.backups.to_string(), oldest, latest]
        })
        .collect();
    let mut text = output.table(["GUEST", "KIND", "BACKUPS", "OLDEST", "LATEST"], &rows);
    for line in &list.guests {
        text += &problems_text(&format!("guest {}", line.guest), &line.problems, output);
    }
    text + &problems_text("store", &list.skipped, output)
}

fn list_backups(store: &Store, id: &GuestId, output: &Output) -> Result<Outcome> {
    let guest = store.guest(id)?;
    let mut list = Backups { guest: id.clone(), backups: Vec::new(), problems: guest.problems.clone() };
    for summary in guest.backups() {
        let (disks, problems) = match store.backup(id, &summary.name) {
            Ok(backup) => (backup.disks.iter().map(|d| d.name.clone()).collect(), backup.problems.clone()),
            Err(e) => (Vec::new(), vec![Problem::of(summary.name.as_str(), &e)]),
        };
        list.backups.push(BackupLine { summary: summary.clone(), disks, problems });
    }
    output.print(&list, |list| backups_text(list, output))?;
    let broken = !list.problems.is_empty() || list.backups.iter().any(|line| !line.problems.is_empty());
    Ok(if broken { Outcome::Broken } else { Outcome::Done })
}

fn backups_text(list: &Backups, output: &Output) -> String {
    let rows: Vec<_> = list
        .backups
        .iter()
        .map(|line| {
            let state = if line.problems.is_empty() { "ok" } else { "broken" };
            let summary = &line.summary;
            let protected = if summary.protected { "protected" } else { "" };
            [
                summary.name.to_string(),
                summary.kind.to_string(),
                state.to_owned(),
                protected.to_owned(),
                line.disks.join(" "),
                summary.notes.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let mut text = output.table(["BACKUP", "KIND", "STATE", "PROTECTED", "DISKS", "NOTES"], &rows);
    for line in &list.backups {
        text += &problems_text(line.summary.name.as_str(), &line.problems, output);
    }
    text + &problems_text(&format!("guest {}", list.guest), &list.problems, output)
}

/// One line for each problem of `of`.
pub(super) fn problems_text(of: &str, problems: &[Problem], output: &Output) -> String {
    let broken = output.paint(Tone::Bad, "broken");
    problems.iter().map(|p| format!("{broken}: {}: {}\n", printable(of), printable(&p.to_string()))).collect()
}
