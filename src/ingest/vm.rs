//! Backing up a virtual machine: its disks' sources, their plans, their transfers.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::commit::Unfinished;
use super::decide::{Changes, Decision, Facts, decide};
use super::events::{Event, Journal, Listener, PlannedDisk};
use super::parent::{self, Found};
use super::plan::Plan;
use super::session::{
    self, Contents, Finished, Interrupt, KeptFile, TICK, Target, Work, check_kept_files, open_store, runtime,
};
use super::source::{DiskSpec, Increment, Source, SourceSpec};
use super::transfer::{Shared, Transfer};
use crate::base::error::ResultExt as _;
use crate::base::{Error, ErrorKind, Result};
use crate::catalog::{GuestId, GuestKind, Store, check_disk_name};
use crate::disk::writer::{CLUSTER_BITS, ImageOptions, SECTOR, WrittenImage};
use crate::format::ImageFormat;
use crate::format::manifest::ManifestDisk;
use crate::nbd::{ServerErrno, ServerError};
use crate::storage::write::Medium;

/// What is to be backed up, and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// The store's directory.
    pub store: PathBuf,
    /// The guest.
    pub guest: GuestId,
    /// Its disks.
    pub disks: Vec<DiskSpec>,
    /// Files to keep with the backup.
    pub files: Vec<KeptFile>,
    /// What the source calls this point in time.
    pub checkpoint: Option<String>,
    /// Every disk in full.
    pub full: bool,
    /// The most layers that a chain is to have; a disk whose chain has as many starts afresh.
    pub max_layers: usize,
    /// The zstd level at which clusters are compressed; without one they are not.
    pub zstd: Option<i32>,
    /// The most bytes a second to read, of all disks together.
    pub bytes_per_second: Option<u64>,
    /// Whether the source is told what it need not keep any more.
    pub discard_source: bool,
    /// How long a server may be silent or gone before the run is given up.
    pub patience: Duration,
}

/// A disk whose source is open.
pub(super) struct Opened {
    spec: DiskSpec,
    source: Source,
}

/// A disk of which it is known what will be done.
pub(super) struct Planned {
    disk: Opened,
    /// The virtual size.
    size: u64,
    decision: Decision,
    plan: Arc<Plan>,
    parent: Found,
}

/// Says what a run would do now. Writes nothing.
pub fn dry_run(request: &Request) -> Result<Vec<PlannedDisk>> {
    check(request)?;
    runtime()?.block_on(async {
        let store = open_store(&request.store)?;
        let mut planned = Vec::new();
        for disk in open_sources(request).await? {
            planned.push(plan_disk(request, &store, disk).await?);
        }
        let told = planned.iter().map(Planned::told).collect();
        close(planned.into_iter().map(|planned| planned.disk.source)).await;
        Ok(told)
    })
}

/// Makes a backup.
///
/// Until the last moment nothing of it can be seen; when this fails, the store is as it was, but for the log of the failed
/// run. Errors of kind `Busy` say who else is writing this guest's backups; `Usage` what is wrong with the request.
pub fn run(
    request: &Request,
    medium: Arc<dyn Medium>,
    interrupt: &Interrupt,
    listener: &Listener<'_>,
) -> Result<Finished> {
    check(request)?;
    session::run(request, medium, interrupt, listener)
}

/// Refuses what cannot be meant before anything is touched.
fn check(request: &Request) -> Result<()> {
    let usage = |message: String| Err(Error::new(ErrorKind::Usage, message));
    if request.disks.is_empty() {
        return usage("a backup has at least one disk".to_owned());
    }
    let mut names = HashSet::new();
    for disk in &request.disks {
        check_disk_name(&disk.name)?;
        if !names.insert(disk.name.as_str()) {
            return usage(format!("two disks are named '{}'", disk.name));
        }
        if request.discard_source && matches!(disk.source, SourceSpec::File { .. }) {
            return usage(format!("disk {}: only NBD exports are told to discard what was read", disk.name));
        }
    }
    check_kept_files(&request.files)?;
    match request.zstd {
        Some(level) if !zstd::compression_level_range().contains(&level) => {
            let range = zstd::compression_level_range();
            usage(format!("zstd has the levels {} to {}, not {level}", range.start(), range.end()))
        }
        Some(_) | None => Ok(()),
    }
}

async fn open_sources(request: &Request) -> Result<Vec<Opened>> {
    let mut opened = Vec::new();
    for spec in &request.disks {
        let source = Source::open(&spec.source, request.patience).await.context(|| format!("disk {}", spec.name))?;
        if request.discard_source && !source.can_trim() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("disk {}: its export cannot be trimmed", spec.name),
            )
            .with_hint("leave out --discard-source"));
        }
        opened.push(Opened { spec: spec.clone(), source });
    }
    Ok(opened)
}

