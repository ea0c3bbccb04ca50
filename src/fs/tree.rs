//! The tree: every question of a reader, answered from the catalog and the disks.

use std::ffi::{OsStr, OsString};
use std::sync::{Arc, PoisonError};

use quick_cache::sync::Cache;

use super::attr::{Attributes, Entry, FileKind, Ownership};
use super::dir::{Item, Listing};
use super::faults::{Faults, Subject};
use super::file::{Allocated, Content, Holes, OpenFile, Whence};
use super::handles::Handles;
use super::members::{Archived, Archives};
use super::nodes::{Node, Nodes, ShortName, What};
use super::resolve::{Location, no_backup, none_left};
use super::status::{Seen, Status};
use super::view::Slot;
use super::{CONTROL_NAME, Handle, Inode, LATEST_NAME, STATUS_NAME};
use crate::archive::ArchiveEnv;
use crate::base::{Error, ErrorKind, Result, Timestamp};
use crate::catalog::{BackupName, GuestId, Store};
use crate::disk::DiskEnv;
use crate::storage::Space;

/// How many backups' directories are kept as they were last looked into.
const VIEWS_KEPT: usize = 256;

/// A store as a tree of files. Every method may be called from any thread.
#[derive(Debug)]
pub struct Tree {
    pub(super) store: Store,
    env: Arc<DiskEnv>,
    ownership: Ownership,
    pub(super) nodes: Nodes,
    pub(super) handles: Handles,
    pub(super) views: Cache<(GuestId, BackupName), Arc<Slot>>,
    pub(super) archives: Archives,
    pub(super) faults: Faults,
    pub(super) seen: Seen,
}

/// A file that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// By which it is read and closed.
    pub handle: Handle,
    /// Whether its content changes from one open to the next, so that nothing of it may be cached.
    pub volatile: bool,
}

/// One name of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The number that a lookup of the name gives.
    pub inode: Inode,
    /// What it is.
    pub kind: FileKind,
    /// The name.
    pub name: &'a OsStr,
    /// Where the listing goes on after it.
    pub next: u64,
}

impl Tree {
    /// The tree of `store`, whose disks share `env`, and whose containers `archives`. Reads nothing.
    #[must_use]
    pub fn new(store: Store, env: Arc<DiskEnv>, archives: Arc<ArchiveEnv>, ownership: Ownership) -> Self {
        Self {
            store,
            env,
            ownership,
            nodes: Nodes::new(),
            handles: Handles::default(),
            views: Cache::new(VIEWS_KEPT),
            archives: Archives::new(archives),
            faults: Faults::new(),
            seen: Seen::default(),
        }
    }

    /// The store shown.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The entry `name` of the directory `parent`; must be [forgotten](Self::forget) once.
    pub fn lookup(&self, parent: Inode, name: &OsStr) -> Result<Entry> {
        let absent = || Error::new(ErrorKind::NotFound, format!("there is no {}", name.display()));
        if let Some(dir) = self.archived(parent)? {
            return self.lookup_archived(&dir, name)?.ok_or_else(absent);
        }
        let name = name.to_str().ok_or_else(absent)?;
        let at = self.locate(parent)?;
        let (what, version) = match &at.node.what {
            What::Root if name == CONTROL_NAME => (What::Control, 0),
            What::Root => {
                let id: GuestId = name.parse().map_err(|_| absent())?;
                // A directory that is there but is not listed is no guest.
                self.store.guests()?.binary_search(&id).map_err(|_| absent())?;
                (What::Guest(name.into()), 0)
            }
            What::Control if name == STATUS_NAME => (What::Status, 0),
            What::Guest(_) if name == LATEST_NAME => {
                let guest = self.guest(&at)?;
                let latest = guest.latest().ok_or_else(|| none_left(&guest.id))?;
                (What::Latest(ShortName::new(latest.name.as_str())), 0)
            }
            What::Guest(_) => {
                let guest = self.guest(&at)?;
                (What::Backup(ShortName::new(guest.find(name).ok_or_else(absent)?.name.as_str())), 0)
            }
            What::Backup(_) => {
                let view = self.view(&at)?;
                let entry = view.find(name).ok_or_else(absent)?;
                let node = Node { parent, what: entry.what.clone(), version: entry.version };
                let inode = self.nodes.look_up(node)?;
                if entry.is_tree() {
                    return self.attributes(inode).inspect_err(|_| self.nodes.forget(inode, 1));
                }
                return Ok(self.file_entry(inode, view.backup.summary.time, entry.size, entry.allocated()));
            }
            What::Control | What::Latest(_) | What::Status => return Err(absent()),
            What::File(_) | What::Disk(_) | What::Partition(..) | What::Broken(_) => return Err(absent()),
            What::Archive(_) | What::Member(_) => return Err(absent()),
        };
        let node = Node { parent, what, version };
        let attributes = self.directory_attributes(&Location { node: node.clone(), ..at })?;
        let inode = self.nodes.look_up(node)?;
        Ok(Entry::changing(Attributes { inode, ..attributes }))
    }

