//! A whole run: the lock, the plans, the transfers, the commit.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::commit::{Unfinished, leave_log};
use super::decide::{Changes, Decision, Facts, decide};
use super::events::{Event, Journal, Listener, PlannedDisk};
use super::parent::{self, Found};
use super::plan::Plan;
use super::source::{DiskSpec, Source, SourceSpec};
use super::transfer::{Shared, Transfer};
use crate::base::error::ResultExt as _;
use crate::base::{Error, ErrorKind, Result, Timestamp};
use crate::catalog::{GuestId, GuestKind, Store, check_disk_name, check_file_name};
use crate::disk::DiskEnv;
use crate::disk::writer::{CLUSTER_BITS, ImageOptions, SECTOR, WrittenImage};
use crate::format::ImageFormat;
use crate::format::manifest::{self, Manifest, ManifestDisk, Tool};
use crate::nbd::{ServerErrno, ServerError};
use crate::storage::read_outside;
use crate::storage::write::{Medium, WriteDir, WriterLock};

/// Most bytes of a file that is kept with a backup.
const KEPT_FILE_LIMIT: usize = 64 << 20;
/// Cache for reading parents.
const PARENT_CACHE: u64 = 16 << 20;
/// How often progress is told.
const TICK: Duration = Duration::from_millis(250);
/// What older tools, and we after them, note about the next incremental backup.
const PREVIOUS_INFO: &str = "previous-info";

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
    /// The zstd level at which clusters are compressed; without one they are not.
    pub zstd: Option<i32>,
    /// The most bytes a second to read, of all disks together.
    pub bytes_per_second: Option<u64>,
    /// Whether the source is told what it need not keep any more.
    pub discard_source: bool,
}

/// A file to keep with the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFile {
    /// Its name in the backup.
    pub name: String,
    /// Where it is now.
    pub path: PathBuf,
}

/// A backup that was made.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finished {
    /// The guest.
    pub guest: String,
    /// The backup's directory.
    pub backup: String,
    /// Its disks.
    pub disks: Vec<ManifestDisk>,
    /// What went wrong without making the backup worth less.
    pub warnings: Vec<String>,
}

/// Ends a run from outside: by a signal, by a caller that has changed its mind. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<watch::Sender<bool>>);

impl Default for Interrupt {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Interrupt {
    /// Ends the run that this was given to; it fails, and leaves what a failed run leaves.
    pub fn raise(&self) {
        self.0.send_replace(true);
    }

