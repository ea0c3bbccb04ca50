//! The bytes of files: blocks, fragments and holes.

use std::sync::Arc;

use super::corrupt;
use super::image::Image;
use super::metadata::Cursor;
use crate::archive::decompress::{decompress, decompress_block};
use crate::archive::node::NodeId;
use crate::base::error::ResultExt;
use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, HostOffset, Result};
use crate::format::squashfs::{BlockSize, Body, FRAGMENT, File, Fragment, METADATA, NO_FRAGMENT, Reference};
use crate::storage::BlockKey;

/// How many blocks of a file's list are held together.
const SEGMENT: u64 = 4096;
/// Lists as short as this are read anew each time: that costs less than keeping them.
const SHORT: u64 = 64;
/// The last segment that is held: its number shares 64 bits with the inode's place. Few files have more than 268 million blocks.
const LAST_HELD: u64 = 0xffff;

/// Where a stored block is.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: u64,
    size: BlockSize,
}

/// A part of a file's list of blocks.
struct Segment {
    /// Where the first one is in the image.
    start: u64,
    sizes: Vec<BlockSize>,
    /// Where the list goes on.
    next: (u64, usize),
}

impl Segment {
    fn read(cursor: &mut Cursor<'_>, start: u64, count: u64) -> Result<Self> {
        let bytes = cursor.bytes(to_usize(count.saturating_mul(4)))?;
        let sizes = bytes.chunks_exact(4).filter_map(|size| size.first_chunk()).copied();
        Ok(Self { start, sizes: sizes.map(|size| BlockSize(u32::from_le_bytes(size))).collect(), next: cursor.place() })
    }

    /// Where the block after its last one is.
    fn end(&self) -> u64 {
        self.start_of(self.sizes.len())
    }

    fn start_of(&self, number: usize) -> u64 {
        let before = self.sizes.get(..number).unwrap_or(&self.sizes);
        before.iter().fold(self.start, |at, size| at.saturating_add(size.stored().into()))
    }

    fn to_bytes(&self) -> Vec<u8> {
        let (block, offset) = self.next;
        let mut bytes = Vec::with_capacity(24 + self.sizes.len() * 4);
        for number in [self.start, block, offset as u64] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        self.sizes.iter().for_each(|size| bytes.extend_from_slice(&size.0.to_le_bytes()));
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (head, sizes) = bytes.split_at_checked(24)?;
        let mut numbers = head.chunks_exact(8).filter_map(|n| n.first_chunk()).map(|n| u64::from_le_bytes(*n));
        let (start, block, offset) = (numbers.next()?, numbers.next()?, numbers.next()?);
        let sizes = sizes.chunks_exact(4).filter_map(|size| size.first_chunk()).copied();
        let sizes = sizes.map(|size| BlockSize(u32::from_le_bytes(size))).collect();
        Some(Self { start, sizes, next: (block, to_usize(offset)) })
    }
}

/// A regular file whose list of blocks can be asked.
struct Blocks<'a> {
    image: &'a Image,
    reference: Reference,
    file: File,
    /// Blocks in the list; the fragment is not one.
    count: u64,
    list: (u64, usize),
    held: Option<(u64, Segment)>,
}

impl<'a> Blocks<'a> {
    fn new(image: &'a Image, node: NodeId) -> Result<Self> {
        let reference = Reference(node.0);
        let (inode, cursor) = image.inode(reference)?;
        let Body::File(file) = inode.body else {
            return Err(Error::new(ErrorKind::NotFound, "it is no regular file"));
        };
        let block_size = u64::from(image.superblock().block_size);
        let count = if file.fragment == NO_FRAGMENT { file.size.div_ceil(block_size) } else { file.size / block_size };
        // A stored metadata block has at least three bytes.
        let table = image.superblock().directory_table.saturating_sub(image.superblock().inode_table);
        if count.saturating_mul(4) > (table / 3 + 1).saturating_mul(METADATA as u64) {
            return Err(corrupt(format!(
                "a file of {} bytes, whose list of blocks has no room in the image",
                file.size
            )));
        }
        Ok(Self { image, reference, file, count, list: cursor.place(), held: None })
    }

