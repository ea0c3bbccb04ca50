//! Questions to an index.

use std::cmp::Ordering;
use std::sync::Arc;

use super::image::{HEADER, Image, Sections};
use super::pages::{Pages, paged_len};
use super::record::{EXTENT, Extra, Holes, NAME, NODE, Name, Node, StoredExtent, halves};
use crate::archive::node::{Attributes, DirItem, Kind, NodeId, Position};
use crate::base::{Error, ErrorKind, HostOffset, Result};
use crate::format::tar::Xattr;
use crate::storage::{BlockCache, FileNumber, LastingIdentity, Storage};

/// An index that can be asked.
pub(in crate::archive) struct Index {
    pages: Pages,
    sections: Sections,
    report: Option<String>,
}

/// Where a piece of a file is, from a byte of it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::archive) enum Run {
    /// So many bytes from there on in the archive.
    Data(HostOffset, u64),
    /// So many zeros.
    Hole(u64),
}

/// Most bytes of the report.
const LONGEST_REPORT: u64 = 1 << 20;

impl Index {
    /// The index in `file`, if it is one of the archive `identity` and whole; it is read once from end to end.
    pub(in crate::archive) fn open(
        file: Arc<dyn Storage>,
        identity: &LastingIdentity,
        cache: &Arc<BlockCache>,
    ) -> Result<Option<Self>> {
        if !Pages::verify(&*file)? {
            return Ok(None);
        }
        let pages = Pages::Stored { file, number: FileNumber::next(), cache: cache.clone() };
        Self::over(pages, identity)
    }

    /// The index that `image` is, held in memory.
    pub(in crate::archive) fn in_memory(image: &Image, identity: &LastingIdentity) -> Result<Self> {
        let mut bytes = Vec::with_capacity(crate::base::units::to_usize(image.len()));
        image.write(&mut bytes)?;
        Self::over(Pages::Memory(bytes), identity)?.ok_or_else(damaged)
    }

    fn over(pages: Pages, identity: &LastingIdentity) -> Result<Option<Self>> {
        let mut header = vec![0; crate::base::units::to_usize(HEADER)];
        if pages.size() < HEADER {
            return Ok(None);
        }
        pages.read(&mut header, 0)?;
        let Some(sections) = Sections::parse(&header) else { return Ok(None) };
        let whole = sections.len().map(paged_len) == Some(pages.size());
        if !whole || sections.identity != *identity || sections.report > LONGEST_REPORT {
            return Ok(None);
        }
        let mut index = Self { pages, sections, report: None };
        let mut report = vec![0; crate::base::units::to_usize(sections.report)];
        index.pages.read(&mut report, index.report_at())?;
        let report = String::from_utf8_lossy(&report).into_owned();
        index.report = (!report.is_empty()).then_some(report);
        Ok(Some(index))
    }

    fn names_at(&self) -> u64 {
        HEADER.saturating_add(self.sections.nodes)
    }

    fn text_at(&self) -> u64 {
        self.names_at().saturating_add(self.sections.names)
    }

    fn extra_at(&self) -> u64 {
        self.text_at().saturating_add(self.sections.text)
    }

    fn extents_at(&self) -> u64 {
        self.extra_at().saturating_add(self.sections.extra)
    }

    fn report_at(&self) -> u64 {
        self.extents_at().saturating_add(self.sections.extents)
    }

    /// What is missing or damaged.
    pub(in crate::archive) fn report(&self) -> Option<&str> {
        self.report.as_deref()
    }

    /// How many nodes there are.
    pub(in crate::archive) fn nodes(&self) -> u64 {
        self.sections.nodes / NODE as u64
    }

    /// The record `number` of the section at `start` that is `len` bytes long.
    fn record<const N: usize>(&self, start: u64, len: u64, number: u64) -> Result<[u8; N]> {
        let at = number.checked_mul(N as u64).filter(|at| at.checked_add(N as u64).is_some_and(|end| end <= len));
        let mut record = [0; N];
        self.pages.read(&mut record, start.saturating_add(at.ok_or_else(damaged)?))?;
        Ok(record)
    }

    fn node(&self, id: NodeId) -> Result<Node> {
        if id.0 >= self.nodes() {
            return Err(Error::new(ErrorKind::NotFound, format!("the archive has no entry {}", id.0)));
        }
        Node::from_bytes(&self.record::<NODE>(HEADER, self.sections.nodes, id.0)?).ok_or_else(damaged)
    }

    fn name(&self, number: u64) -> Result<Name> {
        Name::from_bytes(&self.record::<NAME>(self.names_at(), self.sections.names, number)?).ok_or_else(damaged)
    }

