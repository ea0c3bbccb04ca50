//! What the caller names outside any store: disks and trees to back up, files to keep with a backup, and programs that help.
//!
//! The caller's own words are followed wherever they lead, symlinks and `/dev/fd/3` included; the gate's rules are for names
//! that come out of data.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::gate::BENEATH;
use crate::base::{Error, ErrorKind, GuestOffset, Result};

/// A disk at hand: a regular file with a disk's bytes, or a block device. Opened for reading.
#[derive(Debug)]
pub struct OutsideDisk {
    file: File,
    path: PathBuf,
    size: u64,
}

impl OutsideDisk {
    /// Opens it; everything but regular files and block devices is refused.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e: std::io::Error| Error::io(format!("cannot open '{}'", path.display()), e);
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("'{}' is neither a regular file nor a block device", path.display()),
            ));
        }
        let file = File::open(path).map_err(failed)?;
        // Of a device, the metadata do not tell the size.
        let size = rustix::fs::seek(&file, SeekFrom::End(0))
            .map_err(|e| Error::io(format!("cannot find the size of '{}'", path.display()), e))?;
        Ok(Self { file, path: path.to_owned(), size })
    }

    /// Its size in bytes when it was opened.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buf` from byte `at` on. An end before that is an error of kind `Changed`.
    pub fn read_exact_at(&self, buf: &mut [u8], at: GuestOffset) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let position = at.saturating_add(done as u64);
            match rustix::io::pread(&self.file, &mut buf[done..], position.0) {
                Ok(0) => {
                    let path = self.path.display();
                    return Err(Error::new(
                        ErrorKind::Changed,
                        format!("'{path}' ends at {position}: it was cut short"),
                    ));
                }
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(e) => return Err(Error::io(format!("cannot read '{}' at {position}", self.path.display()), e)),
            }
        }
        Ok(())
    }

    /// The next stretch that is not in a hole, at or after `at`: its start and end. `None` when only a hole follows.
    pub fn next_data(&self, at: GuestOffset) -> Result<Option<(GuestOffset, GuestOffset)>> {
        let failed = |e| Error::io(format!("cannot look for holes in '{}'", self.path.display()), e);
        if at.0 >= self.size {
            return Ok(None);
        }
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(at.0)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // Devices, and some file systems, have no holes to tell of.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, GuestOffset(self.size)))),
            Err(e) => return Err(failed(e)),
        };
        let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start)).map_err(failed)?.min(self.size);
        Ok((start < end).then_some((GuestOffset(start), GuestOffset(end))))
    }
}

/// Reads a whole file, pipe or descriptor that the caller named; more than `limit` bytes are refused.
pub fn read_outside(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| Error::io(format!("cannot read '{}'", path.display()), e);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > limit {
        return Err(Error::new(
            ErrorKind::Refused,
            format!("'{}' has more than the {limit} bytes that are kept with a backup", path.display()),
        ));
    }
    Ok(bytes)
}

/// The directory that the caller named, without symlinks on the way to it.
pub fn outside_directory(path: &Path) -> Result<PathBuf> {
    let found = std::fs::canonicalize(path)
        .and_then(|found| std::fs::metadata(&found).map(|meta| (found, meta.is_dir())))
        .map_err(|e| Error::io(format!("cannot open '{}'", path.display()), e))?;
    match found {
        (found, true) => Ok(found),
        (_, false) => Err(Error::new(ErrorKind::Refused, format!("'{}' is no directory", path.display()))),
    }
}

/// A regular file in a tree, as it is now.
#[derive(Debug)]
pub struct Glimpse {
    /// Its size in bytes.
    pub size: u64,
    /// When it was last changed in any way, by its file system's clock; nanoseconds since the epoch.
    pub changed_ns: i128,
    /// How many bytes a read of one gave at the place in question.
    pub read: std::io::Result<usize>,
}

