//! Members in the archive's order become a tree in memory.
//!
//! What a name means when it comes twice, or does not fit, is what GNU tar makes of it when it extracts: see [`Builder::add`].

use std::hash::BuildHasher;

use hashbrown::HashTable;

use super::record::{Extra, Holes, Node, StoredExtent, join};
use crate::archive::node::Kind;
use crate::base::{Error, ErrorKind, FileTime, HostOffset, Result};
use crate::format::tar::{SparseMap, Xattr};

/// How much an index may hold: what bounds the memory that an archive can ask for.
#[derive(Debug, Clone, Copy)]
pub(in crate::archive) struct Limits {
    /// Entries and names, each.
    pub(in crate::archive) entries: u32,
    /// Bytes of names.
    pub(in crate::archive) text: u32,
    /// Bytes of link targets, extended attributes and the like.
    pub(in crate::archive) extra: u32,
    /// Runs of data of all files with holes.
    pub(in crate::archive) extents: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 1 << 25, text: 2 << 30, extra: 1 << 30, extents: 1 << 23 }
    }
}

/// One member as an archive describes it.
#[derive(Debug, Clone)]
pub(in crate::archive) struct Member {
    pub(in crate::archive) kind: Kind,
    pub(in crate::archive) permissions: u16,
    pub(in crate::archive) uid: u32,
    pub(in crate::archive) gid: u32,
    /// Of a regular file: its bytes, with holes.
    pub(in crate::archive) size: u64,
    /// Of a regular file: where its stored bytes begin.
    pub(in crate::archive) data: HostOffset,
    pub(in crate::archive) device: (u32, u32),
    pub(in crate::archive) mtime: FileTime,
    pub(in crate::archive) atime: Option<FileTime>,
    pub(in crate::archive) ctime: Option<FileTime>,
    pub(in crate::archive) target: Option<Vec<u8>>,
    pub(in crate::archive) xattrs: Vec<Xattr>,
    pub(in crate::archive) sparse: Option<SparseMap>,
}

impl Member {
    /// A directory that no member describes.
    pub(in crate::archive) fn bare_directory(mtime: FileTime) -> Self {
        Self {
            kind: Kind::Directory,
            permissions: 0o755,
            uid: 0,
            gid: 0,
            size: 0,
            data: HostOffset(0),
            device: (0, 0),
            mtime,
            atime: None,
            ctime: None,
            target: None,
            xattrs: Vec::new(),
            sparse: None,
        }
    }
}

/// Why a member is not in the tree.
#[derive(Debug)]
pub(in crate::archive) enum Skip {
    /// The reason, about this member alone.
    Member(String),
    /// The index is full, or something else that ends all reading.
    Everything(Error),
}

impl From<Error> for Skip {
    fn from(error: Error) -> Self {
        Self::Everything(error)
    }
}

fn skip<T>(reason: impl Into<String>) -> Result<T, Skip> {
    Err(Skip::Member(reason.into()))
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) parent: u32,
    pub(super) node: u32,
    pub(super) text: u32,
    pub(super) len: u8,
}

/// The tree as it grows. Nodes that no name leads to any more stay until the end, and are left out of the index.
pub(in crate::archive) struct Builder {
    limits: Limits,
    bare: Member,
    pub(super) nodes: Vec<Node>,
    pub(super) links: Vec<Link>,
    pub(super) text: Vec<u8>,
    pub(super) extra: Vec<u8>,
    pub(super) extents: Vec<StoredExtent>,
    /// Finds a link by parent and name.
    by_name: HashTable<u32>,
    hasher: std::hash::RandomState,
}

pub(super) const ROOT: u32 = 0;
/// Longest name that the system takes, in bytes.
const LONGEST_NAME: usize = 255;

impl Builder {
    /// An empty tree. Directories that the archive leaves out are root's, 0755, last changed at `time`.
    pub(in crate::archive) fn new(limits: Limits, time: FileTime) -> Self {
        let mut builder = Self {
            limits,
            bare: Member::bare_directory(time),
            nodes: Vec::new(),
            links: Vec::new(),
            text: Vec::new(),
            extra: Vec::new(),
            extents: Vec::new(),
            by_name: HashTable::new(),
            hasher: std::hash::RandomState::new(),
        };
        let mut root = plain_node(&builder.bare);
        root.links = 2;
        builder.nodes.push(root);
        builder
    }

