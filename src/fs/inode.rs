//! Inode numbers: derived from what a thing is called, so that every mount of a store numbers it alike.

use std::fmt;

use super::nodes::What;

/// The number of a file or directory in the mount: 63 bits, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inode(u64);

impl Inode {
    /// The mount's own directory, whose number the kernel sets.
    pub const ROOT: Self = Self(1);

    /// The number as the kernel sent it.
    #[must_use]
    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The number as the kernel takes it.
    #[must_use]
    pub fn raw(self) -> u64 {
        self.0
    }

    /// The number that `what` in the directory `parent` gets at the given attempt; the first is taken unless another
    /// thing has it already.
    pub(super) fn derive(parent: Self, what: &What, attempt: u8) -> Self {
        let mut hash = Hash::new();
        hash.add(&parent.0.to_le_bytes());
        what.identify(|bytes| hash.add(bytes));
        hash.add(&[attempt]);
        let number = hash.finish() >> 1;
        // 0 means "none" to the kernel and 1 is the root.
        Self(number.max(2))
    }
}

impl fmt::Display for Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// FNV-1a of 64 bits with a final mix. Not the standard library's hasher: its result may differ from one release to
/// the next, and inode numbers may not. Nothing here depends on it being hard to find two names of one number.
#[derive(Debug, Clone)]
pub(super) struct Hash(u64);

impl Hash {
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// FNV alone leaves the high bits of short inputs alike; two rounds of multiply and shift spread them.
    pub(super) fn finish(&self) -> u64 {
        let mut h = self.0;
        h = (h ^ (h >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        h = (h ^ (h >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        h ^ (h >> 32)
    }
}
