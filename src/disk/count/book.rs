//! What has been counted of the chains that lie on one image, and its kept form.
//!
//! A book holds a level for every image that was the newest of a chain that was counted, or lies beneath such a one. A level is
//! named by a hash of the identities of all images from the lowest up to it, so that it stands for that chain and no other.
//!
//! | of a level | bytes |
//! | --- | --- |
//! | its hash | 32 |
//! | how many bytes of the disk are data | 8 |
//! | 0; or 1: its data follows; or 2: what in it differs from the level of the hash that follows (32 bytes) | 1 |
//! | unless 0: log2 of the unit (1), number of bytes (4), the packed ranges | |
//!
//! Before the levels stand 16 bytes that name the format, its version (4), the number of levels (4) and the hash of the lowest
//! image, behind them the BLAKE3 of all that. Numbers are little-endian. An overwritten cluster was data before, so most levels differ little from the one below.

use std::collections::HashMap;

use super::spans::Spans;
use crate::base::units::to_usize;

/// Names one image above those that lie beneath it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ChainId(pub(super) [u8; ID]);

const ID: usize = 32;

/// One counted level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Level {
    /// Bytes of the whole disk that are data.
    pub(super) total: u64,
    /// Which bytes these are, while there is room for it.
    pub(super) data: Option<Data>,
}

/// Which bytes are data at a level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Data {
    /// The level that `spans` tell the differences from; without one they are the data themselves.
    pub(super) against: Option<ChainId>,
    pub(super) spans: Spans,
}

/// The levels of all chains on one image.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Book {
    lowest: ChainId,
    levels: HashMap<ChainId, Level>,
}

/// Changes whenever the layout or the meaning of a book does.
const VERSION: u32 = 1;
const MAGIC: &[u8; 16] = b"annals data book";
const HEAD: usize = MAGIC.len() + 8 + ID;
/// Most bytes that a book may take. It is given up piece by piece what takes more: see [`Book::shrink`].
pub(super) const LIMIT: usize = 4 << 20;
/// Most levels that are remembered; those of chains that are no more are among them.
const MOST_LEVELS: usize = 20_000;

impl Book {
    /// An empty book of chains whose lowest image is `lowest`.
    pub(super) fn new(lowest: ChainId) -> Self {
        Self { lowest, levels: HashMap::new() }
    }

    pub(super) fn lowest(&self) -> ChainId {
        self.lowest
    }

    pub(super) fn level(&self, id: &ChainId) -> Option<&Level> {
        self.levels.get(id)
    }

    /// What together says which bytes are data at the level `id`, if that is known.
    pub(super) fn data(&self, id: &ChainId) -> Option<Vec<&Spans>> {
        let mut lists = Vec::new();
        let mut next = Some(*id);
        while let Some(id) = next {
            let data = self.levels.get(&id)?.data.as_ref()?;
            lists.push(&data.spans);
            next = data.against;
            // No book of ours has a circle in it.
            if lists.len() > self.levels.len() {
                return None;
            }
        }
        Some(lists)
    }

    pub(super) fn insert(&mut self, id: ChainId, level: Level) {
        self.levels.insert(id, level);
    }

    /// Gives up what does not fit: first where the data lies in other chains than `chain`, then where it lies in this one, for
    /// which the data of the level `top` takes the place of it all. What was counted goes only where there are very many levels.
    pub(super) fn shrink(&mut self, chain: &[ChainId], top: Option<(ChainId, Spans)>) {
        if self.levels.len() > MOST_LEVELS {
            self.levels.retain(|id, _| chain.contains(id));
        }
        if self.size() > LIMIT {
            let chain: std::collections::HashSet<_> = chain.iter().collect();
            self.levels.iter_mut().filter(|(id, _)| !chain.contains(id)).for_each(|(_, level)| level.data = None);
        }
        if self.size() > LIMIT {
            self.keep_top(top);
        }
    }

    /// Gives up where data is, but for the level `top`.
    pub(super) fn keep_top(&mut self, top: Option<(ChainId, Spans)>) {
        self.levels.values_mut().for_each(|level| level.data = None);
        if let Some((id, spans)) = top
            && let Some(level) = self.levels.get_mut(&id)
        {
            level.data = Some(Data { against: None, spans });
        }
    }

    /// Bytes that it takes when it is kept, and about as many in memory.
    pub(super) fn size(&self) -> usize {
        let of_data = |data: &Data| data.against.map_or(0, |_| ID) + 5 + data.spans.bytes().len();
        let level = |level: &Level| ID + 9 + level.data.as_ref().map_or(0, of_data);
        HEAD + ID + self.levels.values().map(level).sum::<usize>()
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.size());
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(u32::try_from(self.levels.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend(self.lowest.0);
        for (id, level) in &self.levels {
            out.extend(id.0);
            out.extend(level.total.to_le_bytes());
            let Some(data) = &level.data else {
                out.push(0);
                continue;
            };
            match data.against {
                None => out.push(1),
                Some(against) => {
                    out.push(2);
                    out.extend(against.0);
                }
            }
            out.push(data.spans.unit_bits().to_le_bytes()[0]);
            out.extend(u32::try_from(data.spans.bytes().len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend(data.spans.bytes());
        }
        let hash = blake3::hash(&out);
        out.extend(hash.as_bytes());
        out
    }

    /// The book that `bytes` are; `None` where they are none, whole and of this version.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (bytes, hash) = bytes.split_last_chunk::<ID>()?;
        let mut from = Reader(bytes);
        if from.take(MAGIC.len())? != MAGIC || from.u32()? != VERSION || blake3::hash(bytes).as_bytes() != hash {
            return None;
        }
        let count = from.u32()?;
        let mut book = Self::new(from.id()?);
        for _ in 0..count {
            let id = from.id()?;
            let total = u64::from_le_bytes(from.take(8)?.try_into().ok()?);
            let kind = from.u8()?;
            let data = if kind == 0 { None } else { Some(from.data(kind)?) };
            book.levels.insert(id, Level { total, data });
        }
        from.0.is_empty().then_some(book)
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn id(&mut self) -> Option<ChainId> {
        Some(ChainId(self.take(ID)?.try_into().ok()?))
    }

    fn data(&mut self, kind: u8) -> Option<Data> {
        let against = match kind {
            1 => None,
            2 => Some(self.id()?),
            _ => return None,
        };
        let unit_bits = u32::from(self.u8()?);
        let len = to_usize(self.u32()?.into());
        Some(Data { against, spans: Spans::parse(unit_bits, self.take(len)?)? })
    }
}
