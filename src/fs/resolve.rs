//! From an inode to what is in the store: the guest, the backup, the file, and whether that is still what it was.

use std::sync::Arc;

use super::Inode;
use super::faults::Subject;
use super::file::{Content, OpenFile};
use super::nodes::{Node, What};
use super::tree::Tree;
use super::view::{Slot, Source, View, ViewEntry, disk_version, file_version};
use crate::base::{Error, ErrorKind, GuestOffset, Result};
use crate::catalog::{BackupName, Guest, GuestId};

/// What stands between the root and a node.
pub(super) struct Location {
    pub(super) node: Node,
    pub(super) guest: Option<GuestId>,
    pub(super) backup: Option<String>,
}

impl Tree {
    pub(super) fn locate(&self, inode: Inode) -> Result<Location> {
        if inode == Inode::ROOT {
            return Ok(Location { node: self.nodes.get(inode)?, guest: None, backup: None });
        }
        let path = self.nodes.path(inode)?;
        let (mut guest, mut backup) = (None, None);
        for node in &path {
            match &node.what {
                What::Guest(id) => guest = Some(id.parse()?),
                What::Backup(name) => backup = Some(name.to_text()),
                _ => {}
            }
        }
        let node = path.into_iter().next();
        let node =
            node.ok_or_else(|| Error::new(ErrorKind::Changed, format!("inode {inode} is not known any more")))?;
        Ok(Location { node, guest, backup })
    }

    pub(super) fn guest(&self, at: &Location) -> Result<Arc<Guest>> {
        self.guest_of_id(at.guest.as_ref().ok_or_else(|| Error::new(ErrorKind::Usage, "not within a guest"))?)
    }

    pub(super) fn guest_of_id(&self, id: &GuestId) -> Result<Arc<Guest>> {
        match self.store.guest(id) {
            Ok(guest) => {
                self.seen.guest(&guest);
                Ok(guest)
            }
            Err(error) => {
                if error.kind() == ErrorKind::NotFound {
                    self.seen.no_guest(id);
                }
                Err(error)
            }
        }
    }

    fn slot(&self, guest: &GuestId, name: &BackupName) -> Arc<Slot> {
        let key = (guest.clone(), name.clone());
        let Ok(slot) = self.views.get_or_insert_with(&key, || Ok::<_, std::convert::Infallible>(Arc::default()));
        slot
    }

    /// The directory of the backup that holds `at`, or is it.
    pub(super) fn view(&self, at: &Location) -> Result<Arc<View>> {
        let guest = self.guest(at)?;
        let text = at.backup.as_deref().ok_or_else(|| Error::new(ErrorKind::Usage, "not within a backup"))?;
        let name = match guest.find(text) {
            Some(summary) => &summary.name,
            None => return Err(no_backup(&guest.id, text)),
        };
        let backup = self.store.backup(&guest.id, name).inspect_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                self.seen.no_backup(&guest.id, name);
            }
        })?;
        let view = self.slot(&guest.id, name).get(&self.store, self.archives.env(), &backup);
        self.seen.view(&view);
        Ok(view)
    }

    /// What the view says now of a node that is a file; fails when it has other content by now.
    pub(super) fn entry(&self, at: &Location) -> Result<(Arc<View>, ViewEntry)> {
        let view = self.view(at)?;
        let entry = view.entry(&at.node.what).ok_or_else(|| Error::new(ErrorKind::NotFound, "it is gone"))?.clone();
        if entry.version != at.node.version {
            return Err(replaced(&entry));
        }
        Ok((view, entry))
    }

    /// Opens what `entry` stands for, and makes sure that it is what the node was looked up as.
    pub(super) fn open_entry(&self, at: &Location, view: &View, entry: &ViewEntry) -> Result<Arc<OpenFile>> {
        let backup = &view.backup;
        let (name, opened) = match &entry.source {
            Source::Text(text) | Source::Note(text, ..) => {
                (&*entry.name, Ok((Content::Text(text.clone()), entry.version)))
            }
            Source::Archive(..) => return Err(Error::new(ErrorKind::Usage, "a directory is not opened as a file")),
            Source::File(file) => {
                let opened = self.store.open_file(backup, file);
                (
                    &*entry.name,
                    opened.map(|file| {
                        let version = file_version(&file);
                        (Content::Stored(file), version)
                    }),
                )
            }
            Source::Disk(disk, window) => {
                let start = window.map_or(GuestOffset(0), |window| window.start());
                let opened = self.store.disk(backup, disk);
                (
                    disk.name.as_str(),
                    opened.map(|disk| {
                        let version = disk_version(&disk);
                        (Content::Disk { disk, start }, version)
                    }),
                )
            }
        };
        let subject = Subject {
            guest: backup.guest.as_str().into(),
            backup: backup.summary.name.as_str().into(),
            file: name.into(),
        };
        let discard = || self.slot(&backup.guest, &backup.summary.name).discard();
        let (content, version) = opened.inspect_err(|error| {
            // Whatever the view said does not hold any more.
            discard();
            self.faults.report(&subject, 0, 0, error);
        })?;
        if version != at.node.version {
            discard();
            return Err(replaced(entry));
        }
        let (size, time, allocated) = (entry.size, backup.summary.time, entry.allocated.clone());
        Ok(Arc::new(OpenFile { subject, content, size, time, allocated }))
    }
}

fn replaced(entry: &ViewEntry) -> Error {
    Error::new(ErrorKind::Changed, format!("'{}' has other content than when it was looked up", entry.name))
}

pub(super) fn none_left(guest: &GuestId) -> Error {
    Error::new(ErrorKind::NotFound, format!("guest {guest} has no backup"))
}

pub(super) fn no_backup(guest: &GuestId, name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("guest {guest} has no backup {name}"))
}
