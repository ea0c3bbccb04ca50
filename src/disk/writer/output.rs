//! A file that grows at its end, hashed on the way; its first bytes come last.

use crate::base::units::to_usize;
use crate::base::{HostOffset, Result};
use crate::format::hash::{CHUNK_BYTES, FileHashes, Hash, chunk_value, whole};
use crate::storage::write::NewFile;

/// What was appended goes to the file a chunk at a time, and each chunk is hashed then. The first one is kept, because the header
/// in it is not known before the end.
#[derive(Debug)]
pub(super) struct Output {
    file: NewFile,
    first: Vec<u8>,
    /// The chunk that is being filled.
    chunk: Vec<u8>,
    /// Where that one starts.
    start: u64,
    hashes: Vec<Hash>,
}

impl Output {
    pub(super) fn new(file: NewFile) -> Self {
        Self { file, first: Vec::new(), chunk: Vec::with_capacity(CHUNK_BYTES), start: 0, hashes: Vec::new() }
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> HostOffset {
        HostOffset(self.start + self.chunk.len() as u64)
    }

    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = CHUNK_BYTES.saturating_sub(self.chunk.len());
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.chunk.extend_from_slice(now);
            bytes = later;
            // The last chunk of all is dealt with in `finish`; only one that something follows is full.
            if self.chunk.len() == CHUNK_BYTES && !bytes.is_empty() {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Appends zeros up to the next multiple of `unit`.
    pub(super) fn pad_to(&mut self, unit: u64) -> Result<()> {
        self.pad_until(HostOffset(self.position().0.next_multiple_of(unit)))
    }

    /// Appends zeros up to `end`.
    pub(super) fn pad_until(&mut self, end: HostOffset) -> Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        loop {
            let left = to_usize(end.0.saturating_sub(self.position().0));
            if left == 0 {
                return Ok(());
            }
            self.append(&ZEROS[..left.min(ZEROS.len())])?;
        }
    }

    /// Writes what is left, then the first chunk with `header` at its start, and brings all of it to the medium.
    pub(super) fn finish(mut self, header: &[u8]) -> Result<FileHashes> {
        let size = self.position().0;
        if self.start == 0 {
            self.first = std::mem::take(&mut self.chunk);
        } else if !self.chunk.is_empty() {
            self.flush()?;
        }
        let fits = header.len().min(self.first.len());
        self.first[..fits].copy_from_slice(&header[..fits]);
        self.file.write_at(&self.first, HostOffset(0))?;
        self.file.sync()?;
        if self.hashes.is_empty() {
            let file = whole(&self.first);
            return Ok(FileHashes { file, size, chunks: vec![file] });
        }
        self.hashes[0] = chunk_value(0, &self.first);
        FileHashes::of_chunks(self.hashes, size)
    }

    fn flush(&mut self) -> Result<()> {
        let index = self.hashes.len() as u64;
        if index == 0 {
            self.first = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES));
            self.start = self.first.len() as u64;
            // Its place in the list; the value follows with the header.
            self.hashes.push(Hash::from_bytes([0; 32]));
            return Ok(());
        }
        self.file.write_at(&self.chunk, HostOffset(self.start))?;
        self.hashes.push(chunk_value(index, &self.chunk));
        self.start += self.chunk.len() as u64;
        self.chunk.clear();
        Ok(())
    }
}
