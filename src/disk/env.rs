//! What all disks of a process share: the caches, and the layers that are open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use super::count::Books;
use super::layer::{Layer, Node, NodeId};
use super::map::RegionMap;
use crate::base::Result;
use crate::format::ImageFormat;
use crate::storage::{BlockCache, CacheStats, DerivedDir, FileNumber, LastingIdentity};

/// Names the map of one region of the disk that `node` and the layers below it make up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct MapKey {
    pub(super) node: NodeId,
    pub(super) region_bits: u32,
    pub(super) region: u64,
}

/// The same image file above the same layers is the same node, whoever opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct NodeKey {
    file: LastingIdentity,
    format: ImageFormat,
    below: Option<NodeId>,
}

/// Caches and open layers shared by every disk of a process.
pub struct DiskEnv {
    blocks: Arc<BlockCache>,
    maps: Cache<MapKey, Arc<RegionMap>, ByMemory>,
    nodes: Mutex<Nodes>,
    books: Books,
}

#[derive(Default)]
struct Nodes {
    open: HashMap<NodeKey, Weak<Node>>,
    /// Forget closed nodes when the table has grown to this.
    sweep_at: usize,
}

#[derive(Clone)]
struct ByMemory;

impl Weighter<MapKey, Arc<RegionMap>> for ByMemory {
    fn weight(&self, _: &MapKey, map: &Arc<RegionMap>) -> u64 {
        map.memory()
    }
}

/// Of the cache's bytes, one in this many goes to maps, the rest to decoded clusters.
const MAPS_SHARE: u64 = 4;
/// Maps smaller than this in sum would be built over and over.
const MIN_MAPS: u64 = 8 << 20;
const MIN_BLOCKS: u64 = 8 << 20;

impl DiskEnv {
    /// Caches of together `cache_size` bytes, but never less than 16 MiB.
    #[must_use]
    pub fn new(cache_size: u64) -> Arc<Self> {
        Self::keeping(cache_size, None)
    }

    /// The same; what takes long to find out about disks is kept in `derived` for the next process.
    #[must_use]
    pub fn keeping(cache_size: u64, derived: Option<Arc<DerivedDir>>) -> Arc<Self> {
        let maps = (cache_size / MAPS_SHARE).max(MIN_MAPS);
        let blocks = cache_size.saturating_sub(maps).max(MIN_BLOCKS);
        let options = OptionsBuilder::new()
            .weight_capacity(maps)
            .estimated_items_capacity(256)
            // Few shards: a shard must have room for the largest map.
            .shards(2)
            .build();
        let maps = match options {
            Ok(options) => {
                Cache::with_options(options, ByMemory, DefaultHashBuilder::default(), DefaultLifecycle::default())
            }
            Err(_) => Cache::with_weighter(256, maps, ByMemory),
        };
        Arc::new(Self {
            blocks: Arc::new(BlockCache::new(blocks)),
            maps,
            nodes: Mutex::default(),
            books: Books::new(derived),
        })
    }

    /// What the cache of decoded clusters has done so far.
    #[must_use]
    pub fn cache_stats(&self) -> CacheStats {
        self.blocks.stats()
    }

    /// The cache of decoded blocks, for whatever else of the process decodes some.
    #[must_use]
    pub fn block_cache(&self) -> &Arc<BlockCache> {
        &self.blocks
    }

    /// Bytes that maps take up now.
    #[must_use]
    pub fn map_bytes(&self) -> u64 {
        self.maps.weight()
    }

    pub(super) fn books(&self) -> &Books {
        &self.books
    }

    pub(super) fn blocks(&self) -> &BlockCache {
        &self.blocks
    }

    /// The map `key`, built where it is not held; built once, however many ask at the same time.
    pub(super) fn map(&self, key: MapKey, build: impl FnOnce() -> Result<RegionMap>) -> Result<Arc<RegionMap>> {
        self.maps.get_or_insert_with(&key, || build().map(Arc::new))
    }

    /// The map `key` if it is held.
    pub(super) fn held_map(&self, key: MapKey) -> Option<Arc<RegionMap>> {
        self.maps.get(&key)
    }

    /// The node of `layer` above `below`: the one that is open already, or a new one.
    pub(super) fn node(&self, layer: Layer, below: Option<NodeId>) -> Arc<Node> {
        let key = NodeKey { file: layer.lasting_identity(), format: layer.format(), below };
        // Whatever panicked while holding it, the table is whole: entries are only inserted and dropped.
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = nodes.open.get(&key).and_then(Weak::upgrade) {
            return node;
        }
        let node = Arc::new(Node { id: NodeId(FileNumber::next()), layer });
        nodes.open.insert(key, Arc::downgrade(&node));
        if nodes.open.len() > nodes.sweep_at {
            nodes.open.retain(|_, node| node.strong_count() > 0);
            nodes.sweep_at = nodes.open.len() * 2 + 64;
        }
        node
    }
}

impl std::fmt::Debug for DiskEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskEnv").field("blocks", &self.blocks).field("map_bytes", &self.map_bytes()).finish()
    }
}