    /// The kernel has dropped `count` of the lookups that it was told of.
    pub fn forget(&self, inode: Inode, count: u64) {
        self.nodes.forget(inode, count);
    }

    /// All attributes. For a disk this may go through its whole map, once.
    pub fn attributes(&self, inode: Inode) -> Result<Entry> {
        if let Some(entry) = self.archived(inode)? {
            return entry.entry(inode);
        }
        let file = match self.handles.content(inode) {
            Some(open) => open,
            None => {
                let at = self.locate(inode)?;
                match at.node.what {
                    What::File(_) | What::Disk(_) | What::Partition(..) | What::Broken(_) => {
                        let (view, entry) = self.entry(&at)?;
                        if let Some(known) = entry.allocated() {
                            let time = view.backup.summary.time;
                            return Ok(self.file_entry(inode, time, entry.size, Some(known)));
                        }
                        self.open_entry(&at, &view, &entry)?
                    }
                    _ => {
                        let attributes = self.directory_attributes(&at)?;
                        return Ok(Entry::changing(Attributes { inode, ..attributes }));
                    }
                }
            }
        };
        Ok(self.file_entry(inode, file.time, file.size, Some(file.allocated())))
    }

    /// Where a symlink leads.
    pub fn read_link(&self, inode: Inode) -> Result<OsString> {
        if let Some(entry) = self.archived(inode)? {
            return entry.read_link();
        }
        let at = self.locate(inode)?;
        match at.node.what {
            What::Latest(backup) => Ok(backup.to_text().into()),
            _ => Err(Error::new(ErrorKind::Usage, format!("inode {inode} is not a symlink"))),
        }
    }

    /// Opens a file for reading and for [`seek`](Self::seek), which will tell of `holes` like that; must be [closed](Self::close).
    pub fn open(&self, inode: Inode, holes: Holes) -> Result<Opened> {
        if let Some(open) = self.handles.content(inode) {
            return Ok(Opened { handle: self.handles.open_shared(inode, open, holes), volatile: false });
        }
        if let Some(entry) = self.archived(inode)? {
            let file = Arc::new(entry.open()?);
            return Ok(Opened { handle: self.handles.open_shared(inode, file, holes), volatile: false });
        }
        let at = self.locate(inode)?;
        match at.node.what {
            What::Status => {
                let file = self.status_file()?;
                Ok(Opened { handle: self.handles.open_private(inode, file, holes), volatile: true })
            }
            What::File(_) | What::Disk(_) | What::Partition(..) | What::Broken(_) => {
                let (view, entry) = self.entry(&at)?;
                let file = self.open_entry(&at, &view, &entry)?;
                Ok(Opened { handle: self.handles.open_shared(inode, file, holes), volatile: false })
            }
            What::Root
            | What::Control
            | What::Guest(_)
            | What::Latest(_)
            | What::Backup(_)
            | What::Archive(_)
            | What::Member(_) => Err(Error::new(ErrorKind::Usage, format!("inode {inode} is not a file"))),
        }
    }

    /// Reads into `buf` from byte `at`; short only at the end of the file. A failure has been logged when it is returned.
    pub fn read(&self, handle: Handle, buf: &mut [u8], at: u64) -> Result<usize> {
        let open = self.handles.file(handle)?;
        let len = buf.len() as u64;
        if let Some(range) = open.ahead.note(at, len) {
            open.file.will_need(range);
        }
        open.file.read_at(buf, at).inspect_err(|error| self.faults.report(&open.file.subject, at, len, error))
    }

    /// The next data or hole at or after byte `at`; `None` where there is none.
    pub fn seek(&self, handle: Handle, at: u64, whence: Whence) -> Result<Option<u64>> {
        let open = self.handles.file(handle)?;
        let found = match open.holes {
            Holes::Exact => open.file.seek(at, whence),
            Holes::InBlocks => open.file.seek_blocks(at, whence),
        };
        found.inspect_err(|error| self.faults.report(&open.file.subject, at, 0, error))
    }

    /// Ends what [`open`](Self::open) began.
    pub fn close(&self, handle: Handle) {
        self.handles.close_file(handle);
    }

