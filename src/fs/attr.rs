//! What `stat` shows of the tree, and for how long the kernel may believe it.

use std::time::Duration;

use super::Inode;
use crate::base::{FileTime, Timestamp};

/// How long a name is believed without asking again.
///
/// A change of the store shows after at most this, a view's recheck and the catalog's own second:
/// together less than the two seconds that are promised.
pub(super) const NAME_TTL: Duration = Duration::from_millis(500);

/// How long the attributes of one version of a file are believed: that version never changes, a new one has a new inode.
const FILE_TTL: Duration = Duration::from_secs(3600);

/// What kind of thing a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A character device, in a container.
    CharDevice,
    /// A block device, in a container.
    BlockDevice,
    /// A named pipe, in a container.
    Fifo,
    /// A Unix socket, in a container.
    Socket,
}

/// The attributes of one inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Its number.
    pub inode: Inode,
    /// What it is.
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
    /// What is allocated, in blocks of 512 bytes.
    pub blocks: u64,
    /// Last change of the content. Of what is not in a container, this and the next two are the time of the backup.
    pub mtime: FileTime,
    /// Last access.
    pub atime: FileTime,
    /// Last change of the attributes.
    pub ctime: FileTime,
    /// How many names it has; for a directory 1 says that its subdirectories were not counted.
    pub links: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Permission bits.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Attributes and how long they, and the name that led to them, are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What is known.
    pub attributes: Attributes,
    /// How long the name stands for this inode.
    pub name_ttl: Duration,
    /// How long the attributes hold. Zero where they are not all known: whoever wants them must ask for them.
    pub attributes_ttl: Duration,
}

/// Whose the files are and who may read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ownership {
    /// Owner of everything.
    pub uid: u32,
    /// Group of everything.
    pub gid: u32,
    /// Permission bits that are taken away.
    pub umask: u16,
}

impl Ownership {
    fn permissions(self, kind: FileKind) -> u16 {
        match kind {
            FileKind::Directory => 0o555 & !self.umask,
            FileKind::Symlink => 0o777,
            FileKind::Regular | FileKind::CharDevice | FileKind::BlockDevice | FileKind::Fifo | FileKind::Socket => {
                0o444 & !self.umask
            }
        }
    }

    /// Whether everybody may read everything.
    #[must_use]
    pub fn is_open(self) -> bool {
        self.umask & 0o555 == 0
    }

    pub(super) fn attributes(self, inode: Inode, kind: FileKind, time: Timestamp, size: u64, bytes: u64) -> Attributes {
        let time = FileTime::from_seconds(time.epoch());
        Attributes {
            inode,
            kind,
            size,
            blocks: bytes.div_ceil(512),
            mtime: time,
            atime: time,
            ctime: time,
            links: 1,
            device: (0, 0),
            permissions: self.permissions(kind),
            uid: self.uid,
            gid: self.gid,
        }
    }
}

impl Entry {
    /// A directory or symlink, whose attributes follow what is in the store.
    pub(super) fn changing(attributes: Attributes) -> Self {
        Self { attributes, name_ttl: NAME_TTL, attributes_ttl: NAME_TTL }
    }

    /// A file all of whose attributes are known.
    pub(super) fn fixed(attributes: Attributes) -> Self {
        Self { attributes, name_ttl: NAME_TTL, attributes_ttl: FILE_TTL }
    }

    /// What is in a container: below the directory that shows it nothing ever changes.
    pub(super) fn archived(attributes: Attributes) -> Self {
        Self { attributes, name_ttl: FILE_TTL, attributes_ttl: FILE_TTL }
    }

    /// Something of which a part is not known yet.
    pub(super) fn incomplete(attributes: Attributes) -> Self {
        Self { attributes, name_ttl: NAME_TTL, attributes_ttl: Duration::ZERO }
    }
}
