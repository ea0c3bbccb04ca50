//! The flat map of one region of a disk: which layer has which bytes where, with nothing left to look up.

use crate::base::{GuestOffset, GuestRange, HostOffset};
use crate::format::qcow2::CompressedCluster;

/// A layer's place in its chain; 0 is the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerIndex(pub u32);

/// Where the bytes of a piece come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Zeros, stored nowhere.
    Zero,
    /// The layer's file has them, in order, from this offset on.
    Data(LayerIndex, HostOffset),
    /// They are in this compressed cluster of the layer, at their offset within a cluster of that layer's size.
    Compressed(LayerIndex, CompressedCluster),
    /// The layer's table entry for them cannot be followed; reading them is an error.
    Bad(LayerIndex),
}

/// A range of the disk whose bytes come from one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Which bytes of the disk.
    pub range: GuestRange,
    /// Where they come from.
    pub source: Source,
}

/// What a layer says of a range that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Zero,
    Data(HostOffset),
    Compressed(CompressedCluster),
    Bad,
}

/// A piece in 16 bytes. It ends where the next one starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// Sectors of 512 bytes from the region's start. A region has at most 2^34 bytes.
    start: u32,
    /// Kind in the lowest two bits, layer above them.
    tag: u32,
    /// Host offset or packed compressed cluster.
    host: u64,
}

const SECTOR_BITS: u32 = 9;
const ZERO: u32 = 0;
const DATA: u32 = 1;
const COMPRESSED: u32 = 2;
const BAD: u32 = 3;

/// The map of one region: sorted runs that cover it without a gap.
#[derive(Debug)]
pub(super) struct RegionMap {
    range: GuestRange,
    runs: Box<[Run]>,
}

impl RegionMap {
    /// Bytes of memory it takes up.
    pub(super) fn memory(&self) -> u64 {
        (std::mem::size_of_val(&*self.runs) + 128) as u64
    }

    /// Whether all of it is zeros.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.iter().all(|run| run.tag & 3 == ZERO)
    }

    /// The pieces that make up `range` (cut to the region), in order.
    pub(super) fn pieces(&self, range: GuestRange) -> impl Iterator<Item = Piece> + '_ {
        let range = range.intersect(self.range);
        let relative = range.start().0 - self.range.start().0.min(range.start().0);
        let sector = u32::try_from(relative >> SECTOR_BITS).unwrap_or(u32::MAX);
        let first = self.runs.partition_point(|run| run.start <= sector).saturating_sub(1);
        (first..self.runs.len()).map(|i| self.piece(i)).take_while(move |p| p.range.start() < range.end()).filter_map(
            move |piece| {
                let cut = piece.range.intersect(range);
                (!cut.is_empty()).then(|| piece.cut(cut))
            },
        )
    }

    fn start_of(&self, index: usize) -> GuestOffset {
        match self.runs.get(index) {
            Some(run) => self.range.start().saturating_add(u64::from(run.start) << SECTOR_BITS),
            None => self.range.end(),
        }
    }

    fn piece(&self, index: usize) -> Piece {
        let run = self.runs[index];
        let layer = LayerIndex(run.tag >> 2);
        let source = match run.tag & 3 {
            ZERO => Source::Zero,
            DATA => Source::Data(layer, HostOffset(run.host)),
            COMPRESSED => Source::Compressed(layer, CompressedCluster::from_packed(run.host)),
            _ => Source::Bad(layer),
        };
        Piece { range: GuestRange::between(self.start_of(index), self.start_of(index + 1)), source }
    }
}

impl Piece {
    /// The part of the piece that lies in `cut`, which is within it.
    fn cut(self, cut: GuestRange) -> Self {
        let skipped = cut.start().0 - self.range.start().0;
        let source = match self.source {
            Source::Data(layer, at) => Source::Data(layer, at.saturating_add(skipped)),
            other => other,
        };
        Self { range: cut, source }
    }

    /// The same piece as seen from a chain with `above` more layers on top.
    fn below(self, above: u32) -> Self {
        let down = |layer: LayerIndex| LayerIndex(layer.0 + above);
        let source = match self.source {
            Source::Zero => Source::Zero,
            Source::Data(layer, at) => Source::Data(down(layer), at),
            Source::Compressed(layer, cluster) => Source::Compressed(down(layer), cluster),
            Source::Bad(layer) => Source::Bad(down(layer)),
        };
        Self { range: self.range, source }
    }

    /// Whether `next`, which follows it, is more of the same.
    fn continues(&self, next: &Self) -> bool {
        if self.range.end() != next.range.start() {
            return false;
        }
        match (self.source, next.source) {
            (Source::Zero, Source::Zero) => true,
            (Source::Data(a, at), Source::Data(b, then)) => a == b && at.checked_add(self.range.len()) == Some(then),
            (Source::Bad(a), Source::Bad(b)) => a == b,
            _ => false,
        }
    }
}

/// Takes what one layer after the other holds of a region, newest first, until nothing is open or no layer is left.
pub(super) struct Builder {
    range: GuestRange,
    /// What no layer has spoken for yet: sorted, disjoint, not touching.
    open: Vec<GuestRange>,
    pieces: Vec<Piece>,
}