    /// Opens a directory for listing; must be [closed](Self::close_dir).
    pub fn open_dir(&self, inode: Inode) -> Result<Handle> {
        if let Some(entry) = self.archived(inode)? {
            entry.check_directory()?;
            return Ok(self.handles.open_dir(inode));
        }
        let node = self.nodes.get(inode)?;
        match node.what {
            What::Root | What::Control | What::Guest(_) | What::Backup(_) => Ok(self.handles.open_dir(inode)),
            _ => Err(Error::new(ErrorKind::Usage, format!("inode {inode} is not a directory"))),
        }
    }

    /// Lists a directory from position `from` on (0, or a [`DirEntry::next`]) until `emit` refuses an entry.
    ///
    /// The listing is that of the moment when position 0 was read through this handle, whatever changes meanwhile.
    pub fn read_dir(&self, handle: Handle, from: u64, mut emit: impl FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        self.walk(handle, from, |place| match place {
            Place::Dot(entry) => Ok(emit(entry)),
            Place::Item(item, next) => {
                let inode = self.nodes.number(&item.node)?;
                Ok(emit(DirEntry { inode, kind: item.kind, name: OsStr::new(item.name), next }))
            }
            Place::Archived { node, kind, name, next, .. } => {
                Ok(emit(DirEntry { inode: self.nodes.number(&node)?, kind, name, next }))
            }
        })
    }

