//! Files in memory, for tests and fuzzing: whole, or made to fail.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{FileIdentity, LayerSource, RelPath, Storage};
use crate::base::{Error, ErrorKind, HostOffset, Result};

/// One file held in memory. It has no holes.
#[derive(Debug, Clone)]
pub struct MemoryFile {
    bytes: Arc<[u8]>,
    inode: u64,
    /// Reads that touch a byte at or after this offset fail with an I/O error.
    fail_from: u64,
}

impl MemoryFile {
    /// A file of these bytes, with an identity of its own.
    #[must_use]
    pub fn new(bytes: impl Into<Arc<[u8]>>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { bytes: bytes.into(), inode: NEXT.fetch_add(1, Ordering::Relaxed), fail_from: u64::MAX }
    }

    /// The same file on a medium that fails from byte `at` on.
    #[must_use]
    pub fn failing_from(mut self, at: HostOffset) -> Self {
        self.fail_from = at.0;
        self
    }
}

impl Storage for MemoryFile {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> Result<usize> {
        let start = crate::base::units::to_usize(at.0).min(self.bytes.len());
        let len = buf.len().min(self.bytes.len() - start);
        if at.saturating_add(len as u64).0 > self.fail_from {
            return Err(Error::new(ErrorKind::Io, format!("made to fail from {:#x} on", self.fail_from)));
        }
        buf[..len].copy_from_slice(&self.bytes[start..start + len]);
        Ok(len)
    }

    fn next_data(&self, at: HostOffset) -> Result<Option<HostOffset>> {
        Ok((at.0 < self.size()).then_some(at))
    }

    fn next_hole(&self, _: HostOffset) -> Result<HostOffset> {
        Ok(HostOffset(self.size()))
    }

    fn will_need(&self, _: HostOffset, _: u64) {}

    fn identity(&self) -> FileIdentity {
        FileIdentity { device: 0, inode: self.inode, size: self.size(), mtime_ns: 0 }
    }

    fn is_settled(&self) -> bool {
        true
    }
}

/// A guest's directory in memory, with the same rules for names as the real gate.
#[derive(Debug, Clone)]
pub struct MemoryGate {
    guest: String,
    files: HashMap<String, MemoryFile>,
}

impl MemoryGate {
    /// An empty directory named `guest`.
    #[must_use]
    pub fn new(guest: &str) -> Self {
        Self { guest: guest.to_owned(), files: HashMap::new() }
    }

    /// Adds or replaces a file.
    pub fn insert(&mut self, path: &str, file: MemoryFile) {
        self.files.insert(path.to_owned(), file);
    }
}

impl LayerSource for MemoryGate {
    fn open(&self, path: &RelPath) -> Result<Arc<dyn Storage>> {
        match self.files.get(path.as_str()) {
            Some(file) => Ok(Arc::new(file.clone())),
            None => Err(Error::new(ErrorKind::NotFound, format!("cannot open '{path}'"))),
        }
    }

    fn resolve(&self, from: &RelPath, backing: &[u8]) -> Result<RelPath> {
        super::gate::resolve_backing(&self.guest, from, backing)
    }
}
