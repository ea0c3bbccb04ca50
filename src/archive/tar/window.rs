//! Reads of an archive from front to back, with what is not wanted left out.

use crate::base::units::to_usize;
use crate::base::{HostOffset, Result};
use crate::storage::Storage;

/// A piece of the file in memory. It grows while reads follow each other, and is small again after a jump, so that
/// neither many small members nor few large ones cost more reading than they must.
pub(super) struct Window<'a> {
    file: &'a dyn Storage,
    buf: Vec<u8>,
    start: u64,
    ahead: usize,
}

const SMALLEST: usize = 16 << 10;
const LARGEST: usize = 1 << 20;

impl<'a> Window<'a> {
    pub(super) fn new(file: &'a dyn Storage) -> Self {
        Self { file, buf: Vec::new(), start: 0, ahead: SMALLEST }
    }

    pub(super) fn size(&self) -> u64 {
        self.file.size()
    }

    /// The `len` bytes at `at`, or `None` where the file ends before.
    pub(super) fn get(&mut self, at: u64, len: usize) -> Result<Option<&[u8]>> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.size()) {
            return Ok(None);
        }
        let held = |window: &Self| {
            let from = usize::try_from(at.checked_sub(window.start)?).ok()?;
            let to = from.checked_add(len).filter(|to| *to <= window.buf.len())?;
            Some(from..to)
        };
        if held(self).is_none() {
            let end = self.start.saturating_add(self.buf.len() as u64);
            let follows = (self.start..=end).contains(&at);
            self.ahead = if follows { (self.ahead * 2).min(LARGEST) } else { SMALLEST };
            let wanted = (self.ahead.max(len) as u64).min(self.size() - at);
            self.start = at;
            // Where a medium fails, what was asked for may still be readable when what was not is left alone.
            self.fill(to_usize(wanted)).or_else(|_| self.fill(len))?;
        }
        Ok(held(self).and_then(|range| self.buf.get(range)))
    }

    fn fill(&mut self, len: usize) -> Result<()> {
        self.buf.resize(len, 0);
        self.file.read_exact_at(&mut self.buf, HostOffset(self.start)).inspect_err(|_| self.buf.clear())
    }

    /// The first byte at or after `at` that is not in a hole of the file itself.
    pub(super) fn next_data(&self, at: u64) -> Result<Option<u64>> {
        Ok(self.file.next_data(HostOffset(at))?.map(|found| found.0))
    }
}