    fn cursor(&self, (block, offset): (u64, usize)) -> Cursor<'a> {
        Cursor::new(self.image, block, offset, self.image.superblock().directory_table)
    }

    /// The segment `wanted` of the list. Each one begins where the one before it ends, so all before it are gone through; in the
    /// cache that takes no time to speak of.
    fn segment(&mut self, wanted: u64) -> Result<&Segment> {
        let (mut number, mut place, mut start) = match self.held.take() {
            Some((number, segment)) if number == wanted => {
                return Ok(&self.held.insert((number, segment)).1);
            }
            Some((number, segment)) if number < wanted => (number + 1, segment.next, segment.end()),
            _ => (0, self.list, self.file.start),
        };
        loop {
            let count = self.count.saturating_sub(number.saturating_mul(SEGMENT)).min(SEGMENT);
            let segment = if self.count <= SHORT || number > LAST_HELD {
                Segment::read(&mut self.cursor(place), start, count)?
            } else {
                let key = self.reference.0 << 16 | number;
                let key = BlockKey { file: self.image.lists_number(), at: HostOffset(key) };
                let bytes = self
                    .image
                    .blocks()
                    .get_or_load(key, || Ok(Segment::read(&mut self.cursor(place), start, count)?.to_bytes().into()))?;
                Segment::from_bytes(&bytes).ok_or_else(|| corrupt("a list of blocks is gone from the cache"))?
            };
            if number == wanted {
                return Ok(&self.held.insert((number, segment)).1);
            }
            number += 1;
            (place, start) = (segment.next, segment.end());
        }
    }

    /// Where block `number` of the list is.
    fn place(&mut self, number: u64) -> Result<Place> {
        let segment = self.segment(number / SEGMENT)?;
        let within = to_usize(number % SEGMENT);
        let size = segment.sizes.get(within).copied().ok_or_else(|| corrupt("a block past the end of its file"))?;
        Ok(Place { at: segment.start_of(within), size })
    }

    /// Whether block `number` of the list is a hole.
    fn is_hole(&mut self, number: u64) -> Result<bool> {
        let size = self.segment(number / SEGMENT)?.sizes.get(to_usize(number % SEGMENT)).copied();
        size.map(BlockSize::is_hole).ok_or_else(|| corrupt("a block past the end of its file"))
    }

    /// Decoded bytes that block `number` stands for.
    fn len(&self, number: u64) -> u64 {
        let block_size = u64::from(self.image.superblock().block_size);
        self.file.size.saturating_sub(number.saturating_mul(block_size)).min(block_size)
    }
}

impl Image {
    /// Reads a regular file's bytes; short only at its end.
    pub(super) fn read_at(&self, node: NodeId, buf: &mut [u8], at: u64) -> Result<usize> {
        let mut blocks = Blocks::new(self, node)?;
        let size = blocks.file.size;
        let len = size.saturating_sub(at).min(buf.len() as u64);
        let end = at.saturating_add(len);
        let block_size = u64::from(self.superblock().block_size);
        let mut rest = buf.get_mut(..to_usize(len)).unwrap_or_default();
        let mut at = at;
        while at < end {
            let (number, within) = (at / block_size, at % block_size);
            let here = (block_size - within).min(end - at);
            let (now, later) = std::mem::take(&mut rest).split_at_mut(to_usize(here));
            if number < blocks.count {
                let place = blocks.place(number)?;
                self.fill(now, place, within, blocks.len(number))?;
            } else {
                self.fill_from_fragment(now, &blocks.file, within)?;
            }
            rest = later;
            at += here;
        }
        Ok(to_usize(len))
    }

    /// Fills `buf` from byte `within` of a block that stands for `len` bytes.
    fn fill(&self, buf: &mut [u8], place: Place, within: u64, len: u64) -> Result<()> {
        let Place { at, size } = place;
        if size.is_hole() {
            buf.fill(0);
            return Ok(());
        }
        if !size.is_compressed() {
            if u64::from(size.stored()) != len {
                return Err(corrupt(format!("a block at {at} has {} bytes instead of {len}", size.stored())));
            }
            return self.read(buf, at.saturating_add(within));
        }
        let decoded = if within == 0 && buf.len() as u64 == len && !self.holds(place) {
            // All of it is wanted at once, as by the kernel when it reads ahead, and will be in its page cache then.
            self.decode(place, |stored| decompress(self.compression(), stored, buf))? as u64
        } else {
            let block = self.block(place, len)?;
            if block.len() as u64 == len {
                return copy(buf, &block, within);
            }
            block.len() as u64
        };
        if decoded == len {
            return Ok(());
        }
        Err(corrupt(format!("a block at {at} decodes to {decoded} bytes instead of {len}")))
    }

