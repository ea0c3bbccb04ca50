//! A window of a disk as bits: one for each unit of it, set where that is data.

use std::ops::Range;

use crate::base::units::to_usize;
use crate::base::{Error, ErrorKind, GuestOffset, GuestRange, Result};

/// Which units of one range of a disk are data.
#[derive(Default)]
pub(super) struct Window {
    range: GuestRange,
    unit_bits: u32,
    words: Vec<u64>,
    /// How many bits are set.
    ones: u64,
    /// The words that may have changed since [`Window::copy_to`].
    changed: Range<usize>,
}

const WORD: u64 = u64::BITS as u64;

impl Window {
    /// Moves it to `range`, where nothing is data yet; a unit has 2^`unit_bits` bytes.
    pub(super) fn reset(&mut self, range: GuestRange, unit_bits: u32) {
        self.range = range;
        self.unit_bits = unit_bits;
        self.words.clear();
        self.words.resize(to_usize((range.len() >> unit_bits).div_ceil(WORD)), 0);
        self.ones = 0;
        self.changed = 0..0;
    }

    /// Makes of `copy`, which is on the same range and was made so before or is as it was reset, what this is.
    pub(super) fn copy_to(&mut self, copy: &mut Self) {
        let words = std::mem::take(&mut self.changed);
        if let (Some(to), Some(from)) = (copy.words.get_mut(words.clone()), self.words.get(words)) {
            to.copy_from_slice(from);
        }
    }

    pub(super) fn range(&self) -> GuestRange {
        self.range
    }

    /// The part of `range` that lies in the window, in units from its start. Refuses what ends inside a unit.
    fn units(&self, range: GuestRange) -> Result<Range<u64>> {
        let within = range.intersect(self.range);
        if within.is_empty() {
            return Ok(0..0);
        }
        let base = self.range.start().0;
        let (start, end) = (within.start().0 - base, within.end().0 - base);
        if (start | end) & ((1 << self.unit_bits) - 1) != 0 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the range {} to {} is not in units of 2^{} bytes", range.start(), range.end(), self.unit_bits),
            ));
        }
        Ok(start >> self.unit_bits..end >> self.unit_bits)
    }

    /// Calls `change` with every word that holds a bit of `range` and with the mask of these.
    fn change(&mut self, range: GuestRange, change: impl Fn(&mut u64, u64)) -> Result<()> {
        let units = self.units(range)?;
        let mut at = units.start;
        while at < units.end {
            let first = at % WORD;
            let count = (WORD - first).min(units.end - at);
            let mask = (u64::MAX >> (WORD - count)) << first;
            if let Some(word) = self.words.get_mut(to_usize(at / WORD)) {
                let ones = u64::from(word.count_ones());
                change(word, mask);
                self.ones = self.ones + u64::from(word.count_ones()) - ones;
            }
            at += count;
        }
        if !units.is_empty() {
            let words = to_usize(units.start / WORD)..to_usize(units.end.div_ceil(WORD));
            let all = &mut self.changed;
            *all = if all.start >= all.end { words } else { all.start.min(words.start)..all.end.max(words.end) };
        }
        Ok(())
    }

    /// What of `range` lies in the window is data, or a hole.
    pub(super) fn set(&mut self, range: GuestRange, data: bool) -> Result<()> {
        self.change(range, |word, mask| if data { *word |= mask } else { *word &= !mask })
    }

    /// What of `range` lies in the window becomes the other of the two.
    pub(super) fn flip(&mut self, range: GuestRange) -> Result<()> {
        self.change(range, |word, mask| *word ^= mask)
    }

    /// Bytes of data.
    pub(super) fn data(&self) -> u64 {
        self.ones << self.unit_bits
    }

    /// Whether the byte at `at` is data.
    pub(super) fn is_data(&self, at: GuestOffset) -> bool {
        let unit = at.0.wrapping_sub(self.range.start().0) >> self.unit_bits;
        self.words.get(to_usize(unit / WORD)).is_some_and(|word| word >> (unit % WORD) & 1 != 0)
    }

    /// The stretches of data, in order, none touching the next.
    pub(super) fn stretches(&self) -> impl Iterator<Item = GuestRange> + '_ {
        self.runs(0..self.words.len(), |at| self.words.get(at).copied())
    }

    /// The stretches in which it differs from `copy`: see [`copy_to`](Self::copy_to).
    pub(super) fn differences<'a>(&'a self, copy: &'a Self) -> impl Iterator<Item = GuestRange> + 'a {
        self.runs(self.changed.clone(), |at| Some(self.words.get(at)? ^ copy.words.get(at)?))
    }

    /// The runs of ones in those words that `word` gives, as ranges of the disk.
    fn runs(&self, words: Range<usize>, word: impl Fn(usize) -> Option<u64>) -> impl Iterator<Item = GuestRange> {
        let (base, bits) = (self.range.start(), self.unit_bits);
        let end_of_words = words.end as u64 * WORD;
        let mut at = words.start as u64 * WORD;
        std::iter::from_fn(move || {
            let start = first_one(at..end_of_words, &word)?;
            let end = first_one(start..end_of_words, |at| word(at).map(|word| !word)).unwrap_or(end_of_words);
            at = end;
            Some(GuestRange::between(base.saturating_add(start << bits), base.saturating_add(end << bits)))
        })
    }
}

/// The first bit of `range`, which ends with a word, that is set in the words that `word` gives.
fn first_one(range: Range<u64>, word: impl Fn(usize) -> Option<u64>) -> Option<u64> {
    let mut mask = u64::MAX << (range.start % WORD);
    for at in range.start / WORD..range.end / WORD {
        let bits = word(to_usize(at))? & mask;
        if bits != 0 {
            return Some(at * WORD + u64::from(bits.trailing_zeros()));
        }
        mask = u64::MAX;
    }
    None
}