    async fn raised(&self) {
        // The sender is alive as long as this is.
        let _ = self.0.subscribe().wait_for(|raised| *raised).await;
    }
}

/// A disk whose source is open.
struct Opened {
    spec: DiskSpec,
    source: Source,
}

/// A disk of which it is known what will be done.
struct Planned {
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
        let store = open_store(request)?;
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
    let kept = read_kept_files(request)?;
    let journal = Journal::new(listener);
    let runtime = runtime()?;
    let ended = runtime.block_on(Run { request, medium, interrupt, journal: &journal }.whole(kept));
    // Reads that were given up may still wait for a file or a server.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("cannot start worker threads", e))
}

fn open_store(request: &Request) -> Result<Store> {
    Store::open(&request.store, DiskEnv::new(PARENT_CACHE))
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
    let mut files = HashSet::new();
    for file in &request.files {
        check_file_name(&file.name)?;
        if !files.insert(file.name.as_str()) {
            return usage(format!("two files are to be kept as '{}'", file.name));
        }
    }
    match request.zstd {
        Some(level) if !zstd::compression_level_range().contains(&level) => {
            let range = zstd::compression_level_range();
            usage(format!("zstd has the levels {} to {}, not {level}", range.start(), range.end()))
        }
        Some(_) | None => Ok(()),
    }
}

fn read_kept_files(request: &Request) -> Result<Vec<(String, Vec<u8>)>> {
    let read = |file: &KeptFile| Ok((file.name.clone(), read_outside(&file.path, KEPT_FILE_LIMIT)?));
    request.files.iter().map(read).collect()
}

async fn open_sources(request: &Request) -> Result<Vec<Opened>> {
    let mut opened = Vec::new();
    for spec in &request.disks {
        let source = Source::open(&spec.source).await.context(|| format!("disk {}", spec.name))?;
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
    let decision = decide(&Facts {
        forced: request.full,
        parent: parent.as_ref().map(|(parent, _)| parent).map_err(String::as_str),
        size,
        changes,
        since: disk.spec.since.as_deref(),
        only_dirty: disk.source.only_dirty(),
    });
    let cluster = 1 << CLUSTER_BITS;
    let plan = match decision.parent() {
        None => disk.source.plan_full(cluster).await?,
        Some(parent) => disk.source.plan_incremental(cluster, parent.size).await?,
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

struct Run<'a> {
    request: &'a Request,
    medium: Arc<dyn Medium>,
    interrupt: &'a Interrupt,
    journal: &'a Journal<'a>,
}

impl Run<'_> {
    async fn whole(&self, kept: Vec<(String, Vec<u8>)>) -> Result<Finished> {
        let store = WriteDir::open(&self.request.store, self.medium.clone())
            .context(|| "store")
            .map_err(|e| e.with_hint("--store or ANNALS_STORE names the directory that holds the guests"))?;
        let id = self.request.guest.as_str();
        // A guest that is not there yet is made only when its sources can be reached: a wrong id should leave nothing behind.
        let (guest, sources) = match store.descend(id) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let sources = self.interruptible(open_sources(self.request)).await?;
                (store.descend_or_make(id)?, Some(sources))
            }
            found => (found?, None),
        };
        let _lock = WriterLock::take(&guest, &format!("annals backup vm {id}"))?;
        let time = self.time()?;
        let directory = format!("{}-{}", GuestKind::Qemu, time.file_name());
        self.journal.tell(&Event::Started { guest: id.to_owned(), backup: directory.clone() });
        let made = self.locked(&guest, sources, &directory, time, kept).await;
        if let Err(e) = &made {
            self.journal.tell(&Event::Failed { message: e.report() });
            // Where the store takes nothing any more, not even the log, the error itself is what there is to tell.
            if let Err(e) = leave_log(&guest, &directory, &self.journal.text()) {
                tracing::warn!(error = e.report(), "the log of the failed run could not be kept");
            }
        }
        made
    }

    /// The time of the new backup: now, but after every other backup of the guest, or its place in the order would be wrong.
    fn time(&self) -> Result<Timestamp> {
        /// How far ahead names may run when backups follow each other within a second.
        const CLOSE: i64 = 60;
        let now = Timestamp::now()?;
        let guest = open_store(self.request)?.guest(&self.request.guest)?;
        if let Some(other) = guest.backups().iter().find(|backup| backup.directory().is_none()) {
            let message = format!(
                "guest {} has the backup {} in another layout, which nothing is added to",
                guest.id, other.name
            );
            return Err(Error::new(ErrorKind::Refused, message)
                .with_hint("choose another id: a backup in this guest's directory would hide those that are there"));
        }
        let Some(latest) = guest.latest().map(|backup| backup.time) else { return Ok(now) };
        if now > latest {
            return Ok(now);
        }
        let next = Timestamp::from_epoch(latest.epoch() + 1).filter(|_| latest.epoch() - now.epoch() < CLOSE);
        next.ok_or_else(|| {
            Error::new(
                ErrorKind::Refused,
                format!("the latest backup of guest {} is of {latest}, but it is {now} now", self.request.guest),
            )
            .with_hint("the machine's clock is wrong, or was when that backup was made")
        })
    }

