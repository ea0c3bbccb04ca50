//! The flattened disk: every question about where bytes are, answered from maps of its regions.

use std::sync::{Arc, OnceLock};

use super::chain;
use super::count::count;
use super::env::{DiskEnv, MapKey};
use super::layer::{LayerInfo, Node};
use super::map::{Builder, LayerIndex, Piece, RegionMap, Source};
use crate::base::{Error, GuestOffset, GuestRange, Result};
use crate::format::ImageFormat;
use crate::storage::{LayerSource, RelPath};

/// The view of one chain as a plain disk.
///
/// It is immutable and shared: layers stay open while it lives, maps are built when a range is first asked for.
pub struct Disk {
    pub(super) env: Arc<DiskEnv>,
    pub(super) nodes: Box<[Arc<Node>]>,
    size: u64,
    pub(super) region_bits: u32,
    allocated: OnceLock<u64>,
}

/// A range of a disk that cannot be read, and why.
#[derive(Debug)]
pub struct Fault {
    /// Which bytes of the disk.
    pub range: GuestRange,
    /// The layer whose entry is bad, and what is wrong with it.
    pub error: Error,
}

/// Log2 of the bytes of disk that one map describes.
///
/// One L2 table's worth for the usual 64 KiB clusters (512 MiB), so that building a map reads each table once. In a chain
/// of mixed cluster sizes the smallest one bounds how many runs a map can have.
fn region_bits(nodes: &[Arc<Node>]) -> u32 {
    const CLUSTERS_BITS: u32 = 13;
    const MOST_UNITS_BITS: u32 = 18;
    let granularity = nodes.iter().map(|node| node.layer.granularity());
    let (smallest_unit, _) = granularity.clone().min().unwrap_or((16, 16));
    let cluster = granularity.map(|(_, cluster)| cluster).next().unwrap_or(16);
    (cluster + CLUSTERS_BITS).clamp(smallest_unit + CLUSTERS_BITS, smallest_unit + MOST_UNITS_BITS)
}

impl Disk {
    /// Opens `head`, an image of `format`, and every layer below it; reads headers only.
    ///
    /// Errors: `NotFound` where there is no head, `MissingLayer` where one below it is missing, `Corrupt`, `Unsupported` and
    /// `Refused` with the layer and the reason.
    pub fn open(source: &dyn LayerSource, head: &RelPath, format: ImageFormat, env: &Arc<DiskEnv>) -> Result<Self> {
        Self::open_expecting(source, head, format, &[], env)
    }

    /// The same, where the chain will probably lead through `expected`, newest first: those are opened side by side, some
    /// way ahead. What they are makes no difference but for the time that it takes.
    pub fn open_expecting(
        source: &dyn LayerSource,
        head: &RelPath,
        format: ImageFormat,
        expected: &[RelPath],
        env: &Arc<DiskEnv>,
    ) -> Result<Self> {
        let nodes = chain::open(source, head, format, expected, env)?;
        let size = nodes.first().map_or(0, |node| node.layer.size());
        let region_bits = region_bits(&nodes);
        Ok(Self { env: env.clone(), nodes, size, region_bits, allocated: OnceLock::new() })
    }

