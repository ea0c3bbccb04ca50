//! What all archives of a process share.

use std::sync::Arc;

use crate::storage::{BlockCache, DerivedDir};

/// The block cache, and where indexes are kept between runs.
#[derive(Debug)]
pub struct ArchiveEnv {
    blocks: Arc<BlockCache>,
    derived: Option<Arc<DerivedDir>>,
}

impl ArchiveEnv {
    /// An environment that decodes into `blocks`. Without a directory for `derived` data, indexes are held in memory for as long as
    /// their archive is open.
    #[must_use]
    pub fn new(blocks: Arc<BlockCache>, derived: Option<Arc<DerivedDir>>) -> Arc<Self> {
        Arc::new(Self { blocks, derived })
    }

    pub(super) fn blocks(&self) -> &Arc<BlockCache> {
        &self.blocks
    }

    pub(super) fn derived(&self) -> Option<&DerivedDir> {
        self.derived.as_deref()
    }
}
