//! Carries out the plan for one disk: reads many stretches at once, encodes them on every core, and writes them in order.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use super::pace::Pace;
use super::plan::{Batch, Plan};
use super::source::{Source, blocking};
use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, GuestOffset, GuestRange, Result};
use crate::disk::Disk;
use crate::disk::writer::{EncodedBatch, Encoder, ImageOptions, ImageWriter, WrittenImage};
use crate::storage::write::NewFile;

/// The longest stretch that is read at once: long enough for a network with some delay, short enough that many are on the way.
const LONGEST_BATCH: u64 = 1 << 20;
/// Stretches of the disk that are in memory at once, of all disks together, in bytes.
const BYTES_IN_FLIGHT: usize = 64 << 20;
/// What the budget for those is counted in, so that it fits a semaphore of 32 bits.
const BUDGET_UNIT: u64 = 4096;
/// Stretches that may wait for the writer; small ones would otherwise be without number.
const MOST_BATCHES: usize = 256;

/// What the transfers of one run have in common.
pub(super) struct Shared {
    memory: Arc<Semaphore>,
    processors: Arc<Semaphore>,
    pace: Option<Pace>,
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Shared {
    pub(super) fn new(bytes_per_second: Option<u64>) -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            memory: Arc::new(Semaphore::new(BYTES_IN_FLIGHT / to_usize(BUDGET_UNIT))),
            processors: Arc::new(Semaphore::new(processors)),
            pace: bytes_per_second.map(Pace::new),
            buffers: Mutex::default(),
        })
    }

    /// A buffer that was used before, where there is one: fresh memory costs more than it seems.
    fn buffer(&self) -> Vec<u8> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < BYTES_IN_FLIGHT / to_usize(LONGEST_BATCH) {
            buffers.push(buffer);
        }
    }
}

/// One disk's transfer.
pub(super) struct Transfer {
    pub(super) source: Source,
    pub(super) plan: Arc<Plan>,
    pub(super) image: ImageOptions,
    /// What lies below, where the plan needs bytes of it.
    pub(super) parent: Option<Arc<Disk>>,
    /// Whether ranges are trimmed once they are written.
    pub(super) discard: bool,
    /// Bytes of the plan that are done.
    pub(super) done: Arc<AtomicU64>,
    pub(super) shared: Arc<Shared>,
}

/// What goes to the writer, in the order of the disk.
enum Part {
    Zeros(GuestRange),
    Data {
        ready: oneshot::Receiver<Result<EncodedBatch>>,
        reads: Vec<GuestRange>,
        _budget: OwnedSemaphorePermit,
    },
    /// The plan is done. Without this, whoever fills the queue was stopped.
    End,
}

impl Transfer {
    /// Moves the bytes into `file`. When this fails or is dropped, the file is worth nothing.
    pub(super) async fn run(self, file: NewFile) -> Result<WrittenImage> {
        let writer = ImageWriter::new(file, self.image.clone())?;
        let encoder = writer.encoder();
        let (queue, parts) = mpsc::channel(MOST_BATCHES);
        let (finished, to_trim) = mpsc::channel(MOST_BATCHES);
        let finished = self.discard.then_some(finished);
        let (done, shared) = (self.done.clone(), self.shared.clone());
        let writing = tokio::spawn(blocking(move || write(writer, parts, &done, &shared, finished)));
        let writing = async {
            writing
                .await
                .unwrap_or_else(|e| Err(Error::new(ErrorKind::Limit, "the writing thread ended early").with_source(e)))
        };
        let feeding = async {
            // That it was stopped says nothing: the writer knows why it stopped listening.
            let (fed, ()) = tokio::join!(self.feed(encoder, queue), trim(self.source.clone(), to_trim));
            Ok(fed)
        };
        // When the writer fails, nobody waits for what is still being read, or for its turn under a limit on speed.
        let (written, fed) = tokio::try_join!(writing, feeding)?;
        fed.map(|()| written)
    }

    /// Starts the reads, in order, as fast as the budget lets it.
    async fn feed(&self, encoder: Encoder, queue: mpsc::Sender<Part>) -> Result<()> {
        // Dropped with this future, and with it every read that is on its way.
        let mut readers = JoinSet::new();
        for batch in self.plan.batches(encoder.cluster_size(), LONGEST_BATCH, self.source.size()) {
            while readers.try_join_next().is_some() {}
            let part = match batch {
                Batch::Zeros(range) => Part::Zeros(self.to_image_end(range)),
                Batch::Read { range, reads } => {
                    let units = u32::try_from(range.len().div_ceil(BUDGET_UNIT)).unwrap_or(u32::MAX);
                    let budget = self.shared.memory.clone().acquire_many_owned(units).await.map_err(|_| stopped())?;
                    // Here and not in the reader: turns are taken in the order of the disk, which is that of the writer.
                    if let Some(pace) = &self.shared.pace {
                        pace.take(reads.iter().map(|read| read.len()).sum()).await;
                    }
                    let (told, ready) = oneshot::channel();
                    let reader = Reader {
                        source: self.source.clone(),
                        parent: self.parent.clone(),
                        shared: self.shared.clone(),
                        image_end: self.to_image_end(range).end(),
                        range,
                        reads: reads.clone(),
                    };
                    readers.spawn(async move {
                        // Nobody listens any more when the writer has failed.
                        let _ = told.send(reader.run(encoder).await);
                    });
                    Part::Data { ready, reads, _budget: budget }
                }
            };
            if queue.send(part).await.is_err() {
                return Err(stopped());
            }
        }
        let ended = queue.send(Part::End).await.map_err(|_| stopped());
        while readers.join_next().await.is_some() {}
        ended
    }