    /// Adds a member under the name `path`, which stays inside the tree: a leading `/` and everything up to a last `..` is
    /// dropped, as GNU tar does it.
    ///
    /// * A name that comes again stands for the later member. Hard links to the earlier one keep that one.
    /// * A directory that comes again keeps what is in it. One that is not empty is not replaced by anything else.
    /// * Directories that are missing on the way are made.
    pub(in crate::archive) fn add(&mut self, path: &[u8], member: &Member) -> Result<(), Skip> {
        let names = components(path)?;
        let Some((name, parents)) = names.split_last() else {
            if member.kind != Kind::Directory {
                return skip("its name is that of the top directory");
            }
            return Ok(self.describe_directory(ROOT, member)?);
        };
        let parent = self.directory(parents)?;
        let old = self.find(parent, name);
        let old_node = old.and_then(|link| self.links.get(link as usize)).map(|link| link.node);
        if let Some(node) = old_node {
            match (self.kind(node), member.kind) {
                (Kind::Directory, Kind::Directory) => return Ok(self.describe_directory(node, member)?),
                (Kind::Directory, _) if self.children(node) > 0 => {
                    return skip("a directory of that name is not empty");
                }
                _ => {}
            }
        }
        let node = self.new_node(member)?;
        self.attach(parent, name, old, node)?;
        Ok(())
    }

    /// Gives what is at `target` the further name `path`. `false` where there is nothing at `target` (yet).
    pub(in crate::archive) fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<bool, Skip> {
        let mut node = ROOT;
        for name in components(target)? {
            let found = self.find(node, name).and_then(|link| self.links.get(link as usize));
            let Some(link) = found else { return Ok(false) };
            node = link.node;
        }
        if self.kind(node) == Kind::Directory {
            return skip("it is a hard link to a directory");
        }
        let names = components(path)?;
        let Some((name, parents)) = names.split_last() else {
            return skip("its name is that of the top directory");
        };
        let parent = self.directory(parents)?;
        let old = self.find(parent, name);
        match old.and_then(|link| self.links.get(link as usize)).map(|link| link.node) {
            Some(same) if same == node => return Ok(true),
            Some(other) if self.kind(other) == Kind::Directory && self.children(other) > 0 => {
                return skip("a directory of that name is not empty");
            }
            _ => {}
        }
        if let Some(node) = self.nodes.get_mut(node as usize) {
            node.links = node.links.saturating_add(1);
        }
        self.attach(parent, name, old, node)?;
        Ok(true)
    }

    /// The directory under these names, made where it is missing.
    fn directory(&mut self, names: &[&[u8]]) -> Result<u32, Skip> {
        let mut at = ROOT;
        for name in names {
            at = match self.find(at, name).and_then(|link| self.links.get(link as usize)) {
                Some(link) if self.kind(link.node) == Kind::Directory => link.node,
                Some(_) => {
                    return skip(format!("'{}' on the way to it is not a directory", name.escape_ascii()));
                }
                None => {
                    let bare = self.bare.clone();
                    let node = self.new_node(&bare)?;
                    self.attach(at, name, None, node)?;
                    node
                }
            };
        }
        Ok(at)
    }

    /// Frees what only [`add`](Self::add) needs.
    pub(super) fn forget_names(&mut self) {
        self.by_name = HashTable::new();
    }

    fn kind(&self, node: u32) -> Kind {
        self.nodes.get(node as usize).map_or(Kind::Regular, |node| node.kind)
    }

    /// How many names a directory has; kept where the index will have their place.
    fn children(&self, node: u32) -> u64 {
        self.nodes.get(node as usize).map_or(0, |node| node.place)
    }

    fn find(&self, parent: u32, name: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one((parent, name));
        self.by_name.find(hash, |link| self.is_named(*link, parent, name)).copied()
    }

    fn is_named(&self, link: u32, parent: u32, name: &[u8]) -> bool {
        self.links.get(link as usize).is_some_and(|link| link.parent == parent && self.name(*link) == name)
    }

    pub(super) fn name(&self, link: Link) -> &[u8] {
        let start = link.text as usize;
        self.text.get(start..start + usize::from(link.len)).unwrap_or_default()
    }

    /// Puts `node` under a name: the link `old` where the name is there already, else a new one.
    fn attach(&mut self, parent: u32, name: &[u8], old: Option<u32>, node: u32) -> Result<()> {
        let was = match old.and_then(|link| self.links.get_mut(link as usize)) {
            Some(link) => Some(std::mem::replace(&mut link.node, node)),
            None => {
                self.new_link(parent, name, node)?;
                None
            }
        };
        let change = |kind: Option<Kind>| i32::from(kind == Some(Kind::Directory));
        let (now_kind, was_kind) = (Some(self.kind(node)), was.map(|was| self.kind(was)));
        if let Some(was) = was.and_then(|was| self.nodes.get_mut(was as usize)) {
            was.links = was.links.saturating_sub(1);
        }
        if let Some(parent) = self.nodes.get_mut(parent as usize) {
            parent.place = parent.place.saturating_add(u64::from(was.is_none()));
            parent.links = parent.links.saturating_add_signed(change(now_kind) - change(was_kind));
        }
        Ok(())
    }

