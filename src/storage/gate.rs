//! The gate: which names may be opened, and the opening itself.
//!
//! Every name that comes out of a store (a directory entry, a backing name inside an image, a path in a
//! manifest) is opened through here. The kernel holds the rule (`openat2` with `RESOLVE_BENEATH` and
//! `RESOLVE_NO_SYMLINKS`), so no race between a check and an open can get around it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};

use super::{FileIdentity, FilePool, LastingIdentity, LayerSource, RelPath, Storage, StoreFile};
use crate::base::{Error, ErrorKind, Result};

/// What kind of thing a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Anything else; never opened.
    Other,
}

/// One entry of a directory, without following anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name; entries whose name is not UTF-8 are left out of listings.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
}

/// What `stat` says of a file, as far as anyone here asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// What it is.
    pub kind: EntryKind,
    /// Which file, which state.
    pub identity: LastingIdentity,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The state of a directory's list of names, for telling whether it has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirStamp(LastingIdentity);

impl DirStamp {
    /// Which directory it is of: device and inode number.
    #[must_use]
    pub fn file(&self) -> (u64, u64) {
        (self.0.identity.device, self.0.identity.inode)
    }

    /// When the list of names last changed, in seconds since the epoch.
    #[must_use]
    pub fn modified(&self) -> i64 {
        i64::try_from(self.0.identity.mtime_ns.div_euclid(1_000_000_000)).unwrap_or_default()
    }

    /// Whether a change made right after this stamp was taken could leave the stamp as it is,
    /// because the file system's clock ticks too slowly. `now_ns` is the time when it was taken.
    #[must_use]
    pub fn is_racy(&self, now_ns: i128) -> bool {
        !self.0.is_settled(now_ns)
    }
}

/// The room on the file system that holds a directory, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes in a block.
    pub block_size: u64,
    /// All blocks.
    pub blocks: u64,
    /// Blocks not in use.
    pub free: u64,
    /// Blocks not in use that anybody may take.
    pub available: u64,
}

/// A directory beneath which, and only beneath which, names are opened.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: OwnedFd,
    /// The directory's own name, by which an absolute backing name is recognised.
    name: String,
    pool: Arc<FilePool>,
}

pub(super) const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

