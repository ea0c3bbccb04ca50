//! What every run has in common, whatever it backs up: the lock, the new backup's name, the commit, the log of a failure.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::commit::{Published, Unfinished, leave_log};
use super::events::{Event, Journal, Listener};
use super::source::blocking;
use crate::archive::ArchiveFormat;
use crate::base::error::ResultExt as _;
use crate::base::{Error, ErrorKind, Result, Timestamp};
use crate::catalog::{GuestId, GuestKind, Store, check_file_name};
use crate::disk::DiskEnv;
use crate::format::manifest::{self, Manifest, ManifestArchive, ManifestDisk, Tool};
use crate::storage::read_outside;
use crate::storage::write::{Medium, WriteDir, WriterLock};

/// Most bytes of a file that is kept with a backup.
const KEPT_FILE_LIMIT: usize = 64 << 20;
/// Cache for reading parents.
const PARENT_CACHE: u64 = 16 << 20;
/// How often progress is told.
pub(super) const TICK: Duration = Duration::from_millis(250);
/// What older tools, and we after them, note about the next incremental backup.
const PREVIOUS_INFO: &str = "previous-info";

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
    /// Its container's archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<ManifestArchive>,
    /// What went wrong or is in doubt without making the backup worthless.
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

/// What a backup holds beside the files that are kept with it.
pub(super) struct Contents {
    pub(super) disks: Vec<ManifestDisk>,
    pub(super) archive: Option<ManifestArchive>,
}

/// Where a backup goes, and what is kept beside what it is of.
pub(super) struct Target<'a> {
    /// The store's directory.
    pub(super) store: &'a Path,
    pub(super) guest: &'a GuestId,
    pub(super) files: &'a [KeptFile],
}

/// What is different from one kind of guest to the other.
pub(super) trait Work {
    /// The kind.
    const KIND: GuestKind;
    /// What the lock tells others.
    const DOING: &'static str;
    /// What is backed up, open.
    type Sources;
    /// What will be done.
    type Plan;

    fn target(&self) -> Target<'_>;

    /// Opens what is to be backed up. A guest that has no directory yet gets one only when this succeeds.
    async fn open(&self) -> Result<Self::Sources>;

    /// Decides what will be done, and tells it.
    async fn plan(&self, store: &Store, sources: Self::Sources, journal: &Journal<'_>) -> Result<Self::Plan>;

    /// Writes it. Every file is on the medium when this returns.
    async fn write(&self, plan: &Self::Plan, unfinished: &Unfinished, journal: &Journal<'_>) -> Result<Contents>;

    /// Lets go of what was open, when the backup is there.
    async fn close(&self, plan: Self::Plan);
}

/// Does all of `work`, with the files that are kept beside it, and publishes it. When this fails, the store is as it was, but for
/// the log.
pub(super) fn run<W: Work>(
    work: &W,
    medium: Arc<dyn Medium>,
    interrupt: &Interrupt,
    listener: &Listener<'_>,
) -> Result<Finished> {
    let Target { store, guest, files } = work.target();
    let files = files.to_vec();
    let session = Session { work, store, guest, medium, interrupt, journal: Journal::new(listener) };
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        // A pipe may never end.
        let kept = session.interruptible(blocking(move || read_kept_files(&files))).await?;
        session.whole(kept).await
    });
    // Reads that were given up may still wait for a file or a server.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// One run.
struct Session<'a, W> {
    work: &'a W,
    store: &'a Path,
    guest: &'a GuestId,
    medium: Arc<dyn Medium>,
    interrupt: &'a Interrupt,
    journal: Journal<'a>,
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("cannot start worker threads", e))
}

pub(super) fn open_store(path: &Path) -> Result<Store> {
    Store::open(path, DiskEnv::new(PARENT_CACHE))
}

/// Refuses names under which no file can be kept.
pub(super) fn check_kept_files(files: &[KeptFile]) -> Result<()> {
    let mut names = HashSet::new();
    for file in files {
        check_file_name(&file.name)?;
        if !names.insert(file.name.as_str()) {
            let message = format!("two files are to be kept as '{}'", file.name);
            return Err(Error::new(ErrorKind::Usage, message));
        }
        if ArchiveFormat::of_name(&file.name).is_some() {
            let message = format!("'{}' would be taken for a container's archive", file.name);
            return Err(Error::new(ErrorKind::Usage, message).with_hint("keep it under another name"));
        }
    }
    Ok(())
}

/// The files that are kept with a backup, as they are now.
fn read_kept_files(files: &[KeptFile]) -> Result<Vec<(String, Vec<u8>)>> {
    let read = |file: &KeptFile| Ok((file.name.clone(), read_outside(&file.path, KEPT_FILE_LIMIT)?));
    files.iter().map(read).collect()
}

