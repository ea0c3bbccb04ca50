//! The table of what the kernel has looked up: inode number → what it is.
//!
//! A node stays while the kernel holds lookups of it, or while a node below it stays. Two things never share a
//! number: where the number that a name gives is taken, the next one of the same name is tried.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::inode::Inode;
use crate::archive::NodeId;
use crate::base::{Error, ErrorKind, Result, Timestamp};

/// What a node is, and its name among its siblings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    Root,
    Guest(Box<str>),
    /// The symlink to the newest backup, which is this one. Where another one is the newest, it is another symlink of that
    /// name, for the kernel remembers where one leads.
    Latest(ShortName),
    Backup(ShortName),
    /// A file of a backup, shown as it is.
    File(Box<str>),
    /// The flattened disk of that name.
    Disk(Box<str>),
    /// A partition of the disk of that name, by its number.
    Partition(Box<str>, u32),
    /// The text that says why the disk of that name cannot be read.
    Broken(Box<str>),
    /// The directory that shows the archive of that name.
    Archive(Box<str>),
    /// An entry of an archive, whose directory is the node's parent, however deep in it the entry is: so all names of a
    /// file lead to one node.
    Member(NodeId),
    /// The directory `.annals`.
    Control,
    /// `status.json` in it.
    Status,
}

impl What {
    /// Feeds what tells this thing from its siblings. The order and the tags are part of every inode number.
    pub(super) fn identify(&self, mut feed: impl FnMut(&[u8])) {
        let mut name = |tag: u8, name: &str| {
            feed(&[tag]);
            feed(name.as_bytes());
            feed(&[0]);
        };
        match self {
            Self::Root => name(0, ""),
            Self::Guest(id) => name(1, id),
            Self::Latest(_) => name(2, ""),
            Self::Backup(backup) => name(3, &backup.to_text()),
            Self::File(file) => name(4, file),
            Self::Disk(disk) => name(5, disk),
            Self::Partition(disk, number) => {
                name(6, disk);
                feed(&number.to_le_bytes());
            }
            Self::Broken(disk) => name(7, disk),
            Self::Archive(archive) => name(10, archive),
            Self::Member(id) => {
                name(11, "");
                feed(&id.0.to_le_bytes());
            }
            Self::Control => name(8, ""),
            Self::Status => name(9, ""),
        }
    }
}

/// A backup's name in 16 bytes without an allocation where it is a plain time, as nearly all are: a listing of a large
/// store makes hundreds of thousands of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ShortName {
    Time(Timestamp),
    Other(Box<str>),
}

impl ShortName {
    pub(super) fn new(name: &str) -> Self {
        Timestamp::parse_file_name(name).map_or_else(|| Self::Other(name.into()), Self::Time)
    }

    pub(super) fn to_text(&self) -> String {
        match self {
            Self::Time(time) => time.file_name(),
            Self::Other(name) => name.to_string(),
        }
    }
}

/// What is behind a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) parent: Inode,
    pub(super) what: What,
    /// Tells the content of a file from another one under the same name; 0 for what has no content of its own.
    pub(super) version: u64,
}

#[derive(Debug)]
struct Slot {
    node: Node,
    /// What the kernel must still forget.
    lookups: u64,
    /// Nodes in the table whose parent this is.
    children: u64,
}

/// A node that is an archive's entry. There may be millions of them, so it is small: nothing lies below it, and its version
/// is that of the directory that shows the archive.
#[derive(Debug)]
struct MemberSlot {
    archive: Inode,
    id: NodeId,
    lookups: u64,
}

/// How many numbers of one name are looked at for the thing itself before a free one is taken. The same name is in the
/// table more than once only while files that were replaced are still open.
const LOOKED_AT: u8 = 4;

#[derive(Debug)]
pub(super) struct Nodes(Mutex<Table>);

