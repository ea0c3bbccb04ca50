//! A directory in which things are made, renamed and removed by plain names.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::{Change, Medium, NewFile, PARTIAL};
use crate::base::{Error, ErrorKind, HostOffset, Result};
use crate::storage::RelPath;
use crate::storage::gate::BENEATH;

/// Backups hold what guests hold: nobody but the owner writes, and only the owner and the group read.
const FILE_MODE: Mode = Mode::from_raw_mode(0o640);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o750);

const OPEN_DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// An open directory to write in. Names are single plain ones; nothing that they name is ever followed.
#[derive(Debug, Clone)]
pub struct WriteDir(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fd: OwnedFd,
    path: PathBuf,
    medium: Arc<dyn Medium>,
}

impl WriteDir {
    /// Opens the directory `path`, which the administrator named and which may therefore be a symlink.
    pub fn open(path: &Path, medium: Arc<dyn Medium>) -> Result<Self> {
        let fd = rustix::fs::openat(CWD, path, OPEN_DIRECTORY, Mode::empty())
            .map_err(|e| Error::io(format!("cannot open the directory '{}'", path.display()), e))?;
        Ok(Self(Arc::new(Inner { fd, path: path.to_owned(), medium })))
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The directory `name` in this one.
    pub fn descend(&self, name: &str) -> Result<Self> {
        let path = self.at(name)?;
        let fd = rustix::fs::openat2(&self.0.fd, name, OPEN_DIRECTORY, Mode::empty(), BENEATH)
            .map_err(|e| failed("open the directory", &path, e))?;
        Ok(Self(Arc::new(Inner { fd, path, medium: self.0.medium.clone() })))
    }

    /// Makes the directory `name`; one that exists is an error of kind `Exists`.
    pub fn make_dir(&self, name: &str) -> Result<Self> {
        let path = self.at(name)?;
        self.0.medium.before(&path, Change::MakeDirectory)?;
        rustix::fs::mkdirat(&self.0.fd, name, DIRECTORY_MODE).map_err(|e| failed("make the directory", &path, e))?;
        self.descend(name)
    }

    /// The directory `name`, made and brought to the medium where it is not there.
    pub fn descend_or_make(&self, name: &str) -> Result<Self> {
        match self.descend(name) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            found => return found,
        }
        match self.make_dir(name) {
            // Somebody else made it between the two.
            Err(e) if e.kind() == ErrorKind::Exists => self.descend(name),
            Ok(made) => {
                self.sync()?;
                Ok(made)
            }
            Err(e) => Err(e),
        }
    }

    /// A new directory with a name of its own that no reader looks at, and that name.
    pub fn make_partial_dir(&self) -> Result<(Self, String)> {
        let name = format!("{PARTIAL}{}", Uuid::new_v4().simple());
        Ok((self.make_dir(&name)?, name))
    }

