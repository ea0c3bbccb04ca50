//! The write side of the seam: directories in which things are made, files that grow, and the lock that keeps writers apart.
//!
//! Every change is told to a [`Medium`] before it is made. The real one has nothing to say; those of tests stop the process,
//! fail, or take notes at any one of them. What is on the medium after a change, and only after it, is what
//! [`NewFile::sync`] and [`WriteDir::sync`] have returned for.

mod dir;
mod file;
mod lock;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::path::Path;

pub use dir::WriteDir;
pub use file::NewFile;
pub use lock::{Holder, WriterLock};

use crate::base::Result;

/// How the names of things that are not finished begin.
pub const PARTIAL: &str = ".partial-";

/// One change that is about to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// A directory is made.
    MakeDirectory,
    /// An empty file is made.
    MakeFile,
    /// Bytes are written into a file.
    Write {
        /// Where, from the file's start.
        at: u64,
        /// Which.
        bytes: &'a [u8],
    },
    /// A file's bytes and size are brought to the medium.
    SyncFile,
    /// A directory's names are brought to the medium.
    SyncDirectory,
    /// A name is changed to another one in the same directory.
    Rename {
        /// The new name.
        to: &'a str,
        /// Whether a file of that name may go.
        replace: bool,
    },
    /// A file or an empty directory is removed.
    Remove,
}

/// Hears of every change before it is made.
pub trait Medium: Send + Sync + Debug {
    /// `change` is about to be made to `path`. An error is passed on to whoever wants the change, which is then not made.
    fn before(&self, path: &Path, change: Change<'_>) -> Result<()>;
}

/// The medium as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Direct;

impl Medium for Direct {
    fn before(&self, _: &Path, _: Change<'_>) -> Result<()> {
        Ok(())
    }
}