/// Looks at the file `name` beneath `tree`, and reads a byte at `at`. `None` where there is none that is regular, or only by way of
/// symlinks: whoever lives in the tree may have put anything there meanwhile.
///
/// Errors: `Io` when it cannot be opened.
pub fn glimpse(tree: &Path, name: &[u8], at: u64) -> Result<Option<Glimpse>> {
    let top = rustix::fs::open(tree, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io(format!("cannot open '{}'", tree.display()), e))?;
    // NONBLOCK: the open of a FIFO returns at once.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = loop {
        match rustix::fs::openat2(&top, name, flags, Mode::empty(), BENEATH) {
            // The kernel could not rule out a race with a rename; it says to try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => break opened,
        }
    };
    let file = match opened {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NXIO) => return Ok(None),
        Err(e) => return Err(Error::io(format!("cannot open '{}'", name.escape_ascii()), e)),
    };
    let meta = file.metadata().map_err(|e| Error::io(format!("cannot stat '{}'", name.escape_ascii()), e))?;
    if !meta.is_file() {
        return Ok(None);
    }
    Ok(Some(Glimpse {
        size: meta.len(),
        changed_ns: i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec()),
        read: file.read_at(&mut [0], at),
    }))
}

/// Where a program is, by the caller's `PATH`.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&program_path()).map(|dir| dir.join(name)).find(|file| {
        let may_run = rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok();
        may_run && std::fs::metadata(file).is_ok_and(|meta| meta.is_file())
    })
}

/// The caller's `PATH`; a usual one where there is none.
#[must_use]
pub fn program_path() -> OsString {
    let path = std::env::var_os("PATH").filter(|path| !path.is_empty());
    path.unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glimpse_is_of_regular_files_beneath_the_tree_alone() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("d")).unwrap();
        std::fs::write(dir.path().join("outside"), "secret").unwrap();
        std::fs::write(tree.join("d/file"), "12345").unwrap();
        std::os::unix::fs::symlink("../outside", tree.join("link")).unwrap();
        std::os::unix::fs::symlink("d", tree.join("to-d")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, tree.join("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let file = glimpse(&tree, b"./d/file", 4).unwrap().unwrap();
        assert_eq!((file.size, file.read.unwrap()), (5, 1));
        assert!(file.changed_ns > 1_700_000_000_000_000_000);
        assert_eq!(glimpse(&tree, b"./d/file", 5).unwrap().unwrap().read.unwrap(), 0);
        for name in [b"./link".as_slice(), b"./to-d/file", b"../outside", b"./d", b"./fifo", b"./gone", b"./d/file/x"] {
            assert!(glimpse(&tree, name, 0).unwrap().is_none(), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn data_and_holes_of_a_file_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = File::create(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[1; 65536], 4 << 20).unwrap();
        let disk = OutsideDisk::open(&path).unwrap();
        let (start, end) = disk.next_data(GuestOffset(0)).unwrap().unwrap();
        assert!(start.0 <= 4 << 20 && end.0 >= (4 << 20) + 65536 && end.0 <= 8 << 20, "{start} {end}");
        assert_eq!(disk.next_data(GuestOffset(8 << 20)).unwrap(), None);
    }

    #[test]
    fn a_disk_that_was_cut_short_and_what_is_no_disk_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [1; 4096]).unwrap();
        let disk = OutsideDisk::open(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
        assert_eq!(disk.read_exact_at(&mut [0; 200], GuestOffset(0)).unwrap_err().kind(), ErrorKind::Changed);
        assert_eq!(OutsideDisk::open(dir.path()).unwrap_err().kind(), ErrorKind::Refused);
    }

    #[test]
    fn a_file_larger_than_the_limit_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), [1; 100]).unwrap();
        assert_eq!(read_outside(&dir.path().join("a"), 100).unwrap().len(), 100);
        assert_eq!(read_outside(&dir.path().join("a"), 99).unwrap_err().kind(), ErrorKind::Refused);
    }
}