    fn text<'b>(&self, name: Name, buf: &'b mut [u8; 255]) -> Result<&'b [u8]> {
        let text = buf.get_mut(..usize::from(name.len)).ok_or_else(damaged)?;
        self.pages.read(text, self.text_at().saturating_add(u64::from(name.text)))?;
        Ok(text)
    }

    fn extra(&self, node: &Node) -> Result<Extra> {
        let Some(at) = node.extra.checked_sub(1) else { return Ok(Extra::default()) };
        let at = self.extra_at().saturating_add(u64::from(at));
        let mut len = [0; 4];
        self.pages.read(&mut len, at)?;
        let len = u32::from_le_bytes(len);
        if u64::from(len) > self.sections.extra {
            return Err(damaged());
        }
        let mut bytes = vec![0; crate::base::units::to_usize(len.into())];
        self.pages.read(&mut bytes, at.saturating_add(4))?;
        Extra::from_bytes(&bytes).ok_or_else(damaged)
    }

    /// The names of the directory `id`: the first one's number, and how many there are.
    fn children(&self, id: NodeId) -> Result<(u64, u64)> {
        let node = self.node(id)?;
        if node.kind != Kind::Directory {
            return Err(Error::new(ErrorKind::NotFound, format!("entry {} of the archive is no directory", id.0)));
        }
        let (first, count) = halves(node.place);
        Ok((first.into(), count.into()))
    }

    pub(in crate::archive) fn lookup(&self, dir: NodeId, wanted: &[u8]) -> Result<Option<NodeId>> {
        let (first, count) = self.children(dir)?;
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            let name = self.name(first.saturating_add(middle))?;
            match self.text(name, &mut [0; 255])?.cmp(wanted) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(Some(NodeId(name.node.into()))),
            }
        }
        Ok(None)
    }

    pub(in crate::archive) fn read_dir(
        &self,
        dir: NodeId,
        from: Position,
        each: &mut dyn FnMut(DirItem<'_>) -> bool,
    ) -> Result<()> {
        let (first, count) = self.children(dir)?;
        let mut text = [0; 255];
        for at in from.0..count {
            let name = self.name(first.saturating_add(at))?;
            let item = DirItem {
                name: self.text(name, &mut text)?,
                node: NodeId(name.node.into()),
                kind: name.kind,
                next: Position(at + 1),
            };
            if !each(item) {
                break;
            }
        }
        Ok(())
    }

    pub(in crate::archive) fn attributes(&self, id: NodeId) -> Result<Attributes> {
        let node = self.node(id)?;
        let extra = self.extra(&node)?;
        Ok(Attributes {
            node: id,
            kind: node.kind,
            permissions: node.permissions,
            uid: node.uid,
            gid: node.gid,
            size: node.size,
            allocated: match (node.kind, extra.holes) {
                (Kind::Regular, Some(holes)) => holes.allocated,
                (Kind::Regular, None) => node.size,
                _ => 0,
            },
            mtime: node.mtime,
            atime: extra.atime.unwrap_or(node.mtime),
            ctime: extra.ctime.unwrap_or(node.mtime),
            device: match node.kind {
                Kind::CharDevice | Kind::BlockDevice => halves(node.place),
                _ => (0, 0),
            },
            links: node.links,
        })
    }

    pub(in crate::archive) fn read_link(&self, id: NodeId) -> Result<Vec<u8>> {
        self.extra(&self.node(id)?)?
            .target
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("entry {} of the archive is no symlink", id.0)))
    }

    pub(in crate::archive) fn xattrs(&self, id: NodeId) -> Result<Vec<Xattr>> {
        Ok(self.extra(&self.node(id)?)?.xattrs)
    }

    /// The size of a regular file, and where its bytes are from `at` on: one run, which may be shorter than what there is of
    /// its kind. `None` at the end.
    pub(in crate::archive) fn run(&self, id: NodeId, at: u64) -> Result<(u64, Option<Run>)> {
        let node = self.node(id)?;
        if node.kind != Kind::Regular {
            return Err(Error::new(ErrorKind::NotFound, format!("entry {} of the archive is no regular file", id.0)));
        }
        if at >= node.size {
            return Ok((node.size, None));
        }
        let data = |stored: u64, len: u64| {
            let place = HostOffset(node.place).checked_add(stored).ok_or_else(damaged)?;
            Ok((node.size, Some(Run::Data(place, len))))
        };
        if !node.sparse {
            return data(at, node.size - at);
        }
        let holes = self.extra(&node)?.holes.ok_or_else(damaged)?;
        match self.extent_at_or_after(holes, at)? {
            None => Ok((node.size, Some(Run::Hole(node.size - at)))),
            Some(extent) if extent.offset > at => Ok((node.size, Some(Run::Hole(extent.offset.min(node.size) - at)))),
            Some(extent) => data(extent.stored.saturating_add(at - extent.offset), extent.end().min(node.size) - at),
        }
    }

    /// The extent that holds `at`, or the first one after it.
    fn extent_at_or_after(&self, holes: Holes, at: u64) -> Result<Option<StoredExtent>> {
        let extent = |number: u32| {
            let number = u64::from(holes.first).saturating_add(number.into());
            StoredExtent::from_bytes(&self.record::<EXTENT>(self.extents_at(), self.sections.extents, number)?)
                .ok_or_else(damaged)
        };
        let (mut low, mut high) = (0, holes.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if extent(middle)?.end() <= at { low = middle + 1 } else { high = middle }
        }
        (low < holes.count).then(|| extent(low)).transpose()
    }
}

fn damaged() -> Error {
    Error::new(ErrorKind::Corrupt, "the archive's index contradicts itself")
}
