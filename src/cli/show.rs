//! `annals show`: one backup in every detail.

use std::sync::Arc;

use serde::Serialize;

use super::Outcome;
use super::args::Global;
use super::list::problems_text;
use super::output::{Output, Tone, printable, size};
use crate::archive::{ArchiveEnv, ArchiveFormat};
use crate::base::{ErrorKind, GuestOffset, GuestRange, Result};
use crate::catalog::{Backup, BackupFile, BackupRef, BackupSummary, DiskEntry, FoundArchive, GuestId, Problem, Store};
use crate::disk::{Disk, LayerInfo, partition_table};
use crate::format::manifest::{ManifestArchive, ManifestDisk, Tool};
use crate::format::qcow2::{Compression, Header};
use crate::storage::{BlockCache, DerivedDir, FilePool};

/// Cache for the tables of images and kept indexes that are glanced at.
const GLANCE_CACHE: u64 = 1 << 20;
/// Kept indexes that are open at once.
const KEPT_INDEXES: usize = 4;

/// Show a backup: its files, its disks with their layers and partitions, its container's archive, and what is broken and why
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
    #[serde(skip_serializing_if = "Option::is_none")]
    directory: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool: Option<Tool>,
    files: Vec<BackupFile>,
    disks: Vec<ShownDisk>,
    archives: Vec<ShownArchive>,
    problems: Vec<Problem>,
}

#[derive(Serialize)]
struct ShownArchive {
    #[serde(flatten)]
    found: FoundArchive,
    /// What the manifest says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<ManifestArchive>,
    problems: Vec<Problem>,
}

#[derive(Serialize)]
struct ShownDisk {
    #[serde(flatten)]
    entry: DiskEntry,
    /// What the manifest says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<ManifestDisk>,
    /// Absent when the disk cannot be opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    opened: Option<Opened>,
    problems: Vec<Problem>,
}

/// What an open disk tells. Sizes are in bytes.
#[derive(Serialize)]
struct Opened {
    size: u64,
    allocated: Option<u64>,
    /// Newest first.
    layers: Vec<ShownLayer>,
    partitions: Vec<ShownPartition>,
}

#[derive(Serialize)]
struct ShownLayer {
    path: String,
    format: &'static str,
    size: u64,
    file_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_size: Option<u64>,
    features: Vec<String>,
}

#[derive(Serialize)]
struct ShownPartition {
    number: u32,
    start: u64,
    size: u64,
    scheme: String,
    r#type: String,
    type_name: Option<&'static str>,
    label: Option<String>,
    content: Option<&'static str>,
}

pub(super) fn run(args: &Args, global: &Global, output: &Output) -> Result<Outcome> {
    let reference: BackupRef = args.reference.parse()?;
    let store = global.open_store()?;
    let guest = store.guest(&reference.guest)?;
    let summary = reference.find(&guest)?;
    let backup = store.backup(&guest.id, &summary.name)?;
    let shown = Shown {
        guest: guest.id.clone(),
        directory: summary.directory().map(str::to_owned),
        summary: backup.summary.clone(),
        tool: backup.manifest.as_ref().and_then(|manifest| manifest.tool.clone()),
        files: backup.files.clone(),
        disks: backup.disks.iter().map(|entry| look(&store, &backup, entry)).collect(),
        archives: look_at_archives(&store, &backup),
        problems: backup.problems.clone(),
    };
    output.print(&shown, |shown| text(shown, output))?;
    Ok(if shown.all_problems().next().is_some() { Outcome::Broken } else { Outcome::Done })
}

impl Shown {
    fn all_problems(&self) -> impl Iterator<Item = &Problem> {
        let of_disks = self.disks.iter().flat_map(|disk| &disk.problems);
        self.problems.iter().chain(of_disks).chain(self.archives.iter().flat_map(|archive| &archive.problems))
    }
}

