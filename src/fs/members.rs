//! Containers: what lies beneath the directory that shows an archive.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use quick_cache::sync::Cache;

use super::attr::{Attributes, Entry, FileKind};
use super::dir::Listing;
use super::faults::Subject;
use super::file::{Allocated, Content, OpenFile};
use super::inode::Inode;
use super::nodes::{Node, What};
use super::tree::{FIRST_NAME, Place, Tree};
use super::view::{ArchiveTree, Source};
use crate::archive::{self, ArchiveEnv, Kind, NodeId, Position};
use crate::base::{Error, ErrorKind, Result, Timestamp};

/// How many archives are found without asking the catalog.
const KNOWN: usize = 64;

/// The archives that were looked into last, by the number of the directory that shows them and its version. A number alone is given
/// to a later state of the file once the kernel has forgotten it; with the version it stands for one state, and what is held here
/// never grows old.
#[derive(Debug)]
pub(super) struct Archives {
    env: Arc<ArchiveEnv>,
    known: Cache<(Inode, u64), Arc<Archived>>,
}

/// An archive and its place in the mount.
#[derive(Debug)]
pub(super) struct Archived {
    /// The directory that shows it.
    top: Inode,
    version: u64,
    tree: ArchiveTree,
    subject: Subject,
    /// The backup's.
    time: Timestamp,
}

/// An entry of an archive.
pub(super) struct Member {
    archive: Arc<Archived>,
    node: NodeId,
}

impl Archives {
    pub(super) fn new(env: Arc<ArchiveEnv>) -> Self {
        Self { env, known: Cache::new(KNOWN) }
    }

    /// Whether the archive that the directory `top` shows in that version is found without asking the catalog.
    pub(super) fn is_known(&self, top: Inode, version: u64) -> bool {
        self.known.peek(&(top, version)).is_some()
    }

    pub(super) fn env(&self) -> &Arc<ArchiveEnv> {
        &self.env
    }
}

impl Archived {
    pub(super) fn tree(&self) -> &dyn archive::Tree {
        &*self.tree.0
    }

    pub(super) fn name(&self) -> &str {
        &self.subject.file
    }

    fn node(&self, member: NodeId) -> Node {
        Node { parent: self.top, what: What::Member(member), version: self.version }
    }

    /// Visits the names of the directory `dir` from position `from` on, which counts `.` and `..` too.
    pub(super) fn list(&self, dir: NodeId, from: u64, mut visit: impl FnMut(Place<'_>) -> Result<bool>) -> Result<()> {
        let mut failed = None;
        self.tree().read_dir(dir, Position(from.saturating_sub(FIRST_NAME)), &mut |item| {
            let place = Place::Archived {
                archive: self,
                node: self.node(item.node),
                kind: file_kind(item.kind),
                name: OsStr::from_bytes(item.name),
                next: item.next.0.saturating_add(FIRST_NAME),
            };
            visit(place).unwrap_or_else(|error| {
                failed = Some(error);
                false
            })
        })?;
        failed.map_or(Ok(()), Err)
    }
}

impl Member {
    /// Its attributes, under the number `inode`.
    pub(super) fn entry(&self, inode: Inode) -> Result<Entry> {
        let stat = self.archive.tree().attributes(self.node)?;
        let attributes = Attributes {
            inode,
            kind: file_kind(stat.kind),
            size: stat.size,
            blocks: stat.allocated.div_ceil(512),
            mtime: stat.mtime,
            atime: stat.atime,
            ctime: stat.ctime,
            links: stat.links,
            device: stat.device,
            permissions: stat.permissions,
            uid: stat.uid,
            gid: stat.gid,
        };
        // The name of the directory at the top is one of the backup's: it goes when the archive does.
        Ok(if inode == self.archive.top { Entry::fixed(attributes) } else { Entry::archived(attributes) })
    }

    pub(super) fn read_link(&self) -> Result<OsString> {
        self.archive.tree().read_link(self.node).map(OsString::from_vec)
    }

