//! Listings: the names in a directory, in an order and at positions that stay while it is read.

use std::sync::Arc;

use super::attr::FileKind;
use super::members::Archived;
use super::nodes::{Node, ShortName, What};
use super::view::View;
use super::{CONTROL_NAME, Inode, LATEST_NAME, STATUS_NAME};
use crate::archive::NodeId;
use crate::base::Timestamp;
use crate::catalog::{Guest, GuestId};

/// One directory as it was when its reading began. Shares what the catalog has; copies no names.
#[derive(Debug)]
pub(super) enum Listing {
    Root(Arc<[GuestId]>),
    Control,
    Guest(Arc<Guest>),
    Backup(Arc<View>),
    /// A directory in an archive.
    Archived(Arc<Archived>, NodeId),
}

/// One name of a listing, `.` and `..` aside, with what is known of it without asking.
pub(super) struct Item<'a> {
    pub(super) name: &'a str,
    pub(super) kind: FileKind,
    pub(super) node: Node,
    pub(super) time: Option<Timestamp>,
    pub(super) size: u64,
    /// Allocated bytes.
    pub(super) allocated: Option<u64>,
}

impl Listing {
    /// The name at `position`, counted from 0, or `None` after the last. `dir` is the directory's own number.
    pub(super) fn item(&self, dir: Inode, position: usize) -> Option<Item<'_>> {
        let node = |what, version| Node { parent: dir, what, version };
        let directory = |name, what, time| Item {
            name,
            kind: FileKind::Directory,
            node: node(what, 0),
            time,
            size: 0,
            allocated: Some(0),
        };
        match self {
            // What a guest's directory has for a time is known when its backups are: not yet.
            Self::Root(guests) => match position.checked_sub(1) {
                None => Some(directory(CONTROL_NAME, What::Control, None)),
                Some(at) => guests.get(at).map(|id| directory(id.as_str(), What::Guest(id.as_str().into()), None)),
            },
            Self::Control => (position == 0).then(|| Item {
                name: STATUS_NAME,
                kind: FileKind::Regular,
                node: node(What::Status, 0),
                time: None,
                size: 0,
                allocated: Some(0),
            }),
            Self::Guest(guest) => match guest.backups().get(position) {
                Some(backup) => {
                    let name = backup.name.as_str();
                    Some(directory(name, What::Backup(ShortName::new(name)), Some(backup.time)))
                }
                None if position == guest.backups().len() => guest.latest().map(|latest| Item {
                    name: LATEST_NAME,
                    kind: FileKind::Symlink,
                    node: node(What::Latest(ShortName::new(latest.name.as_str())), 0),
                    time: Some(latest.time),
                    size: latest.name.as_str().len() as u64,
                    allocated: Some(0),
                }),
                None => None,
            },
            // Its positions are those of the archive.
            Self::Archived(..) => None,
            Self::Backup(view) => view.entries.get(position).map(|entry| Item {
                name: &entry.name,
                kind: if entry.is_tree() { FileKind::Directory } else { FileKind::Regular },
                node: node(entry.what.clone(), entry.version),
                // Those of a container's top directory are in the archive.
                time: (!entry.is_tree()).then_some(view.backup.summary.time),
                size: entry.size,
                allocated: entry.allocated(),
            }),
        }
    }
}
