//! A file that is being written.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::Advice;
use rustix::io::Errno;

use super::{Change, Medium};
use crate::base::{Error, HostOffset, Result};

/// How many bytes are written before the kernel is asked to start bringing them to the medium.
const WRITEBACK_WINDOW: u64 = 8 << 20;

/// A file that this process made and has not given its final place yet.
///
/// What is written in order goes to the medium all the while, so that little is left for [`sync`](Self::sync) to wait for.
#[derive(Debug)]
pub struct NewFile {
    fd: OwnedFd,
    path: PathBuf,
    medium: Arc<dyn Medium>,
    /// Everything before this offset is on its way to the medium, if it was written in order.
    on_its_way: AtomicU64,
}

impl NewFile {
    pub(super) fn new(fd: OwnedFd, path: PathBuf, medium: Arc<dyn Medium>) -> Self {
        Self { fd, path, medium, on_its_way: AtomicU64::new(0) }
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all of `bytes` at `at`.
    pub fn write_at(&self, bytes: &[u8], at: HostOffset) -> Result<()> {
        self.medium.before(&self.path, Change::Write { at: at.0, bytes })?;
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pwrite(&self.fd, rest, at.saturating_add(done as u64).0) {
                Ok(0) => return Err(self.failed("write to", Errno::NOSPC)),
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                Err(e) => return Err(self.failed("write to", e)),
            }
        }
        self.start_writeback(at.saturating_add(bytes.len() as u64));
        Ok(())
    }

    /// Has the kernel begin to write what lies before `end`, a window at a time, without waiting for it.
    fn start_writeback(&self, end: HostOffset) {
        let start = self.on_its_way.load(Ordering::Relaxed);
        let Some(length) = end.0.checked_sub(start).filter(|length| *length >= WRITEBACK_WINDOW) else { return };
        self.on_its_way.store(end.0, Ordering::Relaxed);
        // Linux begins to write dirty pages of which it is told that they will not be needed (and drops clean ones).
        // Only advice: when it is not taken, `sync` waits longer. What goes wrong with that writing, `sync` tells.
        let _ = rustix::fs::fadvise(&self.fd, start, std::num::NonZeroU64::new(length), Advice::DontNeed);
    }

    /// Returns when the bytes and the size are on the medium.
    ///
    /// After a failure nothing is known of what was written before: the file must be given up.
    pub fn sync(&self) -> Result<()> {
        self.medium.before(&self.path, Change::SyncFile)?;
        rustix::fs::fsync(&self.fd).map_err(|e| self.failed("bring to the medium", e))
    }

    /// Bytes that the file's file system has left for this user.
    pub fn space_left(&self) -> Result<u64> {
        let space = rustix::fs::fstatvfs(&self.fd).map_err(|e| self.failed("find the space left for", e))?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    fn failed(&self, what: &str, errno: Errno) -> Error {
        let error = Error::io(format!("cannot {what} '{}'", self.path.display()), errno);
        match errno {
            Errno::NOSPC => error.with_hint("the store's file system is full"),
            Errno::DQUOT => error.with_hint("the quota on the store's file system is used up"),
            Errno::FBIG => {
                error.with_hint("a limit on the size of files (ulimit -f, or the file system's own) was reached")
            }
            _ => error,
        }
    }
}
