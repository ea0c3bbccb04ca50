//! Open files within a budget of descriptors.
//!
//! A file of the store keeps its descriptor while there is room. When the budget is used up, descriptors that were not
//! read through lately are closed, and opened anew at the next read; if the file under that name is then another one,
//! the read fails rather than return another file's bytes.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwapOption;
use rustix::fs::{Advice, SeekFrom};
use rustix::io::Errno;

use super::{FileIdentity, Gate, LastingIdentity, RelPath, Storage};
use crate::base::time::now_ns;
use crate::base::{Error, ErrorKind, HostOffset, Result};

/// How many descriptors of store files may be open at once.
#[derive(Debug)]
pub struct FilePool {
    budget: usize,
    open: AtomicUsize,
    /// Every file that has a descriptor, in the order in which they are looked at for closing.
    clock: Mutex<VecDeque<Weak<Inner>>>,
}

/// Descriptors left for everything else: FUSE channels, directories, logs.
const RESERVED: u64 = 256;

impl FilePool {
    /// A pool that keeps at most `budget` descriptors open (at least one).
    #[must_use]
    pub fn new(budget: usize) -> Arc<Self> {
        Arc::new(Self { budget: budget.max(1), open: AtomicUsize::new(0), clock: Mutex::default() })
    }

    /// A pool as large as this process may have: raises the soft limit on open files to the hard one.
    #[must_use]
    pub fn for_process() -> Arc<Self> {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        let current = match setrlimit(Resource::Nofile, raised) {
            Ok(()) => limit.maximum,
            Err(_) => limit.current,
        };
        let usable = current.unwrap_or(u64::MAX).saturating_sub(RESERVED).max(RESERVED / 4);
        Self::new(usize::try_from(usable).unwrap_or(usize::MAX))
    }

    /// How many descriptors are open now.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn clock(&self) -> MutexGuard<'_, VecDeque<Weak<Inner>>> {
        // The queue is valid whatever panicked while holding it: it is only ever pushed and popped.
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a new descriptor of `file` and closes others until the budget holds.
    fn admit(&self, file: &Arc<Inner>) {
        let mut clock = self.clock();
        clock.push_back(Arc::downgrade(file));
        let mut open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        // Twice round: the first pass takes the marks away, the second closes.
        let mut steps = clock.len() * 2;
        while open > self.budget && steps > 0 {
            steps -= 1;
            let Some(weak) = clock.pop_front() else { break };
            let Some(other) = weak.upgrade() else { continue };
            if Arc::ptr_eq(&other, file) || other.used.swap(false, Ordering::Relaxed) {
                clock.push_back(weak);
            } else if other.fd.swap(None).is_some() {
                open = self.open.fetch_sub(1, Ordering::Relaxed) - 1;
            }
        }
        if clock.len() > 64 + 2 * open {
            clock.retain(|weak| weak.strong_count() > 0);
        }
    }
}

/// A regular file of the store, open for reading.
#[derive(Debug, Clone)]
pub struct StoreFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    gate: Gate,
    path: RelPath,
    identity: LastingIdentity,
    /// Whether the identity, when it was taken, was that of an older content than of the last few moments.
    settled: bool,
    fd: ArcSwapOption<OwnedFd>,
    /// Read through since the clock last came by.
    used: AtomicBool,
}

impl StoreFile {
    pub(super) fn open(gate: Gate, path: RelPath) -> Result<Self> {
        let now = now_ns();
        let (fd, identity) = gate.open_regular(&path)?;
        let inner = Arc::new(Inner {
            gate,
            path,
            identity,
            settled: identity.is_settled(now),
            fd: ArcSwapOption::from_pointee(fd),
            used: AtomicBool::new(true),
        });
        inner.gate.pool().admit(&inner);
        Ok(Self(inner))
    }

    fn fd(&self) -> Result<Arc<OwnedFd>> {
        let inner = &self.0;
        if let Some(fd) = inner.fd.load_full() {
            if !inner.used.load(Ordering::Relaxed) {
                inner.used.store(true, Ordering::Relaxed);
            }
            return Ok(fd);
        }
        let (fd, identity) = inner.gate.open_regular(&inner.path)?;
        if identity.identity != inner.identity.identity {
            return Err(Error::new(
                ErrorKind::Changed,
                format!(
                    "'{}' was replaced or changed while it was in use, and the old one is no longer open",
                    inner.path
                ),
            )
            .with_hint("raise the limit on open files (ulimit -n) so that files in use stay open"));
        }
        let fd = Arc::new(fd);
        inner.used.store(true, Ordering::Relaxed);
        // Two threads may have opened it at once; only the one that put its descriptor there counts it.
        if inner.fd.swap(Some(fd.clone())).is_none() {
            inner.gate.pool().admit(inner);
        }
        Ok(fd)
    }

    fn failed(&self, what: &str, at: HostOffset, errno: Errno) -> Error {
        Error::io(format!("cannot {what} '{}' at {at}", self.0.path), errno)
    }

