//! How much of a disk is data: counted once for each chain, and remembered.
//!
//! Counting reads the tables of every image, so what it finds is kept: in memory for chains that were asked for lately, and in
//! the cache directory, as a [`Book`] for each image that is the lowest of chains. A chain that is not in the book, but whose
//! older part is, is counted from there on, with a look at the tables of its newer images alone; and counting a chain counts every
//! chain beneath it. What is kept is which bytes are data, and not merely how many, because only that stays right under whatever
//! an image above says, and answers for partitions too.
//!
//! Nothing here is needed for an answer: whoever gets none looks at the maps.

mod bits;
mod book;
mod spans;
mod state;
#[cfg(test)]
mod tests;
mod walk;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::book::{Book, ChainId, Data, LIMIT, Level};
use self::spans::Spans;
use self::state::data_in;
use self::walk::{Counted, Plan, Planned, walk, whole_sectors};
use super::flat::Disk;
use super::layer::{Layer, Node};
use crate::base::units::to_usize;
use crate::base::{GuestOffset, GuestRange, HostOffset, Result};
use crate::format::ImageFormat;
use crate::storage::{DerivedDir, FileIdentity, LastingIdentity, Storage, derived_name};

/// The books of a process.
#[derive(Default)]
pub(super) struct Books {
    derived: Option<Arc<DerivedDir>>,
    /// Those asked for last are at the back.
    recent: Mutex<Vec<Kept>>,
}

/// A book that is in memory.
struct Kept {
    image: FileIdentity,
    /// Nothing until it has been read.
    book: Arc<Mutex<Option<Book>>>,
    /// What it took when it was last written.
    bytes: usize,
}

/// What all books in memory may take together, but for the one in use.
const MEMORY: usize = 2 * LIMIT;
/// What they may take in the cache directory.
const ON_DISK: u64 = 256 << 20;
/// Of a smaller part of a disk than one in this many the map is looked at, rather than all of the disk.
const SMALL_PART: u64 = 4;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whatever panicked, what is behind these locks is whole: it is changed when all is counted.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Books {
    pub(super) fn new(derived: Option<Arc<DerivedDir>>) -> Self {
        Self { derived, recent: Mutex::default() }
    }

    /// The book of the chains on `image`. Who counts holds it, and whoever asks for the same chains meanwhile waits.
    fn of(&self, image: &FileIdentity) -> Arc<Mutex<Option<Book>>> {
        let mut recent = lock(&self.recent);
        let known = recent.iter().position(|kept| kept.image == *image);
        let kept = known.map_or_else(|| Kept { image: *image, book: Arc::default(), bytes: 0 }, |at| recent.remove(at));
        let book = kept.book.clone();
        recent.push(kept);
        book
    }

    /// Notes what the book of `image` takes now, and forgets others that were not asked for lately.
    fn weigh(&self, image: &FileIdentity, book: &Book) {
        const LEAST: usize = 4096;
        let mut recent = lock(&self.recent);
        if let Some(kept) = recent.iter_mut().find(|kept| kept.image == *image) {
            kept.bytes = book.size().max(LEAST);
        }
        let mut total: usize = recent.iter().map(|kept| kept.bytes).sum();
        let mut forgotten = 0;
        while total > MEMORY && forgotten + 1 < recent.len() {
            total -= recent[forgotten].bytes;
            forgotten += 1;
        }
        recent.drain(..forgotten);
    }

    fn name(image: &FileIdentity) -> String {
        derived_name("data", image)
    }

    /// The kept book of `image`, which has the name `lowest` in chains, or an empty one.
    fn read(&self, image: &FileIdentity, lowest: ChainId) -> Book {
        let read = |derived: &Arc<DerivedDir>| -> Result<Option<Book>> {
            let Some(file) = derived.read(&Self::name(image))? else { return Ok(None) };
            // A book is brought within the limit before it is written.
            if file.size() > 2 * LIMIT as u64 {
                return Ok(None);
            }
            let mut bytes = vec![0; to_usize(file.size())];
            file.read_exact_at(&mut bytes, HostOffset(0))?;
            Ok(Book::parse(&bytes))
        };
        let book = match self.derived.as_ref().map(read) {
            Some(Ok(book)) => book,
            Some(Err(error)) => {
                tracing::info!("cannot use what is kept of the data of disks: {}", error.report());
                None
            }
            None => None,
        };
        book.filter(|book| book.lowest() == lowest).unwrap_or_else(|| Book::new(lowest))
    }

    fn write(&self, image: &FileIdentity, book: &Book) {
        let Some(derived) = &self.derived else { return };
        let bytes = book.to_bytes();
        let fill = |to: &mut dyn std::io::Write| {
            to.write_all(&bytes).map_err(|e| crate::base::Error::io("cannot write what disks hold", e))
        };
        if let Err(error) = derived.write_within(&Self::name(image), ON_DISK, fill) {
            tracing::info!("what disks hold is not kept: {}", error.report());
        }
    }
}

/// A chain as it is counted.
struct Chain<'a> {
    /// The lowest first.
    levels: Vec<&'a Layer>,
    ids: Vec<ChainId>,
    /// So many levels from the lowest on are certainly what they were when they were opened, if their identities are.
    settled: usize,
}

