//! A mount while it is served: its options, its event loops, its end.

use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};

use super::bridge::Bridge;
use super::connection::Connection;
use super::mountpoint::{self, FUSERMOUNT, no_fusermount};
use super::table::{self, Mount};
use crate::base::{Error, ErrorKind, Result};
use crate::fs::Tree;

/// Who may look into the mount, before any permissions are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Who mounted it.
    #[default]
    Owner,
    /// Who mounted it, and root.
    Root,
    /// Everybody.
    Everyone,
}

/// How a tree is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// The directory to mount on, as [`resolve_mountpoint`](super::resolve_mountpoint) made it.
    pub mountpoint: PathBuf,
    /// Who may look into it.
    pub access: Access,
    /// Whether the kernel holds everybody to the permissions shown.
    ///
    /// Pointless where these let everybody read; and not for nothing: the kernel then wants a file's full attributes
    /// before it opens it, and for a disk these take a walk through its whole map.
    pub check_permissions: bool,
    /// Whether files in it may not be run.
    pub no_exec: bool,
}

/// A mount that is being served.
#[derive(Debug)]
pub struct Running {
    session: BackgroundSession,
    /// Takes the place of the session's thread when that is waited for.
    stand_in: JoinHandle<std::io::Result<()>>,
    unmounter: Unmounter,
}

/// Event loops. Each serves one request from its beginning to its end, so while some wait for a slow disk others must
/// be left: more than there are processors on a small machine, and no more than pay on a large one.
const MIN_LOOPS: usize = 4;
const MAX_LOOPS: usize = 8;

/// Mounts `tree` and starts to serve it.
pub fn mount(tree: Tree, options: &SessionOptions) -> Result<Running> {
    let failed = |e| mount_error(options, e);
    let source = source_option(tree.store().path());
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        MountOption::FSName(source),
        // The kernel takes it as an option of its own, and so does fusermount3; the crate's own one reaches only the latter.
        MountOption::CUSTOM("subtype=annals".to_owned()),
    ];
    if options.check_permissions {
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    if options.no_exec {
        config.mount_options.push(MountOption::NoExec);
    }
    config.acl = match options.access {
        Access::Owner => SessionACL::Owner,
        Access::Root => SessionACL::RootAndOwner,
        Access::Everyone => SessionACL::All,
    };
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    config.n_threads = Some(processors.clamp(MIN_LOOPS, MAX_LOOPS));
    let session = Session::new(Bridge::new(tree), &options.mountpoint, &config).map_err(failed)?;
    let connection = Connection::of(session.as_fd()).map_err(failed)?;
    let stand_in = std::thread::Builder::new().spawn(|| Ok(())).map_err(failed)?;
    let session = session.spawn().map_err(failed)?;
    let mount = table::of_annals(&options.mountpoint)?;
    if let Some(mount) = &mount {
        raise_read_ahead(mount);
    }
    let unmounter = Unmounter { mountpoint: options.mountpoint.clone(), mount, connection };
    Ok(Running { session, stand_in, unmounter })
}

impl Running {
    /// Serves until the mount is gone.
    pub fn wait(self) -> Result<()> {
        let Self { session, stand_in, unmounter } = self;
        let failed = |e| Error::io(format!("serving '{}' ended", unmounter.mountpoint.display()), e);
        // fuser 0.18 unmounts when its session is dropped, and takes a mount that has ended for one that has not, and so
        // whatever is at its place by then (https://github.com/cberner/fuser/pull/703, in no release yet). Dropping is
        // therefore left out, and what is to be unmounted is unmounted below.
        let mut session = ManuallyDrop::new(session);
        let ended = std::mem::replace(&mut session.guard, stand_in).join();
        let ended = ended.unwrap_or_else(|_| Err(std::io::Error::other("a bug: an event loop panicked")));
        // Loops that ended by themselves leave a mount that nobody serves.
        let unmounted = unmounter.unmount();
        ended.map_err(failed).and(unmounted.map(drop))
    }