    /// `range`, up to the end of the image where it reaches the end of the source: the image's size is in whole sectors.
    fn to_image_end(&self, range: GuestRange) -> GuestRange {
        if range.end().0 == self.source.size() {
            return GuestRange::between(range.start(), GuestOffset(self.image.size));
        }
        range
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Io, "the transfer was stopped")
}

/// Reads and encodes one stretch.
struct Reader {
    source: Source,
    parent: Option<Arc<Disk>>,
    shared: Arc<Shared>,
    range: GuestRange,
    reads: Vec<GuestRange>,
    image_end: GuestOffset,
}

impl Reader {
    async fn run(self, encoder: Encoder) -> Result<EncodedBatch> {
        let mut bytes = match self.reads.as_slice() {
            [whole] if *whole == self.range => self.source.read(*whole, self.shared.buffer()).await?,
            _ => self.assemble().await?,
        };
        let image_len = to_usize(GuestRange::between(self.range.start(), self.image_end).len());
        bytes.resize(image_len, 0);
        let _turn = self.shared.processors.acquire().await.map_err(|_| stopped())?;
        let start = self.range.start();
        blocking(move || encoder.encode(start, bytes)).await
    }

    /// The parent's bytes, with those of the source laid over them.
    async fn assemble(&self) -> Result<Vec<u8>> {
        let Some(parent) = self.parent.clone() else {
            return Err(Error::new(
                ErrorKind::MissingLayer,
                "part of a cluster is to come from a parent, and there is none",
            ));
        };
        let (range, mut bytes) = (self.range, self.shared.buffer());
        let mut bytes = blocking(move || {
            bytes.clear();
            bytes.resize(to_usize(range.len()), 0);
            // What lies behind the parent's end stays zero.
            parent.read_at(&mut bytes, range.start()).map_err(|e| {
                e.context("the rest of a cluster from the disk's latest backup")
                    .with_hint("make a full backup of this disk")
            })?;
            Ok(bytes)
        })
        .await?;
        let mut piece = self.shared.buffer();
        for read in &self.reads {
            piece = self.source.read(*read, piece).await?;
            let at = to_usize(read.start().0.saturating_sub(range.start().0));
            match at.checked_add(piece.len()).and_then(|end| bytes.get_mut(at..end)) {
                Some(place) => place.copy_from_slice(&piece),
                None => return Err(Error::new(ErrorKind::Protocol, "the source gave more bytes than were asked for")),
            }
        }
        self.shared.give_back(piece);
        Ok(bytes)
    }
}

/// Puts the parts into the image as they become ready; runs on a thread of its own.
fn write(
    mut writer: ImageWriter,
    mut parts: mpsc::Receiver<Part>,
    done: &AtomicU64,
    shared: &Shared,
    finished: Option<mpsc::Sender<Vec<GuestRange>>>,
) -> Result<WrittenImage> {
    loop {
        match parts.blocking_recv() {
            Some(Part::Zeros(range)) => {
                writer.append_zeros(range)?;
                done.fetch_add(range.len(), Ordering::Relaxed);
            }
            Some(Part::Data { ready, reads, _budget }) => {
                let batch = ready.blocking_recv().map_err(|_| stopped())??;
                writer.append(&batch)?;
                shared.give_back(batch.into_buffer());
                done.fetch_add(reads.iter().map(|read| read.len()).sum(), Ordering::Relaxed);
                if let Some(finished) = &finished {
                    // Trimming ends only with the transfer.
                    let _ = finished.blocking_send(reads);
                }
            }
            Some(Part::End) => break,
            None => return Err(stopped()),
        }
    }
    drop(finished);
    writer.finish()
}

/// Trims what was written. That the source does not free something is no reason to give the backup up.
async fn trim(source: Source, mut finished: mpsc::Receiver<Vec<GuestRange>>) {
    let mut failed = false;
    while let Some(ranges) = finished.recv().await {
        for range in ranges {
            if failed {
                continue;
            }
            if let Err(e) = source.trim(range).await {
                failed = true;
                tracing::warn!(
                    error = e.report(),
                    "the source does not discard what was read; the rest is left as it is"
                );
            }
        }
    }
}
