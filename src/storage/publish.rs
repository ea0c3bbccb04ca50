//! Directories, and small files that appear whole or not at all.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};

use crate::base::{Error, ErrorKind, Result};

/// Makes the directory `path` in one that exists; one that is there already is as good.
pub fn make_directory(path: &Path) -> Result<()> {
    match std::fs::create_dir(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::io(format!("cannot make the directory '{}'", path.display()), e))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes the file `name` with these bytes in the directory `dir`; refuses one that exists.
///
/// The bytes are on the medium before the name is, and the name is before this returns.
pub fn create_whole(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let failed = |what: &str| {
        let at = format!("cannot {what} '{}'", dir.join(name).display());
        move |e| Error::io(at.clone(), e)
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir_fd = rustix::fs::openat(CWD, dir, flags, Mode::empty()).map_err(failed("open the directory of"))?;
    let partial = format!(".partial-{}", uuid::Uuid::new_v4().simple());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&dir_fd, &partial, flags, Mode::from_raw_mode(0o644)).map_err(failed("make"))?;
    let written = write_all(&fd, bytes).and_then(|()| rustix::fs::fsync(&fd)).map_err(failed("write")).and_then(|()| {
        rustix::fs::renameat_with(&dir_fd, &partial, &dir_fd, name, RenameFlags::NOREPLACE).map_err(|e| match e {
            rustix::io::Errno::EXIST => {
                Error::new(ErrorKind::Exists, format!("'{}' exists already", dir.join(name).display()))
            }
            e => failed("name")(e),
        })
    });
    if let Err(e) = written {
        // The first error is the one that matters.
        let _ = rustix::fs::unlinkat(&dir_fd, &partial, AtFlags::empty());
        return Err(e);
    }
    rustix::fs::fsync(&dir_fd).map_err(failed("write the directory of"))
}

fn write_all(fd: impl std::os::fd::AsFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&fd, bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_exists_is_left_as_it_is_and_nothing_else_stays_behind() {
        let dir = tempfile::tempdir().unwrap();
        create_whole(dir.path(), "a", b"first").unwrap();
        let e = create_whole(dir.path(), "a", b"second").unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Exists);
        assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