    /// Its content, as a file.
    pub(super) fn open(&self) -> Result<OpenFile> {
        let stat = self.archive.tree().attributes(self.node)?;
        if stat.kind != Kind::Regular {
            return Err(Error::new(ErrorKind::Usage, "only regular files are opened for reading"));
        }
        Ok(OpenFile {
            subject: self.archive.subject.clone(),
            content: Content::Member(self.archive.clone(), self.node),
            size: stat.size,
            time: self.archive.time,
            allocated: Allocated::default(),
        })
    }

    pub(super) fn check_directory(&self) -> Result<()> {
        match self.archive.tree().attributes(self.node)?.kind {
            Kind::Directory => Ok(()),
            _ => Err(Error::new(ErrorKind::Usage, "only directories are listed")),
        }
    }

    pub(super) fn listing(&self) -> Listing {
        Listing::Archived(self.archive.clone(), self.node)
    }
}

impl Tree {
    /// What of which archive the number stands for, if it is one of those.
    pub(super) fn archived(&self, inode: Inode) -> Result<Option<Member>> {
        let node = self.nodes.get(inode)?;
        match node.what {
            What::Archive(_) => {
                let archive = self.archive(inode, node.version)?;
                Ok(Some(Member { node: archive.tree().root(), archive }))
            }
            What::Member(member) => {
                Ok(Some(Member { archive: self.archive(node.parent, node.version)?, node: member }))
            }
            _ => Ok(None),
        }
    }

    /// The archive that the directory `top` shows in that version.
    fn archive(&self, top: Inode, version: u64) -> Result<Arc<Archived>> {
        self.archives.known.get_or_insert_with(&(top, version), || {
            let at = self.locate(top)?;
            let (view, entry) = self.entry(&at)?;
            let Source::Archive(file, tree) = &entry.source else {
                return Err(Error::new(ErrorKind::Changed, "it is no archive any more"));
            };
            let backup = &view.backup;
            let subject = Subject {
                guest: backup.guest.as_str().into(),
                backup: backup.summary.name.as_str().into(),
                file: file.name.as_str().into(),
            };
            if entry.version != version {
                return Err(Error::new(ErrorKind::Changed, "it is another archive by now"));
            }
            let time = backup.summary.time;
            Ok(Arc::new(Archived { top, version, tree: tree.clone(), subject, time }))
        })
    }

    /// The entry `name` of a directory in an archive, counted as a lookup.
    pub(super) fn lookup_archived(&self, dir: &Member, name: &OsStr) -> Result<Option<Entry>> {
        let archive = &dir.archive;
        let Some(node) = archive.tree().lookup(dir.node, name.as_bytes())? else { return Ok(None) };
        let inode = self.nodes.look_up(archive.node(node))?;
        let found = Member { archive: archive.clone(), node };
        found.entry(inode).inspect_err(|_| self.nodes.forget(inode, 1)).map(Some)
    }

    /// The value of an extended attribute, if there is one of that name.
    pub fn xattr(&self, inode: Inode, name: &OsStr) -> Result<Option<Vec<u8>>> {
        let Some(member) = self.archived(inode)? else { return Ok(None) };
        let xattrs = member.archive.tree().xattrs(member.node)?;
        Ok(xattrs.into_iter().find(|(known, _)| known == name.as_bytes()).map(|(_, value)| value))
    }

    /// The names of all extended attributes, each followed by a NUL.
    pub fn xattr_names(&self, inode: Inode) -> Result<Vec<u8>> {
        let Some(member) = self.archived(inode)? else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        for (name, _) in member.archive.tree().xattrs(member.node)? {
            names.extend_from_slice(&name);
            names.push(0);
        }
        Ok(names)
    }
}

fn file_kind(kind: Kind) -> FileKind {
    match kind {
        Kind::Directory => FileKind::Directory,
        Kind::Regular => FileKind::Regular,
        Kind::Symlink => FileKind::Symlink,
        Kind::CharDevice => FileKind::CharDevice,
        Kind::BlockDevice => FileKind::BlockDevice,
        Kind::Fifo => FileKind::Fifo,
        Kind::Socket => FileKind::Socket,
    }
}
