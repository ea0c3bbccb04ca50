//! Extended attributes.

use super::corrupt;
use super::image::Image;
use super::metadata::Cursor;
use crate::base::Result;
use crate::format::squashfs::{Body, NO_XATTRS, Reference, XATTR_ID, XATTR_TABLE, XattrId, xattr_prefix};
use crate::format::tar::Xattr;

/// Longest value that the system takes, in bytes.
const LONGEST_VALUE: u32 = 64 << 10;
/// Most bytes of all attributes of one inode together.
const MOST_BYTES: usize = 4 << 20;

impl Image {
    /// The attributes of an inode.
    pub(super) fn xattrs(&self, reference: Reference) -> Result<Vec<Xattr>> {
        let (inode, mut cursor) = self.inode(reference)?;
        let set = match (inode.xattrs, inode.body) {
            (Some(set), _) => set,
            (None, Body::Symlink(len)) => {
                cursor.skip(len.into())?;
                u32::from_le_bytes(cursor.array()?)
            }
            (None, _) => NO_XATTRS,
        };
        if set == NO_XATTRS {
            return Ok(Vec::new());
        }
        let Some((at, table)) = self.xattr_table().filter(|(_, table)| set < table.sets) else {
            return Err(corrupt(format!("there is no set {set} of extended attributes")));
        };
        let id = XattrId::parse(&self.table_entry::<XATTR_ID>(at.saturating_add(XATTR_TABLE as u64), set)?);
        let mut cursor = self.xattr_cursor(table.start, id.first);
        let mut xattrs = Vec::new();
        let mut bytes = 0_usize;
        for _ in 0..id.count {
            let [a, b, c, d] = cursor.array()?;
            let (kind, len) = (u16::from_le_bytes([a, b]), usize::from(u16::from_le_bytes([c, d])));
            let name = cursor.bytes(len)?;
            let prefix = xattr_prefix(kind);
            let mut value = value(&mut cursor)?;
            if let (Some((_, true)), Ok(place)) = (prefix, <[u8; 8]>::try_from(value.as_slice())) {
                let mut elsewhere = self.xattr_cursor(table.start, Reference(u64::from_le_bytes(place)));
                value = self::value(&mut elsewhere)?;
            }
            bytes = bytes.saturating_add(len).saturating_add(value.len()).saturating_add(1);
            if bytes > MOST_BYTES {
                return Err(corrupt(format!("more than {MOST_BYTES} bytes of extended attributes")));
            }
            // One of a namespace that is not known cannot be named.
            if let Some((prefix, _)) = prefix {
                xattrs.push(([prefix, &name].concat(), value));
            }
        }
        Ok(xattrs)
    }

    fn xattr_cursor(&self, start: u64, reference: Reference) -> Cursor<'_> {
        let block = start.saturating_add(reference.block());
        Cursor::new(self, block, usize::from(reference.offset()), self.superblock().size)
    }
}

fn value(cursor: &mut Cursor<'_>) -> Result<Vec<u8>> {
    let len = u32::from_le_bytes(cursor.array()?);
    if len > LONGEST_VALUE {
        return Err(corrupt(format!("an extended attribute of {len} bytes")));
    }
    cursor.bytes(len as usize)
}
