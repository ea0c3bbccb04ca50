//! Pages: the bytes of an index in pieces that carry a checksum each.
//!
//! A page is 16 KiB: its bytes, then the CRC-32 of its number and those bytes. The last one is filled up with zeros.

use std::io::Write;
use std::sync::Arc;

use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, HostOffset, Result};
use crate::storage::{BlockCache, BlockKey, FileNumber, Storage};

const PAGE: usize = 16 << 10;
const CHECKSUM: usize = 4;
const PAYLOAD: usize = PAGE - CHECKSUM;

/// The length of `len` bytes when they are cut into pages.
pub(super) fn paged_len(len: u64) -> u64 {
    len.div_ceil(PAYLOAD as u64).saturating_mul(PAGE as u64)
}

fn checksum(page: u64, payload: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&page.to_le_bytes());
    hasher.update(payload);
    hasher.finalize().to_le_bytes()
}

/// The payload of the page of that number, if its checksum is right.
fn payload(number: u64, page: &[u8]) -> Option<&[u8]> {
    let (payload, stored) = page.split_at_checked(PAYLOAD)?;
    (checksum(number, payload) == stored).then_some(payload)
}

/// Cuts what is written into pages.
pub(super) struct PageWriter<'a> {
    to: &'a mut dyn Write,
    page: Vec<u8>,
    number: u64,
}

impl<'a> PageWriter<'a> {
    pub(super) fn new(to: &'a mut dyn Write) -> Self {
        Self { to, page: Vec::with_capacity(PAGE), number: 0 }
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PAYLOAD - self.page.len()));
            self.page.extend_from_slice(now);
            bytes = later;
            if self.page.len() == PAYLOAD {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let sum = checksum(self.number, &self.page);
        self.page.extend_from_slice(&sum);
        self.to.write_all(&self.page)?;
        self.page.clear();
        self.number += 1;
        Ok(())
    }

    pub(super) fn finish(mut self) -> std::io::Result<()> {
        if !self.page.is_empty() {
            self.page.resize(PAYLOAD, 0);
            self.flush()?;
        }
        Ok(())
    }
}

/// Where pages are read from.
pub(super) enum Pages {
    /// A file of the cache directory; pages in use are in the block cache.
    Stored { file: Arc<dyn Storage>, number: FileNumber, cache: Arc<BlockCache> },
    /// All of them, one after the other.
    Memory(Vec<u8>),
}

impl Pages {
    /// Reads every page of a file once and says whether all checksums are right.
    pub(super) fn verify(file: &dyn Storage) -> Result<bool> {
        const AT_ONCE: usize = 64;
        let size = file.size();
        if !size.is_multiple_of(PAGE as u64) {
            return Ok(false);
        }
        let mut buf = vec![0; PAGE * AT_ONCE];
        let (mut at, mut number) = (0, 0);
        while at < size {
            let len = (size - at).min(buf.len() as u64);
            let part = buf.get_mut(..to_usize(len)).unwrap_or_default();
            file.read_exact_at(part, HostOffset(at))?;
            for page in part.chunks_exact(PAGE) {
                if payload(number, page).is_none() {
                    return Ok(false);
                }
                number += 1;
            }
            at += len;
        }
        Ok(true)
    }

    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Stored { file, .. } => file.size(),
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Fills `buf` with the bytes from `at` on, counted without checksums.
    pub(super) fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        let mut at = at;
        let mut rest = buf;
        while !rest.is_empty() {
            let (number, within) = (at / PAYLOAD as u64, to_usize(at % PAYLOAD as u64));
            let len = rest.len().min(PAYLOAD - within);
            let (now, later) = rest.split_at_mut(len);
            self.with_page(number, |payload| {
                let bytes = payload.get(within..within + len).ok_or_else(damaged)?;
                now.copy_from_slice(bytes);
                Ok(())
            })?;
            rest = later;
            at = at.saturating_add(len as u64);
        }
        Ok(())
    }

    fn with_page(&self, number: u64, take: impl FnOnce(&[u8]) -> Result<()>) -> Result<()> {
        let at = number.checked_mul(PAGE as u64).ok_or_else(damaged)?;
        match self {
            Self::Memory(bytes) => {
                let start = to_usize(at);
                take(start.checked_add(PAYLOAD).and_then(|end| bytes.get(start..end)).ok_or_else(damaged)?)
            }
            Self::Stored { file, number: owner, cache } => {
                let key = BlockKey { file: *owner, at: HostOffset(at) };
                let page = cache.get_or_load(key, || {
                    let mut page = vec![0; PAGE];
                    file.read_exact_at(&mut page, HostOffset(at))?;
                    if payload(number, &page).is_none() {
                        return Err(damaged().with_hint("remove it from the cache directory, and mount anew"));
                    }
                    page.truncate(PAYLOAD);
                    Ok(page.into())
                })?;
                take(&page)
            }
        }
    }
}

fn damaged() -> Error {
    Error::new(ErrorKind::Corrupt, "the archive's index was damaged after it was opened")
}
