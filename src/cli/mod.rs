//! Layer 7: the command line. One command a file; each takes typed arguments, calls the library, and makes one
//! serialisable value, from which both the text for people and the JSON are printed.
//!
//! Nothing here knows a format or how a disk is read; what a command needs beyond words and tables is in a layer below.

mod args;
mod backup;
mod completions;
mod init;
mod list;
mod log;
mod man;
mod mount;
mod nbd;
mod output;
mod show;
mod signals;
mod umount;

pub use args::command;

use std::process::ExitCode;

use clap::Parser;

use self::args::{Cli, Command};
use self::output::Output;
use crate::base::{ErrorKind, Result};

/// How a command ended, when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// All is well.
    Done,
    /// It did what it was asked for and found something broken.
    Broken,
    /// It failed with this exit code in another process, which has said why.
    Said(u8),
}

/// Exit codes, part of the program's interface.
mod exit {
    /// Failed.
    pub(super) const FAILED: u8 = 1;
    /// The caller's words were wrong; clap's own choice, too.
    pub(super) const USAGE: u8 = 2;
    /// Done, but something is broken.
    pub(super) const BROKEN: u8 = 3;
}

/// The whole program: parses the process's arguments, runs the command, and says how it ended.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            output::clap_message(&e);
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(exit::USAGE));
        }
    };
    log::start(cli.global.verbose, matches!(cli.command, Command::Mount(_)));
    let output = Output::new(cli.global.json);
    match run(cli, &output) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Broken) => ExitCode::from(exit::BROKEN),
        Ok(Outcome::Said(code)) => ExitCode::from(code),
        Err(e) => {
            output.error(&e);
            ExitCode::from(match e.kind() {
                ErrorKind::Usage => exit::USAGE,
                ErrorKind::NotFound
                | ErrorKind::MissingLayer
                | ErrorKind::Corrupt
                | ErrorKind::Unsupported
                | ErrorKind::Refused
                | ErrorKind::Changed
                | ErrorKind::Io
                | ErrorKind::Protocol
                | ErrorKind::Disconnected
                | ErrorKind::Limit
                | ErrorKind::Exists
                | ErrorKind::Busy => exit::FAILED,
            })
        }
    }
}

fn run(cli: Cli, output: &Output) -> Result<Outcome> {
    let global = &cli.global;
    match cli.command {
        Command::Init(args) => init::run(&args, global, output),
        Command::List(args) => list::run(&args, global, output),
        Command::Show(args) => show::run(&args, global, output),
        Command::Backup(args) => backup::run(args, global, output),
        Command::Mount(args) => mount::run(&args, global),
        Command::Umount(args) => umount::run(&args),
        Command::Nbd(args) => nbd::run(&args, output),
        Command::Completions(args) => completions::run(&args, output),
        Command::Man(args) => man::run(&args),
    }
}