impl Nodes {
    pub(super) fn new() -> Self {
        let root = Node { parent: Inode::ROOT, what: What::Root, version: 0 };
        let slot = Slot { node: root, lookups: 1, children: 0 };
        Self(Mutex::new(Table { slots: HashMap::from([(Inode::ROOT, slot)]), members: BTreeMap::new() }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No operation below panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the number stands for.
    pub(super) fn get(&self, inode: Inode) -> Result<Node> {
        self.table().get(inode).ok_or_else(|| unknown(inode))
    }

    /// What the number stands for, and what holds it, up to the root.
    pub(super) fn path(&self, inode: Inode) -> Result<Vec<Node>> {
        let table = self.table();
        let mut path = Vec::with_capacity(4);
        let mut at = inode;
        while at != Inode::ROOT {
            let node = table.get(at).ok_or_else(|| unknown(inode))?;
            at = node.parent;
            path.push(node);
        }
        Ok(path)
    }

    /// The number of `node`, which the kernel is told now: to be forgotten once more.
    ///
    /// Its parent is in the table; an archive's entry has the version of its archive's directory.
    pub(super) fn look_up(&self, node: Node) -> Result<Inode> {
        self.table().look_up(node)
    }

    /// The number that `node` has or would get, for a listing that the kernel does not count as a lookup.
    pub(super) fn number(&self, node: &Node) -> Result<Inode> {
        self.table().place(node)
    }

    /// The kernel has forgotten `count` lookups.
    pub(super) fn forget(&self, inode: Inode, count: u64) {
        self.table().forget(inode, count);
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        let table = self.table();
        table.slots.len() + table.members.len()
    }
}

#[derive(Debug)]
struct Table {
    slots: HashMap<Inode, Slot>,
    /// A tree, which grows without ever holding its content twice.
    members: BTreeMap<Inode, MemberSlot>,
}

impl Table {
    fn get(&self, inode: Inode) -> Option<Node> {
        if let Some(slot) = self.slots.get(&inode) {
            return Some(slot.node.clone());
        }
        let MemberSlot { archive, id, .. } = *self.members.get(&inode)?;
        let version = self.slots.get(&archive)?.node.version;
        Some(Node { parent: archive, what: What::Member(id), version })
    }

    /// Whether the number stands for `node`; `None` when it stands for nothing.
    fn is(&self, inode: Inode, node: &Node) -> Option<bool> {
        if let Some(slot) = self.slots.get(&inode) {
            return Some(slot.node == *node);
        }
        let member = self.members.get(&inode)?;
        let version = self.slots.get(&member.archive).map(|archive| archive.node.version);
        let same = What::Member(member.id) == node.what && member.archive == node.parent;
        Some(same && version == Some(node.version))
    }

    /// The number under which the table holds `node`, or the first one of its name that is free.
    fn place(&self, node: &Node) -> Result<Inode> {
        let mut free = None;
        for attempt in 0..=u8::MAX {
            if attempt >= LOOKED_AT && free.is_some() {
                break;
            }
            let inode = Inode::derive(node.parent, &node.what, attempt);
            match self.is(inode, node) {
                Some(true) => return Ok(inode),
                Some(false) => {}
                None => free = free.or(Some(inode)),
            }
        }
        free.ok_or_else(|| Error::new(ErrorKind::Limit, "every inode number that this name can have is taken"))
    }

    fn look_up(&mut self, node: Node) -> Result<Inode> {
        let inode = self.place(&node)?;
        let known = match self.slots.get_mut(&inode) {
            Some(slot) => Some(&mut slot.lookups),
            None => self.members.get_mut(&inode).map(|member| &mut member.lookups),
        };
        if let Some(lookups) = known {
            *lookups = lookups.saturating_add(1);
            return Ok(inode);
        }
        let is_member = matches!(node.what, What::Member(_));
        let parent = self.slots.get_mut(&node.parent);
        let parent = parent.filter(|parent| !is_member || parent.node.version == node.version);
        let parent = parent.ok_or_else(|| unknown(node.parent))?;
        parent.children = parent.children.saturating_add(1);
        match node.what {
            What::Member(id) => {
                self.members.insert(inode, MemberSlot { archive: node.parent, id, lookups: 1 });
            }
            _ => {
                self.slots.insert(inode, Slot { node, lookups: 1, children: 0 });
            }
        }
        Ok(inode)
    }

    fn forget(&mut self, inode: Inode, count: u64) {
        if let Some(member) = self.members.get_mut(&inode) {
            member.lookups = member.lookups.saturating_sub(count);
            if member.lookups == 0 {
                let archive = member.archive;
                self.members.remove(&inode);
                self.lose_child(archive);
            }
        } else if let Some(slot) = self.slots.get_mut(&inode).filter(|_| inode != Inode::ROOT) {
            slot.lookups = slot.lookups.saturating_sub(count);
            self.drop_unused(inode);
        }
        const WORTH_SHRINKING: usize = 1024;
        let (len, capacity) = (self.slots.len(), self.slots.capacity());
        if capacity > WORTH_SHRINKING && len < capacity / 8 {
            self.slots.shrink_to(len * 2);
        }
    }

    /// Takes away what neither the kernel nor a node below it holds any more.
    fn drop_unused(&mut self, inode: Inode) {
        let Some(slot) = self.slots.get(&inode) else { return };
        if inode == Inode::ROOT || slot.lookups > 0 || slot.children > 0 {
            return;
        }
        let parent = slot.node.parent;
        self.slots.remove(&inode);
        self.lose_child(parent);
    }

    fn lose_child(&mut self, parent: Inode) {
        if let Some(slot) = self.slots.get_mut(&parent) {
            slot.children = slot.children.saturating_sub(1);
            self.drop_unused(parent);
        }
    }
}

fn unknown(inode: Inode) -> Error {
    Error::new(ErrorKind::Changed, format!("inode {inode} is not known any more"))
}