    /// What another thread needs to end it.
    #[must_use]
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }
}

/// Takes one certain mount away.
#[derive(Debug, Clone)]
pub struct Unmounter {
    mountpoint: PathBuf,
    mount: Option<Mount>,
    connection: Connection,
}

/// How an unmount went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// It is gone.
    Gone,
    /// It is out of sight, and served on until nobody uses it any more.
    InUse,
    /// It was gone before, or something else is mounted there by now.
    NotOurs,
}

impl Unmounter {
    /// Unmounts; what is in use goes out of sight, and whoever has a file open goes on reading it.
    pub fn unmount(&self) -> Result<Unmounted> {
        if !self.connection.is_alive() {
            return Ok(Unmounted::NotOurs);
        }
        // The number of a mount that is gone may be another's by now; as long as this one is alive it has its own.
        let now = table::top_at(table::mounts()?, &self.mountpoint);
        if now.is_none() || now.map(|m| m.id) != self.mount.as_ref().map(|m| m.id) {
            return Ok(Unmounted::NotOurs);
        }
        match mountpoint::detach(&self.mountpoint, false) {
            Ok(()) => Ok(Unmounted::Gone),
            Err(e) if e.kind() == ErrorKind::Busy => {
                mountpoint::detach(&self.mountpoint, true).map(|()| Unmounted::InUse)
            }
            Err(e) => Err(e),
        }
    }
}

/// The store's path as the mount's source. fusermount3 gets all options in one word, where a comma ends one.
fn source_option(store: &Path) -> String {
    let name = store.to_string_lossy();
    if rustix::process::geteuid().is_root() {
        return name.into_owned();
    }
    name.replace('\\', "\\\\").replace(',', "\\,")
}

/// The kernel reads at most 128 KiB ahead of a FUSE file unless its own setting for this one mount is raised, which
/// root may do once it is mounted. Reads of a large file in sequence are then several times as fast.
fn raise_read_ahead(mount: &Mount) {
    const READ_AHEAD_KIB: &str = "2048";
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let setting = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
    match std::fs::write(&setting, READ_AHEAD_KIB) {
        Ok(()) => tracing::debug!("{setting} is now {READ_AHEAD_KIB}"),
        // In a container /sys cannot be written; everything works without.
        Err(e) => tracing::info!("cannot raise the read-ahead of the mount, '{setting}': {e}"),
    }
}

fn mount_error(options: &SessionOptions, error: std::io::Error) -> Error {
    const DEVICE: &str = "/dev/fuse";
    let shown = options.mountpoint.display();
    if !Path::new(DEVICE).exists() {
        return Error::new(ErrorKind::NotFound, format!("cannot mount on '{shown}': there is no {DEVICE}"))
            .with_hint("load the kernel's module (modprobe fuse), or let the container have the device");
    }
    // fusermount3 could open it for users, but it is opened before that is tried.
    if rustix::fs::access(DEVICE, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_err() {
        return Error::new(ErrorKind::Refused, format!("cannot mount on '{shown}': you may not open {DEVICE}"))
            .with_hint(format!("let everybody open it, as udev does (chmod 0666 {DEVICE}), or mount as root"));
    }
    let said = error.to_string();
    if !rustix::process::geteuid().is_root() && error.kind() == std::io::ErrorKind::NotFound {
        return no_fusermount();
    }
    let failed = Error::io(format!("cannot mount on '{shown}'"), std::io::Error::other(said.trim().to_owned()));
    if said.contains("user_allow_other") {
        return failed.with_hint("only root may let others in, unless /etc/fuse.conf has the line user_allow_other");
    }
    if said.contains("no write access") {
        return failed.with_hint("a user can mount only on a directory that he may write to");
    }
    if said.contains("not permitted") {
        let hint = format!("{FUSERMOUNT} must be installed setuid root (package fuse3), or mount as root");
        return failed.with_hint(hint);
    }
    failed
}