impl Gate {
    /// Opens the directory `path`, which the administrator named and which may therefore be a symlink.
    pub fn open(path: &Path, pool: Arc<FilePool>) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| Error::io(format!("cannot open the directory '{}'", path.display()), e))?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self(Arc::new(Inner { dir, name, pool })))
    }

    /// A gate for the directory `name` right below this one.
    pub fn descend(&self, name: &RelPath) -> Result<Self> {
        let dir = self.open_directory(Some(name))?;
        Ok(Self(Arc::new(Inner { dir, name: name.file_name().to_owned(), pool: self.0.pool.clone() })))
    }

    /// Opens a regular file. FIFOs, devices, directories and symlinks are refused.
    pub fn open_file(&self, path: &RelPath) -> Result<StoreFile> {
        StoreFile::open(self.clone(), path.clone())
    }

    /// Reads a whole small file; one larger than `limit` bytes is refused.
    pub fn read_file(&self, path: &RelPath, limit: usize) -> Result<Vec<u8>> {
        let file = self.open_file(path)?;
        if file.size() > limit as u64 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("'{path}' has {} bytes, more than the {limit} allowed", file.size()),
            ));
        }
        let mut bytes = vec![0; crate::base::units::to_usize(file.size())];
        file.read_exact_at(&mut bytes, crate::base::HostOffset(0))?;
        Ok(bytes)
    }

    /// The entries of a directory (`None`: the gate's own), sorted by name, without `.` and `..`.
    pub fn read_dir(&self, path: Option<&RelPath>) -> Result<Vec<DirEntry>> {
        let dir = self.open_directory(path)?;
        let failed = |e| Error::io(format!("cannot list {}", self.describe(path)), e);
        let mut entries = Vec::new();
        for entry in Dir::read_from(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") {
                continue;
            }
            let kind = match entry.file_type() {
                // Some file systems do not say in the listing.
                FileType::Unknown => match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => entry_kind(FileType::from_raw_mode(stat.st_mode)),
                    Err(rustix::io::Errno::NOENT) => continue,
                    Err(e) => return Err(failed(e)),
                },
                known => entry_kind(known),
            };
            entries.push(DirEntry { name: name.to_owned(), kind });
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// What `path` is, without opening it.
    pub fn stat(&self, path: &RelPath) -> Result<FileStat> {
        let fd = self.openat(path, OFlags::PATH)?;
        let statx = statx(&fd, AtFlags::empty())
            .map_err(|e| Error::io(format!("cannot stat {}", self.describe(Some(path))), e))?;
        Ok(file_stat(&statx))
    }

    /// The state of a directory's list of names; asks a network file system's server anew.
    pub fn dir_stamp(&self, path: Option<&RelPath>) -> Result<DirStamp> {
        let failed = |e| Error::io(format!("cannot stat {}", self.describe(path)), e);
        let statx = match path {
            None => statx(&self.0.dir, AtFlags::STATX_FORCE_SYNC).map_err(failed)?,
            Some(path) => statx(&self.openat(path, OFlags::PATH | OFlags::DIRECTORY)?, AtFlags::STATX_FORCE_SYNC)
                .map_err(failed)?,
        };
        Ok(DirStamp(lasting_identity(&statx)))
    }

    /// The room on the file system that holds the directory.
    pub fn space(&self) -> Result<Space> {
        let stat = rustix::fs::fstatvfs(&self.0.dir)
            .map_err(|e| Error::io(format!("cannot ask for the room around {}", self.describe(None)), e))?;
        Ok(Space { block_size: stat.f_frsize, blocks: stat.f_blocks, free: stat.f_bfree, available: stat.f_bavail })
    }

    /// The directory's own name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub(super) fn pool(&self) -> &Arc<FilePool> {
        &self.0.pool
    }

    /// Opens a regular file for reading and says which it is.
    pub(super) fn open_regular(&self, path: &RelPath) -> Result<(OwnedFd, LastingIdentity)> {
        // NONBLOCK: the open of a FIFO returns at once, to be refused below.
        let fd = self.openat(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let statx = statx(&fd, AtFlags::empty())
            .map_err(|e| Error::io(format!("cannot stat {}", self.describe(Some(path))), e))?;
        match FileType::from_raw_mode(statx.stx_mode.into()) {
            FileType::RegularFile => Ok((fd, lasting_identity(&statx))),
            other => {
                Err(Error::new(ErrorKind::Refused, format!("'{path}' is {}, not a regular file", type_name(other))))
            }
        }
    }

    fn open_directory(&self, path: Option<&RelPath>) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match path {
            Some(path) => self.openat(path, flags),
            // A descriptor of its own: listing moves the descriptor's position.
            None => rustix::fs::openat(&self.0.dir, ".", flags | OFlags::CLOEXEC, Mode::empty())
                .map_err(|e| Error::io(format!("cannot open {}", self.describe(None)), e)),
        }
    }

    fn openat(&self, path: &RelPath, flags: OFlags) -> Result<OwnedFd> {
        use rustix::io::Errno;
        loop {
            return match rustix::fs::openat2(
                &self.0.dir,
                path.as_str(),
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                BENEATH,
            ) {
                Ok(fd) => Ok(fd),
                // The kernel could not rule out a race with a rename; it says to try again.
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(Errno::LOOP) => Err(Error::new(
                    ErrorKind::Refused,
                    format!("'{path}' is a symlink or goes through one; stores are opened without following any"),
                )),
                Err(Errno::XDEV) => {
                    Err(Error::new(ErrorKind::Refused, format!("'{path}' leads out of '{}'", self.0.name)))
                }
                Err(e) => Err(Error::io(format!("cannot open {}", self.describe(Some(path))), e)),
            };
        }
    }

    fn describe(&self, path: Option<&RelPath>) -> String {
        path.map_or_else(|| format!("'{}'", self.0.name), |p| format!("'{p}'"))
    }
}

impl LayerSource for Gate {
    fn open(&self, path: &RelPath) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(self.open_file(path)?))
    }

    fn resolve(&self, from: &RelPath, backing: &[u8]) -> Result<RelPath> {
        resolve_backing(&self.0.name, from, backing)
    }
}

