//! One FUSE request, one question to the tree, one reply.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::errno::{errno, read_errno};
use super::helpers::Helpers;
use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, FileTime, Result};
use crate::fs::{Attributes, Entry, FileKind, Handle, Holes, Inode, Tree, Whence};
use crate::storage::O_DIRECT;

/// How many read-ahead requests the kernel may have under way at once.
const MAX_BACKGROUND: u16 = 64;
/// Longest name in the mount, in bytes: that of the file systems below.
const NAME_MAX: u32 = 255;
/// Numbers are derived from content, and a number's content never changes while the kernel knows it.
const GENERATION: Generation = Generation(0);
/// `SEEK_DATA` and `SEEK_HOLE` of lseek(2).
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

thread_local! {
    /// Where an event loop's reads are put together. It grows to the largest request, at most what the kernel was told.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The tree as a FUSE file system.
#[derive(Debug, Clone)]
pub(super) struct Bridge {
    tree: Arc<Tree>,
    helpers: Helpers,
}

impl Bridge {
    pub(super) fn new(tree: Tree) -> Self {
        Self { tree: Arc::new(tree), helpers: Helpers::default() }
    }

    /// Answers a request about `inode`: at once, or by another thread where the tree may have to wait for something.
    fn answer(&self, inode: INodeNo, answer: impl FnOnce(&Self) + Send + 'static) {
        self.answer_unless(self.tree.may_wait(node(inode)), answer);
    }

    fn answer_unless(&self, may_wait: bool, answer: impl FnOnce(&Self) + Send + 'static) {
        if !may_wait {
            return answer(self);
        }
        let this = self.clone();
        self.helpers.run(move || answer(&this));
    }

    /// Asks the tree. A panic, which would be a bug, costs this one request and not the event loop: with every loop
    /// gone, readers would wait for ever.
    fn ask<T>(&self, question: impl FnOnce(&Tree) -> Result<T>) -> Result<T> {
        std::panic::catch_unwind(AssertUnwindSafe(|| question(&self.tree)))
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "a bug: answering a request panicked")))
            .inspect_err(|error| tracing::debug!("{}", error.report()))
    }
}

fn node(inode: INodeNo) -> Inode {
    Inode::from_raw(inode.0)
}

fn handle(handle: FileHandle) -> Handle {
    Handle(handle.0)
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

fn file_attr(attributes: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(attributes.inode.raw()),
        size: attributes.size,
        blocks: attributes.blocks,
        atime: system_time(attributes.atime),
        mtime: system_time(attributes.mtime),
        ctime: system_time(attributes.ctime),
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(attributes.kind),
        perm: attributes.permissions,
        nlink: attributes.links,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: device_number(attributes.device),
        blksize: 4096,
        flags: 0,
    }
}