impl<'a> Chain<'a> {
    fn of(nodes: &'a [Arc<Node>]) -> Self {
        let levels: Vec<&Layer> = nodes.iter().rev().map(|node| &node.layer).collect();
        let mut ids: Vec<ChainId> = Vec::with_capacity(levels.len());
        for layer in &levels {
            let id = chain_id(ids.last(), &layer.lasting_identity(), layer.format());
            ids.push(id);
        }
        let settled = levels.iter().take_while(|layer| layer.is_settled()).count();
        Self { levels, ids, settled }
    }

    /// What the level `at` is remembered as, where it can be: not if its images may still change unnoticed, nor if its disk
    /// reaches beyond that of the head, up to which alone it is counted.
    fn remembered(&self, at: usize) -> bool {
        let size = |at: usize| self.levels.get(at).map(|layer| layer.size());
        at < self.settled && size(at) <= self.levels.last().map(|layer| layer.size())
    }

    /// Log2 of the unit in which every image of the chain speaks.
    fn unit_bits(&self) -> u32 {
        const SECTOR_BITS: u32 = 9;
        let of = |layer: &&Layer| {
            let unit = match layer.format() {
                ImageFormat::Qcow2 => layer.granularity().0,
                ImageFormat::Raw => SECTOR_BITS,
            };
            unit.min(whole_sectors(layer).0.trailing_zeros())
        };
        self.levels.iter().map(of).min().unwrap_or(SECTOR_BITS)
    }
}

/// The name of an image above the chain `below`.
fn chain_id(below: Option<&ChainId>, image: &LastingIdentity, format: ImageFormat) -> ChainId {
    let mut hasher = blake3::Hasher::new();
    if let Some(below) = below {
        hasher.update(&below.0);
    }
    let LastingIdentity { identity: FileIdentity { device, inode, size, mtime_ns }, ctime_ns } = image;
    for number in [device, inode, size] {
        hasher.update(&number.to_le_bytes());
    }
    for time in [mtime_ns, ctime_ns] {
        hasher.update(&time.to_le_bytes());
    }
    hasher.update(format.name().as_bytes());
    ChainId(*hasher.finalize().as_bytes())
}

/// How many bytes of `range`, which lies in the disk, are data. `None` where the maps have to be looked at instead.
pub(super) fn count(disk: &Disk, range: GuestRange) -> Option<u64> {
    let chain = Chain::of(&disk.nodes);
    let (image, lowest, id) = (chain.levels.first()?.identity(), *chain.ids.first()?, chain.ids.last()?);
    let books = disk.env.books();
    let shared = books.of(&image);
    let mut held = lock(&shared);
    let is_new = held.is_none();
    let book = held.get_or_insert_with(|| books.read(&image, lowest));
    if is_new {
        books.weigh(&image, book);
    }
    let whole = GuestRange::between(GuestOffset(0), GuestOffset(disk.size()));
    if let Some(level) = book.level(id) {
        if range == whole {
            return Some(level.total);
        }
        // Where the data does not fit into the book, counting anew would not change that.
        return data_in(&book.data(id)?, range).ok();
    }
    // Of what is not remembered, nothing but the count of the whole disk would come out.
    let is_remembered = chain.levels.len() <= chain.settled;
    if range != whole && (range.len() < whole.len() / SMALL_PART || !is_remembered) {
        return None;
    }
    let head = match learn(disk, &chain, book) {
        Ok(total) => total,
        Err(error) => {
            // What cannot be read may lie beneath what can, and then does not matter.
            tracing::debug!("the data of a disk is counted by its map: {}", error.report());
            return None;
        }
    };
    books.weigh(&image, book);
    if chain.settled > 0 {
        books.write(&image, book);
    }
    if range == whole { head } else { data_in(&book.data(id)?, range).ok() }
}

/// Counts what of the chain the book does not have, and adds it. Returns the count of the whole disk.
fn learn(disk: &Disk, chain: &Chain<'_>, book: &mut Book) -> Result<Option<u64>> {
    let top = chain.levels.len() - 1;
    let known = (0..top).rev().filter(|at| chain.remembered(*at)).find_map(|at| {
        let id = chain.ids.get(at)?;
        Some((at + 1, Some(*id), book.data(id)?))
    });
    let (first, start, below) = known.unwrap_or_default();
    let planned = |at: usize| Some(Planned { layer: chain.levels.get(at)?, remembered: chain.remembered(at) });
    let plan = Plan {
        levels: (first..=top).filter_map(planned).collect(),
        below,
        unit_bits: chain.unit_bits(),
        window_bits: disk.region_bits,
    };
    let counted = walk(&plan)?;
    let total = counted.totals.last().copied();
    enter(chain, book, first, start, counted);
    Ok(total)
}

/// Enters the levels from `first` on, which lies on `start`.
fn enter(chain: &Chain<'_>, book: &mut Book, first: usize, start: Option<ChainId>, counted: Counted) {
    let Counted { totals, differences, data } = counted;
    let has_differences = differences.is_some();
    let mut differences = differences.map(Vec::into_iter);
    let mut against = start;
    let mut last = None;
    for (at, total) in (first..).zip(totals).filter(|(at, _)| chain.remembered(*at)) {
        let Some(id) = chain.ids.get(at).copied() else { break };
        let spans: Option<Spans> = differences.as_mut().and_then(Iterator::next);
        book.insert(id, Level { total, data: spans.map(|spans| Data { against, spans }) });
        against = Some(id);
        last = Some(id);
    }
    let top = last.zip(data);
    if has_differences {
        book.shrink(&chain.ids, top);
    } else {
        book.keep_top(top);
    }
}