fn look_at_archives(store: &Store, backup: &Backup) -> Vec<ShownArchive> {
    // What a mount has found out is used; nothing is left behind for the next one.
    let derived = DerivedDir::usual_path().and_then(|path| DerivedDir::open(&path, FilePool::new(KEPT_INDEXES)).ok());
    let env = ArchiveEnv::new(Arc::new(BlockCache::new(GLANCE_CACHE)), derived);
    let noted = backup.manifest.as_ref().and_then(|manifest| manifest.archive.as_ref());
    let look = |((file, format), mut found): ((&BackupFile, ArchiveFormat), FoundArchive)| {
        let mut problems = Vec::new();
        match store.glance(backup, file, format, &env) {
            Ok(glance) => {
                found.entries = glance.entries.or(found.entries);
                let lines = glance.report.iter().flat_map(|report| report.lines());
                problems.extend(lines.map(|line| Problem::new(&file.name, ErrorKind::Corrupt, line)));
            }
            Err(e) => problems.push(Problem::of(&file.name, &e)),
        }
        ShownArchive { found, manifest: noted.filter(|noted| noted.file == file.name).cloned(), problems }
    };
    backup.archives().zip(FoundArchive::all_of(backup)).map(look).collect()
}

fn look(store: &Store, backup: &Backup, entry: &DiskEntry) -> ShownDisk {
    let disks = backup.manifest.as_ref().map(|manifest| manifest.disks.as_slice()).unwrap_or_default();
    let mut shown = ShownDisk {
        entry: entry.clone(),
        manifest: disks.iter().find(|disk| disk.name == entry.name).cloned(),
        opened: None,
        problems: Vec::new(),
    };
    match store.disk(backup, entry) {
        Ok(disk) => {
            let declared = shown.manifest.as_ref().and_then(|disk| disk.size);
            if let Some(declared) = declared.filter(|size| *size != disk.size()) {
                let text = format!("the manifest says {declared} bytes, the image {}", disk.size());
                shown.problems.push(Problem::new(&entry.name, ErrorKind::Corrupt, text));
            }
            shown.opened = Some(look_into(&disk, &entry.name, &mut shown.problems));
        }
        Err(e) => {
            shown.problems.push(Problem::of(&entry.name, &e));
            if let Some(hint) = e.hint() {
                shown.problems.push(Problem::new(&entry.name, e.kind(), hint));
            }
        }
    }
    shown
}

fn look_into(disk: &Disk, name: &str, problems: &mut Vec<Problem>) -> Opened {
    let all = GuestRange::between(GuestOffset(0), GuestOffset(disk.size()));
    let mut note = |e: &crate::base::Error| problems.push(Problem::of(name, e));
    let allocated = disk.allocated(all).map_err(|e| note(&e)).ok();
    let table = partition_table(disk).map_err(|e| note(&e)).unwrap_or_default();
    match disk.faults() {
        Ok(faults) => {
            for fault in faults {
                let text = format!("bytes {} to {} cannot be read", fault.range.start(), fault.range.end());
                let text = format!("{text}: {}", fault.error.report());
                problems.push(Problem::new(name, fault.error.kind(), text));
            }
        }
        Err(e) => note(&e),
    }
    problems.extend(table.problems.iter().map(|text| Problem::new(name, ErrorKind::Corrupt, text)));
    let partitions = table.partitions.into_iter().map(|partition| ShownPartition {
        number: partition.number,
        start: partition.range.start().0,
        size: partition.range.len(),
        scheme: partition.scheme.to_string(),
        r#type: partition.type_code,
        type_name: partition.type_name,
        label: partition.label,
        content: partition.content,
    });
    Opened {
        size: disk.size(),
        allocated,
        layers: disk.layers().map(layer).collect(),
        partitions: partitions.collect(),
    }
}

fn layer(info: LayerInfo) -> ShownLayer {
    ShownLayer {
        path: info.path.to_string(),
        format: info.format.name(),
        size: info.virtual_size,
        file_size: info.file_size,
        cluster_size: info.header.as_ref().map(|header| header.geometry.cluster_size()),
        features: info.header.as_ref().map(features).unwrap_or_default(),
    }
}

/// What is out of the ordinary about an image.
fn features(header: &Header) -> Vec<String> {
    let mut features = vec![format!("v{}", header.version)];
    match header.compression {
        Compression::Zstd => features.push("zstd".to_owned()),
        Compression::Deflate => {}
    }
    let mut when = |yes: bool, text: String| {
        if yes {
            features.push(text);
        }
    };
    when(header.geometry.extended_l2, "extended L2".to_owned());
    when(header.dirty, "not closed properly".to_owned());
    when(header.snapshots > 0, format!("{} internal snapshots", header.snapshots));
    when(header.bitmaps > 0, format!("{} bitmaps", header.bitmaps));
    features
}

