//! Inodes.

use crate::base::{Error, ErrorKind, Result};
use crate::format::window::{le16, le32, le64};

/// Bytes that all inodes begin with.
pub const INODE_HEADER: usize = 16;
/// The fragment of a file whose last block is stored like the others.
pub const NO_FRAGMENT: u32 = u32::MAX;
/// The set of attributes of what has none.
pub const NO_XATTRS: u32 = u32::MAX;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InodeType {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

impl InodeType {
    /// The type of that number, and whether it is the extended form.
    fn of(number: u16) -> Option<(Self, bool)> {
        const BASIC: [InodeType; 7] = [
            InodeType::Directory,
            InodeType::File,
            InodeType::Symlink,
            InodeType::BlockDevice,
            InodeType::CharDevice,
            InodeType::Fifo,
            InodeType::Socket,
        ];
        let at = usize::from(number.checked_sub(1)?);
        let extended = at >= BASIC.len();
        let kind = BASIC.get(if extended { at - BASIC.len() } else { at })?;
        Some((*kind, extended))
    }

    /// The type of that number in a directory listing, which knows only the basic ones.
    #[must_use]
    pub fn listed(number: u16) -> Option<Self> {
        Self::of(number).filter(|(_, extended)| !extended).map(|(kind, _)| kind)
    }
}

/// What all inodes have, and what their type adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Permission bits.
    pub permissions: u16,
    /// Where in the table of numbers the owner's is.
    pub uid_index: u16,
    /// Where in the table of numbers the group's is.
    pub gid_index: u16,
    /// Last change, in seconds since the epoch.
    pub mtime: u32,
    /// Which set of attributes it has, or [`NO_XATTRS`]. Of a symlink it stands behind the target: `None` where that has to be read.
    pub xattrs: Option<u32>,
    /// How many names it has.
    pub links: u32,
    /// The rest.
    pub body: Body,
}

/// What hangs on the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// A directory.
    Directory(Directory),
    /// A regular file; the list of its blocks follows.
    File(File),
    /// A symbolic link; its target follows, of so many bytes.
    Symlink(u32),
    /// A device and its numbers, major and minor.
    Device(InodeType, (u32, u32)),
    /// A pipe or a socket.
    Other(InodeType),
}

/// Where a directory's listing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Directory {
    /// Its block, from the start of the table of directories.
    pub block: u32,
    /// Where in it.
    pub offset: u16,
    /// Bytes of the listing, decoded.
    pub len: u32,
    /// How many entries the index has that follows the inode.
    pub indexes: u16,
}

/// Where a file's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File {
    /// Where its first block is, in the image.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes in holes.
    pub sparse: u64,
    /// The block of fragments that has its end, or [`NO_FRAGMENT`].
    pub fragment: u32,
    /// Where in that block.
    pub offset: u32,
}

impl Inode {
    /// Type number and length of what follows the header, as far as that has a fixed length.
    fn form(header: &[u8; INODE_HEADER]) -> Result<(InodeType, bool, usize)> {
        let number = le16(header, 0);
        let (kind, extended) = InodeType::of(number)
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("an inode has the unknown type {number}")))?;
        let len = match (kind, extended) {
            (InodeType::Directory, false) | (InodeType::File, false) => 16,
            (InodeType::Directory, true) => 24,
            (InodeType::File, true) => 40,
            (InodeType::Symlink, _) | (InodeType::BlockDevice | InodeType::CharDevice, false) => 8,
            (InodeType::BlockDevice | InodeType::CharDevice, true) => 12,
            (InodeType::Fifo | InodeType::Socket, false) => 4,
            (InodeType::Fifo | InodeType::Socket, true) => 8,
        };
        Ok((kind, extended, len))
    }

    /// What an inode is, from its header alone.
    pub fn kind_of(header: &[u8; INODE_HEADER]) -> Result<InodeType> {
        Ok(Self::form(header)?.0)
    }

    /// How many bytes [`parse`](Self::parse) wants after this header.
    pub fn body_len(header: &[u8; INODE_HEADER]) -> Result<usize> {
        Ok(Self::form(header)?.2)
    }

    /// Reads an inode: its header and the bytes after it.
    pub fn parse(header: &[u8; INODE_HEADER], rest: &[u8]) -> Result<Self> {
        let (kind, extended, len) = Self::form(header)?;
        if rest.len() < len {
            return Err(Error::new(ErrorKind::Corrupt, "an inode is cut short"));
        }
        let (mut links, mut xattrs) = (1, Some(NO_XATTRS));
        let body = match (kind, extended) {
            (InodeType::Directory, false) => {
                links = le32(rest, 4);
                let len = le16(rest, 8).into();
                Body::Directory(Directory {
                    block: le32(rest, 0),
                    offset: le16(rest, 10),
                    len: listing(len),
                    indexes: 0,
                })
            }
            (InodeType::Directory, true) => {
                links = le32(rest, 0);
                xattrs = Some(le32(rest, 20));
                Body::Directory(Directory {
                    block: le32(rest, 8),
                    offset: le16(rest, 18),
                    len: listing(le32(rest, 4)),
                    indexes: le16(rest, 16),
                })
            }
            (InodeType::File, false) => Body::File(File {
                start: le32(rest, 0).into(),
                size: le32(rest, 12).into(),
                sparse: 0,
                fragment: le32(rest, 4),
                offset: le32(rest, 8),
            }),
            (InodeType::File, true) => {
                links = le32(rest, 24);
                xattrs = Some(le32(rest, 36));
                Body::File(File {
                    start: le64(rest, 0),
                    size: le64(rest, 8),
                    sparse: le64(rest, 16),
                    fragment: le32(rest, 28),
                    offset: le32(rest, 32),
                })
            }
            (InodeType::Symlink, _) => {
                links = le32(rest, 0);
                if extended {
                    xattrs = None;
                }
                Body::Symlink(le32(rest, 4))
            }
            (InodeType::BlockDevice | InodeType::CharDevice, _) => {
                links = le32(rest, 0);
                if extended {
                    xattrs = Some(le32(rest, 8));
                }
                Body::Device(kind, device(le32(rest, 4)))
            }
            (InodeType::Fifo | InodeType::Socket, _) => {
                links = le32(rest, 0);
                if extended {
                    xattrs = Some(le32(rest, 4));
                }
                Body::Other(kind)
            }
        };
        Ok(Self {
            permissions: le16(header, 2) & 0o7777,
            uid_index: le16(header, 4),
            gid_index: le16(header, 6),
            mtime: le32(header, 8),
            xattrs,
            links,
            body,
        })
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> InodeType {
        match self.body {
            Body::Directory(_) => InodeType::Directory,
            Body::File(_) => InodeType::File,
            Body::Symlink(_) => InodeType::Symlink,
            Body::Device(kind, _) | Body::Other(kind) => kind,
        }
    }
}

/// A directory's size counts `.` and `..`, which are not in its listing, as three bytes.
fn listing(size: u32) -> u32 {
    size.saturating_sub(3)
}

/// The kernel's 32-bit form of a device number: 12 bits of the major between two parts of the minor.
fn device(number: u32) -> (u32, u32) {
    (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xf_ff00)
}