/// A time as the library takes it; one that it cannot hold as the start of all time.
fn system_time(time: FileTime) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let second = if time.seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    second.and_then(|at| at.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Major and minor number in the 32 bits that the kernel takes: 12 bits of the one between 8 and 12 of the other.
fn device_number((major, minor): (u32, u32)) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// Answers a question for an extended attribute or for their names: with the length where that is asked for.
fn reply_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

/// The time for both the name and the attributes, where a reply has room for one.
fn shorter_ttl(entry: &Entry) -> Duration {
    entry.name_ttl.min(entry.attributes_ttl)
}

impl Filesystem for Bridge {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            // Always, not when the kernel guesses that attributes are wanted: its guess comes too late for `find`, which
            // lists a whole directory first and then asks for each name; here that was four times the work.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // A path through `latest` is walked for every file below it.
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_DIO,
        ] {
            // Each only makes something faster; an older kernel does without.
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.answer(parent, move |this| match this.ask(|tree| tree.lookup(node(parent), &name)) {
            Ok(entry) => {
                let attr = file_attr(&entry.attributes);
                reply.entry_with_ttls(&entry.attributes_ttl, &entry.name_ttl, &attr, GENERATION);
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn forget(&self, _: &Request, inode: INodeNo, count: u64) {
        self.tree.forget(node(inode), count);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let may_wait = self.tree.may_wait_for_attributes(node(inode));
        self.answer_unless(may_wait, move |this| match this.ask(|tree| tree.attributes(node(inode))) {
            Ok(entry) => reply.attr(&entry.attributes_ttl, &file_attr(&entry.attributes)),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        self.answer(inode, move |this| match this.ask(|tree| tree.read_link(node(inode))) {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let holes = if flags.0 & O_DIRECT == 0 { Holes::Exact } else { Holes::InBlocks };
        self.answer(inode, move |this| match this.ask(|tree| tree.open(node(inode), holes)) {
            Ok(opened) => {
                let flags = if opened.volatile { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::FOPEN_KEEP_CACHE };
                reply.opened(FileHandle(opened.handle.0), flags | FopenFlags::FOPEN_NOFLUSH);
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        open: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let size = to_usize(u64::from(size));
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let wanted = buffer.get_mut(..size).unwrap_or_default();
            match self.ask(|tree| tree.read(handle(open), wanted, offset)) {
                Ok(got) => reply.data(buffer.get(..got).unwrap_or_default()),
                Err(error) => reply.error(read_errno(&error)),
            }
        });
    }

    fn lseek(&self, _: &Request, _: INodeNo, open: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let whence = match whence {
            SEEK_DATA => Whence::Data,
            SEEK_HOLE => Whence::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(at) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        match self.ask(|tree| tree.seek(handle(open), at, whence)) {
            Ok(Some(found)) => match i64::try_from(found) {
                Ok(found) => reply.offset(found),
                Err(_) => reply.error(Errno::EOVERFLOW),
            },
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(read_errno(&error)),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        open: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.tree.close(handle(open));
        reply.ok();
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.answer(inode, move |this| match this.ask(|tree| tree.open_dir(node(inode))) {
            Ok(opened) => reply.opened(FileHandle(opened.0), FopenFlags::empty()),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readdir(&self, _: &Request, inode: INodeNo, open: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.answer(inode, move |this| {
            let listed = this.ask(|tree| {
                tree.read_dir(handle(open), offset, |entry| {
                    !reply.add(INodeNo(entry.inode.raw()), entry.next, file_type(entry.kind), entry.name)
                })
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn readdirplus(&self, _: &Request, inode: INodeNo, open: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.answer(inode, move |this| {
            let listed = this.ask(|tree| {
                tree.read_dir_plus(handle(open), offset, |listed, entry| {
                    let (inode, attr) = (INodeNo(listed.inode.raw()), file_attr(&entry.attributes));
                    !reply.add(inode, listed.next, listed.name, &shorter_ttl(entry), &attr, GENERATION)
                })
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, open: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.tree.close_dir(handle(open));
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.ask(Tree::space) {
            Ok(space) => {
                let block_size = u32::try_from(space.block_size).unwrap_or(4096);
                reply.statfs(space.blocks, space.free, space.available, 0, 0, block_size, NAME_MAX, block_size);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn getxattr(&self, _: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.to_owned();
        self.answer(inode, move |this| match this.ask(|tree| tree.xattr(node(inode), &name)) {
            Ok(Some(value)) => reply_xattr(reply, size, &value),
            Ok(None) => reply.error(Errno::NO_XATTR),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn listxattr(&self, _: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        self.answer(inode, move |this| match this.ask(|tree| tree.xattr_names(node(inode))) {
            Ok(names) => reply_xattr(reply, size, &names),
            Err(error) => reply.error(errno(&error)),
        });
    }

    // ENOSYS makes the kernel answer these itself from now on: access by the permissions shown, the rest as if it had
    // succeeded.

    fn access(&self, _: &Request, _: INodeNo, _: fuser::AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    // The kernel refuses changes before they get here, unless somebody remounts with `rw`.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }
}
