//! What a tree is made of, and what can be asked of it.

use crate::base::{FileTime, Result};
use crate::format::tar::Xattr;

/// An entry of an archive. The same entry has the same number whenever the same archive is opened; names that are hard links of
/// each other share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u64);

/// A place in a directory's listing. Zero is the start; others come from [`DirItem::next`] and stay good for as long as the
/// archive is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(pub u64);

/// What kind of file an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

/// What `stat` tells of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Which entry it is.
    pub node: NodeId,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with set-id and sticky bits.
    pub permissions: u16,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// Size in bytes; of a symlink, that of its target.
    pub size: u64,
    /// Bytes that are not in holes.
    pub allocated: u64,
    /// Last change of the content.
    pub mtime: FileTime,
    /// Last access; that of the last change where the archive does not tell.
    pub atime: FileTime,
    /// Last change of the attributes, likewise.
    pub ctime: FileTime,
    /// Major and minor number of a device; zeros for everything else.
    pub device: (u32, u32),
    /// How many names it has; of a directory, two and one for each directory in it.
    pub links: u32,
}

/// One name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirItem<'a> {
    /// The name: any bytes but `/` and NUL.
    pub name: &'a [u8],
    /// What it names.
    pub node: NodeId,
    /// What that is.
    pub kind: Kind,
    /// Where the listing goes on.
    pub next: Position,
}

/// An archive as a tree of files. All of it can be asked by several threads at once.
///
/// Directories form a tree: no directory is reached by two ways. A node that was never handed out by this tree is an error.
pub trait Tree: Send + Sync {
    /// The directory at the top.
    fn root(&self) -> NodeId;

    /// What the directory `dir` has under `name`.
    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>>;

    /// Calls `each` with the names in `dir` from `from` on, without `.` and `..`, until it returns `false` or there are no more.
    fn read_dir(&self, dir: NodeId, from: Position, each: &mut dyn FnMut(DirItem<'_>) -> bool) -> Result<()>;

    /// What `stat` tells.
    fn attributes(&self, node: NodeId) -> Result<Attributes>;

    /// A symlink's target.
    fn read_link(&self, node: NodeId) -> Result<Vec<u8>>;

    /// Extended attributes, POSIX ACLs among them, in the archive's order.
    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>>;

    /// Reads a regular file's bytes from `at` on into `buf`; short only at its end. Returns the bytes read.
    fn read_at(&self, node: NodeId, buf: &mut [u8], at: u64) -> Result<usize>;

    /// The first byte of a regular file at or after `at` that is not in a hole, or `None` when only holes follow.
    fn next_data(&self, node: NodeId, at: u64) -> Result<Option<u64>>;

    /// The first byte at or after `at` that is in a hole, at most the file's size.
    fn next_hole(&self, node: NodeId, at: u64) -> Result<u64>;

    /// What of the archive is missing, damaged or not shown as it is; `None` when all is well.
    fn broken(&self) -> Option<&str>;

    /// How many entries there are, hard links counted once.
    fn entries(&self) -> u64;
}
