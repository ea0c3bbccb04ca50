//! One writer per directory: a lock that ends with the process that holds it, and says who that is.

use std::os::fd::OwnedFd;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::WriteDir;
use crate::base::{Error, ErrorKind, Result, Timestamp};

/// The file that is locked. It stays when nobody holds it: removing it would let two writers hold two files of one name.
const LOCK: &str = ".writer.lock";
/// Most bytes that are read of who holds it.
const HOLDER_LIMIT: usize = 4096;

/// Who holds a lock, as it says so itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// What it is doing, for people.
    pub doing: String,
    /// The machine it runs on.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// Since when, in RFC 3339.
    pub since: String,
}

/// The right to write in one directory, held until it is dropped or the process ends, however it ends.
///
/// The lock is flock(2)'s, which Linux hands on to the server of an NFS mount: it holds between machines too.
#[derive(Debug)]
pub struct WriterLock(OwnedFd);

impl WriterLock {
    /// Takes the lock of `dir`. An error of kind `Busy` says who holds it since when.
    pub fn take(dir: &WriteDir, doing: &str) -> Result<Self> {
        let shown = dir.path().join(LOCK);
        let failed = |what: &str, e: Errno| Error::io(format!("cannot {what} '{}'", shown.display()), e);
        // Open for writing: NFS turns the lock into a record lock, which needs that.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir.fd(), LOCK, flags, Mode::from_raw_mode(0o640)).map_err(|e| {
            let error = failed("open", e);
            if e == Errno::ROFS { error.with_hint("the store's file system is mounted read-only") } else { error }
        })?;
        loop {
            match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(busy(dir, &fd)),
                Err(e @ (Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS)) => {
                    return Err(failed("lock", e).with_hint("the store's file system must support locks"));
                }
                Err(e) => return Err(failed("lock", e)),
            }
        }
        let holder = Holder {
            doing: doing.to_owned(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
            since: Timestamp::now()?.to_string(),
        };
        let text = serde_json::to_vec(&holder)
            .map_err(|e| Error::new(ErrorKind::Io, "cannot write down who holds the lock").with_source(e))?;
        rustix::fs::ftruncate(&fd, 0)
            .and_then(|()| rustix::io::pwrite(&fd, &text, 0))
            .map_err(|e| failed("write to", e))?;
        Ok(Self(fd))
    }
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        // Only words for people are lost when this fails.
        let _ = rustix::fs::ftruncate(&self.0, 0);
        // Closing the file would do, were it not for a process that is being started this very moment: until it runs its program,
        // it has the file open as well.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

fn busy(dir: &WriteDir, fd: &OwnedFd) -> Error {
    let mut text = vec![0; HOLDER_LIMIT];
    let read = rustix::io::pread(fd, &mut text, 0).unwrap_or(0);
    let holder: Option<Holder> = serde_json::from_slice(text.get(..read).unwrap_or_default()).ok();
    let who = match holder {
        Some(Holder { doing, host, pid, since }) => {
            format!("process {pid} on {host} has held it since {since} ({doing})")
        }
        // Between taking the lock and saying who, or between saying good-bye and giving it back.
        None => "another process has taken it just now".to_owned(),
    };
    Error::new(ErrorKind::Busy, format!("'{}' is being written to: {who}", dir.path().display()))
        .with_hint("wait until it has finished, or end it")
}
