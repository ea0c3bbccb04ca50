//! `annals show`: one backup in every detail.

use serde::Serialize;

use super::Outcome;
use super::args::Global;
use super::list::problems_text;
use super::output::{Output, printable, size};
use crate::base::Result;
use crate::catalog::{BackupFile, BackupRef, BackupSummary, DiskEntry, GuestId, Problem};

/// Show a backup: its files and disks, and what is broken and why
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The backup: GUEST@latest, GUEST@2024-11-07T16:51:22Z, GUEST@2024-11-07T16-51-22Z or GUEST@2024-11-07
    #[arg(value_name = "REF")]
    reference: String,
}

#[derive(Serialize)]
struct Shown {
    guest: GuestId,
    #[serde(flatten)]
    summary: BackupSummary,
    files: Vec<BackupFile>,
    disks: Vec<DiskEntry>,
    problems: Vec<Problem>,
}

pub(super) fn run(args: &Args, global: &Global, output: &Output) -> Result<Outcome> {
    let reference: BackupRef = args.reference.parse()?;
    let store = global.open_store()?;
    let guest = store.guest(&reference.guest)?;
    let summary = reference.find(&guest)?;
    let backup = store.backup(&guest.id, &summary.name)?;
    let shown = Shown {
        guest: guest.id.clone(),
        summary: backup.summary.clone(),
        files: backup.files.clone(),
        disks: backup.disks.clone(),
        problems: backup.problems.clone(),
    };
    output.print(&shown, |shown| text(shown, output))?;
    Ok(if shown.problems.is_empty() { Outcome::Done } else { Outcome::Broken })
}

fn text(shown: &Shown, output: &Output) -> String {
    let mut text = format!("{}@{}\n", printable(shown.guest.as_str()), printable(shown.summary.name.as_str()));
    let rows: Vec<_> = shown.files.iter().map(|file| [file.name.clone(), size(file.size)]).collect();
    if !rows.is_empty() {
        text += &output.table(["FILE", "SIZE"], &rows);
    }
    let rows: Vec<_> = shown.disks.iter().map(|disk| [disk.name.clone(), disk.path.to_string()]).collect();
    if !rows.is_empty() {
        text += &output.table(["DISK", "LAYER"], &rows);
    }
    text + &problems_text(shown.summary.name.as_str(), &shown.problems, output)
}