    fn seek(&self, to: SeekFrom, at: HostOffset) -> Result<Option<HostOffset>> {
        match rustix::fs::seek(&*self.fd()?, to) {
            Ok(found) => Ok(Some(HostOffset(found))),
            Err(Errno::NXIO) => Ok(None),
            Err(e) => Err(self.failed("look for holes in", at, e)),
        }
    }
}

impl Storage for StoreFile {
    fn size(&self) -> u64 {
        self.0.identity.identity.size
    }

    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> Result<usize> {
        let fd = self.fd()?;
        let mut done = 0;
        while done < buf.len() {
            let position = at.saturating_add(done as u64);
            match rustix::io::pread(&*fd, &mut buf[done..], position.0) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(self.failed("read", position, e)),
            }
        }
        Ok(done)
    }

    fn next_data(&self, at: HostOffset) -> Result<Option<HostOffset>> {
        self.seek(SeekFrom::Data(at.0), at)
    }

    fn next_hole(&self, at: HostOffset) -> Result<HostOffset> {
        Ok(self.seek(SeekFrom::Hole(at.0), at)?.unwrap_or(HostOffset(self.size())))
    }

    fn will_need(&self, at: HostOffset, len: u64) {
        if let Ok(fd) = self.fd() {
            // A hint: that it could not be given changes nothing.
            let _ = rustix::fs::fadvise(&*fd, at.0, std::num::NonZeroU64::new(len), Advice::WillNeed);
        }
    }

    fn identity(&self) -> FileIdentity {
        self.0.identity.identity
    }

    fn lasting_identity(&self) -> LastingIdentity {
        self.0.identity
    }

    fn is_settled(&self) -> bool {
        self.0.settled
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.fd.swap(None).is_some() {
            self.gate.pool().open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &std::path::Path, count: usize, budget: usize) -> (Arc<FilePool>, Vec<StoreFile>) {
        let pool = FilePool::new(budget);
        let gate = Gate::open(dir, pool.clone()).unwrap();
        let open = |i: usize| {
            let name = format!("f{i}");
            std::fs::write(dir.join(&name), format!("content {i}")).unwrap();
            gate.open_file(&RelPath::new(&name).unwrap()).unwrap()
        };
        (pool, (0..count).map(open).collect())
    }

    fn read(file: &StoreFile) -> Result<String> {
        let mut buf = [0; 64];
        let n = file.read_at(&mut buf, HostOffset(0))?;
        Ok(String::from_utf8_lossy(&buf[..n]).into_owned())
    }

    #[test]
    fn a_hundred_files_read_through_eight_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let (pool, files) = files(dir.path(), 100, 8);
        for round in 0..3 {
            for (i, file) in files.iter().enumerate() {
                assert_eq!(read(file).unwrap(), format!("content {i}"), "round {round}");
                assert!(pool.open_files() <= 8, "{} open", pool.open_files());
            }
        }
        drop(files);
        assert_eq!(pool.open_files(), 0);
    }

    #[test]
    fn a_file_replaced_while_its_descriptor_was_closed_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (_pool, files) = files(dir.path(), 10, 2);
        std::fs::write(dir.path().join("new"), "other bytes").unwrap();
        std::fs::rename(dir.path().join("new"), dir.path().join("f0")).unwrap();
        assert_eq!(read(&files[0]).unwrap_err().kind(), ErrorKind::Changed);
    }

    #[test]
    fn a_file_that_was_written_moments_ago_is_not_settled_and_an_older_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let (_pool, files) = files(dir.path(), 1, 8);
        let settled = || {
            let gate = Gate::open(dir.path(), FilePool::new(1)).unwrap();
            gate.open_file(&RelPath::new("f0").unwrap()).unwrap().is_settled()
        };
        let file = std::fs::File::options().write(true).open(dir.path().join("f0")).unwrap();
        // Content can be given any time; that it was changed cannot be hidden.
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(3600)).unwrap();
        assert!(!files[0].is_settled() && !settled());
        std::thread::sleep(std::time::Duration::from_millis(2100));
        assert!(settled());
        // What was opened while it was young stays so: it may have changed since.
        assert!(!files[0].is_settled());
        file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(3600)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2100));
        assert!(!settled(), "nobody knows what clock that was");
    }

    #[test]
    fn content_with_its_old_time_has_another_lasting_identity() {
        let dir = tempfile::tempdir().unwrap();
        let (_pool, files) = files(dir.path(), 1, 8);
        let path = dir.path().join("f0");
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&path, "CONTENT 0").unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        let gate = Gate::open(dir.path(), FilePool::new(1)).unwrap();
        let now = gate.open_file(&RelPath::new("f0").unwrap()).unwrap();
        assert_eq!(now.identity(), files[0].identity());
        assert_ne!(now.lasting_identity(), files[0].lasting_identity());
    }

    #[test]
    fn a_file_removed_while_it_is_open_stays_readable() {
        let dir = tempfile::tempdir().unwrap();
        let (_pool, files) = files(dir.path(), 3, 8);
        std::fs::remove_file(dir.path().join("f1")).unwrap();
        assert_eq!(read(&files[1]).unwrap(), "content 1");
    }
}
