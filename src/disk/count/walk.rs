//! The counting itself: from the oldest level up, window by window, each image's tables read once for all levels.

use super::bits::Window;
use super::book::LIMIT;
use super::spans::{SpanWriter, Spans};
use super::state::State;
use crate::base::{GuestOffset, GuestRange, Result};
use crate::disk::layer::Layer;
use crate::disk::map::{Collector, LayerIndex, Source};

/// What is to be counted.
pub(super) struct Plan<'a> {
    /// The levels that have not been counted yet, the lowest first; the last one is the head of the chain.
    pub(super) levels: Vec<Planned<'a>>,
    /// Which bytes are data right below them.
    pub(super) below: Vec<&'a Spans>,
    /// Log2 of a unit: nothing that any image of the chain says begins or ends inside one.
    pub(super) unit_bits: u32,
    /// Log2 of the bytes that are looked at at a time.
    pub(super) window_bits: u32,
}

/// One level to be counted.
pub(super) struct Planned<'a> {
    pub(super) layer: &'a Layer,
    /// Whether it will be remembered; its size is then at most the head's.
    pub(super) remembered: bool,
}

/// What came out.
pub(super) struct Counted {
    /// For each level of the plan how many bytes are data, right where the level's size is at most the head's.
    pub(super) totals: Vec<u64>,
    /// For each level that is remembered, in what it differs from the one remembered before it, or from what was below the
    /// first; nothing where that takes too much room.
    pub(super) differences: Option<Vec<Spans>>,
    /// The data of the last level that is remembered, where it takes little room.
    pub(super) data: Option<Spans>,
}

/// Bytes to a sector. A raw file may end inside one; to the images above it, the rest of that is part of it.
const SECTOR: u64 = 512;

/// The size of a layer's disk in whole sectors.
pub(super) fn whole_sectors(layer: &Layer) -> GuestOffset {
    let size = layer.size();
    GuestOffset(size.checked_next_multiple_of(SECTOR).unwrap_or(size))
}

/// Goes through all images of the plan. Bytes that cannot be read count as data, as they do in a map.
pub(super) fn walk(plan: &Plan<'_>) -> Result<Counted> {
    let Some(head) = plan.levels.last() else {
        return Ok(Counted { totals: Vec::new(), differences: None, data: None });
    };
    let end = whole_sectors(head.layer);
    let mut tallies = plan.levels.iter().map(|level| Tally::new(level, plan)).collect::<Result<Vec<_>>>()?;
    let mut below = State::of(&plan.below);
    let mut top = Some(SpanWriter::new(plan.unit_bits));
    let mut keeps_differences = true;
    let mut pane = Pane::default();
    let (mut asked, mut done) = (GuestOffset(0), GuestOffset(0));
    loop {
        let occupied = tallies.iter().filter_map(|tally| tally.next).min();
        // Progress whatever the file system answers of a raw file.
        let next = occupied.into_iter().chain(below.next()).min().map(|next| next.max(done));
        let Some(next) = next.filter(|next| *next < end) else { break };
        let start = GuestOffset(next.0 >> plan.window_bits << plan.window_bits);
        let range = GuestRange::between(start, start.saturating_add(1 << plan.window_bits).min(end));
        asked = ask_ahead(&tallies, range, asked);
        pane.begin(range, plan.unit_bits, &mut below)?;
        for tally in &mut tallies {
            tally.lay_over(&mut pane, keeps_differences)?;
        }
        if let Some(writer) = &mut top {
            pane.noted.stretches().for_each(|stretch| writer.push(stretch));
        }
        top = top.filter(|writer| writer.len() <= LIMIT / 2);
        if tallies.iter().map(|tally| tally.differences.len()).sum::<usize>() > LIMIT {
            keeps_differences = false;
            tallies.iter_mut().for_each(|tally| tally.differences = SpanWriter::new(plan.unit_bits));
        }
        done = range.end();
        for tally in &mut tallies {
            tally.advance(done)?;
        }
    }
    let totals = tallies.iter().map(|tally| tally.total).collect();
    let remembered = tallies.into_iter().filter(|tally| tally.level.remembered);
    let differences = keeps_differences.then(|| remembered.map(|tally| tally.differences.finish()).collect());
    Ok(Counted { totals, differences, data: top.map(SpanWriter::finish) })
}

