//! `annals man`: the manual pages, made from the same definitions as the help.

use std::path::{Path, PathBuf};

use super::{Outcome, args};
use crate::base::{Error, Result};

/// Write the manual pages into a directory
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(super) struct Args {
    /// The directory; made if it is not there
    dir: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let write = |path: &Path, bytes: &[u8]| {
        std::fs::write(path, bytes).map_err(|e| Error::io(format!("cannot write '{}'", path.display()), e))
    };
    std::fs::create_dir_all(&args.dir)
        .map_err(|e| Error::io(format!("cannot make the directory '{}'", args.dir.display()), e))?;
    for (name, page) in pages()? {
        write(&args.dir.join(name), &page)?;
    }
    Ok(Outcome::Done)
}

/// Every page: file name and content.
fn pages() -> Result<Vec<(String, Vec<u8>)>> {
    let mut command = args::command().disable_help_subcommand(true);
    // Resolves what subcommands inherit, as parsing would.
    command.build();
    let mut pages = Vec::new();
    collect(&command, &mut pages)?;
    Ok(pages)
}

fn collect(command: &clap::Command, pages: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .manual("annals")
        .date("")
        .render(&mut page)
        .map_err(|e| Error::io(format!("cannot make the manual page of {name}"), e))?;
    pages.push((format!("{name}.1"), page));
    command.get_subcommands().filter(|c| !c.is_hide_set()).try_for_each(|c| collect(c, pages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_pages_in_the_repository_are_those_of_these_definitions() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/man");
        let mut expected = Vec::new();
        for (name, page) in pages().unwrap() {
            let kept = std::fs::read(dir.join(&name)).unwrap_or_default();
            assert!(kept == page, "docs/man/{name} is not current: run 'cargo run -- man docs/man'");
            expected.push(name);
        }
        for entry in std::fs::read_dir(&dir).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(expected.contains(&name), "docs/man/{name} is of no command");
        }
    }
}