impl<W: Work> Session<'_, W> {
    async fn whole(&self, kept: Vec<(String, Vec<u8>)>) -> Result<Finished> {
        let store = WriteDir::open(self.store, self.medium.clone())
            .context(|| "store")
            .map_err(|e| e.with_hint("--store or ANNALS_STORE names the directory that holds the guests"))?;
        let id = self.guest.as_str();
        // A guest that is not there yet is made only when its sources can be reached: a wrong id should leave nothing behind.
        let (guest, sources) = match store.descend(id) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let sources = self.interruptible(self.work.open()).await?;
                (store.descend_or_make(id)?, Some(sources))
            }
            found => (found?, None),
        };
        let _lock = WriterLock::take(&guest, &format!("{} {id}", W::DOING))?;
        let time = self.time()?;
        let directory = format!("{}-{}", W::KIND, time.file_name());
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
        let guest = open_store(self.store)?.guest(self.guest)?;
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
                format!("the latest backup of guest {} is of {latest}, but it is {now} now", self.guest),
            )
            .with_hint("check the machine's clock: it is wrong, or was when that backup was made")
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
        sources: Option<W::Sources>,
        directory: &str,
        time: Timestamp,
        kept: Vec<(String, Vec<u8>)>,
    ) -> Result<Finished> {
        let directories = guest.sweep_partial_dirs()?;
        if directories > 0 {
            self.journal.tell(&Event::Swept { directories });
        }
        // Opened under the lock: nobody adds a backup from here on.
        let store = open_store(self.store)?;
        let plan = self.interruptible(async {
            let sources = match sources {
                Some(sources) => sources,
                None => self.work.open().await?,
            };
            self.work.plan(&store, sources, &self.journal).await
        });
        let plan = plan.await?;
        let unfinished = Unfinished::start(guest)?;
        let made = self.make(&unfinished, &plan, directory, time, kept).await;
        let (Contents { disks, archive }, published) = match made {
            Ok(made) => made,
            Err(e) => {
                if let Err(e) = unfinished.abandon() {
                    tracing::warn!(error = e.report(), "what the failed run wrote is left for the next one to remove");
                }
                return Err(e);
            }
        };
        self.journal.tell(&Event::Published { guest: self.guest.to_string(), backup: directory.to_owned() });
        let noted = match published {
            Published::Durably => self
                .note_previous(&store, guest, &disks, time)
                .map_err(|e| format!("{PREVIOUS_INFO} was not renewed: {}", e.report())),
            // What the next run goes by shall not name a backup that a loss of power may take away.
            Published::Unsurely(e) => Err(format!(
                "the backup {directory} is whole and can be seen, but it is not known whether it would survive a loss of power: {}",
                e.report()
            )),
        };
        if let Err(message) = noted {
            self.journal.tell(&Event::Warning { message });
        }
        self.work.close(plan).await;
        let warnings = self.journal.warnings();
        Ok(Finished { guest: self.guest.to_string(), backup: directory.to_owned(), disks, archive, warnings })
    }

    /// Everything from the first byte to the rename.
    async fn make(
        &self,
        unfinished: &Unfinished,
        plan: &W::Plan,
        directory: &str,
        time: Timestamp,
        kept: Vec<(String, Vec<u8>)>,
    ) -> Result<(Contents, Published)> {
        let mut files = Vec::new();
        for (name, bytes) in kept {
            files.push(unfinished.keep(&name, &bytes)?);
        }
        let contents = self.interruptible(self.work.write(plan, unfinished, &self.journal)).await?;
        let manifest = Manifest {
            version: manifest::VERSION,
            guest: self.guest.to_string(),
            kind: W::KIND,
            time,
            disks: contents.disks.clone(),
            tool: Some(Tool { name: env!("CARGO_PKG_NAME").to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }),
            archive: contents.archive.clone(),
            files,
        };
        let published = unfinished.publish(directory, manifest, &self.journal.text())?;
        Ok((contents, published))
    }

    /// Renews `previous-info` in a guest that has one; the data is there by now.
    fn note_previous(&self, store: &Store, guest: &WriteDir, disks: &[ManifestDisk], time: Timestamp) -> Result<()> {
        let has_one = store.guest(self.guest)?.previous.is_some();
        match disks.iter().find_map(|disk| disk.bitmap.as_deref()).filter(|_| has_one) {
            Some(bitmap) => guest.replace_file(PREVIOUS_INFO, format!("{bitmap} {}", time.epoch()).as_bytes()),
            None => Ok(()),
        }
    }
}