/// Asks the kernel for the tables of `range` and of some windows behind it, from `asked` on. Returns up to where.
fn ask_ahead(tallies: &[Tally<'_>], range: GuestRange, asked: GuestOffset) -> GuestOffset {
    /// Bytes of tables that shall be on their way.
    const AHEAD: u64 = 16 << 20;
    /// Enough for the medium to be busy.
    const MOST_WINDOWS: u64 = 16;
    let table_bytes: u64 = tallies.iter().map(|tally| 1 << tally.level.layer.granularity().1).sum();
    let windows = (AHEAD / table_bytes.max(1)).clamp(1, MOST_WINDOWS);
    let until = range.end().saturating_add(range.len().saturating_mul(windows));
    let wanted = GuestRange::between(asked.max(range.start()), until);
    if tallies.len() > 1 && !wanted.is_empty() {
        let here = tallies.iter().filter(|tally| tally.next.is_some_and(|next| next < until));
        here.for_each(|tally| tally.level.layer.will_visit(wanted));
    }
    until
}

/// The window that is looked at, as it is at one level after the other.
#[derive(Default)]
struct Pane {
    window: Window,
    /// As it was at the last level that is remembered.
    noted: Window,
}

impl Pane {
    fn begin(&mut self, range: GuestRange, unit_bits: u32, below: &mut State<'_>) -> Result<()> {
        self.window.reset(range, unit_bits);
        self.noted.reset(range, unit_bits);
        below.flip(&mut self.window)?;
        self.window.copy_to(&mut self.noted);
        Ok(())
    }
}

/// One level while it is counted.
struct Tally<'a> {
    level: &'a Planned<'a>,
    /// Where the layer's disk ends, in whole sectors.
    end: GuestOffset,
    /// Where the layer next holds anything, at or after the window.
    next: Option<GuestOffset>,
    total: u64,
    differences: SpanWriter,
}

impl<'a> Tally<'a> {
    fn new(level: &'a Planned<'a>, plan: &Plan<'_>) -> Result<Self> {
        level.layer.check_scan()?;
        let next = level.layer.next_allocated(GuestOffset(0))?;
        let end = whole_sectors(level.layer);
        Ok(Self { level, end, next, total: 0, differences: SpanWriter::new(plan.unit_bits) })
    }

    /// Makes of what is data below it what is data at this level, and counts that.
    fn lay_over(&mut self, pane: &mut Pane, keeps_differences: bool) -> Result<()> {
        let range = pane.window.range();
        if self.end < range.end() {
            pane.window.set(GuestRange::between(self.end.max(range.start()), range.end()), false)?;
        }
        let own = GuestRange::between(range.start(), range.end().min(self.end));
        if self.next.is_some_and(|next| next < own.end()) && !own.is_empty() {
            let mut found = Collector::new(LayerIndex(0));
            self.level.layer.visit(&[own], &mut found)?;
            for piece in found.pieces() {
                pane.window.set(piece.range, piece.source != Source::Zero)?;
            }
        }
        self.total = self.total.saturating_add(pane.window.data());
        let size = GuestOffset(self.level.layer.size());
        if size < self.end && (range.start()..range.end()).contains(&size) && pane.window.is_data(size) {
            // Of its last sector it shows, as the head of a chain, only what there is.
            self.total = self.total.saturating_sub(self.end.0 - size.0);
        }
        if self.level.remembered {
            if keeps_differences {
                pane.window.differences(&pane.noted).for_each(|range| self.differences.push(range));
            }
            pane.window.copy_to(&mut pane.noted);
        }
        Ok(())
    }

    /// The windows up to `at` are done.
    fn advance(&mut self, at: GuestOffset) -> Result<()> {
        if self.next.is_some_and(|next| next < at) {
            self.next = self.level.layer.next_allocated(at)?;
        }
        Ok(())
    }
}
