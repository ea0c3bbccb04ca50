//! Ranges of a disk, packed: the form in which it is kept what is data.
//!
//! For each range two numbers, in units: how far it lies from the end of the one before it, and how long it is. A number is
//! written seven bits to a byte, the lowest first; in all bytes but its last the highest bit is set.

use crate::base::{GuestOffset, GuestRange};

/// Ranges in ascending order, none touching the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spans {
    unit_bits: u32,
    bytes: Box<[u8]>,
}

/// Log2 of the smallest and the largest unit.
const UNIT_BITS: std::ops::RangeInclusive<u32> = 9..=40;

impl Spans {
    /// The ranges that `bytes` hold; `None` where these are not what [`SpanWriter`] writes.
    pub(super) fn parse(unit_bits: u32, bytes: &[u8]) -> Option<Self> {
        let spans = Self { unit_bits, bytes: bytes.into() };
        if !UNIT_BITS.contains(&unit_bits) {
            return None;
        }
        let mut reader = spans.iter();
        while !reader.rest.is_empty() {
            reader.next()?;
        }
        Some(spans)
    }

    pub(super) fn unit_bits(&self) -> u32 {
        self.unit_bits
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn iter(&self) -> SpanReader<'_> {
        SpanReader { unit_bits: self.unit_bits, rest: &self.bytes, end: 0 }
    }
}

/// Goes through packed ranges.
pub(super) struct SpanReader<'a> {
    unit_bits: u32,
    rest: &'a [u8],
    /// Where the last range ended, in units.
    end: u64,
}

impl SpanReader<'_> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..63).step_by(7) {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

impl Iterator for SpanReader<'_> {
    type Item = GuestRange;

    fn next(&mut self) -> Option<GuestRange> {
        let first = self.end == 0;
        let (gap, len) = (self.number()?, self.number()?);
        let start = self.end.checked_add(gap).filter(|_| gap > 0 || first)?;
        let end = start.checked_add(len).filter(|end| len > 0 && *end <= u64::MAX >> self.unit_bits)?;
        self.end = end;
        Some(GuestRange::between(GuestOffset(start << self.unit_bits), GuestOffset(end << self.unit_bits)))
    }
}

/// Packs ranges that come in ascending order.
pub(super) struct SpanWriter {
    unit_bits: u32,
    bytes: Vec<u8>,
    /// Where the last range that is written ends, in units.
    end: u64,
    /// The range that may still grow, in units.
    open: Option<(u64, u64)>,
}

impl SpanWriter {
    pub(super) fn new(unit_bits: u32) -> Self {
        Self { unit_bits, bytes: Vec::new(), end: 0, open: None }
    }

    /// Adds a range of whole units, which does not begin before the end of the last one.
    pub(super) fn push(&mut self, range: GuestRange) {
        let (start, end) = (range.start().0 >> self.unit_bits, range.end().0 >> self.unit_bits);
        match &mut self.open {
            Some(open) if open.1 == start => open.1 = end,
            _ => {
                self.flush();
                self.open = Some((start, end));
            }
        }
    }

    /// Bytes written so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn flush(&mut self) {
        if let Some((start, end)) = self.open.take() {
            self.number(start.saturating_sub(self.end));
            self.number(end.saturating_sub(start));
            self.end = end;
        }
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.bytes.push(number.to_le_bytes()[0]);
    }

    pub(super) fn finish(mut self) -> Spans {
        self.flush();
        Spans { unit_bits: self.unit_bits, bytes: self.bytes.into() }
    }
}
