//! The finished tree as a sequence of bytes.

use std::collections::VecDeque;
use std::io::Write;

use super::build::{Builder, Link, ROOT};
use super::pages::{PageWriter, paged_len};
use super::record::{EXTENT, NAME, NODE, Name, Node, Writer, join};
use crate::archive::node::Kind;
use crate::base::{Error, Result};
use crate::storage::{FileIdentity, LastingIdentity};

/// Changes whenever the layout or the meaning of an index does: an older one is then built anew.
const VERSION: u32 = 3;
const MAGIC: &[u8; 16] = b"annals tar index";
/// Bytes of the header, before the first section.
pub(super) const HEADER: u64 = 128;

/// How long each section is, in bytes, and which archive the index is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sections {
    pub(super) identity: LastingIdentity,
    pub(super) nodes: u64,
    pub(super) names: u64,
    pub(super) text: u64,
    pub(super) extra: u64,
    pub(super) extents: u64,
    pub(super) report: u64,
}

impl Sections {
    pub(super) fn header(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(MAGIC);
        out.u32(VERSION);
        out.u32(0);
        let LastingIdentity { identity: FileIdentity { device, inode, size, mtime_ns }, ctime_ns } = self.identity;
        for value in [device, inode, size] {
            out.u64(value);
        }
        for time in [mtime_ns, ctime_ns] {
            out.bytes(&time.to_le_bytes());
        }
        for value in [self.nodes, self.names, self.text, self.extra, self.extents, self.report] {
            out.u64(value);
        }
        out.0.resize(crate::base::units::to_usize(HEADER), 0);
        out.0
    }

    /// Reads a header; `None` where it is none of this version.
    pub(super) fn parse(header: &[u8]) -> Option<Self> {
        let mut from = super::record::Reader(header);
        if from.take(MAGIC.len())? != MAGIC || from.u32()? != VERSION {
            return None;
        }
        from.u32()?;
        let (device, inode, size) = (from.u64()?, from.u64()?, from.u64()?);
        let mtime_ns = i128::from_le_bytes(from.take(16)?.try_into().ok()?);
        let ctime_ns = i128::from_le_bytes(from.take(16)?.try_into().ok()?);
        Some(Self {
            identity: LastingIdentity { identity: FileIdentity { device, inode, size, mtime_ns }, ctime_ns },
            nodes: from.u64()?,
            names: from.u64()?,
            text: from.u64()?,
            extra: from.u64()?,
            extents: from.u64()?,
            report: from.u64()?,
        })
    }

    /// The length of all of it, header included, before it is cut into pages. `None` past 64 bits.
    pub(super) fn len(&self) -> Option<u64> {
        [self.nodes, self.names, self.text, self.extra, self.extents, self.report]
            .iter()
            .try_fold(HEADER, |sum, len| sum.checked_add(*len))
    }
}

/// A tree in its final order, ready to be written.
pub(in crate::archive) struct Image {
    builder: Builder,
    sections: Sections,
    /// Old node numbers, in the new order.
    nodes: Vec<u32>,
    /// New numbers by old ones.
    renumbered: Vec<u32>,
    /// Links, in the order of the names' section.
    links: Vec<u32>,
    report: Vec<u8>,
}

const UNSEEN: u32 = u32::MAX;

impl Builder {
    /// Puts the tree in order; `report` says what is missing.
    pub(in crate::archive) fn finish(mut self, identity: LastingIdentity, report: &str) -> Image {
        self.forget_names();
        let mut sorted: Vec<u32> = (0..u32::try_from(self.links.len()).unwrap_or(u32::MAX)).collect();
        let key = |link: u32| self.links.get(link as usize).copied();
        sorted.sort_unstable_by(|a, b| {
            let name = |link: Option<Link>| link.map(|link| (link.parent, self.name(link)));
            name(key(*a)).cmp(&name(key(*b)))
        });
        let mut ranges = vec![(0_u32, 0_u32); self.nodes.len()];
        for (at, link) in sorted.iter().enumerate() {
            let parent = key(*link).and_then(|link| ranges.get_mut(link.parent as usize));
            if let Some((first, count)) = parent {
                if *count == 0 {
                    *first = u32::try_from(at).unwrap_or(u32::MAX);
                }
                *count += 1;
            }
        }
        let (mut nodes, mut links) = (vec![ROOT], Vec::with_capacity(sorted.len()));
        let mut renumbered = vec![UNSEEN; self.nodes.len()];
        if let Some(root) = renumbered.get_mut(ROOT as usize) {
            *root = 0;
        }
        let mut text = 0_u64;
        let mut directories = VecDeque::from([ROOT]);
        // A directory has one name alone, so this ends.
        while let Some(directory) = directories.pop_front() {
            let (first, count) = ranges.get(directory as usize).copied().unwrap_or_default();
            let here = u32::try_from(links.len()).unwrap_or(u32::MAX);
            for at in first..first.saturating_add(count) {
                let Some(link) = sorted.get(at as usize) else { break };
                let Some(Link { node, len, .. }) = key(*link) else { break };
                links.push(*link);
                text += u64::from(len);
                if let Some(number) = renumbered.get_mut(node as usize).filter(|number| **number == UNSEEN) {
                    *number = u32::try_from(nodes.len()).unwrap_or(UNSEEN);
                    nodes.push(node);
                    if self.nodes.get(node as usize).is_some_and(|node| node.kind == Kind::Directory) {
                        directories.push_back(node);
                    }
                }
            }
            if let Some(node) = self.nodes.get_mut(directory as usize) {
                node.place = join(here, count);
            }
        }
        let sections = Sections {
            identity,
            nodes: nodes.len() as u64 * NODE as u64,
            names: links.len() as u64 * NAME as u64,
            text,
            extra: self.extra.len() as u64,
            extents: self.extents.len() as u64 * EXTENT as u64,
            report: report.len() as u64,
        };
        Image { builder: self, sections, nodes, renumbered, links, report: report.into() }
    }
}

impl Image {
    /// How many bytes [`write`](Self::write) writes.
    pub(in crate::archive) fn len(&self) -> u64 {
        // Sections that are in memory add up to less than 64 bits.
        paged_len(self.sections.len().unwrap_or(u64::MAX))
    }

    /// Writes all of it.
    pub(in crate::archive) fn write(&self, to: &mut dyn Write) -> Result<()> {
        self.write_pages(to).map_err(|e| Error::io("cannot write an index", e))
    }

    fn write_pages(&self, to: &mut dyn Write) -> std::io::Result<()> {
        let mut to = PageWriter::new(to);
        to.write(&self.sections.header())?;
        for node in &self.nodes {
            if let Some(node) = self.builder.nodes.get(*node as usize) {
                to.write(&Node::to_bytes(*node))?;
            }
        }
        let links = || self.links.iter().filter_map(|link| self.builder.links.get(*link as usize));
        let mut text = 0_u32;
        for link in links() {
            let kind = self.builder.nodes.get(link.node as usize).map_or(Kind::Regular, |node| node.kind);
            let node = self.renumbered.get(link.node as usize).copied().unwrap_or(UNSEEN);
            to.write(&Name { text, node, len: link.len, kind }.to_bytes())?;
            text = text.wrapping_add(u32::from(link.len));
        }
        for link in links() {
            to.write(self.builder.name(*link))?;
        }
        to.write(&self.builder.extra)?;
        for extent in &self.builder.extents {
            let mut out = Writer::default();
            extent.write(&mut out);
            to.write(&out.0)?;
        }
        to.write(&self.report)?;
        to.finish()
    }
}
