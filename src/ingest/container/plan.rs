//! Which kind of archive a tree gets, and why. Tar walks the tree for it by the rules of the backup, and reads no file.

use std::fmt;
use std::process::Stdio;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::Source;
use super::gnutar::{self, TAR};
use super::report::Report;
use crate::archive::ArchiveFormat;
use crate::base::{Error, ErrorKind, Result};
use crate::ingest::program::Program;
use crate::ingest::source::blocking;

/// The program that makes a squashfs image of what tar writes.
pub(super) const PACKER: Program = Program { name: "tar2sqfs", package: "squashfs-tools-ng" };

/// Which kind of archive is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormatChoice {
    /// Squashfs where it can hold the tree, else tar.
    Auto,
    /// This one or none.
    Only(ArchiveFormat),
}

impl FromStr for FormatChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "tar" => Ok(Self::Only(ArchiveFormat::Tar)),
            "squashfs" => Ok(Self::Only(ArchiveFormat::Squashfs)),
            _ => Err(Error::new(ErrorKind::Usage, format!("'{text}' is not tar, squashfs or auto"))),
        }
    }
}

impl fmt::Display for FormatChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Only(format) => format.name(),
        })
    }
}

/// What will be made of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArchivePlan {
    /// The kind of archive.
    #[serde(serialize_with = "format_name")]
    pub format: ArchiveFormat,
    /// Why that one.
    pub reason: String,
    /// Members, hard links counted once.
    pub entries: u64,
    /// Bytes of all files, holes included.
    pub bytes: u64,
    /// A member with a POSIX ACL, as tar spells its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acl: Option<String>,
    /// The patterns of what is left out, the caller's and our own.
    pub excluded: Vec<String>,
    /// What else is left out, and what could not be looked at, in tar's words.
    pub notes: Vec<String>,
}

fn format_name<S: Serializer>(format: &ArchiveFormat, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(format.name())
}

/// Names in one directory from which on the packer is not the choice. Its time grows with their square and more: 20,000 take it
/// 4 s, 40,000 take 20 s, and 100,000 were not done after ten minutes.
const MOST_NAMES: u64 = 20_000;

/// Refuses to begin without a program that will be needed.
pub(super) fn check_programs(choice: FormatChoice) -> Result<()> {
    TAR.command()?;
    match choice {
        FormatChoice::Only(ArchiveFormat::Squashfs) => PACKER.command().map(drop),
        FormatChoice::Only(ArchiveFormat::Tar) | FormatChoice::Auto => Ok(()),
    }
}

/// Walks the tree and decides.
pub(super) async fn decide(choice: FormatChoice, source: &Source) -> Result<ArchivePlan> {
    let report = Report::new(&source.tree);
    let mut command = TAR.command()?;
    gnutar::arguments(&mut command, &source.tree, &source.excludes, true);
    let mut tar = TAR.start(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let (stdout, stderr) = (tar.child.stdout.take(), tar.child.stderr.take());
    let (stdout, stderr) = (tar.pipe(stdout)?, tar.pipe(stderr)?);
    let (listed, said) = (report.clone(), report.clone());
    let (listed, said) = tokio::join!(blocking(move || listed.listen(stdout)), blocking(move || said.listen(stderr)));
    listed.and(said)?;
    report.judge(tar.wait()?)?;
    if report.entries() <= 1 && !source.excludes.is_empty() {
        return Err(Error::new(ErrorKind::Refused, "nothing is left of the tree but its top")
            .with_hint("look at the patterns, and whether something should be mounted there"));
    }
    let acl = report.with_acl();
    let (directory, names) = report.largest_directory();
    let crowded = (names > MOST_NAMES)
        .then(|| format!("{directory} has {names} names, for which '{}' takes very long", PACKER.name));
    let (format, reason) = choose(choice, acl.as_deref(), crowded.as_deref(), PACKER.is_there())?;
    let lines = [report.notes(), report.warnings(), report.unreadable()].into_iter().flat_map(|lines| lines.first);
    let notes = lines.chain(crowded.filter(|_| format == ArchiveFormat::Squashfs)).collect();
    Ok(ArchivePlan {
        format,
        reason,
        entries: report.entries(),
        bytes: report.listed(),
        acl,
        excluded: source.excludes.clone(),
        notes,
    })
}

/// `acl` is a member that has one, `crowded` what there is to say of a directory with too many names.
fn choose(
    choice: FormatChoice,
    acl: Option<&str>,
    crowded: Option<&str>,
    can_pack: bool,
) -> Result<(ArchiveFormat, String)> {
    use ArchiveFormat::{Squashfs, Tar};
    match (choice, acl, crowded) {
        (FormatChoice::Only(Squashfs), Some(name), _) => {
            Err(Error::new(ErrorKind::Refused, format!("{name} has a POSIX ACL, which squashfs cannot hold"))
                .with_hint("use --format tar, or --format auto, which picks tar for such a tree"))
        }
        (FormatChoice::Only(format), _, _) => Ok((format, "it was asked for".to_owned())),
        (FormatChoice::Auto, Some(name), _) => Ok((Tar, format!("{name} has a POSIX ACL, which squashfs cannot hold"))),
        (FormatChoice::Auto, None, Some(crowded)) => Ok((Tar, crowded.to_owned())),
        (FormatChoice::Auto, None, None) if can_pack => Ok((Squashfs, "no member has a POSIX ACL".to_owned())),
        (FormatChoice::Auto, None, None) => {
            let Program { name, package } = PACKER;
            Ok((Tar, format!("the program '{name}', which makes squashfs images, is not found (package {package})")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squashfs_is_the_choice_unless_it_would_lose_something() {
        use ArchiveFormat::{Squashfs, Tar};
        let chosen = |choice: &str, acl, can_pack| {
            choose(choice.parse().unwrap(), acl, None, can_pack).map(|(format, _)| format).map_err(|e| e.kind())
        };
        for (choice, format) in [("auto", Tar), ("squashfs", Squashfs), ("tar", Tar)] {
            assert_eq!(choose(choice.parse().unwrap(), None, Some("many"), true).unwrap().0, format);
        }
        assert_eq!(chosen("auto", None, true), Ok(Squashfs));
        assert_eq!(chosen("auto", Some("./a"), true), Ok(Tar));
        assert_eq!(chosen("auto", None, false), Ok(Tar));
        assert_eq!(chosen("tar", None, true), Ok(Tar));
        assert_eq!(chosen("squashfs", Some("./a"), true), Err(ErrorKind::Refused));
        assert_eq!("zip".parse::<FormatChoice>().unwrap_err().kind(), ErrorKind::Usage);
    }
}
