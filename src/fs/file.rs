//! Open files: where reads and questions about holes end up.

use std::sync::{Arc, Mutex, PoisonError};

use super::faults::Subject;
use super::members::Archived;
use crate::archive::NodeId;
use crate::base::{Error, ErrorKind, GuestOffset, GuestRange, HostOffset, Result, Timestamp};
use crate::disk::Disk;
use crate::storage::{Storage, StoreFile};

/// What programs that read past the page cache (`O_DIRECT`) read in, and expect holes in; the block size that `stat` tells.
const BLOCK: u64 = 4096;

/// Where a search for data or holes starts to look, as `lseek` puts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whence {
    /// The next byte that is data.
    Data,
    /// The next byte that is in a hole; the end of the file is one.
    Hole,
}

/// How exactly a search tells where holes begin and end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holes {
    /// To the byte.
    Exact,
    /// In whole blocks of 4096 bytes: for a file that is opened with `O_DIRECT`, in which QEMU takes it for granted that holes
    /// begin and end where it can read.
    InBlocks,
}

/// One version of a file's content, shared by all who have it open.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) subject: Subject,
    pub(super) content: Content,
    pub(super) size: u64,
    /// The backup's time.
    pub(super) time: Timestamp,
    pub(super) allocated: Allocated,
}

/// Where a file's bytes come from.
#[derive(Debug)]
pub(super) enum Content {
    /// The part of a disk that starts at `start`.
    Disk { disk: Arc<Disk>, start: GuestOffset },
    /// A file of the store.
    Stored(StoreFile),
    /// Text made up by the mount.
    Text(Arc<str>),
    /// A file in a container.
    Member(Arc<Archived>, NodeId),
}

impl OpenFile {
    /// Reads into `buf`; short only at the end of the file. Returns the bytes read.
    pub(super) fn read_at(&self, buf: &mut [u8], at: u64) -> Result<usize> {
        let left = crate::base::units::to_usize(self.size.saturating_sub(at));
        let wanted = buf.len().min(left);
        let buf = buf.get_mut(..wanted).unwrap_or_default();
        if buf.is_empty() {
            return Ok(0);
        }
        let got = match &self.content {
            Content::Disk { disk, start } => disk.read_at(buf, start.saturating_add(at))?,
            Content::Stored(file) => file.read_at(buf, HostOffset(at))?,
            Content::Member(archive, node) => archive.tree().read_at(*node, buf, at)?,
            Content::Text(text) => {
                let from = crate::base::units::to_usize(at);
                let text = text.as_bytes().get(from..).unwrap_or_default();
                let got = text.len().min(wanted);
                buf.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
                got
            }
        };
        // To the kernel a short answer means the end of the file; it would fill the rest of the page with zeros.
        if got < wanted {
            return Err(Error::new(
                ErrorKind::Changed,
                format!("only {got} of {wanted} bytes are there: the file was cut short after it was opened"),
            ));
        }
        Ok(got)
    }

    /// The next byte of the kind asked for, at or after `at`; `None` where there is none before the end, and, for
    /// holes, where `at` is not before the end itself.
    pub(super) fn seek(&self, at: u64, whence: Whence) -> Result<Option<u64>> {
        if at >= self.size {
            return Ok(None);
        }
        let (disk, start) = match &self.content {
            Content::Disk { disk, start } => (disk, start),
            Content::Member(archive, node) => {
                return match whence {
                    Whence::Data => archive.tree().next_data(*node, at),
                    Whence::Hole => archive.tree().next_hole(*node, at).map(Some),
                };
            }
            Content::Stored(_) | Content::Text(_) => {
                return Ok(Some(match whence {
                    Whence::Data => at,
                    Whence::Hole => self.size,
                }));
            }
        };
        let from = start.saturating_add(at);
        let found = match whence {
            Whence::Data => disk.next_data(from)?,
            Whence::Hole => Some(disk.next_hole(from)?),
        };
        let relative = found.map(|found| found.0.saturating_sub(start.0));
        Ok(match whence {
            Whence::Data => relative.filter(|found| *found < self.size),
            Whence::Hole => relative.map(|found| found.min(self.size)),
        })
    }

    /// The same in whole blocks: one in which any byte is data is data.
    pub(super) fn seek_blocks(&self, at: u64, whence: Whence) -> Result<Option<u64>> {
        if at >= self.size {
            return Ok(None);
        }
        let start_of = |at: u64| at - at % BLOCK;
        let mut block = start_of(at);
        loop {
            let data = self.seek(block, Whence::Data)?;
            match (whence, data) {
                (Whence::Data, data) => return Ok(data.map(|data| start_of(data).max(at))),
                (Whence::Hole, Some(data)) if start_of(data) == block => {
                    let hole = self.seek(data, Whence::Hole)?.unwrap_or(self.size);
                    block = start_of(hole.saturating_add(BLOCK - 1)).max(block.saturating_add(BLOCK));
                    if block >= self.size {
                        return Ok(Some(self.size));
                    }
                }
                (Whence::Hole, _) => return Ok(Some(block.max(at))),
            }
        }
    }

    /// Says that these bytes will be read soon.
    pub(super) fn will_need(&self, range: std::ops::Range<u64>) {
        let Content::Disk { disk, start } = &self.content else { return };
        let end = range.end.min(self.size);
        if range.start < end {
            disk.will_need(GuestRange::between(start.saturating_add(range.start), start.saturating_add(end)));
        }
    }

    /// How many bytes are allocated. The first call for a disk goes through its whole map.
    pub(super) fn allocated(&self) -> u64 {
        let Content::Disk { disk, start } = &self.content else { return self.size };
        let range = GuestRange::between(*start, start.saturating_add(self.size));
        self.allocated.get_or_count(|| {
            disk.allocated(range).unwrap_or_else(|error| {
                // The size must be told whatever can be read: without knowledge of a hole there is none.
                let Subject { guest, backup, file } = &self.subject;
                tracing::warn!(
                    "cannot count the blocks of guest {guest}, backup {backup}, disk {file}: {}",
                    error.report()
                );
                self.size
            })
        })
    }
}

/// How much of a file is allocated, counted once, by one thread while others wait.
#[derive(Debug, Clone, Default)]
pub(super) struct Allocated(Arc<Mutex<Option<u64>>>);

impl Allocated {
    pub(super) fn get_or_count(&self, count: impl FnOnce() -> u64) -> u64 {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *known.get_or_insert_with(count)
    }

    /// The count if it is known; never waits for it.
    pub(super) fn known(&self) -> Option<u64> {
        self.0.try_lock().ok().and_then(|known| *known)
    }
}
