//! The index of a tar archive: its tree, compact, in a form that is read in pages.
//!
//! [`Builder`] takes members in the archive's order; [`Index`] answers what is where. Between the two stands a sequence of
//! bytes, in a file of the cache directory or in memory:
//!
//! | section | an entry of it | bytes |
//! | --- | --- | --- |
//! | nodes | attributes, where the data is or where a directory's names are | 48 |
//! | names | name's place and length, node; a directory's stand together, sorted | 12 |
//! | text | the names | their length |
//! | extra | link target, xattrs, times other than the last change, number and place of extents | as long as they are, and a few |
//! | extents | of a file with holes: offset, length, where it is stored | 24 |
//! | report | what is missing or damaged, for people | |
//!
//! So a member takes 60 bytes and its name, and while the index is being built about 90 and its name. The numbers of nodes
//! follow the tree from the top, directory by directory: listing and `stat` of a directory touch neighbouring pages.
//!
//! All of it is little-endian and cut into pages of 16 KiB, each with a checksum of its own.

mod build;
mod image;
mod pages;
mod read;
mod record;

pub(super) use build::{Builder, Limits, Member, Skip};
pub(super) use read::{Index, Run};
