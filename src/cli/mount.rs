//! `annals mount`: the store as a directory tree, served by a process in the background.
//!
//! No process forks itself. The one that was called starts the program anew, with what it understood of its own
//! arguments spelled out, and waits until that one says that it serves, or ends.

mod background;
mod options;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::options::Options;
use super::args::Global;
use super::log::{self, Target};
use super::{Outcome, exit, signals};
use crate::archive::ArchiveEnv;
use crate::base::{Error, Result};
use crate::catalog::Store;
use crate::disk::DiskEnv;
use crate::fs::Tree;
use crate::fuse::{self, SessionOptions, Unmounted, Unmounter};
use crate::storage::{DerivedDir, FilePool};

/// What readers of the mount may hold in memory when nothing else is said.
const CACHE_SIZE: &str = "64M";

/// Mount the store: every guest a directory, every backup in it a point in time, every disk a raw file
///
/// Returns when the mount answers; a process in the background serves it until it is unmounted. The mount is read-only,
/// nosuid and nodev, and only for whoever mounted it unless -o allow_other is given.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory to mount on, which must be empty, and neither in the store nor around it
    #[arg(value_name = "MNT")]
    mountpoint: PathBuf,
    /// Mount options, with commas between
    ///
    /// allow_other: everybody may look into it (for users this needs user_allow_other in /etc/fuse.conf).
    /// allow_root: root may, besides whoever mounted it. uid=N, gid=N: whose all files are, root's unless given.
    /// umask=MODE: permission bits taken away. noexec: no file in it may be run. nonempty: mount over what the
    /// directory holds. cache_size=SIZE, log_file=FILE: as the options of these names. Words that mount(8) and
    /// systemd use for themselves are passed over; any other is refused.
    #[arg(short = 'o', value_name = "OPTION[,OPTION…]")]
    options: Vec<String>,
    /// Serve the mount in this process, and log to standard error
    #[arg(short, long)]
    foreground: bool,
    /// Most memory for what is expensive to read again: 64M unless given; units K, M, G, T
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<String>,
    /// Log to this file; without it, to the system's log
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Started by another annals, which waits to hear that the mount answers
    #[arg(long, hide = true)]
    report_to_parent: bool,
}

/// What the arguments come to.
struct Plan {
    store: PathBuf,
    mountpoint: PathBuf,
    cache_size: u64,
    log_file: Option<PathBuf>,
    options: Options,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let plan = Plan::new(args, global)?;
    if args.foreground || args.report_to_parent {
        return plan.serve(args.report_to_parent);
    }
    // Most errors are seen here, before there is another process.
    fuse::check_mountpoint(&plan.mountpoint, plan.options.non_empty, &plan.store)?;
    match background::start(&plan, &args.options, global.verbose)? {
        None => Ok(Outcome::Done),
        // It has said why.
        Some(code) => Ok(Outcome::Said(code.unwrap_or(exit::FAILED))),
    }
}

