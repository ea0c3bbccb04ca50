//! Squashfs images as trees. Nothing is read before it is asked for; blocks of which parts are read go through the block cache.
//!
//! A node's number is the place of its inode in the image, which is the same for all its names and in every mount.

mod data;
mod directory;
mod image;
mod metadata;
mod xattr;

use std::sync::Arc;

use self::image::Image;
use super::env::ArchiveEnv;
use super::node::{Attributes, DirItem, Kind, NodeId, Position, Tree};
use crate::base::error::ResultExt;
use crate::base::{Error, ErrorKind, FileTime, Result};
use crate::format::squashfs::{Body, InodeType, Reference};
use crate::format::tar::Xattr;
use crate::storage::Storage;

/// Longest listing, in bytes, that is gone through for the number of a directory's links: `stat` has to be quick, also where
/// somebody made an image to slow it down.
const LONGEST_COUNTED: u32 = 1 << 20;

/// A squashfs image that is open.
pub(super) struct SquashTree {
    name: String,
    image: Image,
}

impl SquashTree {
    pub(super) fn open(name: &str, file: Arc<dyn Storage>, env: &Arc<ArchiveEnv>) -> Result<Self> {
        let image = Image::open(file, env).context(|| format!("archive {name}"))?;
        Ok(Self { name: name.to_owned(), image })
    }

    fn within<T>(&self, node: NodeId, result: Result<T>) -> Result<T> {
        result.context(|| format!("archive {}, inode {:#x}", self.name, node.0))
    }

    fn stat(&self, node: NodeId) -> Result<Attributes> {
        let (inode, _) = self.image.inode(Reference(node.0))?;
        let (size, allocated) = match inode.body {
            Body::Directory(directory) => (directory.len.into(), 0),
            Body::File(file) => (file.size, self.image.allocated(node)?),
            Body::Symlink(len) => (len.into(), 0),
            Body::Device(..) | Body::Other(_) => (0, 0),
        };
        let mtime = FileTime::from_seconds(inode.mtime.into());
        Ok(Attributes {
            node,
            kind: kind(inode.kind()),
            permissions: inode.permissions,
            uid: self.image.id(inode.uid_index)?,
            gid: self.image.id(inode.gid_index)?,
            size,
            allocated,
            mtime,
            atime: mtime,
            ctime: mtime,
            device: match inode.body {
                Body::Device(_, numbers) => numbers,
                Body::Directory(_) | Body::File(_) | Body::Symlink(_) | Body::Other(_) => (0, 0),
            },
            links: match inode.body {
                Body::Directory(directory) if directory.len <= LONGEST_COUNTED => {
                    self.count_links(node).unwrap_or(inode.links)
                }
                _ => inode.links,
            },
        })
    }

    /// A directory's links: its own two, and one for each directory in it. tar2sqfs stores the number of all names.
    fn count_links(&self, dir: NodeId) -> Result<u32> {
        let mut links = 2_u32;
        self.image.list(Reference(dir.0), Position(0), |entry| {
            links = links.saturating_add(u32::from(entry.kind == InodeType::Directory));
            Ok(true)
        })?;
        Ok(links)
    }
}

fn kind(kind: InodeType) -> Kind {
    match kind {
        InodeType::Directory => Kind::Directory,
        InodeType::File => Kind::Regular,
        InodeType::Symlink => Kind::Symlink,
        InodeType::BlockDevice => Kind::BlockDevice,
        InodeType::CharDevice => Kind::CharDevice,
        InodeType::Fifo => Kind::Fifo,
        InodeType::Socket => Kind::Socket,
    }
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

impl Tree for SquashTree {
    fn root(&self) -> NodeId {
        NodeId(self.image.root().0)
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        let found = self.image.lookup(Reference(dir.0), name);
        self.within(dir, found).map(|found| found.map(|child| NodeId(child.0)))
    }

    fn read_dir(&self, dir: NodeId, from: Position, each: &mut dyn FnMut(DirItem<'_>) -> bool) -> Result<()> {
        let listed = self.image.list(Reference(dir.0), from, |entry| {
            if let Err(error) = self.image.adopt(Reference(dir.0), entry.child, entry.kind) {
                tracing::warn!("archive {}: {} is left out: {}", self.name, entry.name.escape_ascii(), error.report());
                return Ok(true);
            }
            let (node, kind) = (NodeId(entry.child.0), kind(entry.kind));
            Ok(each(DirItem { name: entry.name, node, kind, next: entry.next }))
        });
        self.within(dir, listed)
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes> {
        self.within(node, self.stat(node))
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>> {
        self.within(node, self.image.target(Reference(node.0)))
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>> {
        self.within(node, self.image.xattrs(Reference(node.0)))
    }

    fn read_at(&self, node: NodeId, buf: &mut [u8], at: u64) -> Result<usize> {
        self.within(node, self.image.read_at(node, buf, at))
    }

    fn next_data(&self, node: NodeId, at: u64) -> Result<Option<u64>> {
        let (found, size) = self.within(node, self.image.next(node, at, false))?;
        Ok((found < size).then_some(found))
    }

    fn next_hole(&self, node: NodeId, at: u64) -> Result<u64> {
        self.within(node, self.image.next(node, at, true)).map(|(found, _)| found)
    }

    fn broken(&self) -> Option<&str> {
        None
    }

    fn entries(&self) -> u64 {
        self.image.inodes().into()
    }
}
