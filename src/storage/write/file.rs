//! A file that is being written.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::{Change, Medium};
use crate::base::{Error, HostOffset, Result};

/// A file that this process made and has not given its final place yet.
#[derive(Debug)]
pub struct NewFile {
    fd: OwnedFd,
    path: PathBuf,
    medium: Arc<dyn Medium>,
}

impl NewFile {
    pub(super) fn new(fd: OwnedFd, path: PathBuf, medium: Arc<dyn Medium>) -> Self {
        Self { fd, path, medium }
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
        Ok(())
    }

    /// Returns when the bytes and the size are on the medium.
    ///
    /// After a failure nothing is known of what was written before: the file must be given up.
    pub fn sync(&self) -> Result<()> {
        self.medium.before(&self.path, Change::SyncFile)?;
        rustix::fs::fsync(&self.fd).map_err(|e| self.failed("bring to the medium", e))
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