impl Plan {
    fn new(args: &Args, global: &Global) -> Result<Self> {
        let options = Options::parse(&args.options)?;
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|e| Error::io(format!("cannot make '{}' absolute", path.display()), e))
        };
        let cache_size = match &args.cache_size {
            Some(text) => options::size(text).map_err(|e| e.context("--cache-size"))?,
            None => match options.cache_size {
                Some(size) => size,
                None => options::size(CACHE_SIZE)?,
            },
        };
        let log_file = args.log_file.as_ref().or(options.log_file.as_ref());
        Ok(Self {
            store: absolute(global.store_path()?)?,
            mountpoint: fuse::resolve_mountpoint(&args.mountpoint)?,
            cache_size,
            log_file: log_file.map(|path| absolute(path)).transpose()?,
            options,
        })
    }

    /// Mounts and serves until the mount is gone.
    fn serve(&self, for_parent: bool) -> Result<Outcome> {
        // Opened before anything can go wrong that it should tell of.
        let target = match (&self.log_file, for_parent) {
            (Some(path), _) => Some(Target::file(path)?),
            (None, true) => Some(Target::syslog().unwrap_or(Target::Nowhere)),
            (None, false) => None,
        };
        // In the background nobody sees standard error.
        std::panic::set_hook(Box::new(|panic| tracing::error!("a bug: {panic}")));
        let mount = Arc::new(Mutex::new(None));
        let signals = if for_parent { vec![SIGTERM, SIGINT, SIGHUP] } else { signals::of_a_terminal() };
        watch_signals(&signals, Arc::clone(&mount))?;
        let derived = derived_dir();
        let env = DiskEnv::keeping(self.cache_size, derived.clone());
        let store = Store::open(&self.store, Arc::clone(&env))?;
        fuse::check_mountpoint(&self.mountpoint, self.options.non_empty, &self.store)?;
        let archives = ArchiveEnv::new(env.block_cache().clone(), derived);
        let tree = Tree::new(store, env, archives, self.options.ownership);
        let session = SessionOptions {
            mountpoint: self.mountpoint.clone(),
            access: self.options.access,
            // What is in containers has permissions of its own.
            check_permissions: !self.options.ownership.is_open() || self.options.access == fuse::Access::Everyone,
            no_exec: self.options.no_exec,
        };
        let running = {
            // A signal that comes while it is being mounted waits until there is something to unmount.
            let mut unmounter = lock(&mount);
            let running = fuse::mount(tree, &session)?;
            *unmounter = Some(running.unmounter());
            running
        };
        if for_parent {
            if matches!(target, Some(Target::Nowhere)) {
                tracing::warn!(
                    "there is no system log here: failed reads will be told only in .annals/status.json; --log-file \
                     names a file to log to"
                );
            }
            background::settle(target)?;
        } else if let Some(target) = target {
            log::redirect(target);
        }
        tracing::info!("'{}' is mounted on '{}'", self.store.display(), self.mountpoint.display());
        running.wait()?;
        tracing::info!("'{}' is unmounted", self.mountpoint.display());
        Ok(Outcome::Done)
    }
}

/// What a signal unmounts; nothing before it is mounted.
type Mount = Arc<Mutex<Option<Unmounter>>>;

fn lock(mount: &Mutex<Option<Unmounter>>) -> MutexGuard<'_, Option<Unmounter>> {
    mount.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the first of these signals unmount, and the second end the process; before there is a mount the first does.
fn watch_signals(signals: &[i32], mount: Mount) -> Result<()> {
    let mut signals = Signals::new(signals).map_err(|e| Error::io("cannot receive signals", e))?;
    let watch = move || {
        let mut asked = false;
        for signal in signals.forever() {
            let unmounter = lock(&mount).clone();
            let Some(unmounter) = unmounter.filter(|_| !asked) else {
                if asked {
                    tracing::warn!("a second signal, {signal}: whoever still has a file of the mount open gets errors");
                }
                std::process::exit(i32::from(exit::FAILED));
            };
            asked = true;
            match unmounter.unmount() {
                Ok(Unmounted::Gone | Unmounted::NotOurs) => {}
                Ok(Unmounted::InUse) => tracing::warn!(
                    "the mount is out of sight and served on until its last file is closed; a second signal ends it at once"
                ),
                Err(e) => tracing::error!("cannot unmount: {}", e.report()),
            }
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(watch);
    thread.map(drop).map_err(|e| Error::io("cannot start a thread", e))
}

/// Where indexes of archives, and what disks hold, are kept from one mount to the next.
///
/// Where the usual place cannot be used, a directory of this user's own among the temporary files does for some time; without
/// any, they are held in memory.
fn derived_dir() -> Option<Arc<DerivedDir>> {
    const OPEN_INDEXES: usize = 64;
    let temporary = std::env::temp_dir().join(format!("annals-cache-{}", rustix::process::geteuid().as_raw()));
    let pool = FilePool::new(OPEN_INDEXES);
    for path in DerivedDir::usual_path().into_iter().chain([temporary]) {
        match DerivedDir::open(&path, pool.clone()) {
            Ok(dir) => return Some(dir),
            Err(error) => tracing::info!("nothing is kept there for the next mount: {}", error.report()),
        }
    }
    None
}
