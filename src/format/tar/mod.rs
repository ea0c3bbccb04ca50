//! Tar archives: ustar, GNU and PAX headers, their extended records, sparse maps and ACLs.
//!
//! After POSIX.1-2017 (`pax`, "ustar Interchange Format" and "pax Interchange Format"), and the manual of GNU tar (chapters
//! "Basic Tar Format", "GNU Extensions to the Archive Format" and "Storing Sparse Files") for what POSIX leaves out.

mod acl;
mod header;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

pub use acl::{acl_permissions, acl_to_text, acl_to_xattr};
pub use header::{BLOCK, Dialect, Header, TypeFlag, padded};
pub use pax::{Fields, GlobalFields, Xattr, as_tar2sqfs_takes_them, with_numbers_in_acls};
pub use sparse::{Extent, MapReader, OLD_EXTENTS_IN_BLOCK, OLD_EXTENTS_IN_HEADER, SparseMap, old_extents};
