//! The block cache: decoded blocks, bounded in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::base::{HostOffset, Result};

/// The number of a layer or archive that a process has open, never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileNumber(u64);

impl FileNumber {
    /// One that nobody has yet.
    #[must_use]
    pub fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Names one decoded block: the file it comes from and where its encoded form starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// Whose it is.
    pub file: FileNumber,
    /// Where the block's stored form starts.
    pub at: HostOffset,
}

/// Decoded blocks shared by all readers; a miss is decoded once, however many wait for it.
#[derive(Debug)]
pub struct BlockCache {
    blocks: Cache<BlockKey, Arc<[u8]>, ByLength>,
    capacity: u64,
}

/// What the cache has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct CacheStats {
    /// Look-ups answered from memory.
    pub hits: u64,
    /// Look-ups that had to decode.
    pub misses: u64,
    /// Bytes held now.
    pub bytes: u64,
    /// Bytes that may be held.
    pub capacity: u64,
}

#[derive(Debug, Clone)]
struct ByLength;

/// What an entry costs besides its bytes: key, pointers, bookkeeping.
const ENTRY_OVERHEAD: u64 = 96;

impl Weighter<BlockKey, Arc<[u8]>> for ByLength {
    fn weight(&self, _: &BlockKey, block: &Arc<[u8]>) -> u64 {
        block.len() as u64 + ENTRY_OVERHEAD
    }
}

impl BlockCache {
    /// A cache of at most `capacity` bytes.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        const TYPICAL_BLOCK: u64 = 64 * 1024;
        let items = crate::base::units::to_usize(capacity / TYPICAL_BLOCK).max(16);
        Self { blocks: Cache::with_weighter(items, capacity, ByLength), capacity }
    }

    /// The block `key`, decoded by `load` where it is not held.
    pub fn get_or_load(&self, key: BlockKey, load: impl FnOnce() -> Result<Arc<[u8]>>) -> Result<Arc<[u8]>> {
        self.blocks.get_or_insert_with(&key, load)
    }

    /// Whether the block is held now.
    #[must_use]
    pub fn holds(&self, key: &BlockKey) -> bool {
        self.blocks.contains_key(key)
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            hits: self.blocks.hits(),
            misses: self.blocks.misses(),
            bytes: self.blocks.weight(),
            capacity: self.capacity,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Error, ErrorKind};

    fn keys() -> impl Fn(u64) -> BlockKey {
        let file = FileNumber::next();
        move |at| BlockKey { file, at: HostOffset(at) }
    }

    #[test]
    fn it_never_holds_more_than_its_capacity() {
        let (cache, key) = (BlockCache::new(1 << 20), keys());
        for i in 0..200 {
            let block = cache.get_or_load(key(i), || Ok(vec![i as u8; 64 << 10].into())).unwrap();
            assert_eq!(block[0], i as u8);
            assert!(cache.stats().bytes <= 1 << 20);
        }
        assert!(cache.stats().bytes > 0);
    }

    #[test]
    fn a_failure_is_not_remembered() {
        let (cache, key) = (BlockCache::new(1 << 20), keys());
        let failed = cache.get_or_load(key(7), || Err(Error::new(ErrorKind::Corrupt, "bad")));
        assert!(failed.is_err());
        assert_eq!(cache.get_or_load(key(7), || Ok(vec![9].into())).unwrap()[0], 9);
    }
}
