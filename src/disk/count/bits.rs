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
}

const WORD: u64 = u64::BITS as u64;

impl Window {
    /// Moves it to `range`, where nothing is data yet; a unit has 2^`unit_bits` bytes.
    pub(super) fn reset(&mut self, range: GuestRange, unit_bits: u32) {
        self.range = range;
        self.unit_bits = unit_bits;
        self.words.clear();
        self.words.resize(to_usize((range.len() >> unit_bits).div_ceil(WORD)), 0);
    }

    /// Makes it what `other` is.
    pub(super) fn copy_from(&mut self, other: &Self) {
        self.range = other.range;
        self.unit_bits = other.unit_bits;
        self.words.clone_from(&other.words);
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
                change(word, mask);
            }
            at += count;
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
        self.words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>() << self.unit_bits
    }

    /// Whether the byte at `at` is data.
    pub(super) fn is_data(&self, at: GuestOffset) -> bool {
        let unit = at.0.wrapping_sub(self.range.start().0) >> self.unit_bits;
        self.words.get(to_usize(unit / WORD)).is_some_and(|word| word >> (unit % WORD) & 1 != 0)
    }

    /// The stretches of data, in order, none touching the next.
    pub(super) fn stretches(&self) -> impl Iterator<Item = GuestRange> + '_ {
        self.runs(|at| self.words.get(at).copied())
    }

    /// The stretches in which it differs from `other`, a window on the same range.
    pub(super) fn differences<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = GuestRange> + 'a {
        self.runs(|at| Some(self.words.get(at)? ^ other.words.get(at)?))
    }

    /// The runs of ones in the words that `word` gives, as ranges of the disk.
    fn runs(&self, word: impl Fn(usize) -> Option<u64>) -> impl Iterator<Item = GuestRange> {
        let (base, bits) = (self.range.start(), self.unit_bits);
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = first_one(at, &word)?;
            let end = first_one(start, |at| word(at).map(|word| !word)).unwrap_or(u64::MAX >> bits);
            at = end;
            Some(GuestRange::between(base.saturating_add(start << bits), base.saturating_add(end << bits)))
        })
        .map({
            let range = self.range;
            move |run| run.intersect(range)
        })
    }
}

/// The first bit at or after `from` that is set in the words that `word` gives.
fn first_one(from: u64, word: impl Fn(usize) -> Option<u64>) -> Option<u64> {
    let mut at = to_usize(from / WORD);
    let mut bits = word(at)? & (u64::MAX << (from % WORD));
    while bits == 0 {
        at += 1;
        bits = word(at)?;
    }
    Some(at as u64 * WORD + u64::from(bits.trailing_zeros()))
}