    /// Makes the file `name`, empty; one that exists is an error of kind `Exists`.
    pub fn make_file(&self, name: &str) -> Result<NewFile> {
        let path = self.at(name)?;
        self.0.medium.before(&path, Change::MakeFile)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.0.fd, name, flags, FILE_MODE).map_err(|e| failed("make", &path, e))?;
        Ok(NewFile::new(fd, path, self.0.medium.clone()))
    }

    /// Makes the file `name` with these bytes, which are on the medium when this returns; the name may not be yet.
    pub fn make_whole_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let file = self.make_file(name)?;
        file.write_at(bytes, HostOffset(0))?;
        file.sync()
    }

    /// Gives `name` these bytes: whoever opens it finds all of the old ones or all of the new ones, at any time.
    pub fn replace_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let partial = format!("{PARTIAL}{}", Uuid::new_v4().simple());
        let made = self.make_whole_file(&partial, bytes).and_then(|()| self.move_name(&partial, name, true));
        if let Err(e) = made {
            // The first error is the one that matters; what is left is swept by the next writer.
            let _ = self.remove(&partial, AtFlags::empty());
            return Err(e);
        }
        self.sync()
    }

    /// Gives `from` the name `to`; one that is taken is an error of kind `Exists`.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.move_name(from, to, false)
    }

    fn move_name(&self, from: &str, to: &str, replace: bool) -> Result<()> {
        let (path, target) = (self.at(from)?, self.at(to)?);
        self.0.medium.before(&path, Change::Rename { to, replace })?;
        let exists = || Error::new(ErrorKind::Exists, format!("'{}' exists already", target.display()));
        let dir = &self.0.fd;
        if replace {
            return rustix::fs::renameat(dir, from, dir, to).map_err(|e| failed("rename", &path, e));
        }
        match rustix::fs::renameat_with(dir, from, dir, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(exists()),
            // NFS has no such flag. Writers of one directory keep apart by their lock, so looking first is enough.
            Err(Errno::INVAL | Errno::NOSYS) => match rustix::fs::statat(dir, to, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Err(exists()),
                Err(Errno::NOENT) => rustix::fs::renameat(dir, from, dir, to).map_err(|e| failed("rename", &path, e)),
                Err(e) => Err(failed("look for", &target, e)),
            },
            Err(e) => Err(failed("rename", &path, e)),
        }
    }

    /// Returns when the names in this directory are on the medium.
    pub fn sync(&self) -> Result<()> {
        self.0.medium.before(&self.0.path, Change::SyncDirectory)?;
        match rustix::fs::fsync(&self.0.fd) {
            // Some network file systems have no such thing: their names are on the server at once.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(e) => Err(failed("bring to the medium the directory", &self.0.path, e)),
        }
    }

    /// Removes the directory `name` and everything in it; one that is not there is no error.
    pub fn remove_tree(&self, name: &str) -> Result<()> {
        let dir = match self.descend(name) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        for (entry, is_dir) in dir.entries()? {
            if is_dir {
                dir.remove_tree(&entry)?;
            } else {
                dir.remove(&entry, AtFlags::empty())?;
            }
        }
        self.remove(name, AtFlags::REMOVEDIR)
    }

    /// Removes the directories of writers that were ended before they had finished. Only for who holds this directory's lock.
    ///
    /// Files of that name are left alone: short-lived ones are made without the lock.
    pub fn sweep_partial_dirs(&self) -> Result<usize> {
        let mut swept = 0;
        for (name, is_dir) in self.entries()? {
            if is_dir && name.starts_with(PARTIAL) {
                self.remove_tree(&name)?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// Names and whether they are directories; names that are not UTF-8 are none of ours.
    fn entries(&self) -> Result<Vec<(String, bool)>> {
        let cannot = |e| failed("list", &self.0.path, e);
        // A descriptor of its own: listing moves the descriptor's position.
        let fd = rustix::fs::openat(&self.0.fd, ".", OPEN_DIRECTORY, Mode::empty()).map_err(cannot)?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&fd).map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") {
                continue;
            }
            let is_dir = match entry.file_type() {
                FileType::Unknown => match rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
                    Err(Errno::NOENT) => continue,
                    Err(e) => return Err(cannot(e)),
                },
                known => known == FileType::Directory,
            };
            entries.push((name.to_owned(), is_dir));
        }
        entries.sort_unstable();
        Ok(entries)
    }

    fn remove(&self, name: &str, flags: AtFlags) -> Result<()> {
        let path = self.at(name)?;
        self.0.medium.before(&path, Change::Remove)?;
        match rustix::fs::unlinkat(&self.0.fd, name, flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(failed("remove", &path, e)),
        }
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.0.fd
    }

    fn at(&self, name: &str) -> Result<PathBuf> {
        match RelPath::new(name) {
            Ok(_) if !name.contains('/') => Ok(self.0.path.join(name)),
            Ok(_) | Err(_) => Err(Error::new(
                ErrorKind::Refused,
                format!("'{}' is not a plain name for something in '{}'", name.escape_debug(), self.0.path.display()),
            )),
        }
    }
}

fn failed(what: &str, path: &Path, errno: Errno) -> Error {
    let error = Error::io(format!("cannot {what} '{}'", path.display()), errno);
    match errno {
        Errno::ROFS => error.with_hint("the store's file system is mounted read-only"),
        Errno::NOSPC => error.with_hint("the store's file system is full"),
        Errno::DQUOT => error.with_hint("the quota on the store's file system is used up"),
        Errno::LOOP => error.with_hint("symlinks in a store are not followed"),
        _ => error,
    }
}
