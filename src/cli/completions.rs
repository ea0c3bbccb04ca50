//! `annals completions`: what a shell needs to complete command lines.

use clap_complete::Shell;

use super::output::Output;
use super::{Outcome, args};
use crate::base::Result;

/// Print shell completions
///
/// For bash: annals completions bash > /usr/share/bash-completion/completions/annals
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &Args, output: &Output) -> Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::command(), "annals", &mut script);
    output.write(&script)?;
    Ok(Outcome::Done)
}
