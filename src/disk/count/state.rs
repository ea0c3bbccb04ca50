//! What is data at one level of a chain, put together from what each level changed.

use super::bits::Window;
use super::spans::{SpanReader, Spans};
use crate::base::{GuestOffset, GuestRange, Result};

/// The data of one level, window by window from the disk's start on: whatever an odd number of lists names.
pub(super) struct State<'a> {
    /// Each list, with the range that is next in it.
    lists: Vec<(SpanReader<'a>, Option<GuestRange>)>,
}

/// Windows are this many units, where nothing else says how many.
const WINDOW_UNITS_BITS: u32 = 16;

impl<'a> State<'a> {
    pub(super) fn of(lists: &[&'a Spans]) -> Self {
        let reader = |list: &&'a Spans| {
            let mut reader = list.iter();
            let first = reader.next();
            (reader, first)
        };
        Self { lists: lists.iter().map(reader).collect() }
    }

    /// A place at or before the next data that no window has come to.
    pub(super) fn next(&self) -> Option<GuestOffset> {
        self.lists.iter().filter_map(|(_, range)| Some((*range)?.start())).min()
    }

    /// Flips in `window` whatever a list names. Windows come in ascending order; what lies before one is passed over.
    pub(super) fn flip(&mut self, window: &mut Window) -> Result<()> {
        let end = window.range().end();
        for (reader, next) in &mut self.lists {
            while let Some(range) = next.filter(|range| range.start() < end) {
                window.flip(range)?;
                *next = if range.end() > end { Some(GuestRange::between(end, range.end())) } else { reader.next() };
            }
        }
        Ok(())
    }
}

/// How many bytes of `range` are data, where `lists` say what is.
pub(super) fn data_in(lists: &[&Spans], range: GuestRange) -> Result<u64> {
    let unit_bits = lists.iter().map(|list| list.unit_bits()).min().unwrap_or(9);
    let bits = unit_bits + WINDOW_UNITS_BITS;
    let mut state = State::of(lists);
    let mut window = Window::default();
    let mut sum = 0;
    while let Some(next) = state.next().filter(|next| *next < range.end()) {
        let start = GuestOffset(next.0 >> bits << bits);
        window.reset(GuestRange::between(start, start.saturating_add(1 << bits)), unit_bits);
        state.flip(&mut window)?;
        sum += window.stretches().map(|stretch| stretch.intersect(range).len()).sum::<u64>();
    }
    Ok(sum)
}
