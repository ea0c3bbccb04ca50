//! Backing up a container: GNU tar reads its tree, and what it writes is the archive or, for squashfs, what `tar2sqfs` makes the
//! image of. So there is one walk through the tree, one set of rules for what is left out, and two formats.

mod crowd;
mod gnutar;
mod holes;
mod messages;
mod numeric;
mod plan;
mod report;
mod stream;

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

pub use plan::{ArchivePlan, FormatChoice};

use self::report::Report;
use self::stream::Stream;
use super::commit::Unfinished;
use super::events::{Event, Journal, Listener};
use super::session::{self, Contents, Finished, Interrupt, KeptFile, Target, Work, check_kept_files, runtime};
use crate::archive::ArchiveFormat;
use crate::base::{Error, ErrorKind, Result};
use crate::catalog::{GuestId, GuestKind, Store};
use crate::format::manifest::ManifestArchive;
use crate::storage::outside_directory;
use crate::storage::write::Medium;

/// What is to be backed up, and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// The store's directory.
    pub store: PathBuf,
    /// The guest.
    pub guest: GuestId,
    /// The top of its tree.
    pub tree: PathBuf,
    /// Which kind of archive to make.
    pub format: FormatChoice,
    /// What to leave out.
    pub excludes: Vec<Pattern>,
    /// Files to keep with the backup.
    pub files: Vec<KeptFile>,
    /// The most bytes a second to read.
    pub bytes_per_second: Option<u64>,
}

/// A shell pattern for what is left out: `*`, `?` and `[…]` stand for any bytes, slashes too.
///
/// One that starts with a slash matches from the top of the tree on; any other one a name, or several with slashes
/// between them, anywhere. A directory that matches is left out with all that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// The pattern as it was given, without slashes at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let pattern = text.trim_end_matches('/');
        if pattern.is_empty() || pattern.contains('\0') {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("the pattern '{text}' matches nothing that can be left out"),
            ));
        }
        Ok(Self(pattern.to_owned()))
    }
}

/// Says what a run would do now. Writes nothing, and reads no file of the tree.
pub fn dry_run(request: &Request) -> Result<ArchivePlan> {
    check_kept_files(&request.files)?;
    runtime()?.block_on(async { plan::decide(request.format, &open(request)?).await })
}

/// Makes a backup.
///
/// Until the last moment nothing of it can be seen; when this fails, the store is as it was, but for the log of the failed
/// run. Errors of kind `Busy` say who else is writing this guest's backups; `Usage` what is wrong with the request;
/// `Unsupported` which program is missing; `Refused` why the tree does not fit the format that was asked for.
pub fn run(
    request: &Request,
    medium: Arc<dyn Medium>,
    interrupt: &Interrupt,
    listener: &Listener<'_>,
) -> Result<Finished> {
    check_kept_files(&request.files)?;
    session::run(request, medium, interrupt, listener)
}

/// The tree, and all that is left out of it.
pub(super) struct Source {
    tree: PathBuf,
    excludes: Vec<String>,
}

/// Looks at what was named, before anything is made for it.
fn open(request: &Request) -> Result<Source> {
    plan::check_programs(request.format)?;
    let tree = outside_directory(&request.tree)?;
    let mut excludes: Vec<String> = request.excludes.iter().map(|pattern| pattern.0.clone()).collect();
    // A store that holds itself would grow with every backup.
    let store = outside_directory(&request.store)?;
    if let Ok(inside) = store.strip_prefix(&tree) {
        let Some(inside) = inside.to_str().filter(|path| !path.is_empty()) else {
            let message = format!("the store is '{}' itself, or has a name there that is not UTF-8", tree.display());
            return Err(Error::new(ErrorKind::Refused, message).with_hint("keep the store outside the tree"));
        };
        excludes.push(gnutar::literal_pattern(inside));
    }
    Ok(Source { tree, excludes })
}

impl Work for Request {
    const KIND: GuestKind = GuestKind::Lxc;
    const DOING: &'static str = "annals backup container";
    type Sources = Source;
    type Plan = (Source, ArchivePlan);

    fn target(&self) -> Target<'_> {
        Target { store: &self.store, guest: &self.guest, files: &self.files }
    }

    async fn open(&self) -> Result<Source> {
        open(self)
    }

    async fn plan(&self, _: &Store, source: Source, journal: &Journal<'_>) -> Result<Self::Plan> {
        let plan = plan::decide(self.format, &source).await?;
        journal.tell(&Event::ArchivePlanned(plan.clone()));
        Ok((source, plan))
    }

    async fn write(
        &self,
        (source, plan): &Self::Plan,
        unfinished: &Unfinished,
        journal: &Journal<'_>,
    ) -> Result<Contents> {
        let report = Report::new(&source.tree);
        let file = plan.file();
        let stream = Stream { source, plan, bytes_per_second: self.bytes_per_second, report: &report };
        let hashes = stream.run(unfinished.make_file(file)?, journal).await?;
        let (entries, unreadable) = (report.entries(), report.unreadable_members());
        journal.tell(&Event::ArchiveDone {
            file: file.to_owned(),
            entries,
            unreadable,
            file_size: hashes.size,
            blake3: hashes.file.to_string(),
        });
        let archive = ManifestArchive {
            file: file.to_owned(),
            format: plan.format.name().to_owned(),
            entries: Some(entries),
            excluded: source.excludes.clone(),
            unreadable,
            hash: Some(unfinished.note_hashes(file, &hashes)?),
        };
        Ok(Contents { disks: Vec::new(), archive: Some(archive) })
    }

    async fn close(&self, _: Self::Plan) {}
}

impl ArchivePlan {
    /// The archive's name in the backup.
    fn file(&self) -> &'static str {
        match self.format {
            ArchiveFormat::Tar => "archive.tar",
            ArchiveFormat::Squashfs => "archive.sqfs",
        }
    }
}