/// What one layer says of the ranges that were open before it.
pub(super) struct Collector {
    layer: LayerIndex,
    pieces: Vec<Piece>,
}

impl Collector {
    pub(super) fn new(layer: LayerIndex) -> Self {
        Self { layer, pieces: Vec::new() }
    }

    /// What the layer holds, in order.
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The layer holds `range`; calls come in ascending order.
    pub(super) fn push(&mut self, range: GuestRange, found: Found) {
        let source = match found {
            Found::Zero => Source::Zero,
            Found::Data(at) => Source::Data(self.layer, at),
            Found::Compressed(cluster) => Source::Compressed(self.layer, cluster),
            Found::Bad => Source::Bad(self.layer),
        };
        self.add(Piece { range, source });
    }

    fn add(&mut self, piece: Piece) {
        if piece.range.is_empty() {
            return;
        }
        match self.pieces.last_mut() {
            Some(last) if last.continues(&piece) => {
                last.range = GuestRange::between(last.range.start(), piece.range.end());
            }
            _ => self.pieces.push(piece),
        }
    }
}

impl Builder {
    pub(super) fn new(range: GuestRange) -> Self {
        let open = if range.is_empty() { Vec::new() } else { vec![range] };
        Self { range, open, pieces: Vec::new() }
    }

    /// Whether every byte is spoken for.
    pub(super) fn is_done(&self) -> bool {
        self.open.is_empty()
    }

    /// Asks one layer, whose disk has `size` bytes, through `visit`; what lies beyond the size is zeros.
    pub(super) fn ask<E>(
        &mut self,
        layer: LayerIndex,
        size: u64,
        visit: impl FnOnce(&[GuestRange], &mut Collector) -> Result<(), E>,
    ) -> Result<(), E> {
        // A raw file may end inside a sector; the rest of that sector reads as zeros.
        let size = size.checked_next_multiple_of(1 << SECTOR_BITS).unwrap_or(size);
        let all = GuestRange::between(GuestOffset(0), GuestOffset(size));
        let within: Vec<GuestRange> =
            self.open.iter().map(|open| open.intersect(all)).filter(|open| !open.is_empty()).collect();
        let mut found = Collector::new(layer);
        if !within.is_empty() {
            visit(&within, &mut found)?;
        }
        for open in &self.open {
            let beyond = GuestRange::between(open.start().max(GuestOffset(size)), open.end());
            found.add(Piece { range: beyond, source: Source::Zero });
        }
        self.settle(found.pieces);
        Ok(())
    }

    /// Takes all that is still open from the map of the chain that starts at `layer`.
    pub(super) fn take_rest(&mut self, layer: LayerIndex, rest: &RegionMap) {
        let mut found = Collector::new(layer);
        for open in &self.open {
            for piece in rest.pieces(*open) {
                found.add(piece.below(layer.0));
            }
            let beyond = GuestRange::between(open.start().max(rest.range.end()), open.end());
            found.add(Piece { range: beyond, source: Source::Zero });
        }
        self.settle(found.pieces);
    }

    /// Closes what `found` covers. It is sorted and lies within the open ranges.
    fn settle(&mut self, found: Vec<Piece>) {
        let mut still_open = Vec::with_capacity(self.open.len());
        let mut next = found.iter().peekable();
        for open in &self.open {
            let mut at = open.start();
            while let Some(piece) = next.next_if(|piece| piece.range.start() < open.end()) {
                if at < piece.range.start() {
                    still_open.push(GuestRange::between(at, piece.range.start()));
                }
                at = piece.range.end();
            }
            if at < open.end() {
                still_open.push(GuestRange::between(at, open.end()));
            }
        }
        self.open = still_open;
        self.pieces.extend(found);
    }

    /// The map; what no layer holds is zeros.
    pub(super) fn finish(mut self) -> RegionMap {
        self.pieces.extend(self.open.iter().map(|open| Piece { range: *open, source: Source::Zero }));
        self.pieces.sort_unstable_by_key(|piece| piece.range.start());
        let mut merged = Collector { layer: LayerIndex(0), pieces: Vec::with_capacity(self.pieces.len()) };
        for piece in self.pieces {
            merged.add(piece);
        }
        let runs = merged.pieces.iter().map(|piece| pack(piece, self.range.start())).collect();
        RegionMap { range: self.range, runs }
    }
}

fn pack(piece: &Piece, base: GuestOffset) -> Run {
    let (kind, layer, host) = match piece.source {
        Source::Zero => (ZERO, LayerIndex(0), 0),
        Source::Data(layer, at) => (DATA, layer, at.0),
        Source::Compressed(layer, cluster) => (COMPRESSED, layer, cluster.packed()),
        Source::Bad(layer) => (BAD, layer, 0),
    };
    // Regions are at most 2^34 bytes, so the sector fits; see `flat::region_bits`.
    let start = u32::try_from((piece.range.start().0 - base.0) >> SECTOR_BITS).unwrap_or(u32::MAX);
    Run { start, tag: kind | (layer.0 << 2), host }
}