/// The file that a backing name found in `from` stands for.
///
/// A relative name is worked out from the image's directory. An absolute one is how older tools wrote a layer of
/// the same guest, perhaps before the store was moved: what follows the guest's own directory name in it, or the
/// file beside the image where both lie in directories of one name, is meant. Everything else is refused.
pub(super) fn resolve_backing(guest: &str, from: &RelPath, backing: &[u8]) -> Result<RelPath> {
    let refused = |why: &str| {
        let shown = String::from_utf8_lossy(backing);
        Err(Error::new(
            ErrorKind::Refused,
            format!("'{from}' names the backing file '{}', {why}", shown.escape_debug()),
        ))
    };
    let Ok(name) = std::str::from_utf8(backing) else { return refused("which is not UTF-8") };
    if name.contains('\0') {
        return refused("which holds a NUL byte");
    }
    if let Some(absolute) = name.strip_prefix('/') {
        let parts: Vec<&str> = absolute.split('/').filter(|p| !p.is_empty()).collect();
        if parts.iter().any(|p| matches!(*p, "." | "..")) {
            return refused("an absolute path that is not plain");
        }
        if let Some(at) = parts.iter().rposition(|p| *p == guest).filter(|at| at + 1 < parts.len()) {
            return RelPath::new(&parts[at + 1..].join("/"));
        }
        return match parts.as_slice() {
            [.., dir, file] if Some(*dir) == from.parent_name() => from.sibling(file),
            _ => refused("an absolute path that names no layer of this guest"),
        };
    }
    // `nbd://…`, `json:{…}`, `fat:…`: QEMU takes what stands before the first colon, if no slash comes first, for a protocol.
    if name.split('/').next().is_some_and(|first| first.contains(':')) {
        return refused("which names a protocol, not a file");
    }
    from.sibling(name).map_err(|e| e.context(format!("backing file of '{from}'")))
}

fn statx(fd: &OwnedFd, flags: AtFlags) -> rustix::io::Result<Statx> {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH | flags, StatxFlags::BASIC_STATS)
}

fn file_stat(statx: &Statx) -> FileStat {
    FileStat {
        kind: entry_kind(FileType::from_raw_mode(statx.stx_mode.into())),
        identity: lasting_identity(statx),
        mode: u32::from(statx.stx_mode) & 0o7777,
        uid: statx.stx_uid,
        gid: statx.stx_gid,
    }
}

fn lasting_identity(statx: &Statx) -> LastingIdentity {
    let identity = FileIdentity {
        device: (u64::from(statx.stx_dev_major) << 32) | u64::from(statx.stx_dev_minor),
        inode: statx.stx_ino,
        size: statx.stx_size,
        mtime_ns: nanoseconds(statx.stx_mtime),
    };
    LastingIdentity { identity, ctime_ns: nanoseconds(statx.stx_ctime) }
}

fn nanoseconds(time: rustix::fs::StatxTimestamp) -> i128 {
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

fn entry_kind(file_type: FileType) -> EntryKind {
    match file_type {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Directory,
        _ => EntryKind::Other,
    }
}

fn type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Directory => "a directory",
        FileType::Symlink => "a symlink",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(backing: &str) -> Result<String> {
        let from = RelPath::new("qemu-2/drive.qcow2").unwrap();
        resolve_backing("100", &from, backing.as_bytes()).map(|p| p.as_str().to_owned())
    }

    #[test]
    fn relative_names_stay_in_the_guest() {
        assert_eq!(resolve("../qemu-1/drive.qcow2").unwrap(), "qemu-1/drive.qcow2");
        assert!(resolve("../../101/qemu-1/drive.qcow2").is_err());
    }

    #[test]
    fn an_absolute_name_stands_only_for_a_layer_of_the_same_guest() {
        assert_eq!(resolve("/old/place/100/qemu-1/drive.qcow2").unwrap(), "qemu-1/drive.qcow2");
        assert_eq!(resolve("/x/qemu-2/base.qcow2").unwrap(), "qemu-2/base.qcow2");
        for no in ["/old/place/101/qemu-1/drive.qcow2", "/etc/shadow", "/100", "/100/../101/x", "/"] {
            assert_eq!(resolve(no).unwrap_err().kind(), ErrorKind::Refused, "{no}");
        }
    }

    #[test]
    fn protocols_are_never_followed() {
        for no in ["json:{\"driver\":\"raw\"}", "nbd://h/x", "file:x", "nbd:unix:/s", "a:b"] {
            let e = resolve(no).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Refused);
            assert!(e.to_string().contains("protocol"), "{e}");
        }
    }
}