    /// The virtual size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The chain, newest layer first.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = LayerInfo> + '_ {
        self.nodes.iter().map(|node| node.layer.info())
    }

    /// The path of a layer, for messages.
    #[must_use]
    pub fn layer_path(&self, layer: LayerIndex) -> Option<&RelPath> {
        self.nodes.get(layer.0 as usize).map(|node| node.layer.path())
    }

    fn whole(&self) -> GuestRange {
        GuestRange::between(GuestOffset(0), GuestOffset(self.size))
    }

    fn region_of(&self, at: GuestOffset) -> u64 {
        at.0 >> self.region_bits
    }

    fn region_range(&self, region: u64) -> GuestRange {
        let start = GuestOffset(region << self.region_bits);
        GuestRange::between(start, start.saturating_add(1 << self.region_bits)).intersect(self.whole())
    }

    fn key(&self, node: usize, region: u64) -> MapKey {
        MapKey { node: self.nodes[node].id, region_bits: self.region_bits, region }
    }

    /// The map of the region that holds `at`.
    pub(super) fn region(&self, at: GuestOffset) -> Result<Arc<RegionMap>> {
        let region = self.region_of(at);
        self.env.map(self.key(0, region), || self.build(region))
    }

    /// Lays the layers over each other, newest first, down to the first whose own map is held already.
    fn build(&self, region: u64) -> Result<RegionMap> {
        let range = self.region_range(region);
        let held = (1..self.nodes.len()).find_map(|n| Some((n, self.env.held_map(self.key(n, region))?)));
        let depth = held.as_ref().map_or(self.nodes.len(), |(n, _)| *n);
        if depth > 1 {
            self.nodes[..depth].iter().for_each(|node| node.layer.will_visit(range));
        }
        let mut builder = Builder::new(range);
        for (node, index) in self.nodes[..depth].iter().zip(0..) {
            if builder.is_done() {
                break;
            }
            builder.ask(LayerIndex(index), node.layer.size(), |open, found| node.layer.visit(open, found))?;
        }
        if let Some((n, rest)) = held {
            builder.take_rest(LayerIndex(u32::try_from(n).unwrap_or(u32::MAX)), &rest);
        }
        Ok(builder.finish())
    }

    /// The pieces that make up `range` (cut to the disk), in order and without a gap.
    pub fn map(&self, range: GuestRange) -> Result<Vec<Piece>> {
        let range = range.intersect(self.whole());
        let mut pieces = Vec::new();
        let mut at = range.start();
        while at < range.end() {
            pieces.extend(self.region(at)?.pieces(GuestRange::between(at, range.end())));
            at = self.region_range(self.region_of(at)).end();
        }
        Ok(pieces)
    }

    /// The first byte at or after `at` that is not in a hole; `None` when only holes follow.
    ///
    /// A hole is what no layer stores. Bytes that cannot be read are not in a hole.
    pub fn next_data(&self, at: GuestOffset) -> Result<Option<GuestOffset>> {
        let mut at = at;
        while at.0 < self.size {
            let map = self.region(at)?;
            let region = self.region_range(self.region_of(at));
            let data = map.pieces(GuestRange::between(at, region.end())).find(|piece| piece.source != Source::Zero);
            if let Some(piece) = data {
                return Ok(Some(piece.range.start()));
            }
            match self.next_region(&map, region.end())? {
                Some(next) => at = next,
                None => break,
            }
        }
        Ok(None)
    }

    /// The first byte at or after `at` that is in a hole, or the size of the disk.
    pub fn next_hole(&self, at: GuestOffset) -> Result<GuestOffset> {
        let mut at = at;
        while at.0 < self.size {
            let region = self.region_range(self.region_of(at));
            let map = self.region(at)?;
            let hole = map.pieces(GuestRange::between(at, region.end())).find(|piece| piece.source == Source::Zero);
            if let Some(piece) = hole {
                return Ok(piece.range.start());
            }
            self.check_scan(region.end())?;
            at = region.end();
        }
        Ok(GuestOffset(self.size))
    }

    /// How many bytes of `range` are not in holes. What is found out for the whole disk is kept.
    pub fn allocated(&self, range: GuestRange) -> Result<u64> {
        let range = range.intersect(self.whole());
        if range == self.whole()
            && let Some(known) = self.allocated.get()
        {
            return Ok(*known);
        }
        let mut sum = match count(self, range) {
            Some(sum) => sum,
            None => self.mapped(range)?,
        };
        if range == self.whole() {
            sum = *self.allocated.get_or_init(|| sum);
        }
        Ok(sum)
    }

    /// The same by the maps alone.
    pub(super) fn mapped(&self, range: GuestRange) -> Result<u64> {
        let mut sum = 0;
        self.scan(range, |piece| sum += piece.range.len())?;
        Ok(sum)
    }

    /// Every range that cannot be read because a layer's entry for it is bad; looks at the whole map, not at the data.
    pub fn faults(&self) -> Result<Vec<Fault>> {
        /// One cut in a table can make as many faults as the disk has clusters.
        const MOST: usize = 1000;
        let mut faults = Vec::new();
        self.scan(self.whole(), |piece| {
            if let Source::Bad(layer) = piece.source
                && faults.len() < MOST
            {
                let error = self.nodes[layer.0 as usize].layer.diagnose(piece.range.start());
                faults.push(Fault { range: piece.range, error });
            }
        })?;
        Ok(faults)
    }

    /// Calls `each` with every piece of `range` that is not a hole.
    fn scan(&self, range: GuestRange, mut each: impl FnMut(Piece)) -> Result<()> {
        let mut at = range.start();
        while at < range.end() {
            let map = self.region(at)?;
            let region = self.region_range(self.region_of(at));
            let pieces = map.pieces(GuestRange::between(at, range.end()));
            pieces.filter(|piece| piece.source != Source::Zero).for_each(&mut each);
            match self.next_region(&map, region.end())? {
                Some(next) => at = next,
                None => break,
            }
        }
        Ok(())
    }

    /// Refuses to go on with a scan at `next` where a layer's tables are shared: nothing else bounds its length.
    fn check_scan(&self, next: GuestOffset) -> Result<()> {
        if next.0 >= self.size {
            return Ok(());
        }
        self.nodes.iter().try_for_each(|node| node.layer.check_scan())
    }

    /// Where to look on after a region: right behind it, or, when it was empty, where some layer next has anything.
    fn next_region(&self, map: &RegionMap, end: GuestOffset) -> Result<Option<GuestOffset>> {
        if !map.is_empty() {
            self.check_scan(end)?;
            return Ok(Some(end));
        }
        let mut next: Option<GuestOffset> = None;
        for node in &self.nodes {
            if let Some(at) = node.layer.next_allocated(end)? {
                next = Some(next.map_or(at, |found| found.min(at)));
            }
        }
        Ok(next)
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let head = self.nodes.first().map(|node| node.layer.path().as_str());
        f.debug_struct("Disk").field("head", &head).field("depth", &self.nodes.len()).field("size", &self.size).finish()
    }
}