    /// Fills `buf` from byte `within` of a file's end, which stands in a block with the ends of others.
    fn fill_from_fragment(&self, buf: &mut [u8], file: &File, within: u64) -> Result<()> {
        let superblock = self.superblock();
        let table = superblock.fragment_table.filter(|_| file.fragment < superblock.fragments);
        let Some(table) = table else {
            return Err(corrupt(format!("there is no fragment {}", file.fragment)));
        };
        let Fragment { start, size } = Fragment::parse(&self.table_entry::<FRAGMENT>(table, file.fragment)?);
        let within = within.saturating_add(file.offset.into());
        if size.is_compressed() {
            return copy(buf, &self.block(Place { at: start, size }, superblock.block_size.into())?, within);
        }
        if within.saturating_add(buf.len() as u64) > size.stored().into() {
            return Err(corrupt("the end of a file lies past its fragment"));
        }
        self.read(buf, start.saturating_add(within))
    }

    /// A compressed block of at most `len` bytes, decoded, through the cache.
    fn block(&self, place: Place, len: u64) -> Result<Arc<[u8]>> {
        self.blocks().get_or_load(self.key(place), || {
            self.decode(place, |stored| decompress_block(self.compression(), stored, to_usize(len)))
        })
    }

    /// Whether the cache holds a block.
    fn holds(&self, place: Place) -> bool {
        self.blocks().holds(&self.key(place))
    }

    fn key(&self, place: Place) -> BlockKey {
        BlockKey { file: self.data_number(), at: HostOffset(place.at) }
    }

    /// Reads a compressed block and has it decoded.
    fn decode<T>(&self, Place { at, size }: Place, how: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        let limit = self.superblock().block_size;
        if size.stored() > limit {
            return Err(corrupt(format!(
                "a block at {at} has {} bytes stored, a whole one has {limit}",
                size.stored()
            )));
        }
        let mut stored = vec![0; size.stored() as usize];
        self.read(&mut stored, at)?;
        how(&stored).context(|| format!("the block at {at}"))
    }

    /// How many bytes of a regular file are not in holes.
    pub(super) fn allocated(&self, node: NodeId) -> Result<u64> {
        let mut blocks = Blocks::new(self, node)?;
        let mut allocated = blocks.file.size;
        // What the inode says of its holes is one byte less where there is nothing else.
        if blocks.file.sparse > 0 {
            for number in 0..blocks.count {
                if blocks.is_hole(number)? {
                    allocated = allocated.saturating_sub(blocks.len(number));
                }
            }
        }
        Ok(allocated)
    }

    /// The first byte at or after `at` that is in a hole, or is not, and the file's size. The size where there is none.
    pub(super) fn next(&self, node: NodeId, at: u64, hole: bool) -> Result<(u64, u64)> {
        let mut blocks = Blocks::new(self, node)?;
        let (size, block_size) = (blocks.file.size, u64::from(self.superblock().block_size));
        let mut number = at / block_size;
        while number < blocks.count {
            if blocks.is_hole(number)? == hole {
                return Ok((at.max(number * block_size).min(size), size));
            }
            number += 1;
        }
        // What is left is the end in a fragment, which is data.
        let end = blocks.count.saturating_mul(block_size);
        Ok((if hole { size } else { at.max(end).min(size) }, size))
    }
}

fn copy(buf: &mut [u8], block: &[u8], within: u64) -> Result<()> {
    let start = to_usize(within);
    let part = start.checked_add(buf.len()).and_then(|end| block.get(start..end));
    buf.copy_from_slice(part.ok_or_else(|| corrupt("the end of a file lies past its fragment"))?);
    Ok(())
}
