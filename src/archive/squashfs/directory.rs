//! Directory listings.

use super::corrupt;
use super::image::Image;
use super::metadata::Cursor;
use crate::archive::node::Position;
use crate::base::{Error, ErrorKind, Result};
use crate::format::squashfs::{
    Body, DIRECTORY_INDEX, DIRECTORY_RUN, Directory, InodeType, LISTED, Listed, Reference, Run,
};

/// A name in a directory.
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) child: Reference,
    pub(super) kind: InodeType,
    /// Where the listing goes on.
    pub(super) next: Position,
}

/// A position is the offset of a run of names in the listing, and above that, in these bits, how many of its names are behind.
const WITHIN_RUN: u32 = 9;
const LONGEST_NAME: usize = 256;
/// Most bytes of a listing: more would take too long to look a name up in.
const LONGEST_LISTING: u32 = 1 << 30;

impl Image {
    /// Where the listing of the directory `dir` is, and the place of its index.
    fn directory(&self, dir: Reference) -> Result<(Directory, Cursor<'_>)> {
        let (inode, cursor) = self.inode(dir)?;
        match inode.body {
            Body::Directory(directory) if directory.len <= LONGEST_LISTING => Ok((directory, cursor)),
            Body::Directory(directory) => Err(corrupt(format!("a directory of {} bytes", directory.len))),
            Body::File(_) | Body::Symlink(_) | Body::Device(..) | Body::Other(_) => {
                Err(Error::new(ErrorKind::NotFound, "it is no directory"))
            }
        }
    }

    /// Calls `each` with the entries of `dir` from `from` on until it returns `false`.
    pub(super) fn list(
        &self,
        dir: Reference,
        from: Position,
        each: impl FnMut(Entry<'_>) -> Result<bool>,
    ) -> Result<()> {
        let (directory, _) = self.directory(dir)?;
        self.list_from(&directory, from, each)
    }

    fn list_from(
        &self,
        directory: &Directory,
        from: Position,
        mut each: impl FnMut(Entry<'_>) -> Result<bool>,
    ) -> Result<()> {
        let len = u64::from(directory.len);
        let mut run_at = from.0 >> WITHIN_RUN;
        let mut behind = u32::try_from(from.0 & ((1 << WITHIN_RUN) - 1)).unwrap_or(0);
        if run_at >= len {
            return Ok(());
        }
        let superblock = self.superblock();
        let table = superblock.directory_table;
        let block = table.saturating_add(directory.block.into());
        let mut cursor = Cursor::new(self, block, usize::from(directory.offset), superblock.size);
        cursor.skip(run_at)?;
        let mut name = [0; LONGEST_NAME];
        while run_at < len {
            let mut at = run_at + DIRECTORY_RUN as u64;
            let run = (at <= len).then(|| cursor.array()).transpose()?;
            let run = run.and_then(|bytes| Run::parse(&bytes)).ok_or_else(|| corrupt("a directory's run of names"))?;
            for number in 0..run.count {
                let listed = Listed::parse(&cursor.array::<LISTED>()?);
                at += LISTED as u64 + listed.name_len as u64;
                let text = name.get_mut(..listed.name_len).filter(|_| at <= len);
                let text =
                    text.ok_or_else(|| corrupt("a directory's name is longer than the directory or than 256 bytes"))?;
                cursor.read(text)?;
                if number < behind {
                    continue;
                }
                let kind = InodeType::listed(listed.kind);
                let kind =
                    kind.ok_or_else(|| corrupt(format!("a directory lists the unknown type {}", listed.kind)))?;
                let next = if number + 1 < run.count {
                    run_at << WITHIN_RUN | u64::from(number + 1)
                } else {
                    at << WITHIN_RUN
                };
                let child = Reference::new(run.block, listed.offset);
                if !is_name(text) {
                    tracing::warn!("a name that no file can have is left out: '{}'", text.escape_ascii());
                    continue;
                }
                if !each(Entry { name: text, child, kind, next: Position(next) })? {
                    return Ok(());
                }
            }
            behind = 0;
            run_at = at;
        }
        Ok(())
    }

    /// What `dir` has under `wanted`. Names are sorted, and large directories have an index of their runs.
    pub(super) fn lookup(&self, dir: Reference, wanted: &[u8]) -> Result<Option<Reference>> {
        let (directory, mut index) = self.directory(dir)?;
        let mut start = 0;
        for _ in 0..directory.indexes {
            let [a, b, c, d, .., w, x, y, z] = index.array::<DIRECTORY_INDEX>()?;
            let len = u32::from_le_bytes([w, x, y, z]).saturating_add(1) as usize;
            if len > LONGEST_NAME {
                return Err(corrupt("a directory's index has a name that is too long"));
            }
            if index.bytes(len)?.as_slice() > wanted {
                break;
            }
            start = u64::from(u32::from_le_bytes([a, b, c, d]));
        }
        let mut found = None;
        self.list_from(&directory, Position(start << WITHIN_RUN), |entry| {
            if entry.name == wanted {
                found = Some((entry.child, entry.kind));
            }
            Ok(entry.name < wanted)
        })?;
        let Some((child, kind)) = found else { return Ok(None) };
        self.adopt(dir, child, kind)?;
        Ok(Some(child))
    }
}

fn is_name(name: &[u8]) -> bool {
    !name.contains(&b'/') && !name.contains(&0) && !matches!(name, b"." | b"..")
}
