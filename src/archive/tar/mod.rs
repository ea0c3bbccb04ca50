//! Tar archives as trees.

mod notes;
mod scan;
#[cfg(test)]
mod tests;
mod window;

use std::sync::Arc;

use super::env::ArchiveEnv;
use super::index::{Index, Limits, Run};
use super::node::{Attributes, DirItem, NodeId, Position, Tree};
use crate::base::error::ResultExt;
use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, Result};
use crate::format::tar::Xattr;
use crate::storage::{Storage, derived_name};

/// A tar archive that is open. Its data is read from the file as it is.
pub(super) struct TarTree {
    name: String,
    file: Arc<dyn Storage>,
    index: Index,
}

impl TarTree {
    pub(super) fn open(name: &str, file: Arc<dyn Storage>, env: &ArchiveEnv) -> Result<Self> {
        let index = index(name, &file, env).context(|| format!("archive {name}"))?;
        Ok(Self { name: name.to_owned(), file, index })
    }

    fn within<T>(&self, result: Result<T>) -> Result<T> {
        result.context(|| format!("archive {}", self.name))
    }

    fn fill(&self, node: NodeId, buf: &mut [u8], at: u64) -> Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let (_, run) = self.index.run(node, at.saturating_add(done as u64))?;
            let part = |len: u64| to_usize(len.min(rest.len() as u64));
            match run {
                None => break,
                Some(Run::Hole(len)) => {
                    let len = part(len);
                    rest.get_mut(..len).unwrap_or_default().fill(0);
                    done += len;
                }
                Some(Run::Data(place, len)) => {
                    let len = part(len);
                    self.file.read_exact_at(rest.get_mut(..len).unwrap_or_default(), place)?;
                    done += len;
                }
            }
        }
        Ok(done)
    }
}

/// No file was changed then.
const NEVER: i128 = i128::MIN;

/// The index that an earlier look at the archive left, if it fits.
pub(super) fn kept_index(name: &str, file: &Arc<dyn Storage>, env: &ArchiveEnv) -> Option<Index> {
    let identity = file.lasting_identity();
    let found = env.derived()?.read(&derived_name("tar", &identity.identity)).and_then(|found| match found {
        Some(found) => Index::open(Arc::new(found), &identity, env.blocks()),
        None => Ok(None),
    });
    found.unwrap_or_else(|error| {
        tracing::warn!("cannot use the kept index of {name}: {}", error.report());
        None
    })
}

/// The kept index if it fits, else a new one, kept where that is possible.
fn index(name: &str, file: &Arc<dyn Storage>, env: &ArchiveEnv) -> Result<Index> {
    if let Some(index) = kept_index(name, file, env) {
        return Ok(index);
    }
    let mut identity = file.lasting_identity();
    if !file.is_settled() {
        // It is kept for as long as this process has it; no other one will find that it fits.
        identity.ctime_ns = NEVER;
    }
    let kept = derived_name("tar", &identity.identity);
    let scanned = scan::scan(&**file, Limits::default())?;
    let image = scanned.builder.finish(identity, &scanned.report);
    if let Some(derived) = env.derived().filter(|_| scanned.keep) {
        let written = derived
            .write(&kept, |to| image.write(to))
            .and_then(|file| Index::open(Arc::new(file), &identity, env.blocks()));
        match written {
            Ok(Some(index)) => return Ok(index),
            Ok(None) => {
                tracing::warn!("the index of {name} does not read back as it was written; it is held in memory")
            }
            Err(error) => tracing::warn!("cannot keep the index of {name}, it is held in memory: {}", error.report()),
        }
    }
    Index::in_memory(&image, &identity)
}

impl Tree for TarTree {
    fn root(&self) -> NodeId {
        NodeId(0)
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        self.within(self.index.lookup(dir, name))
    }

    fn read_dir(&self, dir: NodeId, from: Position, each: &mut dyn FnMut(DirItem<'_>) -> bool) -> Result<()> {
        self.within(self.index.read_dir(dir, from, each))
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes> {
        self.within(self.index.attributes(node))
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>> {
        self.within(self.index.read_link(node))
    }

    fn xattrs(&self, node: NodeId) -> Result<Vec<Xattr>> {
        self.within(self.index.xattrs(node))
    }

    fn read_at(&self, node: NodeId, buf: &mut [u8], at: u64) -> Result<usize> {
        self.within(self.fill(node, buf, at))
    }

    fn next_data(&self, node: NodeId, at: u64) -> Result<Option<u64>> {
        self.within(self.index.run(node, at).map(|(size, run)| match run {
            None => None,
            Some(Run::Data(..)) => Some(at),
            Some(Run::Hole(len)) => Some(at.saturating_add(len)).filter(|next| *next < size),
        }))
    }

    fn next_hole(&self, node: NodeId, at: u64) -> Result<u64> {
        let mut at = at;
        loop {
            // Adjacent runs of data were joined when the index was built.
            let (size, run) = self.within(self.index.run(node, at))?;
            match run {
                None => return Ok(size),
                Some(Run::Hole(_)) => return Ok(at),
                Some(Run::Data(_, 0)) => return Err(Error::new(ErrorKind::Corrupt, "an empty run of data")),
                Some(Run::Data(_, len)) => at = at.saturating_add(len),
            }
        }
    }

    fn broken(&self) -> Option<&str> {
        self.index.report()
    }

    fn entries(&self) -> u64 {
        self.index.nodes()
    }
}
