//! `annals umount`: takes a mount of annals away, also one whose process was killed.

use std::path::PathBuf;
use std::time::Duration;

use super::Outcome;
use crate::base::{Error, ErrorKind, Result};
use crate::fuse;

/// Unmount what annals has mounted
///
/// Returns when the mount is gone and the process that served it has ended. Takes away a mount whose process was
/// killed, too; touches no mount that is not of annals.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the store is mounted
    #[arg(value_name = "MNT")]
    mountpoint: PathBuf,
    /// Take it out of sight although it is in use; it is served on until its last file is closed
    #[arg(short, long)]
    lazy: bool,
}

/// How long the serving process may take to end once its mount is gone.
const END: Duration = Duration::from_secs(10);

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let point = fuse::resolve_mountpoint(&args.mountpoint)?;
    let shown = point.display();
    if fuse::of_annals(&point)?.is_none() {
        let other = fuse::mounts()?.into_iter().rfind(|mount| mount.point == point);
        return Err(match other {
            Some(other) => {
                Error::new(ErrorKind::Refused, format!("what is mounted on '{shown}' is of type {}", other.fs_type))
                    .with_hint("umount(8) unmounts what is not of annals")
            }
            None => Error::new(ErrorKind::NotFound, format!("nothing is mounted on '{shown}'")),
        });
    }
    let daemon = if args.lazy { None } else { fuse::daemon_of(&point) };
    fuse::detach(&point, args.lazy).map_err(|error| match error.kind() {
        ErrorKind::Busy => in_use(&point, error),
        _ => error,
    })?;
    if let Some(pid) = daemon
        && !fuse::wait_for_end(pid, END)
    {
        tracing::warn!(
            "'{shown}' is unmounted, but process {pid} serves it on: it is still mounted in another namespace"
        );
    }
    Ok(Outcome::Done)
}

fn in_use(point: &std::path::Path, error: Error) -> Error {
    let users = fuse::users_of(point);
    if users.is_empty() {
        return error.with_hint("annals umount --lazy takes it out of sight and lets whoever uses it finish");
    }
    error.with_hint(format!("it is used by {}; --lazy takes it out of sight and lets them finish", users.join(", ")))
}
