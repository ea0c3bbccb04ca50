//! Layer 1: the one seam to the operating system's files.
//!
//! [`Storage`] is what readers of formats see: positioned reads of one file. [`Gate`] decides which
//! names may be opened at all, [`FilePool`] keeps the number of open descriptors within a budget,
//! [`BlockCache`] keeps what was expensive to decode. Nothing here knows a format.

mod cache;
mod derived;
mod gate;
pub mod memory;
mod outside;
mod path;
mod pool;
pub mod publish;
pub mod write;

pub use cache::{BlockCache, BlockKey, CacheStats, FileNumber};
pub use derived::{DerivedDir, derived_name};
pub use gate::{DirEntry, DirStamp, EntryKind, FileStat, Gate, Space};
pub use outside::{Glimpse, OutsideDisk, find_program, glimpse, outside_directory, program_path, read_outside};
pub use path::RelPath;
pub use pool::{FilePool, StoreFile};

use crate::base::{Error, ErrorKind, HostOffset, Result, Timestamp};

/// Opens a file for reading past the page cache, to open(2) and to FUSE: another number on other processors.
pub const O_DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits().cast_signed();

/// File systems note times no coarser than this; a change within one tick may leave a time as it is.
const SLOWEST_TICK_NS: i128 = 2_000_000_000;

/// What tells one file, and one state of it, from another: if any of it differs, cached facts do not apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Device number.
    pub device: u64,
    /// Inode number on that device.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
    /// Last change of the content, in nanoseconds since the epoch.
    pub mtime_ns: i128,
}

impl FileIdentity {
    /// The second of the last change of the content.
    #[must_use]
    pub fn modified(&self) -> Timestamp {
        Timestamp::nearest(self.mtime_ns.div_euclid(1_000_000_000))
    }
}

/// What facts are tied to that outlive the process that found them.
///
/// Content that was changed and given its old time again, as `cp --preserve` and `rsync --times` do where they repair a file, has the
/// same [`FileIdentity`] and another one of these. So has a file that was only renamed or linked: then the facts are found anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LastingIdentity {
    /// Which file, which state.
    pub identity: FileIdentity,
    /// Last change of anything about the file, in nanoseconds since the epoch. Nobody can set it.
    pub ctime_ns: i128,
}

impl LastingIdentity {
    /// Whether a change made after `now_ns`, when this was taken, certainly shows in it.
    #[must_use]
    pub fn is_settled(&self, now_ns: i128) -> bool {
        self.ctime_ns.max(self.identity.mtime_ns).saturating_add(SLOWEST_TICK_NS) < now_ns
    }
}

/// Positioned reads of one file that does not change.
pub trait Storage: Send + Sync {
    /// Its size in bytes when it was opened.
    fn size(&self) -> u64;

    /// Reads into `buf` from byte `at`; short only at the end of the file. Returns the bytes read.
    fn read_at(&self, buf: &mut [u8], at: HostOffset) -> Result<usize>;

    /// The first byte at or after `at` that is not in a hole, or `None` when only holes follow.
    fn next_data(&self, at: HostOffset) -> Result<Option<HostOffset>>;

    /// The first byte at or after `at` that is in a hole, at most the size.
    fn next_hole(&self, at: HostOffset) -> Result<HostOffset>;

    /// A hint that these bytes will be read soon. Never fails, never waits for them.
    fn will_need(&self, at: HostOffset, len: u64);

    /// Which file this is, as it was when opened.
    fn identity(&self) -> FileIdentity;

    /// The same for what is kept beyond this process.
    fn lasting_identity(&self) -> LastingIdentity {
        LastingIdentity { identity: self.identity(), ctime_ns: 0 }
    }

    /// Whether a later content of the file certainly has another [lasting identity](Self::lasting_identity), so that what is
    /// found out now may be kept under this one.
    fn is_settled(&self) -> bool {
        false
    }

    /// Reads all of `buf` from byte `at`; an end of file before that is an error of kind `Changed`,
    /// because callers ask only for what lies within [`size`](Self::size).
    fn read_exact_at(&self, buf: &mut [u8], at: HostOffset) -> Result<()> {
        let got = self.read_at(buf, at)?;
        if got == buf.len() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Changed,
            format!(
                "the file ends {} bytes into a read of {} at {at}: it was cut short after it was opened",
                got,
                buf.len()
            ),
        ))
    }
}

/// Opens the files that a chain is made of, and says which names may be opened.
///
/// [`Gate`] is the real one; tests have one in memory.
pub trait LayerSource: Send + Sync {
    /// Opens a regular file beneath the source's root.
    fn open(&self, path: &RelPath) -> Result<std::sync::Arc<dyn Storage>>;

    /// The path that a backing name found in the image `from` stands for, or why it may not be opened.
    fn resolve(&self, from: &RelPath, backing: &[u8]) -> Result<RelPath>;
}
