//! `annals backup container`: reads a container's tree and publishes one more backup of it.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::super::Outcome;
use super::super::args::Global;
use super::super::output::{Output, printable, size};
use super::common::{Files, Rate, guest_id, listen_to_signals, tell_end};
use super::progress::Progress;
use crate::base::Result;
use crate::ingest::container::{self, ArchivePlan, FormatChoice, Pattern, Request};
use crate::ingest::{Finished, Interrupt};
use crate::storage::write::Direct;

/// Back up a container
///
/// Reads the tree at PATH, which should be a snapshot or at rest, and publishes it as one more backup of the guest: a tar archive or a
/// squashfs image with everything in it, owners, modes, times, hard links, holes, devices, extended attributes and ACLs.
/// Other file systems that are mounted in the tree are left out, as are sockets and everything called lost+found. The backup appears in one
/// instant when all of it is on the medium; until then, and when the run fails or is killed, the store shows what it showed before.
///
/// A file that changes or goes away while it is read is a warning. What cannot be opened, looked at or listed is left out; what it was and
/// why is in backup.log, and show says how many paths the backup lacks. In both cases the exit code is 3. A file that is open
/// and then cannot be read to its end fails the run, for the backup would have zeros in place of its data.
///
/// GNU tar reads the tree; for squashfs, tar2sqfs (package squashfs-tools-ng) makes the image of what it writes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The guest's id: the name of its directory in the store
    #[arg(value_name = "GUEST")]
    guest: String,
    /// The top of the container's tree
    #[arg(value_name = "PATH")]
    tree: PathBuf,
    /// The kind of archive: tar, squashfs (smaller; cannot hold POSIX ACLs, parts of seconds, nor times before 1970 or after 2105), or
    /// auto: squashfs unless a member has an ACL, or a directory more than 20,000 names, which take tar2sqfs very long
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    format: FormatChoice,
    /// Leave out what this shell pattern matches, and what is in it; a pattern that starts with / is anchored at PATH, any other one
    /// matches anywhere. * and ? match slashes, too. May be given more than once
    #[arg(long = "exclude", value_name = "PATTERN")]
    excludes: Vec<Pattern>,
    #[command(flatten)]
    files: Files,
    /// Read at most this many bytes a second; K, M, G and T stand for powers of 1024
    #[arg(long, value_name = "RATE")]
    bwlimit: Option<Rate>,
    /// Only say which archive would be made of what, and why
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: Args, global: &Global, output: &Output) -> Result<Outcome> {
    let dry_run = args.dry_run;
    let request = Request {
        store: global.store_path()?.to_owned(),
        guest: guest_id(&args.guest)?,
        tree: args.tree,
        format: args.format,
        excludes: args.excludes,
        files: args.files.kept(),
        bytes_per_second: args.bwlimit.map(|Rate(bytes)| bytes),
    };
    if dry_run {
        let plan = Planned { guest: request.guest.to_string(), archive: container::dry_run(&request)? };
        output.print(&plan, |plan| plan_text(&plan.archive, output))?;
        return Ok(Outcome::Done);
    }
    let interrupt = Interrupt::default();
    listen_to_signals(&interrupt)?;
    let progress = Progress::new(global.json);
    let finished = container::run(&request, Arc::new(Direct), &interrupt, &|event| progress.tell(event, output));
    progress.end();
    let finished = finished?;
    Ok(tell_end(&finished, global.json, output, |finished| finished_text(finished, output)))
}

#[derive(Serialize)]
struct Planned {
    guest: String,
    archive: ArchivePlan,
}

fn plan_text(plan: &ArchivePlan, output: &Output) -> String {
    let row = [plan.format.name().to_owned(), plan.entries.to_string(), size(plan.bytes), plan.reason.clone()];
    let mut text = output.table(["ARCHIVE", "MEMBERS", "SIZE", "BECAUSE"], &[row]);
    for pattern in &plan.excluded {
        text += &format!("without: {}\n", printable(pattern));
    }
    for note in &plan.notes {
        text += &format!("note: {}\n", printable(note));
    }
    text
}

fn finished_text(finished: &Finished, output: &Output) -> String {
    let head = format!("{}/{}\n", printable(&finished.guest), printable(&finished.backup));
    let row = finished.archive.as_ref().map(|archive| {
        let file = archive.hash.as_ref().and_then(|hash| hash.size).unwrap_or_default();
        let entries = archive.entries.map(|entries| entries.to_string()).unwrap_or_default();
        [archive.file.clone(), archive.format.clone(), entries, size(file)]
    });
    head + &output.table(["ARCHIVE", "FORMAT", "MEMBERS", "FILE"], row.as_slice())
}
