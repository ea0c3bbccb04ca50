//! The directory to mount on: what is wrong with it, and taking a mount off it again.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::table::{self, Mount};
use crate::base::{Error, ErrorKind, Result};

/// The program by which users without privileges mount and unmount.
pub(super) const FUSERMOUNT: &str = "fusermount3";

/// The absolute path of a mountpoint, also of one that answers nothing, because its daemon is gone or its store is.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    let failed = |e| Error::io(format!("cannot find '{}'", path.display()), e);
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Err(failed(e)),
        // What stands before its last name can be asked.
        Err(e) => {
            let absolute = std::path::absolute(path).map_err(failed)?;
            match (absolute.parent(), absolute.file_name()) {
                (Some(parent), Some(name)) => Ok(parent.canonicalize().map_err(failed)?.join(name)),
                _ => Err(failed(e)),
            }
        }
    }
}

/// Whether the error is what a mount answers whose daemon is gone (`ENOTCONN`), or was killed before it could answer
/// this very request (`ECONNABORTED`).
pub(super) fn is_stale(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::NOTCONN | Errno::CONNABORTED))
}

/// Fails with what to do when `path` (made [absolute](resolve)) is not a directory that `store` (absolute) can be mounted on.
pub fn check(path: &Path, may_hide_files: bool, store: &Path) -> Result<()> {
    let shown = path.display();
    let top = table::top_at(table::mounts()?, path);
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if is_stale(&e) => return Err(stale(path, top.as_ref())),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            return Err(Error::new(ErrorKind::Usage, format!("'{shown}' is not a directory")));
        }
        Err(e) => return Err(Error::io(format!("cannot mount on '{shown}'"), e)),
    };
    if let Some(mount) = top.filter(Mount::is_ours) {
        return Err(Error::new(
            ErrorKind::Exists,
            format!("'{}' is mounted on '{shown}' already", mount.source.display()),
        )
        .with_hint(format!("annals umount {shown} takes it away")));
    }
    apart(path, store)?;
    if !may_hide_files && entries.into_iter().next().is_some() {
        return Err(Error::new(ErrorKind::Usage, format!("the directory '{shown}' is not empty"))
            .with_hint("mount on an empty directory, or give -o nonempty to hide what is in it"));
    }
    Ok(())
}

/// Fails when whoever reads `store` would come through a mount on `path`: the mount's own process would wait for itself
/// for ever, and could not even be killed.
fn apart(path: &Path, store: &Path) -> Result<()> {
    let (shown, stored) = (path.display(), store.display());
    let target = store.canonicalize().unwrap_or_else(|_| store.to_owned());
    let message = if target.starts_with(path) || store.starts_with(path) {
        format!("the mount on '{shown}' would hide the store '{stored}' that it shows")
    } else if path.starts_with(&target) {
        format!("the mount on '{shown}' would be part of the store '{stored}' that it shows")
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Usage, message).with_hint("mount on a directory beside the store"))
}

/// The error for a mount whose daemon was killed.
pub(super) fn stale(path: &Path, mount: Option<&Mount>) -> Error {
    let shown = path.display();
    let ours = mount.is_none_or(Mount::is_ours);
    let what = if ours { "an annals process" } else { "a FUSE file system" };
    let message = format!("'{shown}' still has the mount of {what} that has ended without unmounting");
    Error::new(ErrorKind::Busy, message).with_hint(if ours {
        format!("annals umount {shown} clears it")
    } else {
        format!("{FUSERMOUNT} -u {shown} clears it")
    })
}

/// Takes the mount off `point`. A lazy one goes from sight at once, and for good when nobody uses it any more.
///
/// `Busy` where it is in use and not to be lazy.
pub fn detach(point: &Path, lazy: bool) -> Result<()> {
    let shown = point.display();
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(point, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => detach_by_helper(point, lazy),
        Err(Errno::BUSY) => Err(Error::new(ErrorKind::Busy, format!("'{shown}' is in use"))),
        Err(e) => Err(Error::io(format!("cannot unmount '{shown}'"), e)),
    }
}

fn detach_by_helper(point: &Path, lazy: bool) -> Result<()> {
    let shown = point.display();
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command.arg("--").arg(point).env("LC_ALL", "C").output().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => no_fusermount(),
        _ => Error::io(format!("cannot run {FUSERMOUNT}"), e),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = if said.contains("busy") { ErrorKind::Busy } else { ErrorKind::Refused };
    Err(Error::new(kind, format!("cannot unmount '{shown}': {said}")))
}

pub(super) fn no_fusermount() -> Error {
    Error::new(ErrorKind::NotFound, format!("the program {FUSERMOUNT}, by which users mount, is not installed"))
        .with_hint("install the package fuse3, or mount as root")
}
