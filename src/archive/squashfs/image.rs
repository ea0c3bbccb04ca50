//! An open image: its tables, and the way to its inodes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use super::corrupt;
use super::metadata::Cursor;
use crate::archive::env::ArchiveEnv;
use crate::base::{Error, ErrorKind, HostOffset, Result};
use crate::format::squashfs::{
    Body, Compression, INODE_HEADER, Inode, InodeType, METADATA, Reference, SUPERBLOCK, Superblock, XATTR_TABLE,
    XattrTable,
};
use crate::storage::{BlockCache, FileNumber, Storage};

pub(super) struct Image {
    file: Arc<dyn Storage>,
    superblock: Superblock,
    ids: Vec<u32>,
    xattrs: Option<XattrTable>,
    env: Arc<ArchiveEnv>,
    metadata: FileNumber,
    data: FileNumber,
    lists: FileNumber,
    /// The one directory that each directory was found in.
    parents: Mutex<HashMap<Reference, Reference>>,
}

/// How many directories are remembered; an image that has more is refused when the next one is come upon.
const MOST_DIRECTORIES: usize = 1 << 22;
/// Longest target of a symlink that the system can show.
const LONGEST_TARGET: u32 = 4095;

impl Image {
    pub(super) fn open(file: Arc<dyn Storage>, env: &Arc<ArchiveEnv>) -> Result<Self> {
        if file.size() < SUPERBLOCK as u64 {
            return Err(corrupt(format!("it has {} bytes, fewer than a squashfs image begins with", file.size())));
        }
        let mut bytes = [0; SUPERBLOCK];
        file.read_exact_at(&mut bytes, HostOffset(0))?;
        let superblock = Superblock::parse(&bytes)?;
        if superblock.size > file.size() {
            return Err(corrupt(format!(
                "the image has {} bytes, the file {}: it was cut short, and with its end the tables are gone",
                superblock.size,
                file.size()
            )));
        }
        let mut image = Self {
            file,
            superblock,
            ids: Vec::new(),
            xattrs: None,
            env: env.clone(),
            metadata: FileNumber::next(),
            data: FileNumber::next(),
            lists: FileNumber::next(),
            parents: Mutex::default(),
        };
        let ids = (0..u32::from(superblock.ids))
            .map(|id| image.table_entry::<4>(superblock.id_table, id).map(u32::from_le_bytes));
        image.ids = ids.collect::<Result<_>>().map_err(|e| e.context("the table of owners"))?;
        if let Some(at) = superblock.xattr_table {
            let mut bytes = [0; XATTR_TABLE];
            image.read(&mut bytes, at).map_err(|e| e.context("the table of extended attributes"))?;
            image.xattrs = Some(XattrTable::parse(&bytes));
        }
        let (root, _) = image.inode(superblock.root).map_err(|e| e.context("the top directory"))?;
        if root.kind() != InodeType::Directory {
            return Err(corrupt("its top is no directory"));
        }
        Ok(image)
    }

    pub(super) fn root(&self) -> Reference {
        self.superblock.root
    }

    pub(super) fn inodes(&self) -> u32 {
        self.superblock.inodes
    }

    pub(super) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    pub(super) fn compression(&self) -> Compression {
        self.superblock.compression
    }

    pub(super) fn xattr_table(&self) -> Option<(u64, XattrTable)> {
        self.superblock.xattr_table.zip(self.xattrs)
    }

    pub(super) fn blocks(&self) -> &BlockCache {
        self.env.blocks()
    }

    pub(super) fn metadata_number(&self) -> FileNumber {
        self.metadata
    }

    pub(super) fn data_number(&self) -> FileNumber {
        self.data
    }

    pub(super) fn lists_number(&self) -> FileNumber {
        self.lists
    }

    /// Reads bytes of the image as they are; past its end is corrupt.
    pub(super) fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > self.superblock.size) {
            return Err(corrupt(format!(
                "{} bytes at {at} are wanted of an image of {}",
                buf.len(),
                self.superblock.size
            )));
        }
        self.file.read_exact_at(buf, HostOffset(at))
    }

    /// Entry `number` of the table whose list of blocks is at `at`: entries fill metadata blocks, the list has their places.
    pub(super) fn table_entry<const N: usize>(&self, at: u64, number: u32) -> Result<[u8; N]> {
        let per_block = METADATA / N;
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let mut place = [0; 8];
        self.read(&mut place, at.saturating_add((number / per_block) as u64 * 8))?;
        let offset = number % per_block * N;
        Cursor::new(self, u64::from_le_bytes(place), offset, self.superblock.size).array()
    }

    /// The number of an owner or a group.
    pub(super) fn id(&self, index: u16) -> Result<u32> {
        let id = self.ids.get(usize::from(index)).copied();
        id.ok_or_else(|| corrupt(format!("an inode's owner is number {index} of {}", self.ids.len())))
    }

    fn inode_cursor(&self, reference: Reference) -> Cursor<'_> {
        let Superblock { inode_table, directory_table, .. } = self.superblock;
        let block = inode_table.saturating_add(reference.block());
        Cursor::new(self, block, usize::from(reference.offset()), directory_table)
    }

    /// An inode, and the place right after its fixed part.
    pub(super) fn inode(&self, reference: Reference) -> Result<(Inode, Cursor<'_>)> {
        let mut cursor = self.inode_cursor(reference);
        let header = cursor.array()?;
        let body = cursor.bytes(Inode::body_len(&header)?)?;
        Ok((Inode::parse(&header, &body)?, cursor))
    }

    /// A symlink's target.
    pub(super) fn target(&self, reference: Reference) -> Result<Vec<u8>> {
        let (inode, mut cursor) = self.inode(reference)?;
        match inode.body {
            Body::Symlink(len) if len <= LONGEST_TARGET => cursor.bytes(len as usize),
            Body::Symlink(len) => Err(corrupt(format!("a symlink's target of {len} bytes"))),
            Body::Directory(_) | Body::File(_) | Body::Device(..) | Body::Other(_) => {
                Err(Error::new(ErrorKind::NotFound, "it is no symlink"))
            }
        }
    }

    /// Checks that the inode `child`, found in `dir`, is what the listing says, and that a directory is found in one place alone.
    ///
    /// So directories form a tree whatever the image says: a loop would have to come back to one that has its place already.
    pub(super) fn adopt(&self, dir: Reference, child: Reference, listed: InodeType) -> Result<()> {
        let header: [u8; INODE_HEADER] = self.inode_cursor(child).array()?;
        if Inode::kind_of(&header)? != listed {
            return Err(corrupt("an inode is of another type than its directory says"));
        }
        if listed != InodeType::Directory {
            return Ok(());
        }
        if child == self.root() {
            return Err(corrupt("the top directory is listed inside the tree"));
        }
        // Whatever panicked while holding it, the table is whole: entries are only inserted.
        let mut parents = self.parents.lock().unwrap_or_else(PoisonError::into_inner);
        if parents.len() >= MOST_DIRECTORIES && !parents.contains_key(&child) {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("the image has more than {MOST_DIRECTORIES} directories"),
            ));
        }
        match parents.entry(child) {
            Entry::Vacant(free) => {
                free.insert(dir);
                Ok(())
            }
            Entry::Occupied(known) if *known.get() == dir => Ok(()),
            Entry::Occupied(_) => Err(corrupt("a directory is listed in two places")),
        }
    }
}