async fn close(sources: impl Iterator<Item = Source>) {
    for source in sources {
        source.close().await;
    }
}

async fn plan_disk(request: &Request, store: &Store, disk: Opened) -> Result<Planned> {
    let name = disk.spec.name.clone();
    plan_opened(request, store, disk).await.context(|| format!("disk {name}"))
}

async fn plan_opened(request: &Request, store: &Store, mut disk: Opened) -> Result<Planned> {
    let size = disk.source.size().checked_next_multiple_of(SECTOR).filter(|size| i64::try_from(*size).is_ok());
    let size = size.ok_or_else(|| {
        Error::new(ErrorKind::Protocol, format!("the source claims to have {} bytes", disk.source.size()))
    })?;
    let parent = parent::find(store, &request.guest, &disk.spec.name)?;
    let known = disk.source.knows_changes();
    let changes = match &disk.spec.source {
        SourceSpec::Nbd { bitmap: Some(name), .. } if known => Changes::Bitmap(name),
        SourceSpec::Nbd { bitmap: Some(name), .. } => Changes::NotOffered(name),
        SourceSpec::File { dirty: Some(_), .. } => Changes::List,
        SourceSpec::Nbd { bitmap: None, .. } | SourceSpec::File { dirty: None, .. } => Changes::Unnamed,
    };
    let facts = Facts {
        forced: request.full,
        parent: parent.as_ref().map(|(parent, _)| parent).map_err(String::as_str),
        size,
        changes,
        since: disk.spec.since.as_deref(),
        only_dirty: disk.source.only_dirty(),
        max_layers: request.max_layers,
    };
    let mut decision = decide(&facts);
    let cluster = 1 << CLUSTER_BITS;
    let mut plan = None;
    if let (Some(_), Ok((below, opened))) = (decision.parent(), &parent) {
        match disk.source.plan_incremental(cluster, opened, below.size).await? {
            Increment::Planned(increment) => plan = Some(increment),
            // Asked about its extents, the source has shown what it is.
            Increment::OnlyDirty => decision = decide(&Facts { only_dirty: true, ..facts }),
            Increment::Contradiction(at) => {
                let reason = format!(
                    "the bitmap cannot be right: at {at}, it calls unchanged what is zeros now and was not in {}",
                    below.place.backup
                );
                decision = Decision::Full { reason };
            }
            Increment::Unreadable(e) => {
                let backup = &below.place.backup;
                let reason = format!("the disk's latest backup, {backup}, is not whole: {}", e.report());
                decision = Decision::Full { reason };
            }
        }
    }
    let plan = match plan {
        Some(plan) => plan,
        None => disk.source.plan_full(cluster).await?,
    };
    Ok(Planned { disk, size, decision, plan: Arc::new(plan), parent })
}

impl Planned {
    fn name(&self) -> &str {
        &self.disk.spec.name
    }

    fn file(&self) -> String {
        format!("{}.{}", self.name(), ImageFormat::Qcow2)
    }

    fn done(&self, image: &WrittenImage) -> Event {
        Event::DiskDone {
            disk: self.name().to_owned(),
            file: self.file(),
            stored: image.stored,
            zeros: image.zeros,
            file_size: image.hashes.size,
            blake3: image.hashes.file.to_string(),
        }
    }

    fn told(&self) -> PlannedDisk {
        PlannedDisk {
            disk: self.name().to_owned(),
            size: self.size,
            decision: self.decision.clone(),
            read: self.plan.read_bytes(),
            zeros: self.plan.zero_bytes(),
        }
    }
}

impl Work for Request {
    const KIND: GuestKind = GuestKind::Qemu;
    const DOING: &'static str = "annals backup vm";
    type Sources = Vec<Opened>;
    type Plan = Vec<Planned>;