    fn new_link(&mut self, parent: u32, name: &[u8], node: u32) -> Result<()> {
        let number = self.room("names", self.links.len(), 1, self.limits.entries)?;
        let text = self.room("bytes of names", self.text.len(), name.len(), self.limits.text)?;
        self.text.extend_from_slice(name);
        self.links.push(Link { parent, node, text, len: u8::try_from(name.len()).unwrap_or(u8::MAX) });
        let hash = self.hasher.hash_one((parent, name));
        let Self { by_name, links, text, hasher, .. } = self;
        by_name.insert_unique(hash, number, |link| {
            let link = links.get(*link as usize);
            let named = link.and_then(|l| Some((l.parent, text.get(l.text as usize..)?.get(..usize::from(l.len))?)));
            named.map_or(0, |named| hasher.hash_one(named))
        });
        Ok(())
    }

    fn new_node(&mut self, member: &Member) -> Result<u32> {
        let number = self.room("entries", self.nodes.len(), 1, self.limits.entries)?;
        let mut node = plain_node(member);
        if member.kind == Kind::Directory {
            node.links = 2;
        }
        self.add_extras(&mut node, member)?;
        self.nodes.push(node);
        Ok(number)
    }

    /// Gives a directory that is there already the attributes of a later member.
    fn describe_directory(&mut self, node: u32, member: &Member) -> Result<()> {
        let Some(old) = self.nodes.get(node as usize).copied() else { return Ok(()) };
        let mut new = Node { links: old.links, place: old.place, ..plain_node(member) };
        self.add_extras(&mut new, member)?;
        if let Some(node) = self.nodes.get_mut(node as usize) {
            *node = new;
        }
        Ok(())
    }

    fn add_extras(&mut self, node: &mut Node, member: &Member) -> Result<()> {
        let holes = match &member.sparse {
            Some(map) => Some(self.add_extents(map)?),
            None => None,
        };
        let extra = Extra {
            atime: member.atime,
            ctime: member.ctime,
            target: member.target.clone(),
            xattrs: member.xattrs.clone(),
            holes,
        };
        node.sparse = holes.is_some();
        if !extra.is_empty() {
            let bytes = extra.to_bytes();
            let at = self.room("bytes of attributes", self.extra.len(), bytes.len(), self.limits.extra)?;
            self.extra.extend_from_slice(&bytes);
            node.extra = at.saturating_add(1);
        }
        Ok(())
    }

    fn add_extents(&mut self, map: &SparseMap) -> Result<Holes> {
        let count = map.extents().len();
        let first = self.room("runs of data", self.extents.len(), count, self.limits.extents)?;
        let mut stored = 0_u64;
        for extent in map.extents() {
            self.extents.push(StoredExtent { offset: extent.offset, len: extent.len, stored });
            stored = stored.saturating_add(extent.len);
        }
        Ok(Holes { first, count: u32::try_from(count).unwrap_or(u32::MAX), allocated: map.stored() })
    }

    /// The place of the next `more` things after `held`, if the limit allows for them.
    fn room(&self, what: &str, held: usize, more: usize, limit: u32) -> Result<u32> {
        let after = held.checked_add(more).and_then(|after| u32::try_from(after).ok()).filter(|after| *after <= limit);
        match (after, u32::try_from(held)) {
            (Some(_), Ok(held)) => Ok(held),
            _ => Err(Error::new(ErrorKind::Limit, format!("the archive has more than {limit} {what}"))),
        }
    }
}

fn plain_node(member: &Member) -> Node {
    let (size, place) = match member.kind {
        Kind::Directory | Kind::Fifo | Kind::Socket => (0, 0),
        Kind::Regular => (member.size, member.data.0),
        Kind::Symlink => (member.target.as_ref().map_or(0, Vec::len) as u64, 0),
        Kind::CharDevice | Kind::BlockDevice => (0, join(member.device.0, member.device.1)),
    };
    Node {
        size,
        place,
        mtime: member.mtime,
        uid: member.uid,
        gid: member.gid,
        links: 1,
        extra: 0,
        permissions: member.permissions,
        kind: member.kind,
        sparse: false,
    }
}

/// The names of a path from the top down. Everything up to a last `..` is dropped.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, Skip> {
    if path.contains(&0) {
        return skip("its name holds a NUL");
    }
    let mut names = Vec::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => names.clear(),
            name if name.len() > LONGEST_NAME => {
                return skip(format!(
                    "its name has a part of {} bytes, at most {LONGEST_NAME} can be shown",
                    name.len()
                ));
            }
            name => names.push(name),
        }
    }
    Ok(names)
}
