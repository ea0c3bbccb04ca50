//! `annals backup vm`: pulls a virtual machine's disks and publishes one more backup of it.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::super::Outcome;
use super::super::args::Global;
use super::super::output::{Output, printable, size};
use super::common::{Files, Rate, guest_id, listen_to_signals, tell_end};
use super::progress::Progress;
use crate::base::{Error, ErrorKind, Result};
use crate::ingest::{self, DiskSpec, Finished, Interrupt, MAX_LAYERS, MOST_MAX_LAYERS, PlannedDisk, Request};
use crate::storage::write::Direct;

/// Back up a virtual machine
///
/// Pulls the disks that are named and publishes them as one more backup of the guest. A disk whose source says what has changed since its
/// latest backup becomes an increment on that, every other one a full image; which and why is printed, logged and kept. The
/// backup appears in one instant when all of it is on the medium; until then, and when the run fails or is killed, the store
/// shows what it showed before.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The guest's id: the name of its directory in the store
    #[arg(value_name = "GUEST")]
    guest: String,
    /// A disk: its name and an NBD URI, a raw file or a block device; of an export, bitmap=B names the dirty bitmap to go by, of a file,
    /// dirty=FILE a list of changed ranges (a line OFFSET LENGTH each); since=ID says from which checkpoint on those count, and must
    /// be the one of the disk's latest backup. Give it once for each disk
    #[arg(long = "disk", value_name = "NAME=SOURCE[,bitmap=B|,dirty=FILE][,since=ID]", required = true)]
    disks: Vec<DiskSpec>,
    #[command(flatten)]
    files: Files,
    /// What the source calls this point in time; the next backup's since=ID is held against it
    #[arg(long, value_name = "ID")]
    checkpoint: Option<String>,
    /// Make full images, whatever the sources offer
    #[arg(long)]
    full: bool,
    /// The most layers that a disk's chain is to have: after as many, the next backup is a full one. With more than the usual 100, qemu-img
    /// may find the layers' names together too long and refuse to open the disk (from some 140 on); annals itself does not mind
    #[arg(long, value_name = "N", default_value_t = MAX_LAYERS, value_parser = max_layers)]
    max_layers: usize,
    /// How to compress the images: none, zstd or zstd:LEVEL
    #[arg(long, value_name = "METHOD", default_value = "none")]
    compress: Compress,
    /// Read at most this many bytes a second, all disks together; K, M, G and T stand for powers of 1024
    #[arg(long, value_name = "RATE")]
    bwlimit: Option<Rate>,
    /// Tell the source to discard what has been read and written; it cannot be read a second time then
    #[arg(long)]
    discard_source: bool,
    /// Give up when a source has been silent or gone for so many seconds; until then, a lost connection is made anew
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Only say what would be read and why
    #[arg(long)]
    dry_run: bool,
}

fn max_layers(text: &str) -> std::result::Result<usize, String> {
    let layers = text.parse().ok().filter(|layers| (1..=MOST_MAX_LAYERS).contains(layers));
    layers.ok_or_else(|| format!("it is a number from 1 to {MOST_MAX_LAYERS}"))
}

/// `none`, `zstd` or `zstd:LEVEL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Compress(Option<i32>);

impl FromStr for Compress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let level = match text.split_once(':') {
            None if text == "none" => return Ok(Self(None)),
            None if text == "zstd" => Some(zstd::DEFAULT_COMPRESSION_LEVEL),
            Some(("zstd", level)) => level.parse().ok(),
            _ => None,
        };
        let level = level.filter(|level| zstd::compression_level_range().contains(level));
        level.map(|level| Self(Some(level))).ok_or_else(|| {
            let range = zstd::compression_level_range();
            Error::new(
                ErrorKind::Usage,
                format!(
                    "'{text}' is not none, zstd or zstd:LEVEL with a level from {} to {}",
                    range.start(),
                    range.end()
                ),
            )
        })
    }
}

pub(super) fn run(args: Args, global: &Global, output: &Output) -> Result<Outcome> {
    let dry_run = args.dry_run;
    let request = request(args, global)?;
    if dry_run {
        let plan = Planned { guest: request.guest.to_string(), disks: ingest::dry_run(&request)? };
        output.print(&plan, |plan| plan_text(plan, output))?;
        return Ok(Outcome::Done);
    }
    let interrupt = Interrupt::default();
    listen_to_signals(&interrupt)?;
    let progress = Progress::new(global.json);
    let finished = ingest::run(&request, Arc::new(Direct), &interrupt, &|event| progress.tell(event, output));
    progress.end();
    let finished = finished?;
    Ok(tell_end(&finished, global.json, output, |finished| finished_text(finished, output)))
}

fn request(args: Args, global: &Global) -> Result<Request> {
    Ok(Request {
        store: global.store_path()?.to_owned(),
        guest: guest_id(&args.guest)?,
        disks: args.disks,
        files: args.files.kept(),
        checkpoint: args.checkpoint,
        full: args.full,
        max_layers: args.max_layers,
        zstd: args.compress.0,
        bytes_per_second: args.bwlimit.map(|Rate(bytes)| bytes),
        discard_source: args.discard_source,
        patience: Duration::from_secs(args.timeout),
    })
}

#[derive(Serialize)]
struct Planned {
    guest: String,
    disks: Vec<PlannedDisk>,
}

fn plan_text(plan: &Planned, output: &Output) -> String {
    let rows: Vec<_> = plan
        .disks
        .iter()
        .map(|disk| {
            let kind = if disk.decision.parent().is_some() { "incremental" } else { "full" };
            let reason = disk.decision.reason().to_owned();
            [disk.disk.clone(), kind.to_owned(), size(disk.size), size(disk.read), size(disk.zeros), reason]
        })
        .collect();
    output.table(["DISK", "BACKUP", "SIZE", "TO READ", "ZEROS", "BECAUSE"], &rows)
}

fn finished_text(finished: &Finished, output: &Output) -> String {
    let rows: Vec<_> = finished
        .disks
        .iter()
        .map(|disk| {
            let kind = if disk.parent.is_some() { "incremental" } else { "full" };
            let file = disk.hash.as_ref().and_then(|hash| hash.size).unwrap_or_default();
            [disk.name.clone(), kind.to_owned(), size(disk.size.unwrap_or_default()), size(file)]
        })
        .collect();
    let head = format!("{}/{}\n", printable(&finished.guest), printable(&finished.backup));
    head + &output.table(["DISK", "BACKUP", "SIZE", "FILE"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_of_compression_are_known_by_name_and_level() {
        assert_eq!("none".parse::<Compress>().unwrap(), Compress(None));
        assert_eq!("zstd".parse::<Compress>().unwrap(), Compress(Some(zstd::DEFAULT_COMPRESSION_LEVEL)));
        assert_eq!("zstd:19".parse::<Compress>().unwrap(), Compress(Some(19)));
        for bad in ["", "gzip", "zstd:", "zstd:99", "zstd:x", "none:1"] {
            assert_eq!(bad.parse::<Compress>().unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
    }
}