    fn target(&self) -> Target<'_> {
        Target { store: &self.store, guest: &self.guest, files: &self.files }
    }

    async fn open(&self) -> Result<Vec<Opened>> {
        open_sources(self).await
    }

    async fn plan(&self, store: &Store, sources: Vec<Opened>, journal: &Journal<'_>) -> Result<Vec<Planned>> {
        let mut planned = Vec::new();
        for disk in sources {
            let disk = plan_disk(self, store, disk).await?;
            journal.tell(&Event::Planned(disk.told()));
            planned.push(disk);
        }
        Ok(planned)
    }

    async fn write(&self, planned: &Vec<Planned>, unfinished: &Unfinished, journal: &Journal<'_>) -> Result<Contents> {
        let images = self.transfer(unfinished, planned, journal).await?;
        let mut disks = Vec::new();
        for (planned, image) in planned.iter().zip(images) {
            journal.tell(&planned.done(&image));
            disks.push(self.manifest_disk(unfinished, planned, &image)?);
        }
        Ok(Contents { disks, archive: None })
    }

    async fn close(&self, planned: Vec<Planned>) {
        close(planned.into_iter().map(|planned| planned.disk.source)).await;
    }
}

impl Request {
    fn manifest_disk(&self, unfinished: &Unfinished, planned: &Planned, image: &WrittenImage) -> Result<ManifestDisk> {
        let file = planned.file();
        let bitmap = match &planned.disk.spec.source {
            SourceSpec::Nbd { bitmap, .. } => bitmap.clone(),
            SourceSpec::File { .. } => None,
        };
        Ok(ManifestDisk {
            name: planned.name().to_owned(),
            hash: Some(unfinished.note_hashes(&file, &image.hashes)?),
            file,
            format: ImageFormat::Qcow2,
            size: Some(planned.size),
            parent: planned.decision.parent().map(|parent| parent.place.clone()),
            reason: Some(planned.decision.reason().to_owned()),
            bitmap,
            checkpoint: self.checkpoint.clone(),
        })
    }

    /// All disks side by side; the first failure ends the others.
    async fn transfer(
        &self,
        unfinished: &Unfinished,
        planned: &[Planned],
        journal: &Journal<'_>,
    ) -> Result<Vec<WrittenImage>> {
        let shared = Shared::new(self.bytes_per_second);
        let mut transfers = JoinSet::new();
        let mut progress = Vec::new();
        for (index, planned) in planned.iter().enumerate() {
            let backing = planned
                .decision
                .parent()
                .map(|parent| (format!("../{}/{}", parent.place.backup, parent.place.file), parent.format));
            let done = Arc::new(AtomicU64::new(0));
            progress.push(done.clone());
            let transfer = Transfer {
                source: planned.disk.source.clone(),
                plan: planned.plan.clone(),
                image: ImageOptions { size: planned.size, cluster_bits: CLUSTER_BITS, zstd: self.zstd, backing },
                parent: planned.parent.as_ref().ok().map(|(_, disk)| disk.clone()),
                discard: self.discard_source,
                done,
                shared: shared.clone(),
            };
            let file = unfinished.make_file(&planned.file())?;
            let (name, restricted) =
                (planned.name().to_owned(), planned.disk.source.only_dirty() && planned.decision.parent().is_none());
            transfers.spawn(async move {
                let written = transfer.run(file).await.map_err(|e| explain(e, restricted));
                (index, written.context(|| format!("disk {name}")))
            });
        }
        let mut images: Vec<Option<WrittenImage>> = planned.iter().map(|_| None).collect();
        let mut tick = tokio::time::interval(TICK);
        loop {
            let joined = tokio::select! {
                joined = transfers.join_next() => joined,
                _ = tick.tick() => {
                    tell_progress(planned, &progress, journal);
                    continue;
                }
            };
            match joined {
                None => break,
                Some(Ok((index, written))) => {
                    if let Some(slot) = images.get_mut(index) {
                        *slot = Some(written?);
                    }
                }
                Some(Err(e)) => return Err(Error::new(ErrorKind::Limit, "a transfer ended early").with_source(e)),
            }
        }
        tell_progress(planned, &progress, journal);
        images
            .into_iter()
            .map(|image| image.ok_or_else(|| Error::new(ErrorKind::Io, "a transfer did not end")))
            .collect()
    }
}

fn tell_progress(planned: &[Planned], progress: &[Arc<AtomicU64>], journal: &Journal<'_>) {
    for (planned, done) in planned.iter().zip(progress) {
        journal.tell(&Event::Progress {
            disk: planned.name().to_owned(),
            done: done.load(Ordering::Relaxed),
            total: planned.plan.read_bytes().saturating_add(planned.plan.zero_bytes()),
        });
    }
}

/// Says what a refused read means where an export gives only what is dirty.
fn explain(error: Error, restricted: bool) -> Error {
    let refused = ServerError::of(&error).is_some_and(|refused| refused.errno == ServerErrno::EINVAL);
    if restricted && refused {
        return error.with_hint(
            "the export may give only what is dirty: a full backup needs one without a bitmap, or with a new one",
        );
    }
    error
}