    async fn interruptible<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            () = self.interrupt.raised() => Err(Error::new(ErrorKind::Io, "interrupted")),
        }
    }

    async fn locked(
        &self,
        guest: &WriteDir,
        sources: Option<Vec<Opened>>,
        directory: &str,
        time: Timestamp,
        kept: Vec<(String, Vec<u8>)>,
    ) -> Result<Finished> {
        let directories = guest.sweep_partial_dirs()?;
        if directories > 0 {
            self.journal.tell(&Event::Swept { directories });
        }
        // Opened under the lock: nobody adds a backup from here on.
        let store = open_store(self.request)?;
        let planned = self.interruptible(async {
            let sources = match sources {
                Some(sources) => sources,
                None => open_sources(self.request).await?,
            };
            let mut planned = Vec::new();
            for disk in sources {
                let disk = plan_disk(self.request, &store, disk).await?;
                self.journal.tell(&Event::Planned(disk.told()));
                planned.push(disk);
            }
            Ok(planned)
        });
        let planned = planned.await?;
        let unfinished = Unfinished::start(guest)?;
        let made = self.make(&unfinished, &planned, directory, time, kept).await;
        let disks = match made {
            Ok(disks) => disks,
            Err(e) => {
                if let Err(e) = unfinished.abandon() {
                    tracing::warn!(error = e.report(), "what the failed run wrote is left for the next one to remove");
                }
                return Err(e);
            }
        };
        self.journal.tell(&Event::Published { guest: self.request.guest.to_string(), backup: directory.to_owned() });
        let mut warnings = Vec::new();
        if let Err(e) = self.note_previous(&store, guest, &disks, time) {
            let message = format!("{PREVIOUS_INFO} was not renewed: {}", e.report());
            self.journal.tell(&Event::Warning { message: message.clone() });
            warnings.push(message);
        }
        close(planned.into_iter().map(|planned| planned.disk.source)).await;
        Ok(Finished { guest: self.request.guest.to_string(), backup: directory.to_owned(), disks, warnings })
    }

    /// Everything from the first byte to the rename.
    async fn make(
        &self,
        unfinished: &Unfinished,
        planned: &[Planned],
        directory: &str,
        time: Timestamp,
        kept: Vec<(String, Vec<u8>)>,
    ) -> Result<Vec<ManifestDisk>> {
        let mut files = Vec::new();
        for (name, bytes) in kept {
            files.push(unfinished.keep(&name, &bytes)?);
        }
        let images = self.interruptible(self.transfer(unfinished, planned)).await?;
        let mut disks = Vec::new();
        for (planned, image) in planned.iter().zip(images) {
            disks.push(self.manifest_disk(unfinished, planned, &image)?);
        }
        let manifest = Manifest {
            version: manifest::VERSION,
            guest: self.request.guest.to_string(),
            kind: GuestKind::Qemu,
            time,
            disks: disks.clone(),
            tool: Some(Tool { name: env!("CARGO_PKG_NAME").to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }),
            archive: None,
            files,
        };
        unfinished.publish(directory, manifest, &self.journal.text())?;
        Ok(disks)
    }

    fn manifest_disk(&self, unfinished: &Unfinished, planned: &Planned, image: &WrittenImage) -> Result<ManifestDisk> {
        let file = planned.file();
        self.journal.tell(&Event::DiskDone {
            disk: planned.name().to_owned(),
            file: file.clone(),
            stored: image.stored,
            zeros: image.zeros,
            file_size: image.hashes.size,
            blake3: image.hashes.file.to_string(),
        });
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
            checkpoint: self.request.checkpoint.clone(),
        })
    }

    /// All disks side by side; the first failure ends the others.
    async fn transfer(&self, unfinished: &Unfinished, planned: &[Planned]) -> Result<Vec<WrittenImage>> {
        let shared = Shared::new(self.request.bytes_per_second);
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
                image: ImageOptions {
                    size: planned.size,
                    cluster_bits: CLUSTER_BITS,
                    zstd: self.request.zstd,
                    backing,
                },
                parent: planned.parent.as_ref().ok().map(|(_, disk)| disk.clone()),
                discard: self.request.discard_source,
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
                    self.tell_progress(planned, &progress);
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
        self.tell_progress(planned, &progress);
        images
            .into_iter()
            .map(|image| image.ok_or_else(|| Error::new(ErrorKind::Io, "a transfer did not end")))
            .collect()
    }

    fn tell_progress(&self, planned: &[Planned], progress: &[Arc<AtomicU64>]) {
        for (planned, done) in planned.iter().zip(progress) {
            self.journal.tell(&Event::Progress {
                disk: planned.name().to_owned(),
                done: done.load(Ordering::Relaxed),
                total: planned.plan.read_bytes().saturating_add(planned.plan.zero_bytes()),
            });
        }
    }

    /// Renews `previous-info` in a guest that has one; the data is there by now.
    fn note_previous(&self, store: &Store, guest: &WriteDir, disks: &[ManifestDisk], time: Timestamp) -> Result<()> {
        let has_one = store.guest(&self.request.guest)?.previous.is_some();
        match disks.iter().find_map(|disk| disk.bitmap.as_deref()).filter(|_| has_one) {
            Some(bitmap) => guest.replace_file(PREVIOUS_INFO, format!("{bitmap} {}", time.epoch()).as_bytes()),
            None => Ok(()),
        }
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