fn text(shown: &Shown, output: &Output) -> String {
    let reference = format!("{}@{}", shown.guest, shown.summary.name);
    let mut text = output.paint(Tone::Strong, &printable(&reference)) + "\n";
    let mut fact = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text += &format!("{name:<10} {}\n", printable(&value));
        }
    };
    fact("kind", Some(shown.summary.kind.to_string()));
    fact("time", Some(shown.summary.time.to_string()));
    fact("directory", shown.directory.clone());
    fact("snapshot", shown.summary.label.clone());
    fact("made by", shown.tool.as_ref().map(|tool| format!("{} {}", tool.name, tool.version)));
    fact("protected", shown.summary.protected.then(|| "yes".to_owned()));
    fact("notes", shown.summary.notes.clone());
    if !shown.files.is_empty() {
        let rows: Vec<_> = shown.files.iter().map(|file| [file.name.clone(), size(file.size)]).collect();
        text += "\n";
        text += &output.table(["FILE", "SIZE"], &rows);
    }
    for disk in &shown.disks {
        text += "\n";
        text += &disk_text(disk, output);
    }
    for archive in &shown.archives {
        text += "\n";
        text += &archive_text(archive, output);
    }
    let problems: Vec<Problem> = shown.all_problems().cloned().collect();
    if !problems.is_empty() {
        text += "\n";
        text += &problems_text(&reference, &problems, output);
    }
    text
}

fn archive_text(archive: &ShownArchive, output: &Output) -> String {
    let FoundArchive { file, format, size: bytes, entries, unreadable } = &archive.found;
    let heading = output.paint(Tone::Strong, &format!("archive {}", printable(file)));
    let members = entries.map(|entries| format!(", {entries} members")).unwrap_or_default();
    let mut text = format!("{heading}: {format}, {}{members}\n", size(*bytes));
    for pattern in archive.manifest.iter().flat_map(|manifest| &manifest.excluded) {
        text += &format!("without: {}\n", printable(pattern));
    }
    if let Some(unreadable) = unreadable {
        let paths = if unreadable.get() == 1 { "path" } else { "paths" };
        let incomplete = output.paint(Tone::Bad, "incomplete");
        text += &format!("{incomplete}: {unreadable} {paths} could not be read when it was made; see its backup.log\n");
    }
    text
}

fn disk_text(disk: &ShownDisk, output: &Output) -> String {
    let mut heading = output.paint(Tone::Strong, &format!("disk {}", printable(&disk.entry.name)));
    if let Some(alias) = &disk.entry.alias {
        heading += &format!(" ({})", printable(alias));
    }
    let Some(opened) = &disk.opened else {
        let cannot = output.paint(Tone::Bad, "cannot be opened");
        return format!("{heading}: {cannot}\n{}: {}\n", "layer", printable(disk.entry.path.as_str()));
    };
    let allocated = opened.allocated.map_or_else(|| "unknown".to_owned(), size);
    let layers = opened.layers.len();
    let mut text = format!(
        "{heading}: {}, {allocated} allocated, {layers} layer{}\n",
        size(opened.size),
        if layers == 1 { "" } else { "s" }
    );
    if let Some(reason) = disk.manifest.as_ref().and_then(|disk| disk.reason.as_ref()) {
        text += &format!("reason: {}\n", printable(reason));
    }
    if let Some(checkpoint) = disk.manifest.as_ref().and_then(|disk| disk.checkpoint.as_ref()) {
        text += &format!("checkpoint: {}\n", printable(checkpoint));
    }
    let row = |layer: &ShownLayer| {
        let cluster = layer.cluster_size.map(size).unwrap_or_default();
        let features = layer.features.join(", ");
        [layer.path.clone(), layer.format.to_owned(), size(layer.size), size(layer.file_size), cluster, features]
    };
    let rows: Vec<_> = opened.layers.iter().map(row).collect();
    text += &output.table(["LAYER", "FORMAT", "DISK SIZE", "FILE SIZE", "CLUSTER", "FEATURES"], &rows);
    if !opened.partitions.is_empty() {
        let row = |partition: &ShownPartition| {
            [
                partition.number.to_string(),
                partition.start.to_string(),
                size(partition.size),
                partition.type_name.map_or_else(|| partition.r#type.clone(), str::to_owned),
                partition.label.clone().unwrap_or_default(),
                partition.content.unwrap_or_default().to_owned(),
            ]
        };
        let rows: Vec<_> = opened.partitions.iter().map(row).collect();
        text += &output.table(["PARTITION", "START", "SIZE", "TYPE", "LABEL", "CONTENT"], &rows);
    }
    text
}