    /// As [`read_dir`](Self::read_dir), with attributes. Each entry that `emit` takes, `.` and `..` aside, counts as one
    /// lookup.
    pub fn read_dir_plus(
        &self,
        handle: Handle,
        from: u64,
        mut emit: impl FnMut(DirEntry<'_>, &Entry) -> bool,
    ) -> Result<()> {
        self.walk(handle, from, |place| match place {
            Place::Dot(entry) => {
                let attributes = self.ownership.attributes(entry.inode, FileKind::Directory, Timestamp::EPOCH, 0, 0);
                Ok(emit(entry, &Entry::incomplete(attributes)))
            }
            Place::Item(item, next) => {
                let (name, kind) = (OsStr::new(item.name), item.kind);
                let entry = self.item_entry(item)?;
                let inode = entry.attributes.inode;
                let taken = emit(DirEntry { inode, kind, name, next }, &entry);
                if !taken {
                    self.nodes.forget(inode, 1);
                }
                Ok(taken)
            }
            Place::Archived { node, kind, name, next, archive } => {
                let inode = self.nodes.look_up(node)?;
                let entry = self.archived(inode).and_then(|found| match found {
                    Some(found) => found.entry(inode),
                    None => Err(Error::new(ErrorKind::Changed, format!("{} is closed", archive.name()))),
                });
                let taken = entry.map(|entry| emit(DirEntry { inode, kind, name, next }, &entry));
                if !matches!(taken, Ok(true)) {
                    self.nodes.forget(inode, 1);
                }
                taken
            }
        })
    }

    /// Ends what [`open_dir`](Self::open_dir) began.
    pub fn close_dir(&self, handle: Handle) {
        self.handles.close_dir(handle);
    }

    /// The room on the file system that holds the store.
    pub fn space(&self) -> Result<Space> {
        self.store.space()
    }

    fn walk(&self, handle: Handle, from: u64, mut visit: impl FnMut(Place<'_>) -> Result<bool>) -> Result<()> {
        let dir = self.handles.dir(handle)?;
        let listing = {
            let mut slot = dir.listing.lock().unwrap_or_else(PoisonError::into_inner);
            match slot.as_ref().filter(|_| from > 0) {
                Some(listing) => listing.clone(),
                None => slot.insert(Arc::new(self.list(dir.inode)?)).clone(),
            }
        };
        if let Listing::Archived(archive, node) = &*listing
            && from >= FIRST_NAME
        {
            return archive.list(*node, from, visit);
        }
        let mut position = from;
        while let Some(next) = position.checked_add(1) {
            let dot =
                |inode, name| Place::Dot(DirEntry { inode, kind: FileKind::Directory, name: OsStr::new(name), next });
            let place = match position.checked_sub(FIRST_NAME) {
                None if position == 0 => dot(dir.inode, "."),
                None => dot(self.nodes.get(dir.inode)?.parent, ".."),
                Some(at) => match listing.item(dir.inode, crate::base::units::to_usize(at)) {
                    Some(item) => Place::Item(item, next),
                    None => break,
                },
            };
            if !visit(place)? {
                break;
            }
            position = next;
            if let (Listing::Archived(archive, node), FIRST_NAME) = (&*listing, position) {
                return archive.list(*node, position, visit);
            }
        }
        Ok(())
    }

    fn list(&self, inode: Inode) -> Result<Listing> {
        if let Some(entry) = self.archived(inode)? {
            return Ok(entry.listing());
        }
        let at = self.locate(inode)?;
        match at.node.what {
            What::Root => Ok(Listing::Root(self.store.guests()?)),
            What::Control => Ok(Listing::Control),
            What::Guest(_) => Ok(Listing::Guest(self.guest(&at)?)),
            What::Backup(_) => Ok(Listing::Backup(self.view(&at)?)),
            _ => Err(Error::new(ErrorKind::Usage, format!("inode {inode} is not a directory"))),
        }
    }

    /// Counts a lookup of a listed name and says what is known of it.
    fn item_entry(&self, item: Item<'_>) -> Result<Entry> {
        let inode = self.nodes.look_up(item.node)?;
        let time = item.time.unwrap_or(Timestamp::EPOCH);
        let allocated = item.allocated.unwrap_or(item.size);
        let attributes = self.ownership.attributes(inode, item.kind, time, item.size, allocated);
        Ok(match (item.time.is_some() && item.allocated.is_some(), item.kind) {
            (false, _) => Entry::incomplete(attributes),
            (true, FileKind::Regular) => Entry::fixed(attributes),
            (true, _) => Entry::changing(attributes),
        })
    }

    fn file_entry(&self, inode: Inode, time: Timestamp, size: u64, allocated: Option<u64>) -> Entry {
        let attributes = |bytes| self.ownership.attributes(inode, FileKind::Regular, time, size, bytes);
        allocated.map_or_else(|| Entry::incomplete(attributes(size)), |bytes| Entry::fixed(attributes(bytes)))
    }

    /// The attributes of everything that is not a file of a backup, but for its number.
    fn directory_attributes(&self, at: &Location) -> Result<Attributes> {
        let (kind, time, size) = match &at.node.what {
            What::Root | What::Control => (FileKind::Directory, self.store_time(), 0),
            What::Status => (FileKind::Regular, self.store_time(), 0),
            What::Guest(id) => {
                let guest = self.guest_of_id(&id.parse()?)?;
                (FileKind::Directory, guest.latest().map_or(Timestamp::EPOCH, |latest| latest.time), 0)
            }
            What::Latest(name) => {
                let guest = self.guest(at)?;
                let name = name.to_text();
                let backup = guest.find(&name).ok_or_else(|| no_backup(&guest.id, &name))?;
                (FileKind::Symlink, backup.time, name.len() as u64)
            }
            What::Backup(name) => {
                let guest = self.guest(at)?;
                let name = name.to_text();
                let backup = guest.find(&name).ok_or_else(|| no_backup(&guest.id, &name))?;
                (FileKind::Directory, backup.time, 0)
            }
            What::File(_)
            | What::Disk(_)
            | What::Partition(..)
            | What::Broken(_)
            | What::Archive(_)
            | What::Member(_) => {
                return Err(Error::new(ErrorKind::Usage, "a file of a backup is not a directory"));
            }
        };
        Ok(self.ownership.attributes(Inode::ROOT, kind, time, size, 0))
    }

    /// The time of the store's directory. The mount can be looked at, and unmounted, also when the store is out of reach.
    fn store_time(&self) -> Timestamp {
        self.store.modified().unwrap_or(Timestamp::EPOCH)
    }

    fn status_file(&self) -> Result<Arc<OpenFile>> {
        let (guests_seen, backups_seen, broken) = self.seen.summary();
        let (failed_reads, recent_failed_reads) = self.faults.recent();
        let guests = self.store.guests();
        let status = Status {
            version: 1,
            annals: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            store: self.store.path().to_owned(),
            uuid: self.store.uuid(),
            store_error: guests.as_ref().err().map(Error::report),
            guests: guests.ok().map(|guests| guests.len()),
            guests_seen,
            backups_seen,
            broken,
            cache: self.env.cache_stats(),
            map_bytes: self.env.map_bytes(),
            inodes: self.nodes.len(),
            open_files: self.handles.open_files(),
            failed_reads,
            recent_failed_reads,
        };
        let mut text = serde_json::to_string_pretty(&status)
            .map_err(|e| Error::new(ErrorKind::Io, "cannot write the status as JSON").with_source(e))?;
        text.push('\n');
        Ok(Arc::new(OpenFile {
            subject: Subject { guest: "-".into(), backup: "-".into(), file: STATUS_NAME.into() },
            size: text.len() as u64,
            content: Content::Text(text.into()),
            time: Timestamp::EPOCH,
            allocated: Allocated::default(),
        }))
    }
}

/// A step of a walk through a directory.
pub(super) enum Place<'a> {
    /// `.` or `..`.
    Dot(DirEntry<'a>),
    /// Anything else, and the position after it.
    Item(Item<'a>, u64),
    /// A name in an archive.
    Archived { archive: &'a Archived, node: Node, kind: FileKind, name: &'a OsStr, next: u64 },
}

/// The position after `.` and `..`.
pub(super) const FIRST_NAME: u64 = 2;
