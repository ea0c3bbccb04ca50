//! The small records: references, block sizes, directory listings, fragments, extended attributes.

use crate::format::window::{le16, le32, le64};

/// A place in a table of metadata: the stored block, counted in bytes from the table's start, and an offset in the decoded one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference(pub u64);

impl Reference {
    /// The reference to `offset` in the block at `block`.
    #[must_use]
    pub fn new(block: u32, offset: u16) -> Self {
        Self(u64::from(block) << 16 | u64::from(offset))
    }

    /// Where the stored block begins, from the table's start.
    #[must_use]
    pub fn block(self) -> u64 {
        self.0 >> 16
    }

    /// Where in the decoded block.
    #[must_use]
    pub fn offset(self) -> u16 {
        let [low, high, ..] = self.0.to_le_bytes();
        u16::from_le_bytes([low, high])
    }
}

/// The stored length of a metadata block and whether it is compressed, from the two bytes in front of it.
#[must_use]
pub fn metadata_header(bytes: [u8; 2]) -> (u16, bool) {
    const PLAIN: u16 = 1 << 15;
    let header = u16::from_le_bytes(bytes);
    let len = match header & !PLAIN {
        0 => PLAIN,
        len => len,
    };
    (len, header & PLAIN == 0)
}

/// How a data block is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSize(pub u32);

impl BlockSize {
    const PLAIN: u32 = 1 << 24;

    /// Bytes stored; 0 for a block of zeros, which is not stored at all.
    #[must_use]
    pub fn stored(self) -> u32 {
        self.0 & (Self::PLAIN - 1)
    }

    /// Whether what is stored is compressed.
    #[must_use]
    pub fn is_compressed(self) -> bool {
        self.0 & Self::PLAIN == 0
    }

    /// Whether it is a block of zeros.
    #[must_use]
    pub fn is_hole(self) -> bool {
        self.stored() == 0
    }
}

/// Bytes in front of a run of names in a directory listing.
pub const DIRECTORY_RUN: usize = 12;

/// What names that follow each other have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// How many names there are: 1 to 256.
    pub count: u32,
    /// The block of all their inodes.
    pub block: u32,
}

impl Run {
    /// `None` where it announces more names than a run may have.
    #[must_use]
    pub fn parse(bytes: &[u8; DIRECTORY_RUN]) -> Option<Self> {
        const MOST: u32 = 256;
        let count = le32(bytes, 0).checked_add(1).filter(|count| *count <= MOST)?;
        Some(Self { count, block: le32(bytes, 4) })
    }
}

/// Bytes in front of each name.
pub const LISTED: usize = 8;

/// What stands in front of a name in a directory listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// Where in the run's block the inode is.
    pub offset: u16,
    /// The inode's type in its basic form.
    pub kind: u16,
    /// Bytes of the name.
    pub name_len: usize,
}

impl Listed {
    /// From its bytes.
    #[must_use]
    pub fn parse(bytes: &[u8; LISTED]) -> Self {
        Self { offset: le16(bytes, 0), kind: le16(bytes, 4), name_len: usize::from(le16(bytes, 6)) + 1 }
    }
}

/// Bytes in front of each name of the index of a large directory: offset in the listing, stored block, length of the name less one.
pub const DIRECTORY_INDEX: usize = 12;

/// Bytes of an entry of the fragment table.
pub const FRAGMENT: usize = 16;

/// Where a block of fragments is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Its place in the image.
    pub start: u64,
    /// How it is stored.
    pub size: BlockSize,
}

impl Fragment {
    /// From its bytes.
    #[must_use]
    pub fn parse(bytes: &[u8; FRAGMENT]) -> Self {
        Self { start: le64(bytes, 0), size: BlockSize(le32(bytes, 8)) }
    }
}

/// Bytes at the start of the table of extended attributes.
pub const XATTR_TABLE: usize = 16;

/// The start of the table of extended attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XattrTable {
    /// Where names and values are.
    pub start: u64,
    /// How many sets of attributes there are.
    pub sets: u32,
}

impl XattrTable {
    /// From its bytes.
    #[must_use]
    pub fn parse(bytes: &[u8; XATTR_TABLE]) -> Self {
        Self { start: le64(bytes, 0), sets: le32(bytes, 8) }
    }
}

/// Bytes of a set's entry.
pub const XATTR_ID: usize = 16;

/// One set of attributes, which inodes share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XattrId {
    /// Where the first one is.
    pub first: Reference,
    /// How many there are.
    pub count: u32,
}

impl XattrId {
    /// From its bytes.
    #[must_use]
    pub fn parse(bytes: &[u8; XATTR_ID]) -> Self {
        Self { first: Reference(le64(bytes, 0)), count: le32(bytes, 8) }
    }
}

/// The first part of an attribute's name, and whether its value stands elsewhere. `None` for a namespace that is not known.
#[must_use]
pub fn xattr_prefix(kind: u16) -> Option<(&'static [u8], bool)> {
    const ELSEWHERE: u16 = 0x100;
    let prefix: &[u8] = match kind & !ELSEWHERE {
        0 => b"user.",
        1 => b"trusted.",
        2 => b"security.",
        _ => return None,
    };
    Some((prefix, kind & ELSEWHERE != 0))
}
