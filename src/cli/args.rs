//! The definitions that parsing, help, completions and manual pages are all made from.

use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser, Subcommand};

use super::{backup, completions, init, list, man, mount, nbd, show, umount};
use crate::base::{Error, ErrorKind, Result};
use crate::catalog::Store;
use crate::disk::DiskEnv;

/// What commands that look at a store may hold in memory of its disks, in bytes.
const CACHE_SIZE: u64 = 64 << 20;

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but something is broken or missing, which was said.";

/// Shows every guest's backup history as files
///
/// A store is a directory of guests, each a directory of backups: qcow2 or raw disk images and container archives. annals lists
/// and checks what is there, and mounts it: every guest a directory, every backup in it a point in time, every
/// disk a raw file.
#[derive(Debug, Parser)]
#[command(name = "annals", version, after_help = AFTER_HELP, propagate_version = false)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Options of every command.
#[derive(Debug, clap::Args)]
pub(super) struct Global {
    /// The store: the directory that holds the guests
    #[arg(long, value_name = "DIR", env = "ANNALS_STORE", hide_env_values = true, global = true)]
    pub(super) store: Option<PathBuf>,
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Log more to standard error; give it up to three times
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(super) verbose: u8,
}

impl Global {
    /// The store's directory, which must have been named.
    pub(super) fn store_path(&self) -> Result<&Path> {
        self.store.as_deref().ok_or_else(|| {
            Error::new(ErrorKind::Usage, "no store was named").with_hint("give --store DIR or set ANNALS_STORE")
        })
    }

    /// The store, opened.
    pub(super) fn open_store(&self) -> Result<Store> {
        Store::open(self.store_path()?, DiskEnv::new(CACHE_SIZE))
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Init(init::Args),
    List(list::Args),
    Show(show::Args),
    Backup(backup::Args),
    Mount(mount::Args),
    Umount(umount::Args),
    Nbd(nbd::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// The definition of the whole command line.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definitions_do_not_contradict_each_other() {
        super::command().debug_assert();
    }
}
