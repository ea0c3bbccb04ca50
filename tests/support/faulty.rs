//! A file system in which some things cannot be read: real errors of the kernel, for programs that read trees.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyLseek, ReplyOpen, ReplyXattr,
    Request,
};

use crate::support::needs::needs;

/// Every byte of every file.
const BYTE: u8 = 0x61;

/// What cannot be done with an entry; everything else can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Stat,
    Open,
    List,
    ReadLink,
    ListAttributes,
    /// It has no extended attributes, as file systems have none that know nothing of them.
    HaveAttributes,
    /// Reading from this byte on.
    Read(u64),
    /// The same, of a file with holes.
    ReadOfHoles(u64),
    /// Asking for holes from this byte on.
    Seek(u64),
    /// The file ends at this byte, whatever its size says.
    Short(u64),
}

/// An entry of the file system's only directory.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: &'static [u8],
    pub(crate) kind: FileType,
    pub(crate) size: u64,
    /// Bytes that it is said to take on the medium.
    pub(crate) allocated: u64,
    pub(crate) fault: Option<Fault>,
}

/// A file of `size` bytes without holes.
pub(crate) fn file(name: &'static str, size: u64, fault: Option<Fault>) -> Entry {
    Entry { name: name.as_bytes(), kind: FileType::RegularFile, size, allocated: size, fault }
}

/// Whether such a file system can be mounted here; says aloud when not.
pub(crate) fn can_be_faulty() -> bool {
    needs(rustix::process::geteuid().is_root(), "root") && needs(Path::new("/dev/fuse").exists(), "/dev/fuse")
}

/// The file system, mounted until it is dropped.
pub(crate) struct Faulty {
    point: PathBuf,
    session: Option<BackgroundSession>,
}

impl Faulty {
    /// One with `entries` at its top.
    pub(crate) fn mount(point: &Path, entries: &[Entry]) -> Self {
        Self::serve(point, Served { entries: entries.to_vec(), unlistable: false })
    }

    /// One whose top cannot be listed.
    pub(crate) fn mount_unlistable(point: &Path) -> Self {
        Self::serve(point, Served { entries: Vec::new(), unlistable: true })
    }

    fn serve(point: &Path, served: Served) -> Self {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("faulty".to_owned())];
        let session = fuser::spawn_mount(served, point, &config).unwrap();
        Self { point: point.to_owned(), session: Some(session) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.point
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
    }
}

struct Served {
    entries: Vec<Entry>,
    unlistable: bool,
}

const FIRST: u64 = 2;

impl Served {
    fn entry(&self, ino: INodeNo) -> Option<&Entry> {
        self.entries.get(usize::try_from(ino.0.checked_sub(FIRST)?).unwrap())
    }

    fn fault(&self, ino: INodeNo) -> Option<Fault> {
        self.entry(ino)?.fault
    }

    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let (kind, size, allocated) =
            self.entry(ino).map_or((FileType::Directory, 0, 0), |entry| (entry.kind, entry.size, entry.allocated));
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        FileAttr {
            ino,
            size,
            blocks: allocated.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: if kind == FileType::Directory { 0o755 } else { 0o644 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// Nothing is kept by the kernel.
const NOT_KEPT: Duration = Duration::ZERO;

impl Filesystem for Served {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found =
            self.entries.iter().position(|entry| entry.name == name.as_bytes()).filter(|_| parent == INodeNo::ROOT);
        match found.map(|n| INodeNo(n as u64 + FIRST)) {
            Some(ino) if self.fault(ino) == Some(Fault::Stat) => reply.error(Errno::EIO),
            Some(ino) => reply.entry(&NOT_KEPT, &self.attributes(ino), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&NOT_KEPT, &self.attributes(ino));
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.fault(ino) {
            Some(Fault::Open) => reply.error(Errno::EIO),
            _ => reply.opened(FileHandle(0), fuser::FopenFlags::empty()),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        at: u64,
        len: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(entry) = self.entry(ino) else { return reply.error(Errno::EISDIR) };
        let end = match entry.fault {
            Some(Fault::Read(from) | Fault::ReadOfHoles(from)) if at + u64::from(len) > from => {
                return reply.error(Errno::EIO);
            }
            Some(Fault::Short(end)) => end,
            _ => entry.size,
        };
        reply.data(&vec![BYTE; usize::try_from(end.saturating_sub(at).min(len.into())).unwrap()]);
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, at: i64, whence: i32, reply: ReplyLseek) {
        const SEEK_DATA: i32 = 3;
        match self.fault(ino) {
            Some(Fault::Seek(from)) if at < 0 || at as u64 >= from => reply.error(Errno::EIO),
            // Data and holes of 64 KiB each.
            Some(Fault::Seek(_) | Fault::ReadOfHoles(_)) => {
                let size = self.attributes(ino).size as i64;
                let piece = at >> 16;
                let found = if piece % 2 == i64::from(whence != SEEK_DATA) { at } else { (piece + 1) << 16 };
                match found {
                    _ if at < 0 || at >= size || (found >= size && whence == SEEK_DATA) => reply.error(Errno::ENXIO),
                    _ => reply.offset(found.min(size)),
                }
            }
            _ => reply.error(Errno::ENOSYS),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.fault(ino) {
            Some(Fault::ReadLink) => reply.error(Errno::EIO),
            _ => reply.data(b"target"),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, after: u64, mut reply: ReplyDirectory) {
        if self.fault(ino) == Some(Fault::List) || (ino == INodeNo::ROOT && self.unlistable) {
            return reply.error(Errno::EIO);
        }
        let entries = if ino == INodeNo::ROOT { self.entries.as_slice() } else { &[] };
        for (n, entry) in entries.iter().enumerate().skip(usize::try_from(after).unwrap()) {
            if reply.add(INodeNo(n as u64 + FIRST), n as u64 + 1, entry.kind, OsStr::from_bytes(entry.name)) {
                break;
            }
        }
        reply.ok();
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.fault(ino) {
            Some(Fault::HaveAttributes) => reply.error(Errno::ENOTSUP),
            Some(Fault::ListAttributes) => reply.error(Errno::EIO),
            _ if size == 0 => reply.size(0),
            _ => reply.data(b""),
        }
    }
}
