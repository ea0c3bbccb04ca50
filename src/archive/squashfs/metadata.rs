//! Metadata: inodes, directories and tables stand in blocks of 8 KiB, each compressed by itself.

use std::sync::Arc;

use super::corrupt;
use super::image::Image;
use crate::archive::decompress::decompress;
use crate::base::error::ResultExt;
use crate::base::units::to_usize;
use crate::base::{HostOffset, Result};
use crate::format::squashfs::{METADATA, metadata_header};
use crate::storage::BlockKey;

const HEADER: u64 = 2;

/// Reads through metadata from some place on, block after block.
pub(super) struct Cursor<'a> {
    image: &'a Image,
    /// Where the block that is being read is in the image.
    block: u64,
    /// Where in it.
    offset: usize,
    /// No block begins at or after this.
    end: u64,
    held: Option<Block>,
}

/// A decoded block, and how many bytes of the image it takes.
struct Block {
    bytes: Arc<[u8]>,
    stored: u64,
}

impl Block {
    /// What the cache holds is the decoded bytes, and then in two bytes the length of what is stored.
    fn split(bytes: Arc<[u8]>) -> Result<Self> {
        let tail = bytes.last_chunk::<2>().ok_or_else(|| corrupt("a metadata block is gone from the cache"))?;
        let stored = HEADER + u64::from(u16::from_le_bytes(*tail));
        Ok(Self { bytes, stored })
    }

    fn decoded(&self) -> &[u8] {
        self.bytes.get(..self.bytes.len().saturating_sub(2)).unwrap_or_default()
    }
}

impl<'a> Cursor<'a> {
    /// From `offset` in the block at byte `block` of the image, within a table that ends at `end`.
    pub(super) fn new(image: &'a Image, block: u64, offset: usize, end: u64) -> Self {
        Self { image, block, offset, end, held: None }
    }

    /// Where it stands: a block's place, and the offset in it.
    pub(super) fn place(&self) -> (u64, usize) {
        (self.block, self.offset)
    }

    /// What is left of the block that it stands in; never empty.
    fn rest(&mut self) -> Result<&[u8]> {
        loop {
            if self.held.is_none() {
                if self.block >= self.end {
                    return Err(corrupt(format!("metadata is wanted past the end of its table at {}", self.end)));
                }
                self.held = Some(self.image.metadata(self.block)?);
            }
            let Some(block) = &self.held else { continue };
            let len = block.decoded().len();
            if self.offset > len {
                return Err(corrupt(format!(
                    "byte {} of a metadata block of {len} bytes at {} is wanted",
                    self.offset, self.block
                )));
            }
            if self.offset < len {
                break;
            }
            // Each step leads at least the two bytes of a header further, so this ends.
            self.block = self.block.saturating_add(block.stored);
            self.offset = 0;
            self.held = None;
        }
        let block = self.held.as_ref().map(Block::decoded).unwrap_or_default();
        Ok(block.get(self.offset..).unwrap_or_default())
    }

    /// Fills `buf`.
    pub(super) fn read(&mut self, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            let rest = self.rest()?;
            let len = rest.len().min(buf.len());
            let (now, later) = buf.split_at_mut(len);
            now.copy_from_slice(rest.get(..len).unwrap_or_default());
            buf = later;
            self.offset += len;
        }
        Ok(())
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        self.read(&mut array)?;
        Ok(array)
    }

    /// The next `len` bytes, which the caller has bounded.
    pub(super) fn bytes(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Goes `len` bytes on.
    pub(super) fn skip(&mut self, mut len: u64) -> Result<()> {
        while len > 0 {
            let step = len.min(self.rest()?.len() as u64);
            self.offset += to_usize(step);
            len -= step;
        }
        Ok(())
    }
}

impl Image {
    /// The metadata block at byte `at` of the image.
    fn metadata(&self, at: u64) -> Result<Block> {
        let key = BlockKey { file: self.metadata_number(), at: HostOffset(at) };
        let bytes = self.blocks().get_or_load(key, || {
            let mut header = [0; 2];
            self.read(&mut header, at)?;
            let (len, compressed) = metadata_header(header);
            if usize::from(len) > METADATA {
                return Err(corrupt(format!("a metadata block of {len} bytes at {at}")));
            }
            let mut stored = vec![0; usize::from(len)];
            self.read(&mut stored, at.saturating_add(HEADER))?;
            let mut bytes = if compressed {
                let mut bytes = vec![0; METADATA];
                let len = decompress(self.compression(), &stored, &mut bytes)
                    .context(|| format!("the metadata block at {at}"))?;
                bytes.truncate(len);
                bytes
            } else {
                stored
            };
            bytes.extend_from_slice(&len.to_le_bytes());
            Ok(bytes.into())
        })?;
        Block::split(bytes)
    }
}
