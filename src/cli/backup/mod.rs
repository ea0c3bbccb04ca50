//! `annals backup`: adds backups to a store.

mod common;
mod container;
mod progress;
mod vm;

use clap::Subcommand;

use super::Outcome;
use super::args::Global;
use super::output::Output;
use crate::base::Result;

/// Add a backup to the store
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    Vm(vm::Args),
    Container(container::Args),
}

pub(super) fn run(args: Args, global: &Global, output: &Output) -> Result<Outcome> {
    match args.kind {
        Kind::Vm(args) => vm::run(args, global, output),
        Kind::Container(args) => container::run(args, global, output),
    }
}
