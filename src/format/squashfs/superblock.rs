//! The superblock: what the image is made of and where its tables are.

use crate::base::{Error, ErrorKind, Result};
use crate::format::squashfs::Reference;
use crate::format::window::{le16, le32, le64};

/// Bytes of a superblock, at the image's start.
pub const SUPERBLOCK: usize = 96;
/// Bytes of a whole metadata block when it is decoded.
pub const METADATA: usize = 8192;

const MAGIC: u32 = 0x7371_7368;
/// "No table" where a table's place should stand.
const NONE: u64 = u64::MAX;

/// How blocks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// zlib streams.
    Gzip,
    /// LZMA streams of the old kind.
    Lzma,
    /// LZO1X.
    Lzo,
    /// xz streams.
    Xz,
    /// LZ4 blocks.
    Lz4,
    /// zstd frames.
    Zstd,
}

/// Where things are in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// How many inodes there are, as the image has it.
    pub inodes: u32,
    /// Bytes of a whole data block: a power of two from 4 KiB to 1 MiB.
    pub block_size: u32,
    /// How many fragment blocks there are.
    pub fragments: u32,
    /// How blocks are compressed, where they are.
    pub compression: Compression,
    /// How many owners' and groups' numbers there are.
    pub ids: u16,
    /// The inode of the top directory.
    pub root: Reference,
    /// Bytes of the image without what pads it.
    pub size: u64,
    /// Where the table of owners' and groups' numbers is.
    pub id_table: u64,
    /// Where the table of extended attributes is.
    pub xattr_table: Option<u64>,
    /// Where the inodes begin.
    pub inode_table: u64,
    /// Where the inodes end and the directories begin.
    pub directory_table: u64,
    /// Where the table of fragments is.
    pub fragment_table: Option<u64>,
}

impl Superblock {
    /// Reads and checks a superblock.
    pub fn parse(bytes: &[u8; SUPERBLOCK]) -> Result<Self> {
        let corrupt = |message: String| Err(Error::new(ErrorKind::Corrupt, message));
        let unsupported = |message: String| Err(Error::new(ErrorKind::Unsupported, message));
        let magic = le32(bytes, 0);
        if magic.swap_bytes() == MAGIC {
            return unsupported("it is a squashfs image of a big-endian machine, before version 4.0".into());
        }
        if magic != MAGIC {
            return corrupt(format!("it does not begin like a squashfs image: {magic:#010x}"));
        }
        let (major, minor) = (le16(bytes, 28), le16(bytes, 30));
        if (major, minor) != (4, 0) {
            return unsupported(format!("squashfs {major}.{minor} is not supported, 4.0 is"));
        }
        let compression = match le16(bytes, 20) {
            1 => Compression::Gzip,
            2 => Compression::Lzma,
            3 => Compression::Lzo,
            4 => Compression::Xz,
            5 => Compression::Lz4,
            6 => Compression::Zstd,
            other => return unsupported(format!("compression {other} of squashfs is not known")),
        };
        let (block_size, log) = (le32(bytes, 12), le16(bytes, 22));
        if !(12..=20).contains(&log) || block_size != 1 << log {
            return corrupt(format!("its blocks have {block_size} bytes, in contradiction to 2^{log}"));
        }
        let table = |at: usize| Some(le64(bytes, at)).filter(|place| *place != NONE);
        let superblock = Self {
            inodes: le32(bytes, 4),
            block_size,
            fragments: le32(bytes, 16),
            compression,
            ids: le16(bytes, 26),
            root: Reference(le64(bytes, 32)),
            size: le64(bytes, 40),
            id_table: le64(bytes, 48),
            xattr_table: table(56),
            inode_table: le64(bytes, 64),
            directory_table: le64(bytes, 72),
            fragment_table: table(80),
        };
        let Self { size, inode_table, directory_table, id_table, .. } = superblock;
        if !(SUPERBLOCK as u64 <= inode_table && inode_table < directory_table && directory_table <= size) {
            return corrupt(format!(
                "its inodes at {inode_table} and directories at {directory_table} do not fit in its {size} bytes"
            ));
        }
        for (what, place) in [
            ("owners", Some(id_table)),
            ("extended attributes", superblock.xattr_table),
            ("fragments", superblock.fragment_table),
        ] {
            if place.is_some_and(|place| place >= size) {
                return corrupt(format!("its table of {what} lies past its {size} bytes"));
            }
        }
        Ok(superblock)
    }
}
