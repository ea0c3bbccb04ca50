//! Layer 3: container archives as trees. What an archive holds, found and read without unpacking it.
//!
//! [`Tree`] is what whoever shows an archive sees, whatever its format; [`open`] makes one. A tar archive is gone through
//! once for its index, which is kept in the cache directory.

mod decompress;
mod env;
mod glance;
mod index;
mod node;
mod squashfs;
mod tar;

pub use env::ArchiveEnv;
pub use glance::{Glance, glance};
pub use node::{Attributes, DirItem, Kind, NodeId, Position, Tree};

use std::sync::Arc;

use crate::base::Result;
use crate::storage::Storage;

/// The format of an archive, as its name in the store declares it. Formats are never probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ArchiveFormat {
    /// A tar archive, not compressed.
    Tar,
    /// A squashfs image.
    Squashfs,
}

impl ArchiveFormat {
    /// The format of an archive of that name: `archive.tar`.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        match name.rsplit_once('.')?.1 {
            "tar" => Some(Self::Tar),
            "sqfs" | "squashfs" => Some(Self::Squashfs),
            _ => None,
        }
    }

    /// `tar` or `squashfs`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tar => "tar",
            Self::Squashfs => "squashfs",
        }
    }
}

/// Opens the archive in `file` as a tree. `name` is what messages call it.
///
/// The first time this goes through the whole of a tar archive; of a squashfs image it reads the superblock and a few tables. An archive that is damaged or cut short opens with what is whole,
/// and [`Tree::broken`] says what is missing.
pub fn open(name: &str, file: Arc<dyn Storage>, format: ArchiveFormat, env: &Arc<ArchiveEnv>) -> Result<Arc<dyn Tree>> {
    match format {
        ArchiveFormat::Tar => Ok(Arc::new(tar::TarTree::open(name, file, env)?)),
        ArchiveFormat::Squashfs => Ok(Arc::new(squashfs::SquashTree::open(name, file, env)?)),
    }
}
