//! Layer 5: the mounted tree without FUSE: inodes, names, attributes, handles, reads, and the noticing of changes.
//!
//! [`Tree`] has one method for each thing that a reader can ask; the layer above only translates. Nothing here knows
//! how requests arrive, and nothing here knows a format.

mod attr;
mod dir;
mod faults;
mod file;
mod handles;
mod inode;
mod members;
mod nodes;
mod readahead;
mod resolve;
mod status;
#[cfg(test)]
mod tests;
mod tree;
mod view;
mod waiting;

pub use attr::{Attributes, Entry, FileKind, Ownership};
pub use file::{Holes, Whence};
pub use inode::Inode;
pub use tree::{DirEntry, Opened, Tree};

/// Where the mount tells about itself, as JSON: from the root.
pub const STATUS_PATH: &str = ".annals/status.json";
/// The directory of what the mount says about itself.
const CONTROL_NAME: &str = ".annals";
/// The file in it.
const STATUS_NAME: &str = "status.json";
/// The symlink to a guest's newest backup.
const LATEST_NAME: &str = "latest";

/// The number of something open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);
