//! Squashfs 4.0: superblock, inodes, directory listings, tables.
//!
//! After the kernel's `Documentation/filesystems/squashfs.rst` and `fs/squashfs/squashfs_fs.h`. All numbers are little-endian.

mod inode;
mod superblock;
mod tables;
#[cfg(test)]
mod tests;

pub use inode::{Body, Directory, File, INODE_HEADER, Inode, InodeType, NO_FRAGMENT, NO_XATTRS};
pub use superblock::{Compression, METADATA, SUPERBLOCK, Superblock};
pub use tables::{
    BlockSize, DIRECTORY_INDEX, DIRECTORY_RUN, FRAGMENT, Fragment, LISTED, Listed, Reference, Run, XATTR_ID,
    XATTR_TABLE, XattrId, XattrTable, metadata_header, xattr_prefix,
};
